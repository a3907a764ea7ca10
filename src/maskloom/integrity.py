"""Whether files are still what they were when they were finished: their checksums, kept in a file of lines.

A ``Ledger`` is extended as files are finished, so that it also tells, after a killed process, which files can be kept.
Small JSON files carry a checksum of their own. Knows nothing about stages or what files hold.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from maskloom.errors import UserError
from maskloom.files import checksum, fingerprint, read_json, write_json, write_text

CHECKSUM = "checksum"
"""The key under which a JSON file holds the fingerprint of everything else in it."""

_FINGERPRINT_LENGTH = len(fingerprint())
_THREADS = 4  # that hash at once; hashing releases the interpreter lock


class Damaged(UserError):
    """A file of a run is gone, or no longer what it was when it was finished; names it."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {reason}; start `fit` with this run again, which makes it anew")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[Damaged], tuple[Path, str]]:
        # As for ``BadFile``: loader workers send their errors through a queue.
        return (Damaged, (self.path, self.reason))


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file was when it was finished."""

    sha256: str
    size: int
    """Bytes."""
    mtime_ns: int

    @classmethod
    def of(cls, file: Path) -> Seal:
        """Returns the seal of a file as it is now; reads all of it."""
        facts = file.stat()
        return cls(checksum(file), facts.st_size, facts.st_mtime_ns)

    def holds(self, file: Path) -> bool:
        """Returns whether the bytes are those of then, whatever the time of change."""
        try:
            return file.stat().st_size == self.size and checksum(file) == self.sha256
        except OSError:
            return False


class Ledger:
    """The seals of files below a folder, in a text file of a line each; a later line about a file replaces an earlier.

    A line is a CRC-32 of the rest, SHA-256, bytes, time of change in ns, and the path as a JSON string. A line that is
    damaged, or was not finished, says nothing. Threads may share a ledger, processes may not.
    """

    def __init__(self, root: Path, path: Path) -> None:
        self._root, self._path, self._lock = root, path, Lock()
        text = path.read_bytes() if path.is_file() else b""
        self._seals = dict(_seals_in(text))
        self._is_torn = bool(text) and not text.endswith(b"\n")

    def __contains__(self, file: Path) -> bool:
        return self._name(file) in self._seals

    def names(self) -> list[str]:
        """Returns the files that it knows by their paths below the folder, in the order of their first lines."""
        return list(self._seals)

    def __getitem__(self, file: Path) -> Seal:
        return self._seals[self._name(file)]

    def add(self, file: Path, seal: Seal | None = None) -> None:
        """Remembers a finished file as it is now, or, without reading it, as it was sealed by whoever wrote it."""
        self._append(self._name(file), seal or Seal.of(file))

    def is_sound(self, file: Path, *, thorough: bool = False) -> bool:
        """Returns whether a file is there and what it was; one that the ledger does not know is not.

        All of it is read when size and time of change are no longer those of then, as in a copied folder, or
        ``thorough`` asks for that.
        """
        seal = self._seals.get(self._name(file))
        if seal is None:
            return False
        is_known = self.is_known(file)
        if is_known and not thorough:
            return True
        if not seal.holds(file):
            return False
        if not is_known:
            with suppress(OSError):  # it only saves reading it next time; what is only read may be read-only
                self._append(self._name(file), Seal(seal.sha256, seal.size, file.stat().st_mtime_ns))
        return True

    def are_sound(self, files: Iterable[Path], *, thorough: bool = False) -> list[bool]:
        """Returns ``is_sound`` of each; what is read is read several at a time."""
        files = list(files)
        read = [file for file in files if thorough or not self.is_known(file)]
        with ThreadPoolExecutor(_THREADS) as pool:
            found = dict(zip(read, pool.map(lambda file: self.is_sound(file, thorough=thorough), read), strict=True))
        return [found.get(file, True) for file in files]

    def is_known(self, file: Path) -> bool:
        """Returns whether a file has the size and the time of change that the ledger knows; reads nothing."""
        return not self.not_known([self._name(file)])

    def not_known(self, names: Iterable[str]) -> list[Path]:
        """Returns the files, given by their paths below the folder, for which ``is_known`` does not hold."""
        found, folder = [], f"{self._root}/"
        for name in names:  # of which there may be a hundred thousand
            seal = self._seals.get(name)
            try:
                facts = os.stat(folder + name)  # noqa: PTH116 (three times as fast as that of a path)
            except OSError:
                seal = None
            if seal is None or facts.st_size != seal.size or facts.st_mtime_ns != seal.mtime_ns:
                found.append(self._root / name)
        return found

    def seal(self, files: Iterable[Path]) -> None:
        """Makes these files, as they are now, all that the ledger knows; those that it knows already are not read."""
        unread = {file: self.is_known(file) for file in files}
        new = [file for file, is_known in unread.items() if not is_known]
        with ThreadPoolExecutor(_THREADS) as pool:
            seals = dict(zip(new, pool.map(Seal.of, new), strict=True))
        self._seals = {self._name(file): seals.get(file) or self[file] for file in sorted(unread)}

    def forget(self, files: Iterable[Path]) -> None:
        """Knows nothing of these files any more."""
        names = {self._name(file) for file in files} & self._seals.keys()
        if names:
            self._seals = {name: seal for name, seal in self._seals.items() if name not in names}
            self.write()

    def write(self) -> None:
        """Writes the file anew, with what the ledger knows now."""
        write_text(self._path, "".join(_line(name, seal) for name, seal in self._seals.items()))
        self._is_torn = False

    def _name(self, file: Path) -> str:
        return file.relative_to(self._root).as_posix()

    def _append(self, name: str, seal: Seal) -> None:
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            line = ("\n" * self._is_torn + _line(name, seal)).encode()
            with self._path.open("ab") as stream:
                self._is_torn = True  # until all of the line is written
                stream.write(line)
            self._is_torn = False
            self._seals[name] = seal


def _line(name: str, seal: Seal) -> str:
    rest = f"{seal.sha256} {seal.size} {seal.mtime_ns} {json.dumps(name)}"
    return f"{zlib.crc32(rest.encode()):08x} {rest}\n"


@lru_cache(maxsize=2)
def _seals_in(text: bytes) -> dict[str, Seal]:
    """Returns what a ledger's text says, not to be changed; kept, since each shard of a stage asks for the same one."""
    return dict(_parsed(text))


