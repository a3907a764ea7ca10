"""Runs the command line and lets something happen to it at a stated moment: it is killed, or its disk fills up.

``faulty.py SPEC.json ARGUMENTS…``: every change of the run's folder that Python makes (a file opened to be written,
renamed, removed, a folder made) is an event; what the specification states happens just before one of them. Without a
moment the events are written down. A disk fills up at once ("full": nothing can be opened any more), or in the middle
of a file ("torn": so many bytes are let through, of what Python writes; compiled libraries go on). A clock ("clock") is
set back, and so many changes later the process is killed; what it says of the run's status is noted at both. SIGUSR1 is
such a moment, too. A clock may also be behind from the beginning.
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
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

WRITING = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Audit events of the interpreter; ``open`` only where it is to write."""
_PASSED_OVER = ("status/", ".lock/")
"""What tells how a run goes and is no part of it; a thread writes it now and then."""
_TEMPORARY = re.compile(r"\.partial-[^/.]*")


class Clock:
    """The clock on the wall as this process sees it, so many seconds behind; what ticks is left alone."""

    def __init__(self, behind: float = 0.0) -> None:
        self.behind = behind
        self.true = time.time

    def time(self) -> float:
        """Stands in the place of ``time.time``."""
        return self.true() - self.behind

    def time_ns(self) -> int:
        """Stands in the place of ``time.time_ns``."""
        return int(self.time() * 1e9)

    def date(self) -> type[datetime]:
        """Returns what stands in the place of ``datetime`` where a module asks it for the present."""

        class Date(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return datetime.fromtimestamp(self.time(), tz)

        return Date

    def date_file(self, path: str) -> None:
        """Gives a file the time of change that the system would give it by this clock."""
        if self.behind:
            os.utime(path, ns=(self.time_ns(), self.time_ns()))


class Faulty:
    """Counts events, and lets the stated thing happen at one of them."""

    def __init__(self, spec: dict[str, Any], clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._set_back: float = spec.get("set_back", 0.0)
        self._changes: int = spec.get("changes", 0)
        self._run: str = spec.get("run", spec["root"])
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
        if event == "os.rename":
            self._clock.date_file(os.fsdecode(arguments[0]))
        if f"{name}/".startswith(_PASSED_OVER):
            return
        self._happen(event, _TEMPORARY.sub(".partial", name), *(os.fsdecode(each) for each in _paths(event, arguments)))

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

    def _happen(self, event: str, name: str, path: str, target: str | None = None) -> None:
        key = f"{event} {name}"
        if self._do == "log":
            self._note(key)
            return
        if not self._has_begun and self._order.get(key, -1) < self._at:
            return
        if self._do == "clock":
            self.strike(key)
            return
        if not self._has_begun:
            self._note(key)
        if self._do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._do == "term" and not self._has_begun:
            os.kill(os.getpid(), signal.SIGTERM)
        self._has_begun = True
        if self._do == "full" and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path, None, target)
        if self._do == "readonly":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path, None, target)

    def strike(self, key: str) -> None:
        """Sets the clock back at the first call, and kills the process when so many changes have followed."""
        if not self._has_begun:
            self._has_begun = True
            self._note(key)
            self._clock.behind += self._set_back
            self._note("status", **self._status())
        elif self._changes > 0:
            self._changes -= 1
        if self._changes <= 0:
            self._note("status", **self._status())
            os.kill(os.getpid(), signal.SIGKILL)

    def _status(self) -> dict[str, Any]:
        from maskloom.outputs.status_rows import headline, remarks, stage_rows
        from maskloom.run_directory import RunDirectory
        from maskloom.run_status import read_status

        status = read_status(RunDirectory(Path(self._run)))
        cells = [cell for row in stage_rows(status) for cell in (*row.cells, row.detail)]
        return {"status": status.to_json(), "texts": [headline(status), *remarks(status), *cells]}

    def _note(self, key: str, **more: Any) -> None:
        if self._log is not None:
            os.write(self._log, (json.dumps({"key": key, "at": self._clock.true(), **more}) + "\n").encode())


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


def _paths(event: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the paths that the system names when it refuses: two, where a file is renamed."""
    return arguments[: 2 if event == "os.rename" else 1]


def _writes(mode: Any, flags: int) -> bool:
    if isinstance(mode, str):
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    sys.argv = ["maskloom", *sys.argv[2:]]
    clock = Clock(spec.get("behind", 0.0))
    if clock.behind or spec.get("do") == "clock":  # before anything is imported that keeps the function
        time.time, time.time_ns = clock.time, clock.time_ns
        from maskloom import run_lock

        run_lock.datetime = clock.date()  # type: ignore[misc, assignment]
    if "side" in spec:  # of blocks, so that small rasters have several
        from maskloom.inference import blocks

        blocks.SIDES = (spec["side"],)
    if "chunk" in spec:  # of tables, likewise
        from maskloom.stages import rows

        rows.CHUNK = spec["chunk"]
    from maskloom.cli import main as run

    faulty = Faulty(spec, clock)
    if spec.get("do") == "clock":
        signal.signal(signal.SIGUSR1, lambda number, frame: faulty.strike("SIGUSR1"))
    if spec.get("do") == "torn":
        builtins.open = io.open = faulty.opened
    sys.addaudithook(faulty.hear)
    run()


if __name__ == "__main__":
    main()
