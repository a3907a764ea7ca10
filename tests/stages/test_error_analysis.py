"""Errors counted in the ensemble's pass: on maps made by hand, equal to counting every image on its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskloom.boundary_score import boundary_counts, f_score
from maskloom.config import parse
from maskloom.data.folds import FoldRow, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.scene_parts import parts_of
from maskloom.data.sources.base import DataSource
from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import read_map, write_map
from maskloom.ensembling.calibration import calibration_error, outcomes
from maskloom.ensembling.thresholds import decide
from maskloom.files import read_json, write_json
from maskloom.metrics import Confusion, confusions, from_labels, iou
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import IGNORE, MaskFile, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.ensemble import fit_ensemble, load_ensemble
from maskloom.stages.error_analysis import (
    CHOSEN,
    ErrorSums,
    counted_errors,
    errors_path,
    has_outlines,
    load_errors,
    pixel_scores,
)
from maskloom.stages.fold_tables import FoldTables
from maskloom.stages.reporting import _class_examples
from maskloom.stages.scoring import decided
from maskloom.windows import Window

TASKS = {
    "binary": Task(kind="binary", classes=("thing",)),
    "multiclass": Task(kind="multiclass", classes=("ground", "road", "never")),
}
CODINGS = {
    "binary": MaskCoding(kind="values", values=((0, 0), (1, 1)), ignore=(9,)),
    "multiclass": MaskCoding(kind="values", values=((0, 0), (1, 1), (2, 2)), ignore=(9,)),
}
FOLDS = [0, 1] * 6


def surroundings(folder: Path, kind: str, metric: str) -> Context:
    """Returns a run of 12 images of random truth and maps, as it is before its ensemble."""
    rng = np.random.default_rng(0)
    task, run, records, scores = TASKS[kind], RunDirectory(folder / "run"), [], {}
    for index in range(len(FOLDS)):
        mask = rng.choice([0, 1, 9], (8, 10), p=[0.6, 0.3, 0.1]).astype(np.uint8)
        values = rng.integers(0, 256, (task.num_maps, 8, 10)).astype(np.uint8)
        if task.num_maps > 1:
            values[-1] //= 2  # chosen now and then, never true
        path = folder / f"{index}.png"
        write_png(path, mask)
        records.append(
            Record(
                id=f"in/{index}", image=path, size=(8, 10), truth=MaskFile(path=path), group=str(index),
                attributes={"time": "day" if index % 4 < 2 else "night"},
            )
        )  # fmt: skip
        write_map(run.oof_map("a", f"in/{index}"), values)
        truth = np.where(mask == 9, IGNORE, mask).astype(np.uint8)
        counts = from_labels(decided(values, task), truth, task).to_json()
        scores[f"in/{index}"] = {"views": counts, "plain": counts}
    write_json(run.oof("a") / "scores.json", scores)
    rows = [FoldRow(record.id, record.group, fold) for record, fold in zip(records, FOLDS, strict=True)]
    FoldTable(tuple(rows)).to_csv(run.folds)
    member: dict[str, Any] = {
        "name": "a", "network": {"weights": "none"}, "input": {"mode": "full"}, "loss": {"terms": [{"kind": "bce"}]},
        "training": {},
    }  # fmt: skip
    recipe = parse(Recipe, {"name": "r", "metric": metric, "members": [member], "ensemble": {"thresholds": 0.5}})
    source = DataSource(layout="folder", root=folder, task=task, coding=CODINGS[kind], records=tuple(records))
    return Context(run=run, recipe=recipe, source=source, device=torch.device("cpu"), progress=Silent(), workers=0)


def images(context: Context) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Returns id, maps, labels and truth of every record."""
    task, found = context.source.task, []
    for record in context.source.records:
        values = read_map(context.run.oof_map("a", record.id))
        truth = read_truth(record, task, context.source.coding)
        found.append((record.id, values, decide(values, [128] * task.num_maps, task), truth))
    return found


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_the_pass_equals_counting_every_image(tmp_path: Path, kind: str) -> None:
    context = surroundings(tmp_path, kind, "iou")
    task = context.source.task
    assert load_errors(context.run) is None
    assert errors_path(context.run) in fit_ensemble(context)
    found = load_errors(context.run)
    assert found is not None
    single = [confusions(labels, truth, task)[0] for _, _, labels, truth in images(context)]
    (stored,) = found["confusion"]
    assert stored["pixels"] == sum(single[1:], start=single[0]).pixels.tolist()
    assert stored["labels"] == (["not thing", "thing"] if kind == "binary" else ["ground", "road", "never"])
    whole = np.sum([outcomes(*each[1:], task) for each in images(context)], axis=0)
    curves = {curve["name"]: curve for curve in found["calibration"]["curves"]}
    assert list(curves) == ([CHOSEN] if kind == "multiclass" else []) + list(task.classes)
    for index, name in enumerate(task.classes):
        assert curves[name]["values"] == whole[index].tolist()
        assert curves[name]["error"] == pytest.approx(calibration_error(whole[index]), abs=1e-6)
    if kind == "multiclass":
        assert curves[CHOSEN]["values"] == whole.sum(axis=0).tolist()
    judged = sum(int((truth != IGNORE).sum()) for *_, truth in images(context))
    assert sum(map(sum, stored["pixels"])) == judged
    assert sum(each["pixels"] for each in next(iter(curves.values()))["bins"]) == judged


