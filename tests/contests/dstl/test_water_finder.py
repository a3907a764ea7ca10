"""Water by thresholds searched per scene, on files whose water is known, and which way a run takes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from shapely import box

from maskloom.config import override
from maskloom.contests.dstl.deliver import water_finder
from maskloom.contests.dstl.third import dstl_3rd
from maskloom.contests.dstl.water import SearchRules
from maskloom.contests.dstl.water_finder import FAST_WATER, M_BANDS, SLOW_WATER, SearchedWater, water_by_line
from maskloom.rasters.writing import write_geotiff
from maskloom.records import BandFile, Record, Shapes
from scenes import described_scenes

SIDE = 20
"""Of M, in pixels; RGB has four times as many."""
SHIFT = (1.0, -2.0)
"""(x, y) in pixels of M: what should lie at (u, v) lies at (u + x, v + y)."""
RULES = SearchRules(fast_pixels=30, slow_pixels=5, slow_buffer=0, reference=(SIDE, SIDE))

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels of M as it lies."""


def image(folder: Path, name: str, *water: Box, truth: bool = False, nir2: int = 200) -> Record:
    """An image of a scene, the first letters of its name: where there is water nir2 is as stated, elsewhere 1500."""
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    bands = dict.fromkeys(M_BANDS, np.full((SIDE, SIDE), 500, np.uint16))
    bands["nir"] = rng.integers(1, 2000, (SIDE, SIDE)).astype(np.uint16)  # ndvi tells nothing
    bands["red"] = np.full((SIDE, SIDE), 1000, np.uint16)
    bands["nir2"] = np.full((SIDE, SIDE), 1500, np.uint16)
    for left, top, right, bottom in water:
        bands["nir2"][top:bottom, left:right] = nir2
    write_geotiff(folder / f"{name}_M.tif", np.stack([bands[band] for band in M_BANDS]), None)
    write_geotiff(folder / f"{name}.tif", np.zeros((3, 4 * SIDE, 4 * SIDE), np.uint16), None)
    shapes = tuple((FAST_WATER if number else SLOW_WATER, on_image(each).wkt) for number, each in enumerate(water))
    return Record(
        id=name,
        image=folder / f"{name}.tif",
        size=(4 * SIDE, 4 * SIDE),
        group=name.split("_")[0],
        truth=Shapes(wkt=(*shapes, (0, box(0, 0, 9, 9).wkt))) if truth else None,
        bands=(BandFile(path=folder / f"{name}_M.tif", moved=(1.0, 0.0, SHIFT[0], 0.0, 1.0, SHIFT[1])),),
    )


def on_image(place: Box) -> Any:
    """Returns a box of M as it lies, in pixels of the image."""
    left, top, right, bottom = place
    x, y = SHIFT
    return box(4 * (left - x), 4 * (top - y), 4 * (right - x), 4 * (bottom - y))


def test_a_scene_takes_what_finds_its_water_best_and_its_polygons_lie_on_the_image(tmp_path: Path) -> None:
    river, pond, trickle = (4, 5, 12, 10), (14, 12, 18, 15), (1, 16, 3, 18)
    labelled = [
        image(tmp_path, "a_0", river, truth=True),
        image(tmp_path, "a_1", pond, truth=True),
        image(tmp_path, "b_0", truth=True),
    ]
    new = [image(tmp_path, "a_2", pond, river, trickle), image(tmp_path, "b_1", river)]
    finder = SearchedWater(labelled, new, rules=RULES)
    found = finder.threshold_of("a")
    assert found is not None and (found.index, found.jaccard) == ("ndvi2", 1.0)
    assert found.below == pytest.approx((-2 / 3 + 0.2) / 2, abs=0.011)  # in the middle of (200, 1000) and (1500, 1000)
    water = finder(new[0])
    assert [each.normalize() for each in water[FAST_WATER]] == [on_image(river).normalize()]  # 40 pixels
    assert [each.normalize() for each in water[SLOW_WATER]] == [on_image(pond).normalize()]  # 12; 4 are too few
    assert finder.threshold_of("b") is None and finder(new[1]) == {FAST_WATER: [], SLOW_WATER: []}
    assert finder.told() == f"a ndvi2 < {found.below:g} (Jaccard 1.000), b has none"
    assert finder.found() == {"a": {"index": "ndvi2", "below": found.below, "jaccard": 1.0}, "b": None}


def test_a_registered_file_is_compared_where_it_lies(tmp_path: Path) -> None:
    """The same polygons without the shift miss a part of the water."""
    record = image(tmp_path, "a_0", (4, 5, 12, 10), truth=True)
    unmoved = Record(
        id="a_0", image=record.image, size=record.size, group="a", truth=record.truth,
        bands=(BandFile(path=record.bands[0].path),),
    )  # fmt: skip
    found = SearchedWater([unmoved], [], rules=RULES).threshold_of("a")
    assert found is not None
    # 8×5 pixels moved by (1, 2): 7×3 in common, 59 in either.
    assert found.jaccard == pytest.approx(21 / 59)


@pytest.mark.parametrize(("nir2", "below"), [(200, -1.7), (350, -0.6)])
def test_an_unknown_scene_goes_by_all_of_its_images(tmp_path: Path, nir2: int, below: float) -> None:
    # dstl_rei of (500, 200) / 2047 is -2.38, of (500, 350) -1.22
    new = [image(tmp_path, "c_0", (2, 2, 10, 10), nir2=nir2), image(tmp_path, "c_1")]
    finder = SearchedWater([image(tmp_path, "a_0", (1, 1, 9, 9), truth=True)], new, rules=RULES)
    found = finder.threshold_of("c")
    assert found is not None and (found.index, found.below) == ("dstl_rei", below)
    assert len(finder(new[0])[FAST_WATER]) == 1 and not finder(new[1])[FAST_WATER]
    assert finder.found()["c"] == {"index": "dstl_rei", "below": below, "jaccard": None}


def test_the_way_is_stated_in_the_recipe(tmp_path: Path) -> None:
    recipe = dstl_3rd(described_scenes(5), device="cpu")
    assert recipe.delivery.water == "ccci"
    labelled = (image(tmp_path, "a_0", (1, 1, 9, 9), truth=True),)
    notes: list[str] = []

    def chosen(*settings: str, records: tuple[Record, ...] = labelled) -> Any:
        source = SimpleNamespace(records=records, task=described_scenes(5).task)
        progress = SimpleNamespace(note=notes.append)
        context: Any = SimpleNamespace(recipe=override(recipe, settings), source=source, progress=progress)
        return water_finder(context, [])

    assert chosen() is water_by_line and chosen("delivery.water=null") is water_by_line and not notes
    finder = chosen("delivery.water=search")
    assert isinstance(finder, SearchedWater)
    assert len(notes) == 1 and notes[0].startswith("water, searched on training polygons: a ndvi2 < ")
    assert chosen("delivery.water=search", "members.0.classes=[slow_water]") is None
    assert notes[1:] == ["delivery.water=search is not used: a member predicts water"]
    alone = Record(id="a", image=labelled[0].image, size=labelled[0].size, truth=labelled[0].truth)
    assert chosen(records=(alone,)) is None and notes[-1].endswith("the images have no bands of M")
