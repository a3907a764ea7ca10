"""A finished run whose network is known, small scenes for it, and a program that predicts them in a process of its own.

The program takes the folder that ``write_run`` filled, a folder of scenes, one for what is written, and after how many
blocks it shall kill itself (-1: never); it prints how many blocks it was asked about.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from maskloom.data.input_policy import InputPolicy
from maskloom.ensembling.thresholds import decide
from maskloom.inference import blocks as blocks_room
from maskloom.inference.merging import RESULT, Merge
from maskloom.progress import Silent
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.writing import write_geotiff
from maskloom.records import Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import scenes as stage

BINARY = Task(kind="binary", classes=("bright",))
THREE = Task(kind="multiclass", classes=("background", "red", "green"))
LAYERS = Task(kind="multilabel", classes=("red", "green"))
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
POLICY = InputPolicy(mode="window", size=(32, 32), multiple=8)
SIDE = 64


class Known:
    """Gives the first channels of an image as 8-bit maps, and counts how often it is asked."""

    channels = 3

    def __init__(self, task: Task = BINARY, *, on_block: Callable[[int], None] = lambda count: None) -> None:
        self.task = task
        self.num_asked = 0
        self._on_block = on_block
        member = SimpleNamespace(name="net", input=POLICY, guidance=None)
        self.recipe = SimpleNamespace(
            member=lambda name: member,
            inference=SimpleNamespace(overlap=None),
            postprocess=SimpleNamespace(steps=()),
        )
        self.ensemble = SimpleNamespace(
            tree=Merge(children=("net/fold0",)), guiding={}, thresholds=[128] * task.num_maps
        )

    def predictor(self, image: np.ndarray) -> dict[str, np.ndarray]:
        self._on_block(self.num_asked)
        self.num_asked += 1
        return {RESULT: np.ascontiguousarray(np.moveaxis(image[..., : self.task.num_maps], -1, 0))}

    def labels(self, maps: dict[str, np.ndarray]) -> np.ndarray:
        return decide(maps[RESULT], self.ensemble.thresholds, self.task)


def write_run(folder: Path) -> RunDirectory:
    run = RunDirectory(folder)
    run.ensemble.parent.mkdir(parents=True, exist_ok=True)
    run.ensemble.write_text("{}")
    return run


def blobs(size: tuple[int, int], seed: int) -> np.ndarray:
    """Returns uint8 3×H×W of blobs that reach over blocks, some with holes; 0 is nodata and lies in one corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, 256, (3, size[0] // 11 + 2, size[1] // 11 + 2))
    pixels = np.kron(coarse, np.ones((1, 11, 11))).astype(np.uint8)[:, : size[0], : size[1]]
    pixels[:, : size[0] // 2, : size[1] // 2] = 0
    return pixels


def write_scene(path: Path, size: tuple[int, int] = (150, 210), seed: int = 0, **options: Any) -> np.ndarray:
    pixels = options.pop("pixels", blobs(size, seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_geotiff(path, pixels, options.pop("place", PLACE), nodata=options.pop("nodata", 0))
    return pixels


def main(root: str, scenes: str, out: str, kill_after: str) -> None:
    blocks_room.SIDES = (SIDE,)
    stage.PAUSE_SECONDS = 0.05

    def on_block(count: int) -> None:
        time.sleep(0.03)  # so that the processes meet
        if count == int(kill_after):
            os.kill(os.getpid(), signal.SIGKILL)

    known: Any = Known(on_block=on_block)
    print("ready", flush=True)
    sys.stdin.readline()
    stage.predict_scenes(
        RunDirectory(Path(root)), Path(scenes), out=Path(out), to="geotiff", opened=lambda: known, probabilities=True,
        progress=Silent(),
    )  # fmt: skip
    print(known.num_asked)


if __name__ == "__main__":
    main(*sys.argv[1:])
