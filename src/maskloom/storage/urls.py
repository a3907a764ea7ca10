"""What a URL is, where its mirror lies on this machine, and which names from a store are safe to use below a folder.

Knows nothing about any store; loads no library.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from maskloom.errors import UserError

CACHE_VARIABLE = "MASKLOOM_CACHE"
"""The environment variable that names the folder of mirrors; ``~/.cache/maskloom`` unless it is set."""

_SCHEME = re.compile(r"([a-z][a-z0-9+.\-]+):/(/?)(.*)", re.DOTALL)
_PASSWORD = re.compile(r"[^/@]*:[^@]*@")  # which may hold "/"
_QUERY = re.compile(r"\?[^/]*=")
_MAX_PART = 240  # bytes of a file name, as for ids of records


def url_of(place: Path | str) -> str | None:
    """Returns the URL that a place is, without a final "/"; None for a path of this machine, ``file://`` among them.

    ``Path("s3://bucket/x")`` is ``s3:/bucket/x``; it is understood, too, unless a file or folder has that name. Raises
    ``UserError`` for a URL that holds a password or a signature, which it does not repeat.

    >>> url_of("s3://bucket/photos/"), url_of(Path("s3://bucket/photos")), url_of("photos")
    ('s3://bucket/photos', 's3://bucket/photos', None)
    """
    match = _SCHEME.fullmatch(str(place))
    if match is None:
        return None
    scheme, slash, rest = match.groups()
    if scheme == "file" or (not slash and (not isinstance(place, Path) or place.exists())):
        return None
    _check_secrets(scheme, rest)
    rest = rest.rstrip("/")
    if not rest.strip("/"):
        raise UserError(f"{scheme}://: expected a bucket or folder behind it, as in {scheme}://bucket/folder")
    return f"{scheme}://{rest}"


def path_of(place: Path | str) -> Path:
    """Returns the path of a place on this machine; that of ``file:///x`` is ``/x``."""
    match = _SCHEME.fullmatch(str(place))
    return Path("/" + match[3].lstrip("/")) if match is not None and match[1] == "file" else Path(place)


def _check_secrets(scheme: str, rest: str) -> None:
    """Raises for a password, and for parameters behind a "?": those that stores know are signatures and tokens.

    A name before "@" is none: Azure's containers and users of SFTP stand there.
    """
    if _PASSWORD.match(rest) or _QUERY.search(rest) or (scheme in ("http", "https") and "?" in rest):
        raise UserError(
            f"{scheme}://…: expected a URL without password or signature, found a password, or parameters "
            "behind a '?'; give the store's credentials in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) "
            "or in a profile (AWS_PROFILE)"
        )


def endpoint() -> str:
    """Returns the address of the S3 store as the environment says; "" for that of AWS or of a profile."""
    stated = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    return stated.rstrip("/")


def store_name() -> str:
    """Returns which store URLs are of, as far as the environment says: its address, or the profile that names it."""
    return endpoint() or os.environ.get("AWS_PROFILE", "")


def cache_folder() -> Path:
    """Returns the folder below which mirrors lie, as the environment says."""
    stated = os.environ.get(CACHE_VARIABLE)
    return Path(stated).expanduser().absolute() if stated else Path.home() / ".cache" / "maskloom"


def mirror_folder(url: str) -> Path:
    """Returns the folder of a URL's mirror: the same for the same URL and store in every process of this machine."""
    digest = hashlib.sha256(f"{store_name()} {url}".encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url.partition("://")[2]).strip("-.")[-60:]
    return cache_folder() / f"{name or 'root'}-{digest}"


def check_name(url: str, name: str) -> str:
    """Returns a name that a store lists below a URL; raises ``UserError`` unless it lies below the folder it is for.

    The names are others' and become paths of this machine: "..", empty parts, absolute names, control characters and
    parts that no file system takes are refused.
    """
    parts = name.split("/")
    unsafe = (
        any(part in ("", ".", "..") or len(part.encode(errors="surrogatepass")) > _MAX_PART for part in parts)
        or PurePosixPath(name).as_posix() != name
        or any(ord(char) < 32 or ord(char) == 127 or 0xD800 <= ord(char) < 0xE000 for char in name)
    )
    if unsafe:
        raise UserError(
            f"{url}: expected names that can be files below a folder, found {name!r:.200}; rename or remove that object"
        )
    return name
