"""One machine at a time at a URL: an object that says who works there, and is written again as a sign of life.

Times are the store's own: clocks of different machines are not compared. Every sign differs, and is noted in a folder
of this machine: so a copy of that folder, or the folder itself after somebody else worked there, is told from the one
that gave the last sign. Knows nothing about runs.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from maskloom.errors import UserError
from maskloom.files import read_json, write_json
from maskloom.run_lock import Holder
from maskloom.storage.remote import Store

LOCK_NAME = ".maskloom-holder.json"
"""The name of the object."""
SIGN_SECONDS = 20.0
"""A sign of life is given so often."""
GONE_SECONDS = 120.0
"""A holder whose last sign is older is taken to be gone."""

_PROBE = f"{LOCK_NAME}.now"  # an object that is written to learn the store's time
_NOTE = "signs.json"
_MAX_BYTES = 2**16  # of the object; what is longer was not written by this program, and is cut off
_SETTLE_SECONDS = 1.0
_TRIES = 3


class TakenOver(UserError):
    """Somebody else works at the URL by now."""


@dataclass(frozen=True, slots=True)
class _Claim:
    key: str
    """Of the ``RemoteLock`` that wrote it."""
    sign: str
    holder: Holder | None


class RemoteLock:
    """The lock of a URL, for this process; ``folder`` is where its signs are noted."""

    def __init__(self, store: Store, folder: Path, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._store, self._note, self._sleep = store, folder / _NOTE, sleep
        self._holder = Holder.present()
        self._key = uuid.uuid4().hex
        self._noted: list[str] = []  # the last that was given for certain, and those that may have been since
        self._is_over, self._thread = (
            threading.Event(),
            threading.Thread(target=self._sign_on, name="sign", daemon=True),
        )
        self.lost: TakenOver | None = None
        """Why it is this one's no more, once a sign could not be given."""

    def take(self) -> bool:
        """Takes the lock; returns whether the last sign was given from the same folder, by one that was not done.

        Nobody else may work in the folder. Raises ``UserError``, naming who holds the lock, unless that one gave no
        sign for ``GONE_SECONDS`` or was killed on this machine.
        """
        for _ in range(_TRIES):
            claim = self._read()
            if claim is None:
                self._store.create(LOCK_NAME, self._next_claim())
                if self._is_mine(self._read()):
                    return False
                continue
            was_here = self._was_here(claim)
            self._noted = [claim.sign] if was_here else []
            if not (was_here and claim.holder is not None and claim.holder.host == self._holder.host):
                age = self._age()
                if age is None:  # given back just now
                    continue
                if age < GONE_SECONDS:
                    raise self._taken(claim)
            self._store.write(LOCK_NAME, self._next_claim())
            self._sleep(_SETTLE_SECONDS)  # somebody else may have found it old at the same moment
            if self._is_mine(self._read()):
                return was_here
        raise self._taken(self._read())

    def was_last(self) -> bool:
        """Returns whether the last sign was given from the same folder, by one that was killed or works there still."""
        claim = self._read()
        return claim is not None and self._was_here(claim)

    def check(self) -> None:
        """Raises ``TakenOver`` unless the lock is this one's."""
        claim = self._read()
        if not self._is_mine(claim):
            by = "nobody" if claim is None else claim.holder or "another process"
            raise TakenOver(
                f"{self._store.url}: expected to hold it, found that {by} does (no sign was given for "
                f"{GONE_SECONDS:.0f} s, or the lock was removed); nothing more is written there; start the same "
                "command again when it is free"
            )

    def keep(self) -> None:
        """Gives signs of life from now on, in a thread that does nothing else: no other work may delay them."""
        self._thread.start()

    def leave(self) -> None:
        """Gives no more signs. Who was here last can be told until somebody else takes the lock."""
        self._is_over.set()

    def release(self) -> None:
        """Gives the lock back, where it is still this one's."""
        self.leave()
        if self._thread.ident is not None:
            self._thread.join()  # a sign that it is about to give would be a new lock
        if self._is_mine(self._read()):
            self._store.remove([_PROBE])
            self._store.remove([LOCK_NAME])

    def _sign_on(self) -> None:
        while not self._is_over.wait(SIGN_SECONDS):
            try:
                claim = self._next_claim()  # which may take a while: nothing is done between looking and writing
                self.check()
                self._store.write(LOCK_NAME, claim)
                del self._noted[:-1]
            except TakenOver as problem:
                self.lost = problem
                return
            except (UserError, OSError):  # perhaps it answers next time
                continue

    def _next_claim(self) -> bytes:
        """Returns a claim with the next sign, which is noted before it is given: an answer may be lost."""
        self._noted.append(uuid.uuid4().hex)
        with suppress(UserError, OSError):  # on a full disk; it is then not known again after a kill
            write_json(self._note, self._noted)
        holder = asdict(self._holder) | {"command": ""}
        return json.dumps({"key": self._key, "sign": self._noted[-1], "holder": holder}).encode()

    def _read(self) -> _Claim | None:
        """Returns the claim that is there; one of nobody where it says nothing that can be read.

        Where files are written in place, it may be one that is just being written.
        """
        for _ in range(_TRIES):
            content = self._store.read_all(LOCK_NAME, max_bytes=_MAX_BYTES)
            if content is None:
                return None
            try:
                values = json.loads(content)
                return _Claim(str(values["key"]), str(values["sign"]), Holder(**values["holder"]))
            except (ValueError, TypeError, KeyError, RecursionError):
                self._sleep(_SETTLE_SECONDS)
        return _Claim("", "", None)

    def _is_mine(self, claim: _Claim | None) -> bool:
        return claim is not None and claim.key == self._key

    def _was_here(self, claim: _Claim) -> bool:
        try:
            noted = read_json(self._note)
        except UserError:
            return False
        return claim.sign != "" and isinstance(noted, list) and claim.sign in noted

    def _age(self) -> float | None:
        """Returns the seconds since the last sign of life by the store's clock; None where the lock is gone."""
        self._store.write(_PROBE, b"now")
        now, signed = self._store.stat(_PROBE), self._store.stat(LOCK_NAME)
        return None if now is None or signed is None else (now.modified_ns - signed.modified_ns) / 1e9

    def _taken(self, claim: _Claim | None) -> UserError:
        if claim is None or claim.holder is None:
            return UserError(f"{self._store.url}: another process works there; wait for it or stop it")
        by = claim.holder
        return UserError(
            f"{self._store.url}: process {by.pid} on {by.host} works there since {by.since}; wait until it ends, or "
            f"stop it on {by.host} and start again (it counts as gone after {GONE_SECONDS:.0f} s without a sign)"
        )
