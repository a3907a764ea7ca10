"""Truth that lies elsewhere than its image is bad; a neighbour's outline and half a pixel are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import survey
from maskloom.errors import BadFile
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.writing import write_geotiff
from maskloom.records import MaskFile, Record, Shapes, Task

SIZE = (20, 30)
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0))


def problems(folder: Path, record: Record) -> list[BadFile]:
    task = Task(kind="binary", classes=("house",))
    coding = MaskCoding(kind="foreground")
    source = DataSource(layout="folder", root=folder, task=task, coding=coding, records=(record,))
    return survey(source).problems


def masked(folder: Path, image: Georeference | None, mask: Georeference | None) -> Record:
    write_geotiff(folder / "a.tif", np.ones((3, *SIZE), np.uint8), image)
    write_geotiff(folder / "mask.tif", np.eye(*SIZE, dtype=np.uint8), mask)
    return Record(id="a", image=folder / "a.tif", size=SIZE, truth=MaskFile(path=folder / "mask.tif"))


@pytest.mark.parametrize(
    ("mask", "pixels"),
    [
        (Georeference("EPSG:32633", (2.0, 0.0, 500_100.0, 0.0, -2.0, 5_000_000.0)), "50 of"),
        (Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, 2.0, 4_999_960.0)), "20 of"),  # upside down
        (Georeference("EPSG:32633", (4.0, 0.0, 500_000.0, 0.0, -4.0, 5_000_000.0)), "30 of"),
        (Georeference("EPSG:4326", (2e-5, 0.0, 15.0, 0.0, -2e-5, 45.1)), "found it up to"),
    ],
)
def test_a_mask_of_another_place_is_bad(tmp_path: Path, mask: Georeference, pixels: str) -> None:
    (problem,) = problems(tmp_path, masked(tmp_path, PLACE, mask))
    assert problem.path.name == "mask.tif"
    assert pixels in problem.reason and "the image's grid" in problem.reason


@pytest.mark.parametrize(
    "mask",
    [
        PLACE,
        None,
        Georeference(None, (1.0, 0.0, 7.0, 0.0, -1.0, 20.0)),
        Georeference("EPSG:32633", (2.0, 0.0, 500_001.0, 0.0, -2.0, 4_999_999.0)),  # centres for corners
        Georeference("EPSG:25833", PLACE.transform),
    ],
)
def test_a_mask_of_the_same_place_or_of_none_is_good(tmp_path: Path, mask: Georeference | None) -> None:
    assert not problems(tmp_path, masked(tmp_path, PLACE, mask))


@pytest.mark.parametrize(
    ("wkt", "is_far"),
    [
        ("POLYGON ((500010 4999990, 500020 4999990, 500020 4999980, 500010 4999990))", True),
        ("POLYGON ((15.1 -45.1, 15.2 -45.1, 15.2 -45.2, 15.1 -45.1))", True),
        ("POLYGON ((32 5, 40 5, 40 9, 32 5))", False),  # of the neighbour: it says that nothing is here
        ("POLYGON ((-500 -500, 500 -500, 500 500, -500 -500))", False),
        ("MULTIPOLYGON EMPTY", False),
    ],
)
def test_polygons_far_from_the_image_are_bad(tmp_path: Path, wkt: str, is_far: bool) -> None:
    record = masked(tmp_path, PLACE, None)
    record = Record(id="a", image=record.image, size=SIZE, truth=Shapes(wkt=((0, wkt),)))
    found = [problem.reason for problem in problems(tmp_path, record)]
    assert len(found) == is_far and all("expected polygons in its 30×20 pixels" in reason for reason in found)
