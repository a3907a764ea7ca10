"""Tables of masks, run lengths and WKT; what is doubtful is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from maskloom.data.image_io import write_png
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.sources.table import open_table, recognise
from maskloom.data.truth import read_truth
from maskloom.encodings.rle import encode_runs
from maskloom.errors import BadFile, UserError
from maskloom.records import BadSize, RunLengths

SIZE = (5, 7)
BOX = np.zeros(SIZE, bool)
BOX[1:3, 2:5] = True
FULL = np.ones(SIZE, bool)
LAST = np.zeros(SIZE, bool)
LAST[-1, -1] = True


def table(folder: Path, rows: list[dict[str, object]], name: str = "train.csv") -> Path:
    """Returns a table of these rows, with an image for every name that is not there yet."""
    for row in rows:
        path = folder / str(row["image"])
        if not path.exists() and ".." not in path.parts:
            write_png(path, np.zeros((*SIZE, 3), np.uint8))
    frame = pd.DataFrame(rows)
    if name.lower().endswith(".parquet"):
        # Columns of capital names have pandas' own missing values, those of others None and NaN.
        (frame.convert_dtypes() if name.isupper() else frame).to_parquet(folder / name)
    else:
        frame.to_csv(folder / name, index=False)
    return folder / name


def opened(path: Path, **settings: object) -> DataSource:
    return open_table(path, DataSettings.model_validate(settings))


def runs(mask: np.ndarray = BOX, order: str = "row", base: int = 1) -> str:
    return encode_runs(mask, order=order, base=base)


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train.parquet", "TRAIN.PARQUET"])
def test_masks_groups_and_attributes(tmp_path: Path, name: str) -> None:
    write_png(tmp_path / "m" / "a.png", BOX.astype(np.uint8))
    rows = [
        {"id": "x/a", "image": "i/a.png", "mask": "m/a.png", "group": "g", "Camera": "C1", "year": 2011},
        {"id": "b", "image": "i/b.png", "mask": None, "group": None, "Camera": None, "year": 2012},
        {"id": "c", "image": "i/c.png", "mask": None, "group": "", "Camera": None, "year": 2013, "day": pd.NaT},
    ]
    table(tmp_path, rows, name)
    assert recognise(tmp_path) and recognise(tmp_path / name)
    source = opened(tmp_path)
    (record,) = source.records
    expected = {"Camera": "C1", "year": "2011", "day": ""}
    assert (record.id, record.group, dict(record.attributes)) == ("x/a", "g", expected)
    assert np.array_equal(read_truth(record, source.task, source.coding), BOX)
    assert [(each.id, each.group) for each in source.unlabelled] == [("b", "b"), ("c", "c")]
    assert [each.attributes["Camera"] for each in source.unlabelled] == ["", ""]
    assert opened(tmp_path, group="Camera").records[0].group == "C1"


@pytest.mark.parametrize("stated", ["columns", "settings"])
@pytest.mark.parametrize(("order", "base"), [("row", 0), ("row", 1), ("column", 0), ("column", 1)])
def test_stated_run_lengths(tmp_path: Path, stated: str, order: str, base: int) -> None:
    row: dict[str, object] = {"image": "a.png", "rle": runs(order=order, base=base)}
    settings: dict[str, object] = {"rle_order": order, "rle_base": base}
    if stated == "columns":
        row, settings = row | settings, {}
    source = opened(table(tmp_path, [row]), **settings)
    assert source.records[0].id == "a" and source.task.kind == "binary"
    assert np.array_equal(read_truth(source.records[0], source.task, source.coding), BOX)


def test_a_base_is_recognised_where_only_one_is_valid(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "rle": runs()}, {"image": "b.png", "rle": runs(LAST)}]
    source = opened(table(tmp_path, rows), rle_order="row")
    truth = source.records[0].truth
    assert isinstance(truth, RunLengths) and truth.base == 1
    assert any("recognised" in note for note in source.notes)


def test_doubtful_run_lengths_are_refused_with_the_readings(tmp_path: Path) -> None:
    path = table(tmp_path, [{"image": "a.png", "rle": runs()}])
    with pytest.raises(UserError, match=r"along rows from 0 .* or .*down columns from 1 .*data.rle_order=column"):
        opened(path)
    with pytest.raises(UserError, match=r"along rows from 0 .* or along rows from 1"):
        opened(path, rle_order="row")
    full = table(tmp_path, [{"image": "a.png", "rle": "1 35"}, {"image": "b.png", "rle": "0 35"}], "b.csv")
    with pytest.raises(UserError, match="contradiction"):
        opened(full)


def test_statements_that_contradict(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "rle": runs(), "rle_base": 1, "rle_order": "row"}]
    with pytest.raises(UserError, match="rle_base: the table states 1, the settings 0"):
        opened(table(tmp_path, rows), rle_base=0)
    rows.append({"image": "b.png", "rle": runs(), "rle_base": 0, "rle_order": "row"})
    with pytest.raises(UserError, match="rle_base: expected 0 or 1 throughout, found 0, 1"):
        opened(table(tmp_path, rows))


def test_empty_run_lengths_are_empty_masks_and_rows_are_pieces(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "image": "a.png", "rle": "1 2"},
        {"id": "a", "image": "a.png", "rle": "4 1"},
        {"id": "b", "image": "b.png", "rle": ""},
    ]
    source = opened(table(tmp_path, rows), rle_order="row", rle_base=1)
    labels = [read_truth(record, source.task, source.coding) for record in source.records]
    assert labels[0][0].tolist() == [1, 1, 0, 1, 0, 0, 0] and not labels[1].any()


def test_classes_that_overlap_are_multilabel_others_multiclass(tmp_path: Path) -> None:
    wkt = {"roof": "POLYGON ((0 0, 3 0, 3 5, 0 5, 0 0))", "tree": "POLYGON ((4 0, 7 0, 7 5, 4 5, 4 0))"}
    rows = [{"image": "a.png", "class": name, "wkt": text} for name, text in wkt.items()]
    source = opened(table(tmp_path, rows))
    assert source.task.kind == "multiclass" and source.task.classes == ("background", "roof", "tree")
    assert read_truth(source.records[0], source.task, source.coding)[0].tolist() == [1, 1, 1, 0, 2, 2, 2]
    rows.append({"image": "a.png", "class": "tree", "wkt": "POLYGON ((0 0, 5 0, 5 5, 0 5, 0 0))"})
    source = opened(table(tmp_path, rows))
    assert source.task.kind == "multilabel" and source.task.classes == ("roof", "tree")
    stated = opened(table(tmp_path, rows), task="multiclass", classes=["tree", "roof"])
    assert stated.task.classes == ("background", "tree", "roof")
    with pytest.raises(UserError, match="did you mean 'roofs'"):
        opened(table(tmp_path, rows), classes=["roofs", "tree"])


def test_split_column(tmp_path: Path) -> None:
    rows = [{"image": f"{name}.png", "wkt": "POLYGON EMPTY", "split": name} for name in ("train", "val", "test")]
    source = opened(table(tmp_path, rows))
    assert [record.split for record in source.records] == ["train", "val"]
    assert [record.id for record in source.unlabelled] == ["test"]
    with pytest.raises(UserError, match="expected train, val or test, found 'tain'"):
        opened(table(tmp_path, [{"image": "a.png", "wkt": "", "split": "tain"}]))


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"image": "a.png", "id": "../a", "rle": ""}], r"id '../a' cannot name an output file"),
        ([{"image": "a.png", "id": "/a", "rle": ""}], "cannot name an output file"),
        ([{"image": "../a.png", "rle": ""}], r"id '../a' cannot name"),
        ([{"image": "a.png", "id": "x", "mask": "m.png"}, {"image": "b.png", "id": "x", "mask": "m.png"}], "'x' once"),
        ([{"image": "a.png", "id": "x", "rle": "1 1"}, {"image": "b.png", "id": "x", "rle": "2 1"}], "'x' once"),
        ([{"image": "a.png", "rle": "1 1"}, {"image": "a.png", "rle": "1 1"}], "the same rle twice"),
        ([{"image": "a.png", "masc": "m.png"}], "expected one of the columns mask, rle, wkt, found only image, masc"),
        ([{"image": "a.png", "mask": "m.png", "rle": "1 1"}], "found mask and rle"),
        ([{"image": "a.png", "wkt": "", "Image_Path": "a.png"}], "more than one for image"),
        (
            [{"image": "a.png", "wkt": "POINT (1 1)", "class": ""}, {"image": "b.png", "wkt": "x", "class": "c"}],
            "class",
        ),
    ],
)
def test_mistakes(tmp_path: Path, rows: list[dict[str, object]], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        opened(table(tmp_path, rows), rle_order="row", rle_base=1)
    assert "\n" not in str(caught.value)


def test_no_table_and_two_tables(tmp_path: Path) -> None:
    assert not recognise(tmp_path)
    with pytest.raises(UserError, match="found none"):
        opened(tmp_path)
    table(tmp_path, [{"image": "a.png", "wkt": ""}])
    (tmp_path / "metadata.csv").write_text("id,year\na,2011\n")
    assert len(opened(tmp_path).records) == 1
    table(tmp_path, [{"image": "a.png", "wkt": ""}], "more.csv")
    with pytest.raises(UserError, match=r"found 2 \(more.csv, train.csv\)"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz", "a.csv"])
def test_damaged_tables(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\xff\0\0")
    with pytest.raises(UserError) as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_table_without_rows_or_an_image(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n\n")
    with pytest.raises(UserError, match="expected a row for each image, found none"):
        opened(path)
    path.write_text("photo,mask\n")
    with pytest.raises(UserError, match="expected a column 'image', found photo, mask"):
        opened(path)


def test_columns_without_a_name_and_two_of_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_png(tmp_path / "a.png", np.zeros((*SIZE, 3), np.uint8))
    path.write_text(",image,wkt,,\n7,a.png,,,\n")
    (record,) = opened(path).records
    assert record.attributes == {"column 1": "7", "column 4": "", "column 5": ""}
    path.write_text("image,mask,mask\na.png,m,n\n")
    with pytest.raises(UserError, match="expected one column each, found more than one for mask"):
        opened(path)


def test_bad_files_stop_or_are_listed(tmp_path: Path) -> None:
    write_png(tmp_path / "good.png", np.zeros(SIZE, np.uint8))
    write_png(tmp_path / "small.png", np.zeros((2, 2), np.uint8))
    rows: list[dict[str, object]] = [{"image": f"{name}.png", "mask": "good.png"} for name in "ab"]
    rows += [{"image": "c.png", "mask": "small.png"}, {"image": "d.png", "mask": "none.png"}]
    path = table(tmp_path, rows)
    (tmp_path / "b.png").unlink()
    with pytest.raises(BadFile, match=r"b\.png: cannot be read .*and 2 more"):
        opened(path)
    source = opened(path, skip_bad=True)
    assert [record.id for record in source.records] == ["a"]
    assert [type(problem) for problem in source.problems] == [BadFile, BadSize, BadFile]


def test_garbled_run_lengths_name_the_record(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "rle": "1 2 3"}, {"image": "b.png", "rle": "1 5"}]
    with pytest.raises(BadFile, match="run lengths of record 'a' cannot be read"):
        opened(table(tmp_path, rows), rle_order="row", rle_base=1)
    source = opened(table(tmp_path, rows), rle_order="row", rle_base=1, skip_bad=True)
    assert [record.id for record in source.records] == ["b"] and len(source.problems) == 1


def test_classes_beside_run_lengths_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("classes: [roof]\n")
    path = table(tmp_path, [{"image": "a.png", "rle": runs()}])
    notes = opened(path, rle_order="row", rle_base=1).notes
    assert any("classes.yaml is not used" in note for note in notes)
