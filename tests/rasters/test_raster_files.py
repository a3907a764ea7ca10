"""Rasters written and read by window: what comes back, how it lies in the file, and damaged files."""

from __future__ import annotations

import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile

from maskloom.errors import BadFile
from maskloom.rasters.georeference import Georeference
from maskloom.rasters.reading import open_raster
from maskloom.rasters.writing import write_geotiff
from maskloom.windows import Window

PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 100_000.0))
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("count", [1, 4, 8])
def test_what_is_written_is_read(tmp_path: Path, dtype: str, count: int) -> None:
    values = (RNG.random((count, 40, 60)) * 200).astype(dtype)
    path = tmp_path / "a.tif"
    write_geotiff(path, values if count > 1 else values[0], PLACE)
    with open_raster(path) as raster:
        assert (raster.size, raster.count, raster.dtype) == ((40, 60), count, np.dtype(dtype))
        assert raster.georeference == PLACE and raster.nodata is None
        pixels, is_valid = raster.read(Window(10, 20, 8, 16))
        with pytest.raises(ValueError, match="outside"):
            raster.read(Window(30, 0, 20, 60))
    assert np.array_equal(pixels, np.moveaxis(values, 0, -1)[10:18, 20:36])
    assert is_valid.all()


def test_nodata_is_not_valid(tmp_path: Path) -> None:
    values = np.array([[0, 7], [0, 9]], np.uint16)
    write_geotiff(tmp_path / "a.tif", values, PLACE, nodata=0)
    with open_raster(tmp_path / "a.tif") as raster:
        assert raster.nodata == 0
        assert raster.read(Window(0, 0, 2, 2))[1].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 3), ("uint16", 0), ("float32", -9999.0), ("float32", np.nan)])
def test_validity_is_that_of_gdal(tmp_path: Path, dtype: str, nodata: float) -> None:
    values = RNG.integers(0, 9, (3, 20, 30)).astype(dtype)
    values[:, :8], values[0, 9:12] = nodata, nodata
    write_geotiff(tmp_path / "a.tif", values, PLACE, nodata=nodata)
    with open_raster(tmp_path / "a.tif") as raster, rasterio.open(tmp_path / "a.tif") as dataset:
        found = raster.read(Window(0, 0, 20, 30))[1]
        assert np.array_equal(found, dataset.dataset_mask() > 0)
    assert not found[:8].any() and found[9:12].any()


def test_an_alpha_band_is_no_band_but_says_what_is_valid(tmp_path: Path) -> None:
    values = RNG.integers(0, 255, (4, 20, 30), np.uint8)
    values[3] = np.where(np.arange(30) < 10, 0, 255)
    profile = {"driver": "GTiff", "width": 30, "height": 20, "count": 4, "dtype": "uint8", "photometric": "rgb"}
    place = {"crs": PLACE.crs, "transform": rasterio.Affine(*PLACE.transform)}
    with rasterio.open(tmp_path / "a.tif", "w", ALPHA="NON-PREMULTIPLIED", **place, **profile) as dataset:
        dataset.write(values)
    with open_raster(tmp_path / "a.tif") as raster:
        pixels, is_valid = raster.read(Window(0, 0, 20, 30))
    assert raster.count == 3 and np.array_equal(pixels, np.moveaxis(values[:3], 0, -1))
    assert np.array_equal(is_valid, np.broadcast_to(np.arange(30) >= 10, (20, 30)))


def test_georeference_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    """Texts and scale are gone; what GDAL says of that is none of rasterio's errors."""
    path = tmp_path / "a.tif"
    write_geotiff(path, np.zeros((3, 20, 30), np.uint8), PLACE)
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages.first.tags[name].offset for name in ("GeoAsciiParamsTag", "ModelPixelScaleTag")]
    data = bytearray(path.read_bytes())
    for place in places:
        struct.pack_into("<H", data, place, 65_000)
    path.write_bytes(data)
    with pytest.raises(BadFile, match="GeoAsciiParams is missing"), open_raster(path):
        pass


def test_gdal_is_silent_in_threads_that_read_what_another_opened(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A list of directories that comes back to the first, of which it complains once it looks for masks."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.full((20, 30), 7, np.uint8))
    with tifffile.TiffFile(path) as tiff:
        first, num_tags = tiff.pages.first.offset, len(tiff.pages.first.tags)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, first + 2 + 12 * num_tags, first)
    path.write_bytes(data)
    with open_raster(path) as raster, ThreadPoolExecutor(1) as pool:
        pixels, is_valid = pool.submit(raster.read, Window(0, 0, 20, 30)).result()
    assert (pixels == 7).all() and is_valid.all()
    assert capfd.readouterr() == ("", "")


def test_blocks_and_overviews(tmp_path: Path) -> None:
    labels = np.kron(RNG.integers(0, 5, (130, 140)), np.ones((8, 8))).astype(np.uint8)
    write_geotiff(tmp_path / "large.tif", labels, PLACE)
    write_geotiff(tmp_path / "small.tif", labels[:100, :100], PLACE)
    with rasterio.open(tmp_path / "large.tif") as dataset:
        assert dataset.block_shapes == [(512, 512)] and dataset.profile["compress"] == "deflate"
        assert dataset.overviews(1) == [2, 4]
        # Nearest neighbour invents no labels, and pieces of 8×8 pixels survive both halvings.
        assert np.array_equal(dataset.read(1, out_shape=(260, 280))[::2, ::2], labels[::8, ::8])
        assert np.array_equal(dataset.read(1), labels)
    with rasterio.open(tmp_path / "small.tif") as dataset:
        assert dataset.overviews(1) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large.tif", "small.tif"]


def test_equal_masks_give_equal_bytes(tmp_path: Path) -> None:
    mask = (RNG.random((600, 700)) > 0.5).astype(np.uint8)
    for name in ("a.tif", "b.tif"):
        write_geotiff(tmp_path / name, mask, PLACE)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_a_truncated_raster_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_geotiff(path, RNG.integers(0, 255, (3, 600, 600), np.uint8), PLACE, overviews=False)
    whole = path.read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:length])
        with pytest.raises(BadFile, match=r"a\.tif") as caught, open_raster(path) as raster:
            raster.read(Window(0, 0, 600, 600))
        assert "\n" not in str(caught.value)


def test_what_is_no_raster_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.tif").write_text("not a raster")
    for name in ("text.tif", "absent.tif"):
        with pytest.raises(BadFile, match=name) as caught, open_raster(tmp_path / name):
            pass
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("side", "limit"), [(90, 20_000), (1000, 3_020_000), (1000, 200_000)])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, side: int, limit: int) -> None:
    """In a process of its own that may write so many bytes to a file; GDAL itself only notices while it writes."""
    code = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np\n"
        "from maskloom.errors import UserError; from maskloom.rasters.writing import write_geotiff\n"
        "values = np.random.default_rng(0).integers(0, 255, (3, int(sys.argv[2]), int(sys.argv[2])), np.uint8)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))\n"
        "try:\n    write_geotiff(Path(sys.argv[1]), values, None)\n"
        "except UserError as error:\n    print(error)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "a.tif"), str(side), str(limit)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.count("\n") == 1 and "is the disk full?" in found.stdout
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_a_raster_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="H×W"):
        write_geotiff(tmp_path / "a.tif", np.zeros(5, np.uint8), PLACE)
    assert list(tmp_path.iterdir()) == []
