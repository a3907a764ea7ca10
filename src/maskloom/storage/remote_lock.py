"""One machine at a time at a URL: an object that says who works there, and is written again as a sign of life.

Times are the store's own: clocks of different machines are not compared. Knows nothing about runs.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from maskloom.errors import UserError
from maskloom.run_lock import Holder
from maskloom.storage.remote import Store

LOCK_NAME = ".maskloom-holder.json"
"""The name of the object."""
SIGN_SECONDS = 20.0
"""A sign of life is given so often."""
GONE_SECONDS = 120.0
"""A holder whose last sign is older is taken to be gone."""

_SETTLE_SECONDS = 1.0
_TRIES = 3


class TakenOver(UserError):
    """Somebody else works at the URL by now."""


@dataclass(frozen=True, slots=True)
class _Claim:
    mirror: str
    holder: Holder | None


class RemoteLock:
    """The lock of a URL for one mirror of it."""

    def __init__(self, store: Store, mirror: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store, self._mirror, self._sleep = store, mirror, sleep
        self._holder = Holder.present()

    def take(self) -> bool:
        """Takes the lock; returns whether this mirror had it last, and was not done.

        Raises ``UserError``, naming who holds it, unless that one gave no sign for ``GONE_SECONDS``.
        """
        for _ in range(_TRIES):
            claim = self._read()
            if claim is None:
                self._store.create(LOCK_NAME, self._content())
                if self._is_ours(self._read()):
                    return False
                continue
            if self._is_ours(claim):
                self._store.write(LOCK_NAME, self._content())
                return True
            age = self._age()
            if age is not None and age < GONE_SECONDS:
                raise self._taken(claim)
            self._store.write(LOCK_NAME, self._content())
            self._sleep(_SETTLE_SECONDS)  # somebody else may have found it old at the same moment
            if self._is_ours(self._read()):
                return False
        raise self._taken(self._read())

    def was_last(self) -> bool:
        """Returns whether this mirror holds the lock, or was killed while it did."""
        return self._is_ours(self._read())

    def check(self) -> None:
        """Raises ``TakenOver`` unless the lock is this mirror's."""
        claim = self._read()
        if not self._is_ours(claim):
            by = "nobody" if claim is None else claim.holder or "another process"
            raise TakenOver(
                f"{self._store.url}: expected to hold it, found that {by} does (no sign was given for "
                f"{GONE_SECONDS:.0f} s, or the lock was removed); nothing more is written there; start the same "
                "command again when it is free"
            )

    def sign(self) -> None:
        """Gives a sign of life; raises ``TakenOver`` as ``check`` does."""
        self.check()
        self._store.write(LOCK_NAME, self._content())

    def release(self) -> None:
        """Gives the lock back, where it is still this mirror's."""
        if self._is_ours(self._read()):
            self._store.remove([LOCK_NAME])

    def _content(self) -> bytes:
        # Never twice the same, so that its tag changes, too.
        claim = {"mirror": self._mirror, "holder": asdict(self._holder) | {"command": ""}, "sign": uuid.uuid4().hex}
        return json.dumps(claim).encode()

    def _read(self) -> _Claim | None:
        content = self._store.read_all(LOCK_NAME)
        if content is None:
            return None
        try:
            values = json.loads(content)
            return _Claim(str(values["mirror"]), Holder(**values["holder"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return _Claim("", None)

    def _is_ours(self, claim: _Claim | None) -> bool:
        return claim is not None and claim.mirror == self._mirror

    def _age(self) -> float | None:
        """Returns the seconds since the last sign of life by the store's clock; None where the lock is gone."""
        probe = f"{LOCK_NAME}.{uuid.uuid4().hex}"
        self._store.write(probe, b"now")
        try:
            now, signed = self._store.stat(probe), self._store.stat(LOCK_NAME)
        finally:
            self._store.remove([probe])
        return None if now is None or signed is None else (now.modified_ns - signed.modified_ns) / 1e9

    def _taken(self, claim: _Claim | None) -> UserError:
        if claim is None or claim.holder is None:
            return UserError(f"{self._store.url}: another process works there; wait for it or stop it")
        by = claim.holder
        return UserError(
            f"{self._store.url}: process {by.pid} on {by.host} works there since {by.since}; wait until it ends, or "
            f"stop it on {by.host} and start again (it counts as gone after {GONE_SECONDS:.0f} s without a sign)"
        )
