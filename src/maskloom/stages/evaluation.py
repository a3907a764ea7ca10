"""The scores of a finished run, from what its stages stored: as one mapping, and as lines for a terminal.

What a run of an earlier version did not store is left out. Knows no contest: who scores as one does is handed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskloom.config import load_yaml, parse
from maskloom.data.mask_coding import MaskCoding
from maskloom.files import read_json
from maskloom.inference.merging import Merge
from maskloom.inference.shares import Weight
from maskloom.integrity import read_sealed
from maskloom.metrics import Counts, total
from maskloom.outputs.class_scores import class_columns, weight_columns
from maskloom.outputs.report_input import score_digits
from maskloom.outputs.report_words import chosen_steps, interval_text, signed
from maskloom.recipe import Recipe
from maskloom.records import Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.contest_score import Scorers
from maskloom.stages.ensemble import Ensemble, counts_path, load_ensemble, read_counts
from maskloom.stages.error_analysis import counted_errors, load_errors, pixel_scores
from maskloom.stages.fold_tables import leaf_parts
from maskloom.stages.member_weights import by_class
from maskloom.stages.postprocess import result_path, with_steps_path


def read_recipe(run: RunDirectory) -> Recipe:
    """Returns the recipe that a run was made by."""
    return parse(Recipe, load_yaml(run.recipe), origin=str(run.recipe))


def evaluation(run: RunDirectory, scorers: Scorers | None = None) -> dict[str, Any]:
    """Returns the scores of a finished run; with post-processing, ``postprocess`` as its stage left it.

    The ``weights`` of members are numbers, or by class where they differ by class; of an ensemble whose tree is stated
    they are the shares that members have of that tree. ``pixels``, of
    the ensemble and of each member, are IoU and Dice per class of the pixels of all images together (see
    ``error_analysis.pixel_scores``), ``boundary`` is the boundary F-score per class; both before post-processing.
    ``contest`` is the contest's own score of the masks as delivered, where ``scorers`` has one for the data's contest.
    """
    recipe, ensemble = read_recipe(run), load_ensemble(run)
    found = ensemble.evaluation()
    order = {name: place for place, name in enumerate(recipe.names)}  # files hold names in alphabetical order
    for part in ("members", "weights"):
        found[part] = dict(sorted(found[part].items(), key=lambda item: order.get(item[0], len(order))))
    is_changed = bool(recipe.postprocess.steps and run.finished("postprocess"))
    if is_changed:
        found["postprocess"] = read_json(run.checked(result_path(run)))
    source = read_sealed(run.source) if run.source.is_file() else {}
    task = _task(ensemble, source)
    if recipe.ensemble.tree is not None:
        found["weights"] = _shares(ensemble.tree, task.classes if task else ())
    if task is not None:
        _add_classes(found, run, recipe, task)
        scorer = (scorers or {}).get(source.get("submission", ""))
        stored = with_steps_path(run) if is_changed else counts_path(run)
        if scorer is not None and stored.is_file():
            score = scorer(read_counts(run.checked(stored)), task, MaskCoding.from_json(source["coding"]))
            found |= {} if score is None else {"contest": score.to_json()}
    return found


def _add_classes(found: dict[str, Any], run: RunDirectory, recipe: Recipe, task: Task) -> None:
    """Puts classes into their own order, and what else is known of each class beside the scores."""
    found["weights"] = {
        name: _in_order(weight, task.classes) if isinstance(weight, Mapping) else weight
        for name, weight in found["weights"].items()
    }
    for scores in _summaries(found):
        scores["classes"] = _in_order(scores["classes"], task.classes)
    for name, scores in found["members"].items():
        part = next((member.task_of(task) for member in recipe.members if member.name == name), task)
        whole = _member_counts(run, name)
        if whole is not None:
            scores["pixels"] = pixel_scores(whole, part.classes)
    errors = load_errors(run)
    if errors is not None:
        found["pixels"] = pixel_scores(counted_errors(errors, task), task.classes)
        if boundary := errors.get("boundary"):
            found["boundary"] = boundary | {"classes": _in_order(boundary["classes"], task.classes)}


def _task(ensemble: Ensemble, source: Mapping[str, Any]) -> Task | None:
    """Returns the task of the masks; None of a run of an early version whose description of the data is gone."""
    if ensemble.task is not None:
        return ensemble.task
    stated = source.get("task")
    return None if stated is None else Task(kind=stated["kind"], classes=tuple(stated["classes"]))


def _member_counts(run: RunDirectory, member: str) -> Counts | None:
    """Returns the counts of a member's own out-of-fold masks, with views, all images together; None if not there."""
    path = run.oof(member) / "scores.json"
    stored = read_json(run.checked(path)) if path.is_file() else {}
    return total([Counts.from_json(each["views"]) for each in stored.values()]) if stored else None


