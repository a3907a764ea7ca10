"""Runs the command line and lets something happen to it at a stated moment: it is killed, or its disk fills up.

``faulty.py SPEC.json ARGUMENTS…``: every change of the run's folder that Python makes (a file opened to be written,
renamed, removed, a folder made) is an event; what the specification states happens just before one of them. Without a
moment the events are written down. A disk fills up at once ("full": nothing can be opened any more), or in the middle
of a file ("torn": so many bytes are let through, of what Python writes; compiled libraries go on).
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

WRITING = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Audit events of the interpreter; ``open`` only where it is to write."""
_PASSED_OVER = ("status/", ".lock/")
"""What tells how a run goes and is no part of it; a thread writes it now and then."""
_TEMPORARY = re.compile(r"\.partial-[^/.]*")


class Faulty:
    """Counts events, and lets the stated thing happen at one of them."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._root = os.path.realpath(spec["root"]) + "/"
        self._do: str = spec.get("do", "log")
        self._order: dict[str, int] = spec.get("order", {})
        self._at: int = spec.get("at", 0)
        self._process = os.getpid()
        self._has_begun = False
        self._left: int = spec.get("bytes", 0)
        self._open = io.open
        self._log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if "log" in spec else None

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Is told of everything that the interpreter does."""
        if event not in WRITING or os.getpid() != self._process:
            return
        if event == "open" and not _writes(arguments[1], arguments[2]):
            return
        path = arguments[1 if event == "os.rename" else 0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 - which asks the system nothing
        if not name.startswith(self._root):
            return
        name = name.removeprefix(self._root)
        if f"{name}/".startswith(_PASSED_OVER):
            return
        self._happen(event, _TEMPORARY.sub(".partial", name))

    def opened(self, file: Any, mode: str = "r", buffering: int = -1, *text: Any, **options: Any) -> Any:
        """Stands in the place of ``open``; a file of the folder is written only as long as there is room."""
        is_plain = isinstance(file, str | os.PathLike) and "+" not in mode and any(letter in mode for letter in "wax")
        name = os.path.abspath(os.fsdecode(file)) if is_plain else ""  # noqa: PTH100
        if not name.startswith(self._root) or f"{name.removeprefix(self._root)}/".startswith(_PASSED_OVER):
            return self._open(file, mode, buffering, *text, **options)
        raw = _Torn(name, mode.replace("b", "").replace("t", ""))
        raw.room = self.room
        stream = raw if buffering == 0 else io.BufferedWriter(raw)
        return stream if "b" in mode else io.TextIOWrapper(stream, *text, **options)

    def room(self, wanted: int) -> int:
        """Returns how many of so many bytes can still be written."""
        if self._do != "torn" or not self._has_begun or os.getpid() != self._process:
            return wanted
        granted = min(wanted, self._left)
        self._left -= granted
        return granted

    def _happen(self, event: str, name: str) -> None:
        key = f"{event} {name}"
        if self._do == "log":
            self._note(key)
            return
        if not self._has_begun and self._order.get(key, -1) < self._at:
            return
        if not self._has_begun:
            self._note(key)
        if self._do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._do == "term" and not self._has_begun:
            os.kill(os.getpid(), signal.SIGTERM)
        self._has_begun = True
        if self._do == "full" and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if self._do == "readonly":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)

    def _note(self, key: str) -> None:
        if self._log is not None:
            os.write(self._log, (json.dumps({"key": key, "at": time.time()}) + "\n").encode())


class _Torn(io.FileIO):
    """A file on a disk that fills up while it is written."""

    room: Any

    def write(self, content: Any) -> int:
        """Writes as much as there is room for, and then fails as the system does, which names no file."""
        content = memoryview(content).cast("B")
        granted = self.room(len(content))
        if granted < len(content):
            super().write(content[:granted])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def _writes(mode: Any, flags: int) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    sys.argv = ["maskloom", *sys.argv[2:]]
    if "side" in spec:  # of blocks, so that small rasters have several
        from maskloom.inference import blocks

        blocks.SIDES = (spec["side"],)
    if "chunk" in spec:  # of tables, likewise
        from maskloom.stages import rows

        rows.CHUNK = spec["chunk"]
    from maskloom.cli import main as run

    faulty = Faulty(spec)
    if spec.get("do") == "torn":
        builtins.open = io.open = faulty.opened
    sys.addaudithook(faulty.hear)
    run()


if __name__ == "__main__":
    main()
