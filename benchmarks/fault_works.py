"""What the benchmarks of faults disturb: commands that can be taken up again, and what of them must be the same."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import differences, digests, left_behind, studio_with_test

HERE = Path(__file__).parent
STUCK_SECONDS = 600.0
"""A process that has not ended by then is taken for hung."""
RESULTS = ("members/**/*.safetensors", "oof/**/*", "pseudo/**/*", "ensemble/*", "predictions/**/*", "folds.csv",
           "submission*", "data/survey.json")  # fmt: skip
"""Patterns of what a training leaves that must be the same."""
SCENES = ((200, 290), (250, 180))
"""Heights and widths of rasters, at most 320."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """A command that can be taken up again: what it is, where it writes, and which of that must be the same."""

    name: str
    command: Callable[[Path], list[str]]
    """Arguments of the command line that write into a folder."""
    results: tuple[str, ...]
    """Patterns of files."""
    stage_of: Callable[[str], str]
    """The stage to which a changed file belongs, by its name within the folder."""
    spec: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None
    """The run whose status tells of it; None: the folder itself."""

    def digests(self, out: Path) -> dict[str, str]:
        """Returns the checksums of what must be identical."""
        return digests(out, self.results)


def recipe_file(folder: Path, data: Path) -> Path:
    """Returns a recipe with every kind of stage, as small as it can be."""
    import yaml

    from maskloom.registry import plan

    settings = ["scale=smoke", "members.0.network.weights=none", "folds.count=2"]
    complete, _ = plan("default", data, settings=settings, device="cpu")
    values = complete.model_dump(mode="json")
    (member,) = values["members"]
    member["training"] |= {
        "epochs": 3, "images_per_epoch": 24, "batch_size": 4, "ema_decay": 0.9, "hard_negative_every": 3,
        "accumulation": 2, "checkpoint_seconds": 0.5, "validate_every": 1, "validate_from": 0.0, "progressive": 0.5,
        "soup": None,
    }  # fmt: skip
    member["network"] = {"architecture": "unet_scratch", "weights": "none", "width": 0.125}
    member["input"] |= {"size": [64, 128], "multiple": 64}
    pupil = member | {"name": "pupil", "training": member["training"] | {"epochs": 2, "hard_negative_every": None}}
    values |= {
        "name": "campaign",
        "scale": "full",
        "members": [member, pupil],
        "pseudo": [{"members": ["pupil"], "minimum_confidence": 0.0}],
        "postprocess": {"steps": [{"kind": "holes"}], "draws": 100},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def stage_of_run(name: str) -> str:
    """Returns the stage to which a file of a run belongs; "" for files of the run as a whole."""
    from maskloom.run_directory import RunDirectory

    if name.startswith("stages/"):
        return name.removeprefix("stages/").rpartition("/.partial")[0] or Path(name[7:]).with_suffix("").as_posix()
    root = Path("/run")
    return RunDirectory(root).stage_of(root / name) or ""


def works(folder: Path) -> list[Work]:
    """Returns what is disturbed; their data are written into the folder, a finished run of the first is in ``run``."""
    data = studio_with_test(folder / "data", size=(96, 144))
    recipe = recipe_file(folder, data)
    write_scenes(folder / "scenes")
    run, device = folder / "run", ["--device", "cpu"]
    fitted = Work(
        name="fit",
        command=lambda out: ["fit", str(recipe), "--data", str(data), "--run", str(out), *device, "--workers", "2"],
        results=RESULTS,
        stage_of=stage_of_run,
    )
    photos, scenes = data / "train", folder / "scenes"
    return [
        fitted,
        prediction("png", run, photos),
        prediction("rle", run, photos, chunk=4),
        prediction("coco", run, photos, chunk=4),
        prediction("geotiff", run, scenes, "--probabilities", "--uncertainty", side=96),
        prediction("geojson", run, scenes, side=96),
    ]


def prediction(to: str, run: Path | str, source: Path | str, *more: str, **spec: Any) -> Work:
    """Returns a prediction by a run's networks, with further options and what the spec is to say."""
    return Work(
        name=to,
        command=lambda out: [
            "predict", str(run), str(source), "--out", str(out), "--to", to, *more, "--device", "cpu"
        ],
        results=("[!.]*", "[!.]*/**/*"),
        stage_of=lambda name: f"predict {to}",
        spec=spec,
        run=run if isinstance(run, Path) else None,
    )  # fmt: skip


def write_scenes(folder: Path, sizes: Sequence[tuple[int, int]] = SCENES) -> None:
    """Writes small rasters of these heights and widths with a place on the ground."""
    import numpy as np

    from maskloom.rasters.georeference import Georeference
    from maskloom.rasters.writing import write_geotiff

    folder.mkdir(parents=True, exist_ok=True)
    place = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
    for number, size in enumerate(sizes):
        coarse = np.random.default_rng(number).integers(1, 256, (3, 20, 20))
        pixels = np.kron(coarse, np.ones((1, 16, 16)))[:, : size[0], : size[1]].astype(np.uint8)
        write_geotiff(folder / f"scene{number}.tif", pixels, place, nodata=0)


# One process ---------------------------------------------------------------------------------------------------------


class Process:
    """The command line with what is to happen to it, and the stages that it says."""

    def __init__(self, work: Work, out: Path, folder: Path, spec: dict[str, Any]) -> None:
        self.log = folder / "events.jsonl"
        self.log.unlink(missing_ok=True)
        (folder / "spec.json").write_text(json.dumps({"root": str(out), "log": str(self.log), **work.spec, **spec}))
        arguments = [sys.executable, str(HERE / "faulty.py"), str(folder / "spec.json"), *work.command(out)]
        self.began = time.time()
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.said: list[tuple[float, str]] = []
        self.changed = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append((time.time() - self.began, line.rstrip()))
            self.changed.set()
        self.changed.set()

    def stages(self) -> list[tuple[float, str]]:
        """Returns the stages that were begun, and when."""
        return [(at, line.split()[1]) for at, line in list(self.said) if line.startswith("> ")]

    def reached(self, stage: str) -> bool:
        """Waits until the stage begins, or is found finished; returns whether it did before the process ended."""
        deadline = time.monotonic() + STUCK_SECONDS
        while time.monotonic() < deadline:
            self.changed.clear()
            if any(line[:2] in ("> ", "= ") and line.split()[1] == stage for _, line in list(self.said)):
                return True
            if not self._reader.is_alive():
                return False
            self.changed.wait(1.0)
        return False

    def end(self) -> int:
        """Returns the exit code."""
        try:
            return self.process.wait(STUCK_SECONDS)
        finally:
            self.process.kill()
            self._reader.join()

    def error(self) -> str:
        """Returns the lines of errors and tracebacks."""
        lines = [line for _, line in self.said]
        first = next(
            (place for place, line in enumerate(lines) if line.startswith(("error: ", "Traceback"))), len(lines)
        )
        return "\n".join(lines[first:])

    def events(self) -> list[dict[str, Any]]:
        """Returns what the log says."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


# What is left --------------------------------------------------------------------------------------------------------


def compared(work: Work, out: Path, whole: dict[str, str]) -> list[str]:
    """Returns what is wrong with a finished work."""
    wrong = [f"{work.name}: {line}" for line in differences(whole, work.digests(out))]
    wrong += [f"{work.name}: left behind {name}" for name in left_behind(out)]
    if work.name == "fit":
        from maskloom.api import verify

        wrong += [f"fit: {name} is {state}" for name, state in verify(out).bad.items()]
    return wrong


def remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
