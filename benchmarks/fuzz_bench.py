"""What spoilt inputs are held against: a finished run, its answers, predictions that were interrupted, and a bundle.

Knows nothing about how inputs are spoilt.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMATS = ("png", "prob", "rle", "coco", "geotiff", "geojson")
SCENES = ("geotiff", "geojson")
_SIDE, _CHUNK = 64, 1  # of blocks and of tables, so that a small prediction has several
_INTERRUPTED, _REFERENCE = "interrupted", "reference.json"


@dataclass
class Bench:
    """What a worker has at hand: a finished run, its networks once opened, and what it answers undamaged."""

    folder: Path
    _opened: Any = None

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def photos(self) -> Path:
        return self.folder / "data" / "test"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle.safetensors"

    def source(self, to: str) -> Path:
        """What is predicted in that format."""
        return self.folder / "scenes" if to in SCENES else self.photos

    def output(self, to: str, *, is_whole: bool) -> Path:
        """A folder with all of a prediction, or with what an interrupted one left."""
        return self.folder / ("whole" if is_whole else _INTERRUPTED) / to

    def opened(self) -> Any:
        if self._opened is None:
            import maskloom

            self._opened = maskloom.open_run(self.run, device="cpu")
        return self._opened

    def reference(self, name: str) -> Any:
        return json.loads((self.folder / _REFERENCE).read_text())[name]


def without_places(comparison: dict[str, Any]) -> dict[str, Any]:
    """Returns a comparison without the folders of its runs."""
    sides = {side: {k: v for k, v in comparison[side].items() if k != "runs"} for side in ("a", "b")}
    return {key: value for key, value in comparison.items() if key != "notes"} | sides


def answer(out: Path) -> dict[str, str]:
    """Returns the checksums of what a prediction wrote, by name."""
    from maskloom.files import checksum

    return {path.name: checksum(path) for path in sorted(out.iterdir()) if not path.name.startswith(".")}


@contextlib.contextmanager
def small_parts() -> Iterator[None]:
    """Has predictions made of many small parts while the block runs."""
    from maskloom.inference import blocks
    from maskloom.stages import rows

    before = blocks.SIDES, rows.CHUNK
    blocks.SIDES, rows.CHUNK = (_SIDE,), _CHUNK
    try:
        yield
    finally:
        blocks.SIDES, rows.CHUNK = before


def make_bench(folder: Path) -> Bench:
    """Returns the bench at ``folder``, made if need be: generated photos, a small run, and what it answers."""
    import maskloom
    from maskloom.data.studio import write_studio

    bench = Bench(folder)
    if (folder / _REFERENCE).is_file() and bench.bundle.is_file():
        return bench
    shutil.rmtree(folder, ignore_errors=True)
    write_studio(folder / "data", objects=4, views=3, size=(96, 144), seed=1, test_objects=1)
    small = ["scale=smoke", "members.0.network.weights=none", "members.0.training.epochs=1",
             "members.0.training.images_per_epoch=8", "folds.count=2"]  # fmt: skip
    opened = maskloom.fit("default", folder / "data", run=bench.run, settings=small, device="cpu", workers=0)
    reference: dict[str, Any] = {"evaluate": opened.evaluate()}
    reference["compare"] = without_places(maskloom.compare(bench.run, bench.run).to_json())
    _write_scenes(folder / "scenes")
    for to in FORMATS:
        with small_parts():
            opened.predict(bench.source(to), out=bench.output(to, is_whole=True), to=to)
            _interrupt(opened, bench.source(to), bench.output(to, is_whole=False), to)
        reference[to] = answer(bench.output(to, is_whole=True))
    write_bundle(bench.bundle)
    (folder / _REFERENCE).write_text(json.dumps(reference))
    return bench


def _write_scenes(folder: Path) -> None:
    """Writes small rasters, of a block each where networks see whole images."""
    import numpy as np

    from maskloom.rasters.georeference import Georeference
    from maskloom.rasters.writing import write_geotiff

    place = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
    for number in range(4):
        pixels = np.random.default_rng(number).integers(1, 256, (3, 100, 130)).astype(np.uint8)
        write_geotiff(folder / f"scene{number}.tif", pixels, place, nodata=0)


def _interrupt(opened: Any, source: Path, out: Path, to: str) -> None:
    """Begins a prediction, and stops it once half of it is there."""
    from maskloom.progress import Silent

    class Impatient(Silent):
        def advance(self, done: int, total: int, detail: str = "", *, seconds_left: float | None = None) -> None:
            if 0 < total // 2 <= done < total:
                raise KeyboardInterrupt

    try:
        opened.predict(source, out=out, to=to, progress=Impatient())
    except KeyboardInterrupt:
        return
    raise SystemExit(f"expected a prediction to {to} to be interrupted, found it done before its half was told")


def write_bundle(path: Path, **network: Any) -> None:
    """Writes a bundle of a small network; ``network`` are settings of another one."""
    import torch

    from maskloom.data.input_policy import InputPolicy
    from maskloom.models.bundle import save_bundle
    from maskloom.models.encoders import NetworkSettings
    from maskloom.models.segmenter import Normalisation, build_segmenter
    from maskloom.records import Task

    torch.manual_seed(0)
    settings = NetworkSettings(**{"weights": "none", **network})
    segmenter = build_segmenter(
        settings, task=Task(kind="binary", classes=("car",)), policy=InputPolicy(mode="full", multiple=64),
        normalisation=Normalisation(mean=(0.5,) * 3, std=(0.2,) * 3),
    )  # fmt: skip
    save_bundle(path, segmenter)
