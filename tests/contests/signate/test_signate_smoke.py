"""The benchmark's own scorer, in plain loops: by hand, and equal to the package's; and what it says about folds."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streets import coloured, rows_by_pixel, write_png

from maskloom.contests.signate.colours import CATEGORIES, COLOURS, SCORED
from maskloom.contests.signate.scoring import iou_of_labels, score, score_files

CAR, PEDESTRIAN, LANE, SIGNAL = (CATEGORIES.index(name) for name in SCORED)
SKY = CATEGORIES.index("sky")


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
        import signate_smoke

    module: ModuleType = signate_smoke
    return module


def written(folder: Path, images: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[Path, Path]:
    """Returns a folder of annotations and a submission, from true and predicted labels by id."""
    submission = {}
    for name, (truth, found) in images.items():
        write_png(folder / "truth" / f"{name}.png", coloured(truth))
        rows = rows_by_pixel(found, CATEGORIES)
        submission[f"{name}.jpg"] = {category: rows[category] for category in SCORED if category in rows}
    path = folder / "submission.json"
    path.write_text(json.dumps(submission))
    return folder / "truth", path


def test_the_rule_by_hand(benchmark: ModuleType, tmp_path: Path) -> None:
    """An overlap of 1 in 3, a category that is not predicted, one that is absent in the truth, and an empty truth."""
    images = {
        "overlap": (np.array([[CAR, CAR, SKY, LANE]]), np.array([[SKY, CAR, CAR, SKY]])),
        "absent": (np.array([[SKY, SKY, PEDESTRIAN]]), np.array([[SIGNAL, SIGNAL, PEDESTRIAN]])),
        "empty": (np.array([[SKY, SKY]]), np.array([[CAR, CAR]])),
    }
    truth, submission = written(tmp_path, images)
    assert benchmark.independent_score(truth, submission) == pytest.approx(((1 / 3 + 0) / 2 + 1) / 2, abs=1e-12)
    assert score_files(truth, submission).mean == pytest.approx(((1 / 3 + 0) / 2 + 1) / 2, abs=1e-12)
    assert {name: COLOURS[name] for name in SCORED} == benchmark.COLOURS, "the published ones, written down again"


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_both_scorers_agree(benchmark: ModuleType, seed: int) -> None:
    rng = np.random.default_rng(seed)
    worths, ours = [], []
    for number in range(3):
        truth, found = (rng.choice([CAR, PEDESTRIAN, LANE, SIGNAL, SKY][number:], (5, 7)) for _ in range(2))
        bits = [benchmark.BITS.get(name, 0) for name in CATEGORIES]
        sides = [bytearray(bits[label] for label in labels.ravel().tolist()) for labels in (truth, found)]
        worths.append(benchmark.image_worth(*sides))
        ours.append((str(number), iou_of_labels(truth, found, CATEGORIES)))
    assert benchmark.mean_worth(worths) == pytest.approx(score(ours).mean, abs=1e-9)


def test_a_truth_is_made_hard(benchmark: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = [rng.integers(0, len(CATEGORIES), (6, 9)) for _ in range(3)]
    truth, submission = written(tmp_path, {str(number): (each, each) for number, each in enumerate(labels)})
    hard = benchmark.hard_truth(truth, tmp_path / "hard")
    found = [set(benchmark.truth_bits(hard / f"{number}.png")[0]) for number in range(3)]
    lane = benchmark.BITS["lane"]
    assert found[0] == {0} and lane not in found[1] and len(found[1]) > 1
    assert found[2] == set(benchmark.truth_bits(truth / "2.png")[0]) and benchmark.truth_bits(hard / "2.png")[1] == 9
    scored = score_files(hard, submission)
    assert scored.empty == ("0.jpg",)
    assert benchmark.independent_score(hard, submission) == pytest.approx(scored.mean, abs=1e-9)


def test_photos_are_counted_by_stratum_and_fold(benchmark: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "seg_train_annotations").mkdir()
    lines = ["id,group,fold"]
    for number in range(6):
        stated = {"attributes": {"route": "AB"[number % 2], "timeofday": "day"}}
        (tmp_path / "seg_train_annotations" / f"{number}.json").write_text(json.dumps(stated))
        lines.append(f"{number},{number},{number // 2}")
    (tmp_path / "folds.csv").write_text("\n".join(lines) + "\n")
    assert benchmark.folds_by_stratum(tmp_path, tmp_path) == {"A day": [1, 1, 1], "B day": [1, 1, 1]}
