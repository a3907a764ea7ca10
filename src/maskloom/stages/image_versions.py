"""Of which version of each image the files of a prediction are: what is kept, and what is predicted again.

Knows nothing about what is in images or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock

from maskloom.files import fingerprint
from maskloom.records import Record
from maskloom.storage.placeholders import changed_ns

Stamps = list[tuple[int, int]]
"""Length in bytes and time of change in ns of each of some files."""


class Written:
    """The images whose files are written, in a text file: a line for every image and its files, as both were then.

    What is there now must give such a line. So a file that was changed, or is of another version of the image, counts
    as not written, whatever was predicted before, and a process may be killed between a file and its line. Times are
    compared for being equal alone: clocks are set back, and those of servers differ. Threads may share it; of
    processes, one holds the folder.
    """

    def __init__(self, path: Path, files_of: Callable[[str], Sequence[Path]]) -> None:
        """``files_of`` gives the files of an image by its id."""
        self._path, self._files_of = path, files_of
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        self._lines = set(text.splitlines())
        self._versions: dict[str, str] = {}
        self._lock = Lock()
        self.num_changed = 0
        """How many of the images that were asked about have files that count as not written."""

    def is_current(self, record: Record) -> bool:
        """Returns whether the files are those of the image as it is now; keeps which version will be read if not."""
        self._versions[record.id] = version = version_of([record])
        stamps = stamps_of(self._files_of(record.id))
        if stamps is None:
            return False
        is_current = fingerprint(version, stamps) in self._lines
        self.num_changed += not is_current
        return is_current

    def add(self, record_id: str, stamps: Stamps) -> None:
        """Remembers the files of an image, as it was when ``is_current`` was asked."""
        line = fingerprint(self._versions[record_id], stamps)
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(f"\n{line}\n")  # after a line that was cut off, too


def stamps_of(files: Sequence[Path]) -> Stamps | None:
    """Returns what tells files from others of their names; None where one of them is not there."""
    try:
        found = [file.stat() for file in files]
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [(facts.st_size, facts.st_mtime_ns) for facts in found]


def version_of(records: Sequence[Record], *, skip_bad: bool = False) -> str:
    """Returns a fingerprint of images by name, size, length and times of change, and of what is done with bad ones."""
    facts = [(record.id, record.size, record.image.stat(), changed_ns(record.image)) for record in records]
    return fingerprint(
        skip_bad, [(name, size, found.st_size, found.st_mtime_ns, changed) for name, size, found, changed in facts]
    )
