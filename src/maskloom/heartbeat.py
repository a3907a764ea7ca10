"""What a process that works on a run says of itself in the run's folder, and whether that process still lives.

``status/<host>-<pid>.json`` holds who works where on what, how far and how fast. The file is written beside the work by
a thread of its own, goes when the process ends well, says so when it was stopped or failed, and stays behind when the
process is killed. It is no artefact: nothing that a run computes reads it, and a run without the folder is whole.
Knows nothing about what stages do.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from maskloom.errors import UserError
from maskloom.files import TEMPORARY_PREFIX, read_json
from maskloom.progress import RecentRate
from maskloom.termination import seconds_left

FIRST_SECONDS, BEAT_SECONDS = 0.2, 1.0
"""The file is written so long after the start (work that ends before leaves none), and then no more often than that."""
SIGN_SECONDS = 15.0
"""Where nothing changes, the file is written again after so long, as a sign of life."""
GONE_SECONDS = 120.0
"""A process of another host whose last sign is older than this is taken to be gone."""
MOST = 1e11
"""Numbers are smaller: seconds to this one end beyond the calendar."""
KEPT = 20
"""Files of other work that ended badly or was killed, kept when new work begins."""

_SET_BACK_SECONDS = 1.0  # from one look at the clock to the next; less is its being adjusted
_MAX_BYTES = 2**20  # of a file that tells what a process does

Ended = Literal["", "stopped", "failed"]
State = Literal["working", "stopped", "failed", "gone"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Beat:
    """What one process said last; times are seconds since 1970, by the clock of its host."""

    command: str
    """"fit" or "predict"."""
    target: str = ""
    """What it writes, where that is not the run itself."""
    host: str
    pid: int
    process: str
    """Tells the process from others that had its number before or have it later."""
    space: str
    """Tells hosts of one name apart, and containers that number their processes themselves."""
    device: str
    began: float
    sign: float
    """When this was written."""
    ended: Ended = ""
    error: str = ""
    stages: tuple[str, ...] = ()
    """What it will run, in this order; ``fold*`` stands for every fold."""
    stage: str = ""
    """"" before the first one."""
    cached: bool = False
    """Whether the stage was found finished."""
    stage_began: float = 0.0
    shard: str = ""
    """The part of the stage that is this process's; "" where it does all."""
    done: int = 0
    first: int = 0
    """Steps that were done already when this process came to the stage."""
    total: int = 0
    unit: str = ""
    detail: str = ""
    rate: float | None = None
    """Units per second, lately."""
    seconds_left: float | None = None
    """To the end of the stage, when it last moved."""
    moved: float = 0.0
    """When it last counted a step."""

    def stage_ends(self, at: float) -> float | None:
        """Returns when the stage is expected to end, as seen at ``at``; steps after that are of a clock set back."""
        return None if self.seconds_left is None else min(self.moved, at) + self.seconds_left

    @classmethod
    def from_json(cls, values: Any) -> Beat:
        """Returns what a file holds; raises ``ValueError`` for anything else, NaN and endless numbers among it."""
        if not isinstance(values, dict):
            raise ValueError(f"expected an object, found {type(values).__name__}")
        known = {field.name: str(field.type) for field in fields(cls)}
        found = {name: value for name, value in values.items() if name in known}  # of later versions there may be more
        for name, value in found.items():
            if not _is_a(value, known[name]):
                raise ValueError(f"{name}: expected {known[name]}, found {value!r:.80}")
        try:
            return cls(**found | {"stages": tuple(found.get("stages", ()))})
        except TypeError as error:
            raise ValueError(str(error)) from None


def _is_a(value: Any, kind: str) -> bool:
    if kind == "tuple[str, ...]":
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if kind == "Ended":
        return value in ("", "stopped", "failed")
    if kind == "float | None" and value is None:
        return True
    if kind.startswith("float") or kind == "int":
        allowed = int if kind == "int" else int | float
        return isinstance(value, allowed) and not isinstance(value, bool) and 0 <= value < MOST  # NaN is not
    return isinstance(value, {"str": str, "bool": bool}[kind])


