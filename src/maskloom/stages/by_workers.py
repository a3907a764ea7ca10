"""What workers count, and files that they say they have written, as the process that asked for them sees them.

Workers may be on other hosts: what they wrote may be seen late, or, where folders are not shared, never. Knows nothing
about tasks, or what is in files.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from maskloom.errors import UserError
from maskloom.progress import Silent

SEEN_SECONDS = 90.0
"""So long a file of another host may stay unseen: NFS remembers for up to a minute what was not there."""
_PAUSE_SECONDS = 0.5


class Counted(Silent):
    """A listener that hands on how many steps of how many are done."""

    def __init__(self, on_progress: Callable[[int, int], object]) -> None:
        self._on_progress = on_progress

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Hands both on."""
        self._on_progress(done, total)


def names_in(folder: Path) -> set[str]:
    """Returns the names of what is in a folder; none of a folder that is not there.

    Where others write files, this is asked, and not for single names: an NFS client that was told that a name is not
    there goes on to say so when it is.
    """
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (of a hundred thousand names, which need be no paths)
    except (FileNotFoundError, NotADirectoryError):
        return set()


def expect_seen(files: Iterable[Path], *, unless: Callable[[], bool] = lambda: False) -> None:
    """Returns once all these files are there, or ``unless`` says that they need not be.

    Raises ``UserError``, naming one of them, where they are not seen after ``SEEN_SECONDS``.
    """
    missing, ends = list(files), time.monotonic() + SEEN_SECONDS
    while missing := _unseen(missing):
        if unless():
            return
        if time.monotonic() >= ends:
            others = f" (nor {len(missing) - 1} others)" if len(missing) > 1 else ""
            raise UserError(
                f"{missing[0]}: expected to see what a worker has written, found no such file{others}; choose an --out "
                "on a file system that all nodes share, under the same path, and start the same command again"
            )
        time.sleep(_PAUSE_SECONDS)


def _unseen(files: Iterable[Path]) -> list[Path]:
    by_folder: dict[Path, list[Path]] = {}
    for file in files:
        by_folder.setdefault(file.parent, []).append(file)
    names = {folder: names_in(folder) for folder in by_folder}
    return [file for folder, wanted in by_folder.items() for file in wanted if file.name not in names[folder]]
