"""The benchmark of the recipe ``modern``: segments and folds of drives, rows, tables; all of it on drawn streets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cars import described
from maskloom.config import parse
from maskloom.data.folds import FoldTable
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.losses.terms import balanced, build_loss
from maskloom.members import MemberSettings
from maskloom.metrics import Counts
from maskloom.models.encoders import NetworkSettings
from maskloom.recipes.idle import refuse_idle
from maskloom.recipes.modern import BUDGETS, street_loss
from maskloom.recipes.planning import EARLY_STAGES
from maskloom.records import Record, Task
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import PIXEL_POWER

TASK = Task(kind="multiclass", classes=("road", "pole"))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import street_ablation

    module: ModuleType = street_ablation
    return module


@pytest.fixture
def tables(benchmark: ModuleType) -> ModuleType:
    import street_ablation_rows

    module: ModuleType = street_ablation_rows
    return module


def test_drives_are_cut_into_folds_and_these_into_segments(benchmark: ModuleType) -> None:
    names = [f"seq{drive}_f{frame:05d}" for drive in "AB" for frame in range(0, 360, 30)]  # 12 frames a drive
    found = benchmark.segments(names[::-1], num_folds=2, length=4)
    assert [found[name] for name in names[:12]] == [
        *[(0, "seqA#0")] * 3, *[(0, "seqA#1")] * 3, *[(1, "seqA#2")] * 3, *[(1, "seqA#3")] * 3,
    ]  # fmt: skip
    assert {found[name][1] for name in names[12:]} == {f"seqB#{part}" for part in range(4)}
    assert benchmark.segments(["val/0016E5_07959"], num_folds=1, length=9) == {"val/0016E5_07959": (0, "val/0016E5#0")}
    with pytest.raises(UserError, match="ends in the number of a frame"):
        benchmark.segments(["first"], num_folds=1, length=9)


def test_a_table_validates_one_fold_and_trains_on_the_rest(benchmark: ModuleType, tmp_path: Path) -> None:
    records = [Record(id=name, image=tmp_path / f"{name}.png", size=(4, 4), truth=None) for name in "abc"]
    paths = benchmark.fold_tables(records, {"a": 0, "b": 1, "c": 1}, tmp_path)
    assert [FoldTable.from_csv(path).split(0) for path in paths] == [(["b", "c"], ["a"]), (["a"], ["b", "c"])]


@pytest.fixture
def member() -> MemberSettings:
    return MemberSettings(
        name="unet",
        network=NetworkSettings(),
        input=InputPolicy(mode="resize", size=(360, 480)),
        loss=street_loss("multiclass"),
        optimiser=OptimiserSettings(frozen=EARLY_STAGES, lr=2e-3),
        training=TrainingSettings(),
    )


SLOWER = {"lovasz": 2.0, "random encoder": 1.5, "all learns": 1.5, "two stages": 1.15, "wide decoder": 1.25}
"""How much longer a step of some rows takes."""


def seconds(member: MemberSettings) -> float:
    """Returns the estimated time of a training at 330,000 pixels a second, were its steps like the recipe's."""
    training = member.training
    small = round(training.progressive * training.epochs)
    assert member.input.size is not None and training.images_per_epoch is not None
    height, width = member.input.size
    whole = small * 0.25**PIXEL_POWER + training.epochs - small
    return whole * training.images_per_epoch * height * width / 330_000


def test_every_row_is_a_valid_change_and_takes_about_as_long(benchmark: ModuleType, member: MemberSettings) -> None:
    trial = benchmark.Trial(
        minutes=15,
        pixels_per_second=330_000,
        num_training=367,
        sizes=((360, 480),),
        budget=BUDGETS["cpu"],
        is_smoke=False,
    )
    base = trial.training(member)
    assert seconds(base) == pytest.approx(900, rel=0.05)
    for name, (_, change) in benchmark.CHANGES.items():
        changed = change(base, trial)
        assert changed != base, name
        assert parse(MemberSettings, changed.model_dump(mode="json")) == changed
        assert seconds(changed) * SLOWER.get(name, 1) == pytest.approx(900, rel=0.1), name
        build_loss(balanced(changed.loss, TASK, [(9, 1)], [10]), TASK)
    assert set(benchmark.USUAL) <= set(benchmark.CHANGES)
    windows = benchmark.CHANGES["other input"][1](base, trial)
    assert (windows.input.mode, windows.input.size) == ("window", (256, 256))
    assert benchmark.CHANGES["other input"][1](windows, trial) == base


