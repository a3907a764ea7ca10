"""The recipe for Dstl's SWIR bands alone: for which data it is, what smoke scale keeps, and a tiny run to its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import maskloom
from maskloom.config import parse
from maskloom.contests.dstl import open_dstl
from maskloom.contests.dstl.stand_in import write_stand_in
from maskloom.contests.dstl.swir import BANDS, CANDIDATES, CONTRAST, TEXTURE, TREES, dstl_swir
from maskloom.contests.dstl.truth import CLASSES
from maskloom.data.sources.base import DataSettings
from maskloom.errors import UserError
from maskloom.models.bundle import load_bundle
from maskloom.rasters.indices import index
from maskloom.recipe import Recipe
from maskloom.run_directory import RunDirectory
from scenes import described_scenes

SWIR = DataSettings(images="sixteen_band")


def test_every_member_takes_the_bands_as_they_are_stored() -> None:
    recipe = dstl_swir(described_scenes(25, swir=True), device="cpu")
    assert {member.image_channels for member in recipe.members} == {len(BANDS)} == {8}
    assert {member.classes for member in recipe.members} == {None}
    kinds = {member.network.architecture for member in recipe.members}
    assert {"index", "trees", "unet_elu"} == kinds
    assert {member.network.channels for member in recipe.members} == {
        8,
        16,
        36,
    }  # with logarithms, with ratios of every two
    assert all(member.in_ensemble for member in recipe.members) and recipe.ensemble.weights == "fitted_per_class"
    assert parse(Recipe, recipe.model_dump(mode="json")) == recipe


def test_folds_are_scenes() -> None:
    assert dstl_swir(described_scenes(25, swir=True), device="cpu").folds.count == 5
    few = dstl_swir(described_scenes(3, swir=True), device="cpu").folds
    assert (few.kind, few.count) == ("kfold", 3)


def test_indices_are_of_the_bands_and_as_many_as_classes() -> None:
    assert len(set(CANDIDATES)) == len(CLASSES)
    for text in CANDIDATES:
        index(text, BANDS)


def test_other_data_is_refused() -> None:
    with pytest.raises(UserError, match=r"found RGB files; state --set data\.images=sixteen_band"):
        dstl_swir(described_scenes(5), device="cpu")
    with pytest.raises(UserError, match="found folder; choose default"):
        dstl_swir(replace(described_scenes(5, swir=True), layout="folder"), device="cpu")


def test_smoke_scale_changes_numbers_alone() -> None:
    source = described_scenes(5, swir=True)
    full, smoke = (dstl_swir(source, device="cpu", scale=scale) for scale in ("full", "smoke"))  # type: ignore[arg-type]
    assert smoke.scale == "smoke" and smoke.folds == full.folds and smoke.ensemble == full.ensemble
    for small, large in zip(smoke.members, full.members, strict=True):
        assert (small.name, small.network.architecture) == (large.name, large.network.architecture)
        assert small.loss == large.loss
        assert small.network.index == large.network.index and small.input.bands == large.input.bands
        assert small.training.epochs <= 2
        grown = large.network.trees
        assert small.network.trees == (grown and grown.model_copy(update={"num_trees": 10}))
    kinds = {member.name: member.network.trees for member in full.members if member.network.trees}
    assert kinds["trees"] == TREES and kinds["trees_texture"].deviations == TEXTURE
    assert kinds["trees_contrast"] == CONTRAST and set(kinds) >= {"trees_ratios"} and len(kinds) == 4


def test_trees_are_those_of_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    import swir_baseline

    stated = {"max_iter": TREES.num_trees, "learning_rate": TREES.learning_rate, "max_leaf_nodes": TREES.num_leaves}
    stated |= {"min_samples_leaf": TREES.min_samples_leaf, "l2_regularization": TREES.l2}
    assert (stated, TREES.sigmas, TREES.share) == (swir_baseline.TREES, swir_baseline.SIGMAS, swir_baseline.SHARE)


# rasterio hides its warnings about arrays without a place in a way that threads disturb for each other.
def test_end_to_end(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    write_stand_in(data, images=3, scale=0.12, seed=5, swir=True)
    source = open_dstl(data, SWIR)
    assert not source.records[0].bands and len({record.group for record in source.records}) == 2
    recipe = dstl_swir(source, device="cpu", scale="smoke")
    recipe = recipe.model_copy(update={"data": SWIR, "members": recipe.members[:5]})  # all but the networks
    run = maskloom.fit(recipe, data, run=folder, device="cpu", workers=0, settings=["inference.views=none"])
    scores = run.evaluate()
    assert set(scores["members"]) == {member.name for member in recipe.members}
    assert set(scores["oof"]["classes"]) == set(CLASSES)
    weights = scores["weights"].values()
    of_classes = [[each[name] if isinstance(each, dict) else each for each in weights] for name in CLASSES]
    assert [sum(each) for each in of_classes] == pytest.approx([1] * len(CLASSES))
    found = load_bundle(RunDirectory(folder).bundle("index", 0, "last")).network_settings.index
    assert found is not None and len(found.rules) == len(CLASSES)
    assert load_bundle(RunDirectory(folder).bundle("trees", 0, "last")).network_settings.trees == TREES.model_copy(
        update={"num_trees": 10}
    )
    assert (folder / "report.html").is_file()
