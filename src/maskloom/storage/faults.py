"""What a store's errors mean: whether to ask again, and the one line for what a user can mend.

Knows nothing about what is asked of a store, or how long is waited.
"""

from __future__ import annotations

import errno
import os
import re

from maskloom.errors import UserError

_FINAL = (errno.EINVAL, errno.ENOSYS, errno.EMSGSIZE, errno.ENAMETOOLONG, errno.EPERM, getattr(errno, "EREMCHG", -1))
_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_BREAKS = {"HTTPClientError", "ClientError", "ResponseStreamingError", "IncompleteReadError", "ConnectionError"}
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "asyncio", "urllib3")
_AGAIN = (408, 425, 429)  # answers of HTTP by which a client is asked to come back


def is_passing(error: Exception) -> bool:
    """Returns whether an error is of the connection or the store's load, and may be gone in a while."""
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    if isinstance(
        error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError
    ):
        return False
    if isinstance(error, OSError):
        return error.errno not in _FINAL and not _is_answer(error)
    kinds = [kind for kind in type(error).__mro__ if kind.__module__.split(".")[0] in _LIBRARIES]
    return any(kind.__name__ in _BREAKS for kind in kinds)


def _is_answer(error: OSError) -> bool:
    """Returns whether the store did answer, by a refusal whose name the library does not know.

    s3fs gives those the same number as a broken connection.
    """
    answer = getattr(error.__cause__, "response", None)
    if error.errno != errno.EIO or not isinstance(answer, dict):
        return False
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code = str(answer.get("Error", {}).get("Code", ""))
    return 400 <= status < 500 and status not in _AGAIN and "Throttl" not in code and "SlowDown" not in code


def explained(place: str, what: str, error: Exception) -> Exception:
    """Returns the one line for what a user can mend; other errors, and those about one object, as they are."""
    if isinstance(error, UserError | FileNotFoundError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return error
    if isinstance(error, PermissionError):
        return UserError(
            f"{place}: expected to be allowed to {what} it, found a refusal ({reason(error)}); check the credentials "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) and what they are allowed to"
        )
    if type(error).__module__.startswith(("botocore", "aiobotocore")):
        return UserError(
            f"{place}: the store cannot be used with these settings ({reason(error)}); give credentials in the "
            "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE) and check AWS_ENDPOINT_URL"
        )
    if isinstance(error, OSError) and (
        error.errno in (errno.EPERM, getattr(errno, "EREMCHG", -1)) or _is_answer(error)
    ):
        return UserError(
            f"{place}: the store refuses to {what} it ({reason(error)}); check the bucket's name, its region and its "
            "limits"
        )
    return error


def reason(error: Exception) -> str:
    """Returns an error's words in a line, without what credentials or signatures may be in it."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"\?[^\s\"']*", "", text)
    for name in _SECRETS:
        if os.environ.get(name):
            text = text.replace(os.environ[name], "…")
    return text[:200]