def _summaries(found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields everything that has scores per class."""
    yield from (found[name] for name in ("oof", "fitted_on_all", "half"))
    for member in found["members"].values():
        yield from (member, member["without_views"])
    if "postprocess" in found:
        yield from found["postprocess"]["scores"].values()


def _in_order(scores: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Returns scores by class in the classes' own order; those of other names are last."""
    place = {name: number for number, name in enumerate(classes)}
    return dict(sorted(scores.items(), key=lambda item: place.get(item[0], len(place))))


def _shares(tree: Merge, classes: Sequence[str]) -> dict[str, Any]:
    """Returns what part of the tree each member is, all its networks together; by class where the tree says so."""
    found: dict[str, NDArray[np.float64]] = {}

    def walk(node: Merge, share: NDArray[np.float64]) -> None:
        for weight, child in node.shares():
            part = share * np.asarray(weight)
            if isinstance(child, Merge):
                walk(child, part)
            else:
                member = leaf_parts(child)[0]
                found[member] = found.get(member, np.zeros(())) + part

    walk(tree, np.ones(()))
    shares: dict[str, Weight] = {
        member: tuple(round(each, 6) for each in share.tolist()) if share.ndim else round(float(share), 6)
        for member, share in found.items()
    }
    return by_class(shares, classes)


def score_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Returns the scores as lines for a terminal: ensemble, members, and classes where there are several."""
    metric = {"dice": "mean Dice", "iou": "mIoU"}[evaluation["metric"]]
    oof = evaluation["oof"]
    digits = score_digits(oof["mean"])

    def text(scores: Mapping[str, Any]) -> str:
        return f"{scores['mean']:.{digits}f} ± {scores['std']:.{digits}f}"

    lines = [f"out-of-fold {metric}: {text(oof)} over {len(oof['folds'])} fold(s), cross-fitted"]
    if "postprocess" in evaluation:
        found = evaluation["postprocess"]
        steps, gain = chosen_steps(found), found["gain"]
        taken = f"{', '.join(steps)}: {signed(gain['mean'])}, {interval_text(gain)}" if steps else "no step helps"
        lines.append(f"  post-processed: {text(found['scores']['with'])} ({taken})")
    if "contest" in evaluation:
        contest = evaluation["contest"]
        each = ", ".join(f"{name} {score:.{digits}f}" for name, score in contest["classes"].items())
        lines.append(
            f"  scored as {contest['contest']} does: {contest['score']:.{digits}f} over {contest['num_images']} "
            f"image(s) ({each}{''.join(f', {name} not scored' for name in contest['lacking'])}"
            f"{''.join(f', pixels of {name} left out' for name in contest['ignored'])})"
        )
    for name, scores in evaluation["members"].items():
        views = f"without test-time views {scores['without_views']['mean']:.{digits}f}"
        absent = "" if name in evaluation["weights"] else "; not in the ensemble"
        lines.append(f"  {name}: {text(scores)} ({views}{absent})")
    return lines + (_class_lines(evaluation, digits) if len(oof["classes"]) > 1 else [])


def _class_lines(evaluation: Mapping[str, Any], digits: int) -> list[str]:
    """Returns a line per class between the names of its scores and their means."""
    oof, columns = evaluation["oof"]["classes"], [*class_columns(evaluation), *weight_columns(evaluation)]
    room, widths = max(20, *map(len, oof)), [max(len(column.head), digits + 2) for column in columns]

    def line(name: str, cells: Iterable[str]) -> str:
        return "  ".join(
            [f"  {name:<{room}}", *(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True))]
        ).rstrip()

    def text(value: float | None, lacking: str) -> str:
        return lacking if value is None else f"{value:.{digits}f}"

    is_table = len(columns) > 1
    lines = [line("", [column.head for column in columns])] if is_table else []
    for name in oof:
        lines.append(line(name, [text(column.scores.get(name), "absent") for column in columns]))
    if is_table:
        lines.append(line("all images together", [text(column.mean, "") for column in columns]))
        if any(column.with_absent not in (None, column.mean) for column in columns):
            lines.append(line("with absent classes", [text(column.with_absent, "") for column in columns]))
    return lines