# Reading -------------------------------------------------------------------------------------------------------------


def read_beats(run: Path) -> tuple[list[Beat], list[str]]:
    """Returns what processes said in a run's folder, the earliest first, and a line on each file that is none."""
    found, problems = [], []
    for path in sorted(_folder(run).glob("*.json")):
        if path.name.startswith(TEMPORARY_PREFIX):
            continue
        try:
            found.append(Beat.from_json(read_json(path, max_bytes=_MAX_BYTES)))
        except (UserError, ValueError, OSError, RecursionError) as error:
            if path.is_file():  # else its process ended meanwhile
                problems.append(f"{path.name}: no sign of a process ({error})")
    return sorted(found, key=lambda beat: (beat.began, beat.host, beat.pid)), problems


def state_of(beat: Beat, now: float) -> State:
    """Returns whether the process works, was stopped, failed, or is gone without a word.

    On this host the process itself is looked for; on another one its last sign must be at most ``GONE_SECONDS`` old
    at ``now`` (seconds since 1970; the hosts' clocks are taken to agree to within seconds).
    """
    if beat.ended:
        return beat.ended
    lives = is_alive(beat)
    if lives is None:
        lives = now - beat.sign <= GONE_SECONDS
    return "working" if lives else "gone"


def is_alive(beat: Beat) -> bool | None:
    """Returns whether the process lives; None where it cannot be looked for, since it is another host's or hidden."""
    if (beat.host, beat.space) != (_host(), _space()):
        return None
    mark = process_mark(beat.pid)
    return None if mark == "" else mark == beat.process


def process_mark(pid: int) -> str | None:
    """Returns what tells a living process of this host from others with its number; "" where the system hides it.

    None where there is no such process, or it is dead and only not yet taken notice of. Does not follow the clock.
    """
    if pid < 1:
        return None
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return _mark_elsewhere(pid)
    values = text.rpartition(")")[2].split()  # from the state on; the name before may hold anything
    return None if values[0] in "ZX" else f"{boot}:{values[19]}"


