"""Rasters written block by block: the same as written at once, whole or not at all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio

from maskloom.errors import UserError
from maskloom.rasters import writing
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import TILE, write_geotiff, write_geotiff_blocks
from maskloom.windows import Window

PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
RNG = np.random.default_rng(0)


def blocks_of(values: np.ndarray, side: int) -> list[tuple[Window, np.ndarray]]:
    height, width = values.shape[-2:]
    windows = [
        Window(top, left, min(side, height - top), min(side, width - left))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return [(window, values[(..., *window.slices)]) for window in windows]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as dataset:
        return dataset.read()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("count", "size", "side"), [(1, (700, 900), TILE), (3, (1100, 600), 300), (2, (90, 70), 32)])
def test_blocks_in_any_order_make_the_raster(
    tmp_path: Path, dtype: str, count: int, size: tuple[int, int], side: int
) -> None:
    values = (RNG.random((count, *size)) * 200).astype(dtype)
    blocks = blocks_of(values, side)
    RNG.shuffle(blocks)  # type: ignore[arg-type]
    path = tmp_path / "a.tif"
    write_geotiff_blocks(path, size, count, dtype, PLACE, blocks, nodata=7)
    assert np.array_equal(read(path), values)
    with open_raster(path) as raster:
        assert (raster.size, raster.count, raster.dtype, raster.nodata) == (size, count, np.dtype(dtype), 7)
        assert raster.georeference == PLACE
    with rasterio.open(path) as dataset:
        assert dataset.profile["compress"] == "deflate"
        assert (dataset.block_shapes[0] == (TILE, TILE)) == (min(size) >= TILE)
        assert dataset.overviews(1) == ([2, 4] if max(size) > 1024 else [2] if max(size) > 512 else [])


def test_whole_tiles_are_stored_once(tmp_path: Path) -> None:
    labels = np.kron(RNG.integers(0, 5, (130, 140)), np.ones((8, 8))).astype(np.uint8)
    write_geotiff(tmp_path / "at_once.tif", labels, PLACE)
    for name in ("a.tif", "b.tif"):
        write_geotiff_blocks(tmp_path / name, labels.shape, 1, np.uint8, PLACE, blocks_of(labels, TILE))
    first, second, at_once = ((tmp_path / name).read_bytes() for name in ("a.tif", "b.tif", "at_once.tif"))
    assert first == second
    assert abs(len(first) - len(at_once)) <= 16


def test_blocks_without_anything_are_stored_too(tmp_path: Path) -> None:
    empty = np.zeros((1200, 1100), np.uint8)
    write_geotiff_blocks(tmp_path / "a.tif", empty.shape, 1, np.uint8, PLACE, blocks_of(empty, TILE), nodata=0)
    assert not read(tmp_path / "a.tif").any()


@pytest.mark.parametrize(
    ("window", "values"),
    [
        (Window(0, 0, 20, 20), np.zeros((20, 20), np.uint8)),  # not all of it
        (Window(0, 0, 40, 61), np.zeros((40, 61), np.uint8)),  # beyond it
        (Window(0, 0, 40, 60), np.zeros((60, 40), np.uint8)),
        (Window(0, 0, 40, 60), np.zeros((2, 40, 60), np.uint8)),
        (Window(0, 0, 40, 60), np.zeros((40, 60), np.int16)),
    ],
)
def test_blocks_that_do_not_fit_leave_nothing(tmp_path: Path, window: Window, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_geotiff_blocks(tmp_path / "a.tif", (40, 60), 1, np.uint8, None, [(window, values)])
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_whoever_gives_the_blocks_is_theirs(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[Window, np.ndarray]]:
        yield Window(0, 0, 20, 60), np.zeros((20, 60), np.uint8)
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        write_geotiff_blocks(tmp_path / "a.tif", (40, 60), 1, np.uint8, None, broken())
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_stays_until_its_successor_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, np.ones((40, 60), np.uint8), None)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cover"):
        write_geotiff_blocks(path, (40, 60), 1, np.uint8, None, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize("limit", [1_500_000, 100_000])
def test_a_full_disk_is_one_line(tmp_path: Path, limit: int) -> None:
    """In a process of its own that may write so many bytes to a file."""
    code = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from maskloom.errors import UserError; from maskloom.rasters.writing import write_geotiff_blocks\n"
        "from maskloom.windows import Window\n"
        "values = np.random.default_rng(0).integers(0, 255, (512, 512), np.uint8)\n"
        "places = [(top, left) for top in (0, 512, 1024) for left in (0, 512, 1024)]\n"
        "blocks = ((Window(*place, 512, 512), values) for place in places)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))\n"
        "try:\n    write_geotiff_blocks(Path(sys.argv[1]), (1536, 1536), 1, np.uint8, None, blocks)\n"
        "except UserError as error:\n    print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.tif"), str(limit)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.count("\n") == 1 and "is the disk full?" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "_is_whole", lambda *_: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match=r"a\.tif: the disk is full; free some space and start the same command again"):
        write_geotiff(tmp_path / "a.tif", np.ones((40, 60), np.uint8), None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_geotiff_blocks(tmp_path / "file" / "a.tif", (40, 60), 1, np.uint8, None, [])
