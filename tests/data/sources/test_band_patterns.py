"""Names of files that make one image: whose file a name is, and what is no pattern."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.config import override, parse
from maskloom.data.sources.band_patterns import BandPattern, by_image
from maskloom.data.sources.base import DataSettings
from maskloom.errors import UserError


@pytest.mark.parametrize(
    ("pattern", "name", "image"),
    [
        ("<id>/B02.tif", "north/B02.tif", "north"),
        ("<id>/B02.tif", "2021/north/B02.tif", "2021/north"),
        ("<id>/B02.tif", "B02.tif", None),
        ("<id>/B02.tif", "north/B02xtif", None),
        ("<id>_B02.tif", "north_B02.tif", "north"),
        ("<id>/<id>_B4.TIF", "LC08_a/LC08_a_B4.TIF", "LC08_a"),
        ("<id>/<id>_B4.TIF", "LC08_a/LC08_b_B4.TIF", None),
        ("<id>/R10m/*_B02_10m.tif", "S2A/R10m/T32_0601_B02_10m.tif", "S2A"),
        ("<id>/R10m/*_B02_10m.tif", "S2A/R10m/more/T32_B02_10m.tif", None),
        ("<id>_B?.tif", "a_B8.tif", "a"),
        ("<id>_B?.tif", "a_B11.tif", None),
        ("rgb/<id>.tif", "rgb/x/y.tif", "x/y"),
        ("./<id>.tif", "a.tif", "a"),
    ],
)
def test_whose_file_it_is(pattern: str, name: str, image: str | None) -> None:
    assert BandPattern(file=pattern).id_of(name) == image


@given(st.text("ab/.*?_", min_size=1, max_size=8))
def test_a_name_made_for_an_image_is_its_own(image: str) -> None:
    for pattern in ("<id>/B02.tif", "<id>_B02.tif", "x/<id>/<id>.tif"):
        assert BandPattern(file=pattern).id_of(BandPattern(file=pattern).name_for(image)) == image


def test_a_name_belongs_to_the_pattern_that_says_most_of_it() -> None:
    patterns = [BandPattern(file="<id>.tif"), BandPattern(file="<id>_B05.tif")]
    names = ["south_B05.tif", "north.tif", "north_B05.tif", "readme.txt", "south.tif"]
    found, others = by_image(names, patterns)
    assert found == {"north": (["north.tif"], ["north_B05.tif"]), "south": (["south.tif"], ["south_B05.tif"])}
    assert list(found) == ["north", "south"] and others == ["readme.txt"]


def test_a_list_on_the_command_line() -> None:
    stated = override(DataSettings(), ["bands=[<id>/B02.tif, {file: <id>/B11.tif, resampling: nearest}]"])
    assert stated.bands == [BandPattern(file="<id>/B02.tif"), BandPattern(file="<id>/B11.tif", resampling="nearest")]
    assert parse(DataSettings, stated.model_dump(mode="json")) == stated


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ("[B02.tif]", r"bands\.0\.file: .*expected <id> in the place of the image's id"),
        ("[/data/<id>.tif]", "expected a path below the folder of images"),
        ("[../<id>.tif]", "expected a path below the folder of images"),
        (r"['<id>\B02.tif']", "with / between folders"),
        ("[<id>_B02.jp2]", r"expected TIFF files \(\.tif, \.tiff\); convert others \(gdal_translate"),
        ("[{file: <id>.tif, resampling: cubic}]", "'nearest' or 'bicubic'"),
        ("[{fil: <id>.tif}]", r"unknown key 'bands\.0\.fil', did you mean 'file'"),
        ("[]", "at least 1"),
        ("[<id>.tif, <id>.tif]", "expected every file once, found <id>.tif again"),
    ],
)
def test_what_is_no_pattern_is_said(bands: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(DataSettings(), [f"bands={bands}"])
