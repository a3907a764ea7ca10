"""The benchmark of the SWIR recipe: features and folds of the trees it compares with, and the tables that it prints."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from maskloom.data.sources.base import grouped
from maskloom.progress import Silent
from maskloom.records import Record

ROOT = Path(__file__).parents[3]


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import swir_baseline

    module: ModuleType = swir_baseline
    return module


@pytest.fixture
def benchmark(baseline: ModuleType) -> ModuleType:
    import swir

    module: ModuleType = swir
    return module


class Told:
    """A classifier that remembers what it was given, and says of every sample the share of true ones among these."""

    given: list[tuple[int, float]]

    def __init__(self, given: list[tuple[int, float]]) -> None:
        self.given = given

    def fit(self, samples: np.ndarray, truth: np.ndarray) -> Told:
        self.share = float(truth.mean())
        self.given.append((len(samples), self.share))
        return self

    def predict_proba(self, samples: np.ndarray) -> np.ndarray:
        return np.tile([1 - self.share, self.share], (len(samples), 1))


def test_features_are_the_bands_and_their_means(baseline: ModuleType) -> None:
    image = np.zeros((41, 41, 2), np.uint16)
    image[..., 0], image[20, 20, 1] = 700, 10_000
    found = baseline.features(image)
    assert found.shape == (41, 41, 2 * len(baseline.SIGMAS)) and found.dtype == np.float32
    np.testing.assert_array_equal(found[..., :2], image)
    np.testing.assert_allclose(found[..., 0::2], 700, rtol=1e-5)
    np.testing.assert_allclose(found[..., 1::2].sum(axis=(0, 1)), 10_000, rtol=1e-3)
    assert (np.diff(found[20, 20, 1::2]) < 0).all()


def test_every_fold_is_predicted_by_what_learnt_the_others(
    baseline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, float]] = []
    monkeypatch.setattr(baseline, "classifier", lambda: Told(given))
    monkeypatch.setattr(baseline, "SHARE", 1.0)
    images = {name: np.zeros((4, 5, 8), np.uint16) for name in "abc"}
    truths = {name: np.zeros((2, 4, 5), np.uint8) for name in "abc"}
    truths["a"][0], truths["b"][0, :2] = 1, 1
    folds = {"0": ["a"], "1": ["b", "c"]}

    def fitted(origin: str = "here") -> float:
        seconds: float = baseline.boosted(tmp_path, images, truths, folds, Silent(), origin=origin)
        return seconds

    seconds = fitted()
    assert given == [(40, 0.25), (20, 1.0)]  # none of the second class, which is true nowhere
    assert {name: baseline.stored(tmp_path, name)[:, 0, 0].tolist() for name in "abc"} == {
        "a": [64, 0], "b": [255, 0], "c": [255, 0],
    }  # fmt: skip
    assert fitted() == seconds and len(given) == 2
    fitted("there")
    assert len(given) == 4


def test_a_share_of_the_pixels_is_learnt_from(
    baseline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[int, float]] = []
    monkeypatch.setattr(baseline, "classifier", lambda: Told(given))
    images = {name: np.zeros((80, 100, 8), np.uint16) for name in "ab"}
    truths = {name: np.ones((1, 80, 100), np.uint8) for name in "ab"}
    for _ in range(2):
        baseline.boosted(tmp_path, images, truths, {"0": ["a"], "1": ["b"]}, Silent(), origin="here")
        (tmp_path / "marker.json").unlink()
    (of_b, _), (of_a, _), *again = given
    assert of_a == pytest.approx(1000, rel=0.1) and of_b == pytest.approx(1000, rel=0.1) and of_a != of_b
    assert again == given[:2]


def result(benchmark: ModuleType) -> dict[str, Any]:
    scores = {"boosting": 0.5, "index": 0.25, "grown": 0.5, "network": 0.625, "both": 0.75}
    worse = dict.fromkeys(scores, 0.5)
    gain = {"mean": 0.125, "low": -0.1, "high": 0.3, "probability": 0.9}
    pairs = [f"{after} - {before}" for after, before in benchmark.PAIRS]
    return {
        "apart": "images",
        "images": 2,
        "scenes": ["6010"],
        "folds": {"0": ["6010_0_0"], "1": ["6010_0_1"]},
        "jaccard": {"crops": scores, "trees": dict.fromkeys(scores)},
        "differences": {pair: {"crops": gain, "trees": gain} for pair in pairs},
        "by_image": {"crops": {"6010_0_0": scores, "6010_0_1": worse}, "trees": {}},
        "true_pixels": {"crops": {"6010_0_1": 30, "6010_0_0": 20}, "trees": {}},
        "ensemble_weights": {"crops": {"index": 0.25, "unet": 0.75}, "trees": {"index": 1.0, "unet": 0.0}},
        "seconds": {"index": 1, "grown": 2, "network": 20, "both": 22, "boosting": 3},
    }


def test_every_system_is_told_by_class_and_by_image(benchmark: ModuleType) -> None:
    text = benchmark.markdown(result(benchmark))
    assert "| class | boosting | index | grown | network | both |" in text
    assert "| crops | 0.500 | 0.250 | 0.500 | 0.625 | 0.750 |" in text
    assert "| trees | absent | absent | absent | absent | absent |" in text
    assert "| crops | both - boosting | +0.125 | -0.100 … +0.300 | 0.900 | 1, 0 of 2 |" in text
    first, second = text.index("| crops | 6010_0_1 | 30 |"), text.index("| crops | 6010_0_0 | 20 | 0.500 | 0.250 |")
    assert first < second
    assert (
        "| class | weight of index | weight of unet |\n|---|---|---|\n| crops | 0.25 | 0.75 |\n| trees | 1.00 |" in text
    )
    assert "folds that keep images apart" in text and "network 20 s" in text and "boosting 3 s" in text


def test_images_are_groups_unless_scenes_are_to_be_kept_apart(benchmark: ModuleType) -> None:
    records = tuple(
        Record(id=name, image=Path(name), size=(4, 4), group=name[:4], attributes={"row": "0", "column": name[-1]})
        for name in ("6010_0_0", "6010_0_1", "6020_0_0")
    )
    apart = grouped(records, benchmark.GROUPS["images"], frozenset({"row", "column"}))
    assert [record.group for record in apart] == [record.id for record in records]
    assert benchmark.GROUPS["scenes"] is None
    assert [benchmark.scene_of(record) for record in apart] == ["6010", "6010", "6020"]
