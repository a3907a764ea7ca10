"""What stores answer, and what becomes of it: a bucket that is not there, refusals of unknown names."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import pytest

from maskloom.errors import UserError
from maskloom.storage.faults import is_passing
from maskloom.storage.remote import Store

pytest.importorskip("fsspec")


class Answer(Exception):
    """As botocore's ``ClientError``."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


def unknown(status: int, code: str) -> OSError:
    """Returns what s3fs makes of an answer whose name it does not know."""
    error = OSError(errno.EIO, f"An error occurred ({code})")
    error.__cause__ = Answer(status, code)
    return error


class Refusing:
    """A store of fsspec's that answers everything by an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def invalidate_cache(self) -> None: ...

    def __getattr__(self, name: str) -> Any:
        def answer(*args: Any, **kwargs: Any) -> Any:
            raise self.error

        return answer


def refusing(error: Exception, wait: float = 60.0) -> Store:
    store = Store("memory://refusing", wait=wait)
    store._fs, store._answered = Refusing(error), True
    return store


def test_writing_into_nothing_is_one_line(tmp_path: Path) -> None:
    store = refusing(FileNotFoundError("The specified bucket does not exist"))  # it has no errno and names no file
    (tmp_path / "small").write_bytes(b"x")
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(2**25 + 1)
    for write in (
        lambda: store.write("a", b"x"),
        lambda: store.create("a", b"x"),
        lambda: store.upload(tmp_path / "small", "a"),
        lambda: store.upload(tmp_path / "large", "a"),
    ):
        with pytest.raises(UserError, match="memory://refusing: expected a bucket or folder to write to"):
            write()
    assert store.read_all("a") is None and store.stat("a") is None


@pytest.mark.parametrize(
    ("status", "code", "passes"),
    [
        (400, "QuotaExceeded", False),
        (403, "KMS.DisabledException", False),
        (400, "ThrottlingException", True),
        (408, "Slow", True),
        (429, "TooManyRequests", True),
        (503, "XBusy", True),
        (507, "InsufficientStorage", True),
    ],
)
def test_an_answer_is_told_from_a_broken_connection(status: int, code: str, passes: bool) -> None:
    assert is_passing(unknown(status, code)) is passes
    assert is_passing(OSError(errno.EIO, "broken"))


def test_a_refusal_of_an_unknown_name_is_told_at_once() -> None:
    store, began = refusing(unknown(400, "QuotaExceeded")), time.monotonic()
    with pytest.raises(UserError, match=r"memory://refusing/a: the store refuses to write it.*QuotaExceeded"):
        store.write("a", b"x")
    assert time.monotonic() - began < 5
