"""Files of a mirror that were given up for room: every reader has them fetched again, and none reads a placeholder."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shapely import box

from maskloom.config import load_yaml
from maskloom.data.fold_rows import columns_of, read_rows
from maskloom.data.image_io import write_png
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.coco import open_coco
from maskloom.data.sources.coco import recognise as is_coco
from maskloom.data.sources.polygons import open_polygons
from maskloom.data.sources.polygons import recognise as are_polygons
from maskloom.data.sources.table import open_table as open_image_table
from maskloom.data.sources.table import recognise as is_table
from maskloom.data.truth import read_truth
from maskloom.encodings.table_files import open_table
from maskloom.encodings.vector_files import Feature, is_wkt_table, read_features
from maskloom.errors import BadFile
from maskloom.files import write_bytes
from maskloom.integrity import read_sealed, write_sealed
from maskloom.outputs.vectors import write_features
from maskloom.rasters.georeference import Georeference, read_georeference, to_crs
from maskloom.rasters.writing import write_geotiff
from maskloom.run_directory import FORMAT, RunDirectory
from maskloom.storage import ranges, remote_lock
from maskloom.storage.placeholders import is_placeholder
from maskloom.storage.places import local_data, readable_run, working_run
from maskloom.storage.remote import Changed, store_at
from unasked import given_up, refuse_unasked_reads

fsspec = pytest.importorskip("fsspec")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SIZE = (20, 30)
PLACE = Georeference("EPSG:32633", (2.0, 0.0, 500_000.0, 0.0, -2.0, 5_000_000.0))
SHAPE = to_crs([box(3, 4, 10, 9)], PLACE)[0]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder of fsspec's own store in memory, with an empty cache; a placeholder that is read unasked is refused."""
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "cache"))
    refuse_unasked_reads(monkeypatch)
    name = tmp_path.name
    yield f"memory://{name}"
    store = fsspec.filesystem("memory")
    if store.exists(name):
        store.rm(name, recursive=True)


def mirrored(bucket: str, folder: Path) -> Path:
    """Returns the mirror of a bucket with a folder's files, of which none is at hand."""
    for file in folder.rglob("*"):
        if file.is_file():
            store_at(f"{bucket}/data").write(file.relative_to(folder).as_posix(), file.read_bytes())
    root = local_data(f"{bucket}/data")
    given_up(root)
    assert all(is_placeholder(file) for file in root.rglob("*") if file.is_file())
    return root


# Rasters and polygons ------------------------------------------------------------------------------------------------


def raster(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_geotiff(path, np.full((3, *SIZE), 7, np.uint8), PLACE)
    return path


@pytest.mark.parametrize("small", [ranges.SMALL, 0], ids=["fetched", "in parts"])
def test_a_raster_says_where_it_lies(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    monkeypatch.setattr(ranges, "SMALL", small)
    raster(tmp_path / "here" / "a.tif")
    write_png(tmp_path / "here" / "b.png", np.zeros(SIZE, np.uint8))
    root = mirrored(bucket, tmp_path / "here")
    assert read_georeference(root / "a.tif") == PLACE
    assert read_georeference(root / "b.png") is None


@pytest.mark.parametrize("name", ["truth.geojson", "truth.gpkg", "truth.fgb"])
def test_rasters_with_polygons_are_a_source(bucket: str, tmp_path: Path, name: str) -> None:
    if not name.endswith("json"):
        pytest.importorskip("pyogrio")
    here = tmp_path / "here"
    raster(here / "images" / "a.tif")
    write_features(here / name, [Feature(SHAPE, "house", "")], crs="EPSG:32633")
    (here / "classes.yaml").write_text("classes: [house]\n")
    expected = open_polygons(here, DataSettings())
    root = mirrored(bucket, here)
    assert are_polygons(root, DataSettings())
    source = open_polygons(root, DataSettings())
    assert source == DataSource.from_json(expected.to_json(), root)
    truth = read_truth(source.records[0], source.task, source.coding)
    assert truth.sum() == 7 * 5 and truth[4:9, 3:10].all()


# Tables and settings -------------------------------------------------------------------------------------------------


def rows_of(path: Path) -> list[list[str]]:
    with open_table(path) as rows:
        return list(rows)


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}],
    "categories": [{"id": 1, "name": "car"}],
}
TABLE = "id,image,rle,rle_order,rle_base\na,a.png,3 2,row,1\n"
WKT = 'id,class,wkt\na,car,"POLYGON ((0 0, 4 0, 4 4, 0 0))"\n'
READERS: dict[str, tuple[str, bytes, Callable[[Path], Any]]] = {
    "table": ("t.csv", b"a,b\n1,2\n", rows_of),
    "compressed table": ("t.csv.gz", gzip.compress(b"a,b\n1,2\n"), rows_of),
    "settings": ("classes.yaml", b"classes: [car]\n", load_yaml),
    "folds": ("folds.csv", b"id,fold\na,0\n", lambda path: (columns_of(path), read_rows(path, "table", ["id"]))),
    "WKT": ("t.csv", WKT.encode(), lambda path: (is_wkt_table(path), read_features(path))),
    "COCO": ("t.json", json.dumps(COCO).encode(), lambda path: (is_coco(path), described(open_coco, path))),
    "images": ("t.csv", TABLE.encode(), lambda path: (is_table(path.parent), described(open_image_table, path))),
}