def test_attributes_are_scored_by_group(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "binary", "dice")
    fit_ensemble(context)
    found = load_errors(context.run)
    assert found is not None
    (table,) = found["attributes"]["tables"]
    assert [(part["values"], part["images"], part["groups"]) for part in table["parts"]] == [
        (["day"], 6, 6), (["night"], 6, 6),
    ]  # fmt: skip
    rows = [row.split(",") for row in errors_path(context.run).with_name("images.csv").read_text().splitlines()[1:]]
    of_day = [float(row[2]) for row in rows if int(row[0].removeprefix("in/")) % 4 < 2]
    assert table["parts"][0]["score"] == pytest.approx(np.mean(of_day), abs=1e-6)
    assert table["parts"][0]["difference"] is None  # 6 groups cannot tell
    assert found["worst"] == []


def test_absent_classes_and_worst_images(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "multiclass", "iou")
    fit_ensemble(context)
    found = load_errors(context.run)
    assert found is not None
    counts = {name: from_labels(labels, truth, TASKS["multiclass"]) for name, _, labels, truth in images(context)}
    scores = iou(sum(list(counts.values())[1:], start=next(iter(counts.values()))))
    assert found["mean_iou"] == {
        "absent_left_out": pytest.approx(scores[:2].mean(), abs=1e-6),
        "absent_counted": pytest.approx(scores.mean(), abs=1e-6),
    }
    for index, each in enumerate(found["worst"]):
        wrong = sorted(((count.fp + count.fn)[index] for count in counts.values()), reverse=True)
        assert [image["wrong"] for image in each["images"]] == wrong[:3]
        for image in each["images"]:
            assert image["score"] == pytest.approx(iou(counts[image["id"]])[index], abs=1e-6)


def test_outlines_are_scored_image_by_image(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "multiclass", "iou")
    fit_ensemble(context)
    found, task = load_errors(context.run), TASKS["multiclass"]
    assert found is not None
    single = [f_score(boundary_counts(labels, truth, task)) for _, _, labels, truth in images(context)]
    expected = np.nanmean(single, axis=0)
    assert list(found["boundary"]["classes"].values()) == pytest.approx(
        [expected[task.classes.index(name)] for name in found["boundary"]["classes"]], abs=1e-6
    )
    assert found["boundary"]["mean"] == pytest.approx(expected.mean(), abs=1e-6)
    assert found["boundary"]["tolerance"] == "0.75%"
    context = surroundings(tmp_path / "binary", "binary", "iou")
    fit_ensemble(context)
    found = load_errors(context.run)
    assert found is not None and found["boundary"] is None


