"""Work shared by processes that know nothing of each other: numbered pieces, each claimed by one at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from types import TracebackType


class Claims:
    """Numbered pieces of work claimed by processes: locks of the kernel's on single bytes of one file.

    A process's claims end with it, however it ends; its threads share them. Use as a context manager.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a+b")  # a lock that is shared needs a file that can be read

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()  # which gives all back

    def take(self, number: int) -> bool:
        """Returns whether the piece is this process's now; False while another one has it."""
        try:
            fcntl.lockf(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):  # which of them is the system's choice
            return False
        return True

    def share(self, number: int) -> None:
        """Lets others share the piece, which none can take while anybody does; waits while another one has it."""
        fcntl.lockf(self._stream, fcntl.LOCK_SH, 1, number)

    def give_back(self, number: int) -> None:
        """Lets others take the piece."""
        fcntl.lockf(self._stream, fcntl.LOCK_UN, 1, number)