def described(opened: Callable[[Path, DataSettings], DataSource], path: Path) -> Any:
    return opened(path, DataSettings()).to_json()


@pytest.mark.parametrize(("name", "content", "read"), READERS.values(), ids=READERS.keys())
def test_tables_and_settings_are_fetched_again(
    bucket: str, tmp_path: Path, name: str, content: bytes, read: Callable[[Path], Any]
) -> None:
    write_bytes(tmp_path / "here" / name, content)
    write_png(tmp_path / "here" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    expected = read(tmp_path / "here" / name)
    path = mirrored(bucket, tmp_path / "here") / name
    assert read(path) == expected
    assert path.read_bytes() == content


def test_parquet_is_fetched_again(bucket: str, tmp_path: Path) -> None:
    import pandas as pd

    (tmp_path / "here").mkdir()
    columns = {"id": ["a"], "image": ["a.png"], "rle": ["3 2"], "rle_order": ["row"], "rle_base": ["1"]}
    pd.DataFrame(columns).to_parquet(tmp_path / "here" / "t.parquet")
    write_png(tmp_path / "here" / "a.png", np.zeros((*SIZE, 3), np.uint8))
    expected = described(open_image_table, tmp_path / "here" / "t.parquet")
    root = mirrored(bucket, tmp_path / "here")
    assert is_table(root) and described(open_image_table, root / "t.parquet") == expected


@pytest.mark.parametrize("name", ["t.geojson", "t.csv", "t.gpkg"])
def test_what_the_store_no_longer_has_is_no_damage_of_the_file(bucket: str, tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / "here" / name, b"anything")
    path = mirrored(bucket, tmp_path / "here") / name
    store_at(f"{bucket}/data").remove([name])
    with pytest.raises(Changed) as told:
        read_features(path)
    assert not isinstance(told.value, BadFile) and name in str(told.value)


# Runs of earlier versions --------------------------------------------------------------------------------------------


def test_files_without_checksums_are_fetched_when_they_are_about_to_be_read(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version wrote no ledger, and its run was copied to the bucket."""
    monkeypatch.setattr(remote_lock, "_SETTLE_SECONDS", 0.0)
    bundle, url = "members/net/fold0/last.safetensors", f"{bucket}/run"
    with working_run(url) as root:
        run = RunDirectory(root)
        write_sealed(run.facts, {"format": FORMAT, "data": "data"})
        write_bytes(root / bundle, b"weights")
        run.finish("train/net/fold0", "mark", [root / bundle], 1.0)
        marker = run.marker("train/net/fold0")
        stated = {key: value for key, value in read_sealed(marker).items() if key not in ("outcome", "sha256")}
        run.sums("train/net/fold0").unlink()
        write_sealed(marker, stated)
    monkeypatch.setenv("MASKLOOM_CACHE", str(tmp_path / "other"))
    run = RunDirectory(readable_run(url))
    assert is_placeholder(run.root / bundle)
    assert run.checked(run.root / bundle).read_bytes() == b"weights"


# All of them ----------------------------------------------------------------------------------------------------------

ROOMS = ("config.py", "data", "encodings", "outputs", "rasters")
KNOWN = {
    ("data/image_io.py", "read_bytes"),  # of a file that was fetched for its header
    ("encodings/ogr.py", "open"),  # likewise, by read_features
    ("encodings/vector_files.py", "read_bytes"),  # likewise
    ("encodings/table_files.py", "open"),  # to write
}


def test_no_other_reader_opens_a_path_as_it_is() -> None:
    """What reads data asks ``at_hand`` or ``open_part`` for a file; a new place that does not is to be looked at."""
    package = Path(__file__).parents[1] / "src" / "maskloom"
    files = [file for room in ROOMS for file in [package / room, *(package / room).rglob("*.py")] if file.is_file()]
    found = {
        (file.relative_to(package).as_posix(), method)
        for file in files
        for name, method in re.findall(
            r"\b([a-z_][a-z0-9_]*)\.(open|read_text|read_bytes)\(", file.read_text(encoding="utf-8")
        )
        if name not in ("rasterio", "memory")
    }
    assert found == KNOWN
