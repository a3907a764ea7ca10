"""What a training says: lines of JSON in a file, curves for TensorBoard, progress for whoever waits.

The log's lines are also kept in the checkpoint; a continued training rewrites the file from there, so that the file
never tells of an epoch twice. Knows nothing about networks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from maskloom.errors import UserError
from maskloom.files import write_text


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingProgress:
    """How far a training is. Epochs are counted from 1."""

    epoch: int
    epochs: int
    step: int
    """Steps done altogether."""
    steps: int
    loss: float | None
    """Mean over the epoch so far; None before the first finite loss."""
    rate: float
    """Training images per second of this session, validation included."""
    eta: float
    """Estimated seconds to the end of the training."""
    score: float | None
    """The latest validation score."""
    best: float | None
    """The highest validation score."""
    note: str = ""
    """Something the user should read, such as a batch cut into smaller pieces; empty most of the time."""

    @property
    def detail(self) -> str:
        """A short text for a progress bar."""
        parts = [f"epoch {self.epoch}/{self.epochs}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.score is not None:
            parts.append(f"score {self.score:.4f}")
        if self.best is not None and self.best != self.score:
            parts.append(f"best {self.best:.4f}")
        parts.append(f"{self.rate:.1f} images/s")
        return " · ".join(parts)


@dataclass(slots=True)
class Pace:
    """How fast this session goes, from its start and with everything that it does between steps."""

    images: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.images / max(time.monotonic() - self.started, 1e-9)


OnProgress = Callable[[TrainingProgress], None]


class Log:
    """The lines of a training, in a JSON-lines file and, where asked for, as TensorBoard curves."""

    def __init__(self, path: Path | None, events: list[dict[str, Any]], *, tensorboard: Path | None = None) -> None:
        """Rewrites the file with ``events``, the list of lines that the log will extend; None: there is no file."""
        self.events = events
        self._path = path
        self._curves = _open_tensorboard(tensorboard, events) if tensorboard else None
        if path is not None:
            write_text(path, "".join(_line(event) for event in events))

    def add(self, event: str, **values: Any) -> None:
        """Appends one line; numbers must be finite."""
        entry = {"event": event, **values}
        line = _line(entry)
        self.events.append(entry)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(line)
        if self._curves is not None and event == "epoch":
            for name in ("loss", "score", "learning_rate", "images_per_second"):
                if values.get(name) is not None:
                    self._curves.add_scalar(name, values[name], values["epoch"])
            self._curves.flush()

    def close(self) -> None:
        """Closes the TensorBoard file, where there is one."""
        if self._curves is not None:
            self._curves.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the log's line of each finished epoch: ``epoch`` (from 1), ``loss``, ``score``, ``learning_rate`` …

    ``loss`` is None when no step of the epoch had a finite loss, ``score`` where the epoch was not validated. A last
    line cut off by a crash is left out. Raises ``UserError`` when there is no log.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    events = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [event for event in events if event["event"] == "epoch"]


class _Curves(Protocol):
    def add_scalar(self, name: str, value: float, step: int, /) -> Any: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, allow_nan=False, ensure_ascii=False) + "\n"


def _open_tensorboard(folder: Path, events: list[dict[str, Any]]) -> _Curves:
    """Returns a writer that hides what an earlier, killed session wrote beyond the checkpoint."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "training.tensorboard: expected the package tensorboard, found none; "
            "install maskloom[tensorboard] or set training.tensorboard=false"
        ) from None
    done = max((event["epoch"] for event in events if event["event"] == "epoch"), default=0)
    writer: _Curves = SummaryWriter(str(folder), purge_step=done + 1)
    return writer
