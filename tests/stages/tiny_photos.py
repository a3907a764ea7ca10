"""A program that predicts a folder of photos with a known network in a process of its own.

It takes a run's folder, a folder of photos, one for what is written, and at which photo it shall kill itself (-1:
never); it prints of how many photos it was asked.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.data.image_io import write_png
from maskloom.files import write_json
from maskloom.inference.merging import RESULT
from maskloom.progress import Silent
from maskloom.records import Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import rows, shared_rows
from maskloom.stages.images import predict_images

CHUNK = 2
NUM_PHOTOS = 15


class Bright:
    """Predicts what is brighter than one half, and counts the photos it was asked for."""

    channels, takes_grey = 3, True
    task = Task(kind="binary", classes=("bright",))

    def __init__(self, on_photo: Callable[[int], None] = lambda count: None) -> None:
        self.asked = 0
        self._on_photo = on_photo

    def predictor(self, image: np.ndarray) -> dict[str, np.ndarray]:
        self._on_photo(self.asked)
        self.asked += 1
        return {RESULT: image[None, :, :, 0]}

    def labels(self, maps: dict[str, np.ndarray]) -> np.ndarray:
        return (maps[RESULT][0] > 127).astype(np.uint8)


def write_photos(folder: Path, count: int = NUM_PHOTOS) -> None:
    rng = np.random.default_rng(3)
    for number in range(count):
        write_png(folder / f"{number:03d}.png", rng.integers(0, 256, (9, 12, 3), np.uint8))


def predicted(run: Path, photos: Path, out: Path, to: str, bright: Bright) -> int:
    """Returns how many photos were written."""
    directory = RunDirectory(run)
    if not directory.decided.is_file():
        write_json(directory.decided, {"fingerprint": "decided"})
    known: Any = bright
    done = predict_images(directory, photos, out=out, to=to, opened=lambda: known, skip_bad=False, progress=Silent())
    return done.num_written


def main(run: str, photos: str, out: str, kill_at: str, to: str) -> None:
    rows.CHUNK, shared_rows.PAUSE_SECONDS = CHUNK, 0.05

    def on_photo(count: int) -> None:
        time.sleep(0.1)  # so that the processes meet
        if count == int(kill_at):
            os.kill(os.getpid(), signal.SIGKILL)

    bright = Bright(on_photo)
    print("ready", flush=True)
    sys.stdin.readline()
    assert predicted(Path(run), Path(photos), Path(out), to, bright) == NUM_PHOTOS
    print(bright.asked)


if __name__ == "__main__":
    main(*sys.argv[1:])
