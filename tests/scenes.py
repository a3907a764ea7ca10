"""Scenes of the Dstl contest as records whose files do not exist: for what only looks at names and sizes."""

from __future__ import annotations

from pathlib import Path

from maskloom.contests.dstl.truth import CLASSES
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.records import BandFile, Record, Task


def described_scenes(count: int, *, swir: bool = False) -> DataSource:
    """Returns a source of ``count`` scenes of one image each: RGB with M and P, or (``swir``) the SWIR bands alone."""
    return DataSource(
        layout="dstl",
        root=Path("dstl"),
        task=Task(kind="multilabel", classes=CLASSES),
        coding=MaskCoding(),
        records=tuple(scene(number, swir=swir) for number in range(count)),
        submission="dstl",
    )


def scene(number: int, *, swir: bool) -> Record:
    name = f"6{number:03d}_0_0"
    image = Path(f"{name}_A.tif" if swir else f"{name}.tif")
    bands = () if swir else tuple(BandFile(path=Path(f"{name}_{kind}.tif")) for kind in "MP")
    return Record(id=name, image=image, size=(134, 136) if swir else (3350, 3400), group=f"6{number:03d}", bands=bands)