def test_outlines_of_parts_and_of_very_large_images_are_left_out(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "multiclass", "iou")
    records, task = context.source.records, TASKS["multiclass"]
    assert has_outlines(records, task) and not has_outlines(records, TASKS["binary"])
    assert not has_outlines([*records, replace(records[0], size=(4096, 4097))], task)
    window = Window(top=0, left=0, height=8, width=10)
    (part,) = parts_of(records[0], [window], tmp_path)
    assert not has_outlines([*records[1:], part], task)


def test_pixel_scores_are_those_of_all_images_in_one(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "multiclass", "iou")
    fit_ensemble(context)
    found = load_errors(context.run)
    assert found is not None
    scores = pixel_scores(counted_errors(found, TASKS["multiclass"]), TASKS["multiclass"].classes)
    assert list(scores["classes"]) == ["ground", "road", "never"]
    both = [(labels[truth != IGNORE], truth[truth != IGNORE]) for *_, labels, truth in images(context)]
    labels, truth = (np.concatenate([pair[side] for pair in both]) for side in (0, 1))
    for index, name in enumerate(("ground", "road")):
        shared, either = ((labels == index) & (truth == index)).sum(), ((labels == index) | (truth == index)).sum()
        assert scores["classes"][name]["iou"] == pytest.approx(shared / either, abs=1e-6)
        assert scores["classes"][name]["dice"] == pytest.approx(2 * shared / (either + shared), abs=1e-6)
    assert scores["classes"]["never"] == {"iou": None, "dice": None}
    assert scores["mean_iou"] == found["mean_iou"]
    dices = [scores["classes"][name]["dice"] for name in ("ground", "road")]
    assert scores["mean_dice"]["absent_left_out"] == pytest.approx(np.mean(dices), abs=1e-6)
    assert scores["mean_dice"]["absent_counted"] == pytest.approx(sum(dices) / 3, abs=1e-6)  # it was predicted


def test_the_worst_images_of_classes_are_shown_and_lost_files_left_out(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "multiclass", "iou")
    fit_ensemble(context)
    run, source = context.run, context.source
    found, ensemble, tables = load_errors(run), load_ensemble(run), FoldTables.read(run, context.recipe)
    assert found is not None
    rows = [{"id": record.id, "fold": fold} for record, fold in zip(source.records, FOLDS, strict=True)]
    shown = _class_examples(run, source, ensemble, tables, rows, found)
    assert [example.name for example in shown] == ["ground"] * 2 + ["road"] * 2 + ["never"] * 2
    assert [example.id for example in shown[:2]] == [image["id"] for image in found["worst"][0]["images"][:2]]
    assert [name for name, _ in shown[0].panels] == ["image", "truth", "prediction", "errors"]
    assert _class_examples(run, source, ensemble, tables, rows, {}) == []
    for record in source.records:
        record.image.unlink()
    assert _class_examples(run, source, ensemble, tables, rows, found) == []


def test_sums_of_no_image_are_nothing() -> None:
    sums = ErrorSums(Task(kind="multilabel", classes=("a", "b")))
    assert sums.confusions == [Confusion.zero(2)] * 2 and sums.outcomes.shape == (2, 2, 256)
    truth = np.array([[[1, 0]], [[1, IGNORE]]], np.uint8)
    counts = sums.add(sums.of_image(np.full((2, 1, 2), 200, np.uint8), np.ones((2, 1, 2), np.uint8), truth))
    assert (counts.tp.tolist(), counts.fp.tolist(), counts.fn.tolist()) == ([1, 1], [1, 0], [0, 0])
    assert sums.outcomes[:, 1, 200].tolist() == [1, 1] and sums.outcomes.sum() == 3


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    context = surroundings(tmp_path, "multiclass", "iou")
    fit_ensemble(context)
    found = read_json(errors_path(context.run))
    assert set(found) == {"attributes", "boundary", "calibration", "confusion", "mean_iou", "worst"}
    never = next(curve for curve in found["calibration"]["curves"] if curve["name"] == "never")
    assert all(each["pixels"] or each["probability"] is None for each in never["bins"])