def _mark_elsewhere(pid: int) -> str | None:
    """Returns the mark where there is no /proc, or another user's processes are hidden in it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.AccessDenied:
        return ""
    except psutil.Error:
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return None
    except OSError:
        pass
    return ""


def remove_beat(run: Path, beat: Beat) -> None:
    """Removes what a process said that is known to have ended, whatever the clocks say."""
    with suppress(OSError):
        _file(run, beat.host, beat.pid).unlink(missing_ok=True)


def _folder(run: Path) -> Path:
    return run / "status"


def _file(run: Path, host: str, pid: int) -> Path:
    return _folder(run) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', host)}-{pid}.json"


def _host() -> str:
    return platform.node() or "localhost"


def _space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


# Writing -------------------------------------------------------------------------------------------------------------


class Heartbeat:
    """A listener that keeps this process's file in the folder of a run; use as a context manager around the work.

    Nothing of it disturbs the work: what cannot be written is left out. Listening costs microseconds; a thread writes.
    """

    def __init__(
        self,
        run: Path,
        *,
        command: str,
        device: str,
        target: str = "",
        stages: Sequence[str] = (),
        unit: str = "images",
        shard: str = "",
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        """``unit`` is what the stage ``predict`` counts; ``clock`` tells the time, ``ticks`` how it passes."""
        pid = os.getpid()
        self._path = _file(run, _host(), pid)
        self._clock, self._ticks, self._unit = clock, ticks, unit
        now = clock()
        self._offset = now - ticks()
        self._constant: dict[str, Any] = {
            "command": command,
            "target": target,
            "host": _host(),
            "pid": pid,
            "process": process_mark(pid) or "",
            "space": _space(),
            "device": device,
            "stages": tuple(stages),
            "shard": shard,
        }
        self._changing: dict[str, Any] = {"stage_began": now, "moved": now}
        self._began = now
        self._rate = RecentRate()
        self._lock = threading.Lock()
        self._is_changed, self._written = True, -math.inf
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_writing, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        with suppress(RuntimeError):  # no more threads are allowed
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=seconds_left(5.0))  # a disk that does not answer must not keep the process
        with suppress(OSError):
            if self._written == -math.inf:
                self._tidy()
            elif error is None:
                self._path.unlink(missing_ok=True)
                self._path.parent.rmdir()  # unless others are there
            else:
                failed = isinstance(error, Exception)
                text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self._write("failed" if failed else "stopped", " ".join(text.split())[:1000] if failed else "")

    def stage(self, name: str, *, cached: bool) -> None:
        """Notes that a stage begins, or was found finished."""
        with self._lock:
            now = self._now()
            self._rate = RecentRate()
            self._changing = {"stage": name, "cached": cached, "stage_began": now, "moved": now}
            self._is_changed = True

    def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
        """Notes how far the stage is."""
        with self._lock:
            self._rate.add(self._ticks(), done, total)
            known = self._changing
            known.setdefault("first", done)
            if total != known.get("total", total) or done < known.get("done", 0):
                known["first"] = done
            known |= {"done": done, "total": total, "detail": detail, "moved": self._now()}
            rate = self._rate.per_second
            left = (total - done) / rate if seconds_left is None and rate else seconds_left
            known |= {"unit": self._unit_of(known.get("stage", ""), detail), "rate": rate}
            known["seconds_left"] = left if left is not None and 0 <= left < MOST else None
            self._is_changed = True

    def note(self, text: str) -> None:
        """Keeps nothing of it."""

    def beat(self, ended: Ended = "", error: str = "") -> Beat:
        """Returns what there is to say now."""
        return Beat(**self._said(ended, error))

    def _said(self, ended: Ended = "", error: str = "") -> dict[str, Any]:
        with self._lock:
            now = self._now()
            changing = {"began": self._began, **self._changing, "sign": now, "ended": ended, "error": error}
            return self._constant | changing

    def _now(self) -> float:
        """Returns the time; what was noted by a clock that was set back since is moved to where it is by the new one.

        A clock that was set forward is not told from a host that slept.
        """
        now = self._clock()
        offset = now - self._ticks()
        if (fallen := self._offset - offset) > _SET_BACK_SECONDS:
            self._began = max(self._began - fallen, 0.0)
            for name in ("stage_began", "moved"):
                self._changing[name] = max(self._changing[name] - fallen, 0.0)
        self._offset = offset
        return now

    def _unit_of(self, stage: str, detail: str) -> str:
        if stage.startswith("train/") and detail.startswith("epoch"):
            return "steps"
        return {"predict": self._unit, "folds": "parts"}.get(stage, "images")

    def _keep_writing(self) -> None:
        wait = FIRST_SECONDS
        while not self._over.wait(wait):
            if self._is_changed or self._ticks() - self._written >= SIGN_SECONDS:
                with suppress(OSError):
                    if self._written == -math.inf:
                        self._tidy()
                    self._write()
            wait = BEAT_SECONDS

    def _write(self, ended: Ended = "", error: str = "") -> None:
        """Writes the file in one go, without waiting for the disk: a file that is lost with the power misleads none."""
        self._is_changed = False
        text = json.dumps(self._said(ended, error), allow_nan=False)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(TEMPORARY_PREFIX + self._path.name)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)
        self._written = self._ticks()

    def _tidy(self) -> None:
        """Removes files of ended work that this one repeats, and all but the latest of other such work."""
        mine, now = (self._constant["command"], self._constant["target"]), self._clock()
        kept = 0
        for path in sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
            if path.name.startswith(TEMPORARY_PREFIX) and now - path.stat().st_mtime < GONE_SECONDS:
                continue  # another process may be at it
            try:
                beat = Beat.from_json(read_json(path, max_bytes=_MAX_BYTES))
            except (UserError, ValueError, RecursionError):
                beat = None
            if path == self._path or (beat is not None and state_of(beat, now) == "working"):
                continue
            is_repeated = beat is None or (beat.command, beat.target) == mine
            kept += not is_repeated
            if is_repeated or kept > KEPT:
                path.unlink(missing_ok=True)