def _parsed(text: bytes) -> Iterator[tuple[str, Seal]]:
    """Yields name and seal of every line that is whole and about a file below the folder."""
    for line in text.split(b"\n"):
        check, _, rest = line.partition(b" ")
        if check == b"%08x" % zlib.crc32(rest) and rest:
            try:
                sha256, size, mtime_ns, name = rest.decode().split(" ", 3)
                plain = name[1:-1] if "\\" not in name else json.loads(name)
                seal = Seal(sha256, int(size), int(mtime_ns))
            except (ValueError, RecursionError):
                continue
            if name.startswith('"') and is_inside(plain):
                yield plain, seal


def is_inside(name: object) -> bool:
    """Returns whether a path that a file states lies below the folder that it is stated for."""
    return isinstance(name, str) and name != "" and not name.startswith("/") and ".." not in name.split("/")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Writes JSON with a checksum of its own, atomically."""
    as_read = json.loads(json.dumps(value))  # tuples are lists, keys are texts
    write_json(path, value | {CHECKSUM: fingerprint(as_read)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Returns what ``write_sealed`` was given; JSON without a checksum, of an earlier version, as it is.

    Raises ``Damaged`` where it is no longer what was written, ``UserError`` where there is no such file.
    """
    try:
        value = read_json(path)
    except UserError as error:
        if not path.is_file():
            raise
        raise Damaged(path, "is damaged (expected JSON, found something else)") from error
    if not isinstance(value, dict):
        raise Damaged(path, "is damaged (expected a JSON object, found something else)")
    if not is_sealed(value):
        if _holds_a_seal(value):
            raise Damaged(path, "is damaged (its checksum has another name)")
        return value
    stated = value.pop(CHECKSUM)
    if stated != fingerprint(value):
        raise Damaged(path, "is damaged (its checksum differs)")
    return value


def is_sealed(value: dict[str, Any]) -> bool:
    """Returns whether a JSON object, as it was read, carries its checksum."""
    return CHECKSUM in value


def _holds_a_seal(value: dict[str, Any]) -> bool:
    """Returns whether any text in a JSON object is the fingerprint of all the rest, which chance does not make."""
    texts = (name for name, text in value.items() if isinstance(text, str) and len(text) == _FINGERPRINT_LENGTH)
    return any(
        value[name] == fingerprint({other: each for other, each in value.items() if other != name}) for name in texts
    )
