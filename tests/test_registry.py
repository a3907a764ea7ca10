"""The registry: the names that the door hands on, and which folders are scenes of several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

from maskloom import api, registry
from maskloom.contests.dstl.stand_in import write_stand_in
from maskloom.data.sources.base import DataSettings


def test_the_door_has_the_names_that_it_had() -> None:
    for name in ("builders", "open_source", "plan", "recipes"):
        assert getattr(api, name) is getattr(registry, name)
    assert set(registry.recipes()) == set(registry.builders()) >= {"default", "dstl_3rd", "carvana_1st"}
    assert set(registry.submitters()) >= {"carvana", "dstl"}
    assert set(registry.scorers()) <= set(registry.submitters())


def test_folders_of_scenes(tmp_path: Path) -> None:
    data, plain = tmp_path / "data", tmp_path / "plain"
    write_stand_in(data, images=2, test_images=1, scale=0.04, swir=True)
    plain.mkdir()
    tifffile.imwrite(plain / "a.tif", np.zeros((4, 4), np.uint8))
    assert registry.open_scenes(plain, DataSettings()) is None
    assert registry.open_scenes(data / "three_band", DataSettings()) is None
    for images, num_bands in ((None, 2), ("three_band", 2), ("sixteen_band", 0), ("photos", 2)):
        source = registry.open_scenes(data, DataSettings(images=images, masks="masks", group="(x)", limit=1))
        assert source is not None and source.layout == "dstl"
        assert [len(record.bands) for record in (*source.records, *source.unlabelled)] == [num_bands] * 2
