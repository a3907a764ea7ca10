"""Finished runs made by hand against each other: what is refused, what is said aloud, and scores known in advance."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import maskloom
from maskloom.cli import main
from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.sources.base import DataSource
from maskloom.encodings.probability_maps import write_map
from maskloom.errors import UserError
from maskloom.files import read_json, write_json
from maskloom.metrics import from_labels, score_records
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import IGNORE, MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.ensemble import counts_path, fit_ensemble, load_ensemble, read_counts, write_counts
from maskloom.stages.postprocess import with_steps_path
from maskloom.stages.record_counts import FinishedRun
from maskloom.stages.scoring import decided

BINARY = Task(kind="binary", classes=("thing",))
STREET = Task(kind="multiclass", classes=("sky", "road", "car"))
CODINGS = {
    "binary": MaskCoding(kind="foreground"),
    "multiclass": MaskCoding(kind="values", values=((0, 0), (1, 1), (2, 2)), ignore=(9,)),
}
NUM_IMAGES = 8


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a run has dozens of files


def masks_of(task: Task) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    values = [0, 1] if task.kind == "binary" else [0, 1, 2, 9]
    return [np.kron(rng.choice(values, (3, 4)), np.ones((4, 4))).astype(np.uint8) for _ in range(NUM_IMAGES)]


def finish(
    root: Path,
    *,
    task: Task = STREET,
    errors: float = 0.1,
    seed: int = 0,
    stores: bool = False,
    folds: list[int] | None = None,
    ids: str = "abcdefgh",
    groups: str = "aabbccdd",
    coding: MaskCoding | None = None,
    masks: list[np.ndarray] | None = None,
    **changes: Any,
) -> Path:
    """Returns a finished run whose network errs on that part of the pixels; all its files lie below ``root``."""
    member = {
        "name": "unet", "network": {"weights": "none"}, "input": {"mode": "full"},
        "loss": {"terms": [{"kind": "bce" if task.kind == "binary" else "cross_entropy"}]}, "training": {},
    }  # fmt: skip
    metric = "dice" if task.kind == "binary" else "iou"
    stated = {"name": root.name, "metric": metric, "members": [member], "seed": seed, **changes}
    recipe = parse(Recipe, stated)
    run, data, rng = RunDirectory(root), root / "masks", np.random.default_rng([seed, round(100 * errors)])
    records, scores = [], {}
    for name, group, mask in zip(ids, groups, masks_of(task) if masks is None else masks, strict=True):
        write_png(data / f"{name}.png", mask)
        truth = MaskFile(path=data / f"{name}.png")
        records.append(Record(id=name, image=truth.path, size=(mask.shape[0], mask.shape[1]), truth=truth, group=group))
        labels = np.where(mask == 9, IGNORE, mask).astype(np.uint8)
        wrong = rng.random(mask.shape) < errors
        guessed = np.where(wrong, rng.integers(0, max(task.num_maps, 2), mask.shape), labels % IGNORE)
        wanted = [1] if task.kind == "binary" else range(task.num_maps)
        maps = np.stack([np.where(guessed == label, rng.integers(130, 250), 20) for label in wanted]).astype(np.uint8)
        write_map(run.oof_map("unet", name), maps)
        counts = from_labels(decided(maps, task), labels, task).to_json()
        scores[name] = {"views": counts, "plain": counts}
    write_json(run.oof("unet") / "scores.json", scores)
    rows = zip(ids, groups, folds or [0, 0, 1, 1, 0, 0, 1, 1], strict=True)
    FoldTable(tuple(FoldRow(*row) for row in rows)).to_csv(run.folds)
    source = DataSource(
        layout="folder", root=data, task=task, coding=coding or CODINGS[task.kind], records=tuple(records)
    )
    write_json(run.source, source.to_json())
    write_json(run.facts, {"format": 1, "data": str(data)})
    write_json(run.recipe, stated)  # a complete recipe as YAML takes half a second to read
    fit_ensemble(
        Context(run=run, recipe=recipe, source=source, device=torch.device("cpu"), progress=Silent(), workers=0)
    )
    if not stores:  # as versions did that stored no counts
        counts_path(run).unlink()
    write_json(run.decided, {"fingerprint": root.name})
    return root


@pytest.mark.parametrize("task", [BINARY, STREET], ids=["binary", "multiclass"])
def test_counts_are_those_of_the_runs_own_score(task: Task, tmp_path: Path) -> None:
    opened = FinishedRun.open(finish(tmp_path / "a", task=task, errors=0.3))
    counts = opened.counts(Silent())
    assert set(counts) == set("abcdefgh")
    stored = load_ensemble(opened.folder).scores["oof"]
    assert score_records([counts[name] for name in "abcdefgh"], opened.recipe.metric) == pytest.approx(
        stored["all_images"], abs=1e-6
    )
    if task.kind == "binary":  # thresholds differ between the parts, and the counts of every image are the stored ones
        with opened.folder.ensemble.with_name("images.csv").open(newline="") as stream:
            for row in csv.DictReader(stream):
                assert score_records([counts[row["id"]]], "dice") == pytest.approx(float(row["dice"]), abs=1e-6)


def test_stored_counts_need_no_masks(tmp_path: Path) -> None:
    first = finish(tmp_path / "first", task=BINARY, errors=0.3, stores=True)
    second = finish(tmp_path / "second", task=BINARY, stores=True)
    found = maskloom.compare(first, second).to_json()
    for root in (first, second):
        shutil.rmtree(root / "masks")
        shutil.rmtree(root / "oof")
    assert maskloom.compare(first, second).to_json() == found
    for root in (first, second):
        shutil.rmtree(root)
    first, second = finish(first, task=BINARY, errors=0.3), finish(second, task=BINARY)
    assert maskloom.compare(first, second).to_json() == found


def test_post_processed_masks_are_compared_where_they_were_counted(tmp_path: Path) -> None:
    plain = finish(tmp_path / "plain", stores=True)
    steps = finish(tmp_path / "steps", stores=True, postprocess={"steps": [{"kind": "holes"}]})
    run = RunDirectory(steps)
    better = finish(tmp_path / "better", errors=0.0, stores=True)
    write_counts(with_steps_path(run), read_counts(counts_path(RunDirectory(better))))
    found = maskloom.compare(plain, steps)
    assert found.gain == maskloom.compare(plain, better).gain and found.gain.mean > 0.05
    assert "post-processing" not in found.table()


def test_two_runs(tmp_path: Path) -> None:
    worse, better = finish(tmp_path / "worse", errors=0.4), finish(tmp_path / "better", errors=0.05)
    found = maskloom.compare(worse, str(better))
    scores = [load_ensemble(RunDirectory(root)).scores["oof"] for root in (worse, better)]
    assert found.gain.mean == pytest.approx(scores[1]["all_images"] - scores[0]["all_images"], abs=2e-6)
    assert (found.num_images, found.gain.num_groups, found.gain.probability) == (8, 4, 1)
    for side, score in zip((found.found.first, found.found.second), scores, strict=True):
        assert side.runs[0].folds == pytest.approx(score["folds"], abs=1e-6)
        assert dict(zip(found.classes, side.classes, strict=True)) == pytest.approx(score["classes"], abs=1e-6)
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["a"]["runs"][0]["run"] == str(worse) and values["b"]["score"] == scores[1]["all_images"]
    assert set(values["class_differences"]) == {"sky", "road", "car"} and values["seed_error"] is None
    text = found.table()
    assert text.startswith("mIoU of 8 images of 4 groups, out of fold")
    assert "over 2 folds" in text and "B is better in 100 % of them" in text and "beyond noise" in text
    assert "fewer than 10 groups" in text and "another seed" in text
    backwards = maskloom.compare(better, worse)
    assert backwards.gain.mean == pytest.approx(-found.gain.mean) and backwards.gain.probability == 0
    same = maskloom.compare(better, better)
    assert (same.gain.mean, same.gain.probability, same.found.smallest_effect) == (0, 0.5, 0)
    assert "within noise" in same.table()


def test_what_only_one_run_scored_is_left_out_and_said(tmp_path: Path) -> None:
    first = finish(tmp_path / "first", folds=[0, 0, 1, 1, 0, 0, -1, -1])
    second = finish(tmp_path / "second", folds=[-1, -1, 1, 1, 0, 0, 0, 0], errors=0.2)
    found = maskloom.compare(first, second)
    assert (found.num_images, found.left_out, found.gain.num_groups) == (4, (2, 2), 2)
    text = found.table()
    assert f"left out of {first}: 2 images" in text and f"left out of {second}: 2 images" in text
    assert [run["left_out"] for side in "ab" for run in found.to_json()[side]["runs"]] == [2, 2]
    alone = finish(tmp_path / "alone", folds=[0, 0, 0, 0, 0, 0, -1, -1])
    other = finish(tmp_path / "other", folds=[-1] * 6 + [0, 0])
    with pytest.raises(UserError, match=r"that .*alone scored out of fold, too \(a, b, c and 3 more\), found none"):
        maskloom.compare(alone, other)


def test_other_folds_are_said_and_numbers_do_not_matter(tmp_path: Path) -> None:
    first = finish(tmp_path / "first")
    renamed = maskloom.compare(first, finish(tmp_path / "renamed", folds=[1, 1, 0, 0, 1, 1, 0, 0]))
    assert len(renamed.found.second.runs[0].folds) == 2 and "different folds" not in renamed.table()
    other = maskloom.compare(first, finish(tmp_path / "other", folds=[0, 0, 0, 0, 1, 1, 1, 1]))
    assert other.found.first.runs[0].folds == () and "the runs have different folds" in other.table()
    assert other.to_json()["a"]["runs"][0]["mean"] is None


def test_groups_of_either_run_are_drawn_together(tmp_path: Path) -> None:
    found = maskloom.compare(
        finish(tmp_path / "first"), finish(tmp_path / "second", groups="abbcdeff", folds=[0, 1, 1, 0, 0, 0, 1, 1])
    )
    assert found.gain.num_groups == 3  # a b c d, e f, g h: "b" and "c" hang together by the second run's "b"
    assert "the runs group the images differently" in found.table()
    stated = maskloom.compare(tmp_path / "first", tmp_path / "second", group="([a-d]|[e-h])")
    assert stated.gain.num_groups == 8 and "differently" not in stated.table()
    with pytest.raises(UserError, match="expected a match in every id, found none in 'c'"):
        maskloom.compare(tmp_path / "first", tmp_path / "second", group="([ab])")
    whole = maskloom.compare(tmp_path / "first", finish(tmp_path / "whole", groups="a" * 8))
    assert whole.found.smallest_effect is None and "cannot be said" in whole.table()


def test_several_seeds_on_each_side(tmp_path: Path) -> None:
    sides = [
        [finish(tmp_path / f"{name}{seed}", errors=errors, seed=seed) for seed in range(count)]
        for name, errors, count in (("a", 0.3, 3), ("b", 0.1, 2))
    ]
    found = maskloom.compare(sides[0], sides[1])
    scores = [[load_ensemble(RunDirectory(root)).scores["oof"]["all_images"] for root in side] for side in sides]
    assert found.gain.mean == pytest.approx(np.mean(scores[1]) - np.mean(scores[0]), abs=2e-6)
    assert found.to_json()["a"]["seed_std"] == pytest.approx(np.std(scores[0], ddof=1), abs=2e-6)
    assert found.found.seed_error is not None and len(found.to_json()["b"]["runs"]) == 2
    text = found.table()
    assert "over 3 seeds" in text and "over 2 seeds" in text and "seeds alone" in text and "these seeds" in text
    assert "another seed" not in text and "more than the seed" not in text
    with pytest.raises(UserError, match="once on a side"):
        maskloom.compare([sides[0][0], sides[0][0]], sides[1])


def test_a_side_that_is_not_one_recipe_is_said(tmp_path: Path) -> None:
    first = [finish(tmp_path / "a0"), finish(tmp_path / "a1", ensemble={"weights": "equal", "thresholds": 0.4})]
    found = maskloom.compare(first, finish(tmp_path / "b", seed=5))
    assert "A: some runs have the same seed" in found.table()
    assert "A: the runs differ in more than the seed: ensemble.thresholds" in found.table()
    assert "settings in which B differs from A: seed" in found.table()
    steps = finish(tmp_path / "steps", postprocess={"steps": [{"kind": "holes"}]})
    assert f"{steps}: compared without its post-processing" in maskloom.compare(tmp_path / "b", steps).table()


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    run = finish(tmp_path / "run")
    masks = masks_of(STREET)
    masks[2][masks[2] == 1] = 2
    named = Task(kind="multiclass", classes=("sky", "road", "bus"))
    ignoring = MaskCoding(kind="values", values=((0, 0), (1, 1), (2, 2)), ignore=(9, 10))
    (tmp_path / "nothing").mkdir()
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    RunDirectory(unfinished).decided.unlink()
    gone = finish(tmp_path / "gone")
    shutil.rmtree(gone / "masks")
    changed = finish(tmp_path / "changed")
    write_png(changed / "masks" / "a.png", masks_of(STREET)[0] * 0)
    cases = {
        tmp_path / "absent": "no run.json",
        tmp_path / "nothing": "no run.json",
        unfinished: "without an ensemble; start `fit` again",
        finish(tmp_path / "bus", task=named): "the classes of .*sky, road, car, found sky, road, bus",
        finish(tmp_path / "binary", task=BINARY): "the kind of task of .*multiclass, found binary",
        finish(tmp_path / "dice", metric="dice"): "the metric of .*iou, found dice",
        finish(tmp_path / "ignoring", coding=ignoring): "the ignored values of .*, 9, found 9, 10",
        finish(tmp_path / "masks", masks=masks): "another of image 'c': .* pixels of 'road' instead of",
        finish(tmp_path / "names", ids="ijklmnop"): "found none of them",
        gone: r"found no such place; start `fit` with their new place \(--data\)",
        changed: "found others, which give",
    }
    for root, reason in cases.items():
        with pytest.raises(UserError, match=reason) as caught:
            maskloom.compare(run, root)
        assert "\n" not in str(caught.value)
        assert root.name in str(caught.value)
    with pytest.raises(UserError, match="at least one run on either side"):
        maskloom.compare([], run)


def command(*words: str | Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["maskloom", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = finish(tmp_path / "a", errors=0.3), finish(tmp_path / "b")
    others = [finish(tmp_path / f"{name}1", seed=1) for name in "ab"]
    assert command("compare", a, b, monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out.strip() == maskloom.compare(a, b).table()
    expected = maskloom.compare([a, others[0]], [b, others[1]]).to_json()
    for words in (
        [a, others[0], "--against", b, others[1], "--json"],
        [a, others[0], f"--against={b}", others[1], "--json"],
        ["--json", a, others[0], "--against", b, others[1]],
        [a, others[0], "--against", b, "--json", "--against", others[1]],
        [a, others[0], "--json", f"--against={b}", "--against", others[1]],
    ):
        assert command("compare", *words, monkeypatch=monkeypatch) == 0
        assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["x"], "expected two runs, found 1"),
        (["x", "y", "z"], "expected two runs, found 3; several seeds are stated as compare A1 A2 --against B1 B2"),
        (["x", "--against"], "--against"),
        (["--against", "x", "y"], "runs"),
        (["x", "y"], "x: expected a run folder"),
    ],
)
def test_mistakes_on_the_command_line(
    words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("compare", *words, monkeypatch=monkeypatch) == 2
    assert named in capsys.readouterr().err.replace("\n", " ")


def test_a_run_of_every_stage(finished_run: Path) -> None:
    found = maskloom.compare(finished_run, finished_run)
    scores = read_json(RunDirectory(finished_run).ensemble)["scores"]["oof"]
    assert found.found.first.mean == pytest.approx(scores["all_images"], abs=1e-6)
    assert found.found.first.runs[0].mean == pytest.approx(scores["mean"], abs=1e-6)
    assert found.gain.mean == 0 and found.num_images == 12
