"""Tables of scenes: what a row means, and that every mistake in one is a line that names the place."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from maskloom.errors import BadFile
from maskloom.records import BandFile
from maskloom.stages.scene_table import SceneFiles, is_table, read_scene_table


def table(folder: Path, text: str) -> Path:
    path = folder / "scenes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_name_images_and_further_files(tmp_path: Path) -> None:
    text = (
        "id,image,band,resampling,band_2,resampling_2\n"
        "north,rgb/n.tif,ms/n.tif,,pan/n.tif,nearest\n"
        "\n"
        ",rgb/s.TIFF,ms/s.tif,Bicubic,,\n"
        "alone,/elsewhere/x.tif,,,,\n"
    )
    assert read_scene_table(table(tmp_path, text)) == [
        SceneFiles(
            "north",
            tmp_path / "rgb/n.tif",
            (
                BandFile(path=tmp_path / "ms/n.tif", resampling="bicubic"),
                BandFile(path=tmp_path / "pan/n.tif", resampling="nearest"),
            ),
        ),
        SceneFiles("rgb/s", tmp_path / "rgb/s.TIFF", (BandFile(path=tmp_path / "ms/s.tif"),)),
        SceneFiles("alone", Path("/elsewhere/x.tif")),
    ]


def test_order_of_columns_capitals_and_gzip_do_not_matter(tmp_path: Path) -> None:
    text = "\ufeffBand_2, Image ,site,band_1\np.tif,a.tif,7,m.tif\n"
    path = tmp_path / "scenes.CSV.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert is_table(path) and not is_table(tmp_path) and not is_table(tmp_path / "no.csv")
    heard: list[str] = []
    (scene,) = read_scene_table(path, note=heard.append)
    assert scene.id == "a" and [band.path.name for band in scene.bands] == ["m.tif", "p.tif"]
    assert heard == ["scenes.CSV.gz: columns that are not used: site"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column 'image' but nothing"),
        ("id;image\na;a.tif\n", "separated by commas, found no column 'image' but id;image"),
        ("image,band,band_1\n", "expected each column once, found 'band_1' again"),
        ("image,image\n", "expected each column once, found 'image' again"),
        ("image,band_2\n", "expected the column 'band' before 'band_2'"),
        ("image,band,band_4,band_2\n", "expected the column 'band_3' before 'band_4'"),
        ("image,resampling_2,band\n", "expected a column 'band_2' for 'resampling_2'"),
        ("image,band\n", "expected a row for each scene, found none"),
        ("image,band\na.tif\n", "row 2: expected 2 columns, found 1"),
        ("id,image\na,\n", "row 2: expected an image, found none"),
        ("id,image\na,a.tif\n../a,b.tif\n", r"row 3: id '\.\./a' cannot name an output file"),
        ("image\n../a.tif\n", r"row 2: id '\.\./a' cannot name an output file"),
        ("id,image\n/a,b.tif\n", "row 2: id '/a' cannot name an output file"),
        ("id,image\na,a.tif\na,b.tif\n", "row 3: the id 'a' is used before"),
        ("image,band,band_2\na.tif,,p.tif\n", "row 2: expected a file in the column 'band', found none"),
        ("image,band,resampling\na.tif,,nearest\n", "row 2: expected a file in the column 'band', found none"),
        ("image,band,resampling\na.tif,m.tif,bicubc\n", "row 2: resampling: found 'bicubc'; did you mean 'bicubic'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadFile, match=words) as caught:
        read_scene_table(table(tmp_path, text))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(tmp_path / "scenes.csv"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00image", b"\x1f\x8b\x08\x00cut"])
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scenes.csv"
    path.write_bytes(content)
    with pytest.raises(BadFile, match=r"scenes\.csv: expected a"):
        read_scene_table(path)
