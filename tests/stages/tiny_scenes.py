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

from maskloom.config import parse, to_yaml
from maskloom.data.input_policy import InputPolicy
from maskloom.ensembling.thresholds import decide
from maskloom.inference import blocks as blocks_room
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.progress import Silent
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.writing import write_geotiff
from maskloom.recipe import Recipe
from maskloom.records import Size, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages import scenes as stage
from maskloom.stages.scene_sources import find_scenes

BINARY = Task(kind="binary", classes=("bright",))
THREE = Task(kind="multiclass", classes=("background", "red", "green"))
LAYERS = Task(kind="multilabel", classes=("red", "green"))
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
POLICY = InputPolicy(mode="window", size=(32, 32), multiple=8)
SIDE = 64


class Known:
    """Gives channels of an image, from the ``first`` on, as 8-bit maps, and counts how often it is asked."""

    def __init__(
        self,
        task: Task = BINARY,
        *,
        channels: int = 3,
        first: int = 0,
        on_block: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.task, self.channels = task, channels
        self.num_asked = 0
        self.rasters: set[Size] = set()
        """(height, width) of the scenes whose blocks it was asked about."""
        self.shown: set[Size] = set()
        """(height, width) of the images that it was shown."""
        self._first, self._on_block = first, on_block
        member = SimpleNamespace(name="net", input=POLICY, guidance=None)
        self.recipe = SimpleNamespace(
            member=lambda name: member,
            inference=InferenceSettings(),
            postprocess=SimpleNamespace(steps=()),
        )
        self.ensemble = SimpleNamespace(
            tree=Merge(children=("net/fold0",)), guiding={}, thresholds=[128] * task.num_maps
        )

    def predictor(self, image: np.ndarray, *, raster: Size, **_: Any) -> dict[str, np.ndarray]:
        self.rasters.add(raster)
        self.shown.add((image.shape[0], image.shape[1]))
        self._on_block(self.num_asked)
        self.num_asked += 1
        return {RESULT: maps_of(image[..., self._first : self._first + self.task.num_maps])}

    def labels(self, maps: dict[str, np.ndarray]) -> np.ndarray:
        return decide(maps[RESULT], self.ensemble.thresholds, self.task)


def maps_of(image: np.ndarray) -> np.ndarray:
    """Returns channels as 8-bit maps C×H×W: as they are, or the upper 8 of 11 bits."""
    values = image if image.dtype == np.uint8 else (image >> 3).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))


def write_run(folder: Path, *, channels: int = 3, **changes: Any) -> RunDirectory:
    """Returns a run as far as ``predict_scenes`` reads it; ``changes`` are of its recipe."""
    run = RunDirectory(folder)
    run.ensemble.parent.mkdir(parents=True, exist_ok=True)
    run.ensemble.write_text("{}")
    (run.ensemble.parent / "decided.json").write_text('{"fingerprint": "known"}')
    member = {
        "name": "net",
        "network": {"channels": channels, "weights": "none"},
        "input": {"mode": "window", "size": [32, 32]},
        "loss": {"terms": [{"kind": "bce"}]},
        "training": {"epochs": 1},
    }
    recipe = parse(Recipe, {"name": "known", "metric": "iou", "members": [member], **changes})
    run.recipe.write_text(to_yaml(recipe), encoding="utf-8")
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
    find_scenes(Path(scenes), out=Path(out), bands={}, bad=None)  # loads what reads rasters, so that all begin at once
    print("ready", flush=True)
    sys.stdin.readline()
    stage.predict_scenes(
        RunDirectory(Path(root)), Path(scenes), out=Path(out), to="geotiff", opened=lambda: known, probabilities=True,
        progress=Silent(),
    )  # fmt: skip
    print(known.num_asked)


if __name__ == "__main__":
    main(*sys.argv[1:])