def pooled(tables: ModuleType, correct: Callable[[int], int]) -> object:
    """Counts of eight records in four segments; of each the given number of ten pole pixels is found."""

    def counts(number: int) -> Counts:
        missed = 10 - correct(number)
        hits, wrong, lacking = ([100, 10 - missed], [missed, 0], [0, missed])
        return Counts(tp=np.array(hits, np.int64), fp=np.array(wrong, np.int64), fn=np.array(lacking, np.int64))

    by_record = {str(number): counts(number) for number in range(8)}
    return tables.Pooled(by_seed=(by_record,), segments={str(number): str(number // 2) for number in range(8)})


def test_a_gain_is_told_with_its_interval_over_segments(tables: ModuleType) -> None:
    before, after = pooled(tables, lambda number: 2), pooled(tables, lambda number: 4 + number % 2)
    sides = {"val": tables._side(before, None, 14.96), "segments": tables._side(before, None, None)}
    gained = {"val": tables._side(after, before, None)}
    found = [tables.Row(name="modern", what="base", sides=sides), tables.Row(name="better", what="it", sides=gained)]
    gain = gained["val"].gain
    assert gain.num_groups == 4 and gain.low > 0 and gain.probability == 1
    assert gain.mean == pytest.approx(gained["val"].iou - sides["val"].iou)
    assert gained["val"].seed_gains == [pytest.approx(gain.mean)]
    result = {
        "classes": list(TASK.classes), "segments": {"val": 4, "segments": 4}, "images": {"val": 8, "segments": 8},
        "seeds": 1, "folds": 3, "minutes_per_run": 15.0,
    }  # fmt: skip
    text = tables.markdown(found, result)
    lines = text.splitlines()
    assert sum(line.startswith("| better: it |") for line in lines) == 1
    assert any("| modern: base | " in line and line.endswith("| 15.0 |") for line in lines)
    assert all(line.count("|") == lines[2].count("|") for line in lines[2:6])
    assert json.dumps(found[1].to_json(TASK.classes))


def test_unknown_rows_and_missing_data_are_refused(benchmark: ModuleType) -> None:
    with pytest.raises(UserError, match=r"no row is called 'no weight'.*no weights"):
        benchmark.parsed(["--rows", "no weight"])
    with pytest.raises(UserError, match="2 folds"):
        benchmark.parsed(["--folds", "1"])
    with pytest.raises(UserError, match="--data"):
        benchmark.main(["--device", "cpu"])


def test_another_encoder_goes_into_every_row(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipe freezes on a CPU without bf16 is a part of its own encoder, so another one learns as a whole."""
    for room in ("maskloom.recipes.modern", "street_ablation"):
        monkeypatch.setattr(f"{room}.kind_of", lambda device: "cpu")
    source = described(8, kind="multiclass")
    splits = [replace(record, split="val" if number > 5 else "train") for number, record in enumerate(source.records)]
    source = replace(source, records=tuple(splits))
    judge = benchmark.Judge(name="val", source=source, data=source.root, segments={}, tables=None)
    words = ["--device", "cpu", "--encoder", "resnet18", "--weights", "none"]
    for row in ("modern", "usual rate", "all learns"):
        (usual,) = benchmark.recipe_of(row, judge, 0, benchmark.parsed(words[:2])).members
        (member,) = benchmark.recipe_of(row, judge, 0, benchmark.parsed(words)).members
        assert (member.network.encoder, member.network.weights) == ("resnet18", "none") and not member.optimiser.frozen
        assert usual.network.encoder != "resnet18" and member.input == usual.input
        assert usual.optimiser.frozen or row == "all learns"
    with pytest.raises(UserError, match="--encoder, --weights: encoder"):
        benchmark.recipe_of("modern", judge, 0, benchmark.parsed(["--device", "cpu", "--encoder", ""]))


@pytest.mark.parametrize("kind", ["cpu", "cpu with bf16"])
def test_every_row_is_a_recipe_without_idle_settings(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    for room in ("maskloom.recipes.modern", "street_ablation"):
        monkeypatch.setattr(f"{room}.kind_of", lambda device: kind)
    source = described(8, kind="multiclass")
    records = [
        replace(each, size=(360, 480), split="val" if number > 5 else "train")
        for number, each in enumerate(source.records)
    ]
    source = replace(source, records=tuple(records))
    judge = benchmark.Judge(name="val", source=source, data=source.root, segments={}, tables=None)
    modes = set()
    for row in (benchmark.BASE, *benchmark.CHANGES):
        recipe = benchmark.recipe_of(row, judge, 0, benchmark.parsed(["--device", "cpu"]))
        refuse_idle(recipe, None)
        modes.add((recipe.members[0].input.mode, recipe.inference.whole_pixels is None))
    own, other = ("window", "resize") if kind == "cpu with bf16" else ("resize", "window")
    assert modes == {(own, own == "resize"), (other, True)}


def test_drawn_streets_from_end_to_end(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--smoke", "--out", str(tmp_path), "--seeds", "1", "--folds", "2", "--rows", "--device", "cpu"]
    benchmark.main([*words, "--workers", "0"])
    result = json.loads((tmp_path / "street_ablation.json").read_text(encoding="utf-8"))
    rows = {row["row"]: set(row["judged"]) for row in result["rows"]}
    both = {"val", "segments"}
    assert list(tmp_path.glob("runs/*/*/*")) == [tmp_path / "runs" / "segments" / "modern" / "seed0"]
    assert rows == {"modern": both, "views: flip": both, "views: flip_scales": both}
    assert "## On the val folder: 4 images" in (tmp_path / "street_ablation.md").read_text(encoding="utf-8")
