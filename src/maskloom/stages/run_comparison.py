"""Finished runs against each other by their out-of-fold results: what can be compared, and the result in words.

Only records that every run scored out of fold count, and only runs that mean the same by a score: the same classes,
metric and truth. Their folds, networks and settings may differ. Knows nothing about how scores are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskloom.data.sources.base import grouped
from maskloom.data.union_find import UnionFind
from maskloom.ensembling.bootstrap import Gain
from maskloom.ensembling.systems import (
    STANDARD_ERRORS,
    RunScore,
    SystemGain,
    SystemScore,
    compare_systems,
    first_other_truth,
    rounded,
)
from maskloom.errors import UserError, some_of
from maskloom.metrics import Counts, Metric
from maskloom.outputs.report_input import score_digits
from maskloom.outputs.report_words import interval_text, plural, signed
from maskloom.progress import Progress
from maskloom.stages.record_counts import FinishedRun

FEW_GROUPS = 10
"""With fewer groups an interval is only rough, and that is said."""
_METRICS: Mapping[Metric, str] = {"dice": "mean Dice", "iou": "mIoU"}
_NUM_SETTINGS = 4  # that a note names


@dataclass(frozen=True, kw_only=True, slots=True)
class RunComparison:
    """Two systems, A and B, of one run each or of several with different seeds."""

    metric: Metric
    classes: tuple[str, ...]
    first: tuple[str, ...]
    """The folders of A's runs."""
    second: tuple[str, ...]
    """The folders of B's runs."""
    num_images: int
    """Scored out of fold by every run."""
    left_out: tuple[int, ...]
    """Per run, A's before B's: images that it scored and another run did not."""
    found: SystemGain
    notes: tuple[str, ...]
    """What has to be known to read the result."""

    @property
    def gain(self) -> Gain:
        """B less A, with its interval over groups."""
        return self.found.gain

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        count = len(self.first)
        return {
            "metric": self.metric,
            "num_images": self.num_images,
            "num_groups": self.gain.num_groups,
            "a": self._side_to_json(self.first, self.found.first, self.left_out[:count]),
            "b": self._side_to_json(self.second, self.found.second, self.left_out[count:]),
            "difference": self.gain.to_json(),
            "class_differences": {
                name: None if gain is None else gain.to_json()
                for name, gain in zip(self.classes, self.found.class_gains, strict=True)
            },
            "seed_error": rounded(self.found.seed_error),
            "standard_error": rounded(self.found.standard_error),
            "smallest_effect": rounded(self.found.smallest_effect),
            "notes": list(self.notes),
        }

    def _side_to_json(self, folders: Sequence[str], side: SystemScore, left_out: Sequence[int]) -> dict[str, Any]:
        return {
            "score": rounded(side.mean),
            "seed_std": rounded(side.seed_std),
            "classes": {name: rounded(score) for name, score in zip(self.classes, side.classes, strict=True)},
            "runs": [
                {"run": folder, **run.to_json(), "left_out": count}
                for folder, run, count in zip(folders, side.runs, left_out, strict=True)
            ],
        }

    def table(self) -> str:
        """Returns the result as lines for a terminal."""
        count = plural(self.num_images, "image")
        lines = [f"{_METRICS[self.metric]} of {count} of {plural(self.gain.num_groups, 'group')}, out of fold"]
        lines += self._side_lines("A", self.first, self.found.first)
        lines += self._side_lines("B", self.second, self.found.second)
        share = f"{100 * self.gain.probability:.1f}".removesuffix(".0")
        lines += [
            f"B − A: {signed(self.gain.mean)}, {interval_text(self.gain.to_json())} of groups; "
            f"B is better in {share} % of them",
            *self._noise_lines(),
        ]
        if len(self.classes) > 1:
            lines += self._class_lines()
        return "\n".join([*lines, *self.notes])

    def _side_lines(self, name: str, folders: Sequence[str], side: SystemScore) -> Iterator[str]:
        if side.seed_std is None:
            yield f"{name}  {self._run_text(side.runs[0])}  {folders[0]}"
            return
        digits = score_digits(side.mean)
        yield f"{name}  {side.mean:.{digits}f} ± {side.seed_std:.{digits}f} over {len(side.runs)} seeds"
        for folder, run in zip(folders, side.runs, strict=True):
            yield f"     {self._run_text(run)}  {folder}"

    def _run_text(self, run: RunScore) -> str:
        digits = score_digits(run.score)
        if run.mean is None or len(run.folds) < 2:
            return f"{run.score:.{digits}f}"
        return f"{run.score:.{digits}f} ({run.mean:.{digits}f} ± {run.std:.{digits}f} over {len(run.folds)} folds)"

    def _noise_lines(self) -> Iterator[str]:
        found = self.found
        if found.seed_error is not None:
            yield f"seeds alone make the difference uncertain by ±{found.seed_error:.5f} (standard error)"
        if found.smallest_effect is None:
            yield "one group: what chance had to do with it cannot be said"
            return
        within = "within" if abs(self.gain.mean) <= found.smallest_effect else "beyond"
        what = plural(self.gain.num_groups, "group") + (" and these seeds" if found.seed_error is not None else "")
        yield (
            f"{within} noise: the smallest difference that {what} could show is {found.smallest_effect:.5f} "
            f"({STANDARD_ERRORS:g} standard errors)"
        )

    def _class_lines(self) -> Iterator[str]:
        width = max(len(name) for name in self.classes)
        sides = zip(self.found.first.classes, self.found.second.classes, strict=True)
        yield f"{'':<{width}}  {'A':<7} {'B':<7} B − A"
        for name, (first, second), gain in zip(self.classes, sides, self.found.class_gains, strict=True):
            if gain is None or first is None or second is None:
                yield f"{name:<{width}}  absent"
                continue
            interval = f"{signed(gain.mean):<8}  {interval_text(gain.to_json())}"
            yield f"{name:<{width}}  {first:<7.4f} {second:<7.4f} {interval}"


def compare_runs(
    first: Sequence[Path], second: Sequence[Path], progress: Progress, *, group: str | None = None
) -> RunComparison:
    """Returns by how much the runs of ``second`` are better than those of ``first``, and how sure that is.

    Each side is one run, or several of one recipe with different seeds. ``group`` (an attribute, or a regular
    expression on ids) says what is drawn together; None: the groups of the runs. Raises ``UserError`` for a folder that
    is no finished run, for one that comes twice on a side, for other classes, another metric or another truth than the
    first run's, and where no record was scored out of fold by all.
    """
    _check_sides(first, second)
    runs = [FinishedRun.open(root) for root in (*first, *second)]
    for run in runs[1:]:
        _check_alike(runs[0], run)
    ids = _common(runs)
    groups, groups_note = _groups(runs, ids, group)
    # One after the other: each may hold histograms of all its records.
    counts = [_of_records(run.counts(progress), ids) for run in runs]
    for run, counted in zip(runs[1:], counts[1:], strict=True):
        _check_truth(runs[0], run, ids, counts[0], counted)
    folds = _common_folds(runs, ids)
    found = compare_systems(counts[: len(first)], counts[len(first) :], groups, runs[0].recipe.metric, folds=folds)
    left_out = tuple(len(run.folds) - len(ids) for run in runs)
    return RunComparison(
        metric=runs[0].recipe.metric,
        classes=runs[0].source.task.classes,
        first=tuple(map(str, first)),
        second=tuple(map(str, second)),
        num_images=len(ids),
        left_out=left_out,
        found=found,
        notes=(
            *_left_out_notes(runs, left_out),
            *([] if folds is not None else ["the runs have different folds, so there is no spread over folds"]),
            *groups_note,
            *_few_notes(found),
            *_seed_notes(runs[: len(first)], "A"),
            *_seed_notes(runs[len(first) :], "B"),
            *_postprocess_notes(runs),
            *_setting_notes(runs[0], runs[len(first)]),
        ),
    )


def _check_sides(first: Sequence[Path], second: Sequence[Path]) -> None:
    if not first or not second:
        raise UserError(f"expected at least one run on either side, found {len(first)} and {len(second)}")
    for side in (first, second):
        seen: set[Path] = set()
        for root in side:
            if root.resolve() in seen:
                raise UserError(f"{root}: expected each run once on a side, found it twice; leave one out")
            seen.add(root.resolve())


def _check_alike(first: FinishedRun, other: FinishedRun) -> None:
    """Raises ``UserError`` unless both mean the same by a score."""

    def same(what: str, expected: object, found: object) -> None:
        if expected != found:
            raise UserError(
                f"{other.folder.root}: expected {what} of {first.folder.root}, {expected}, found {found}; "
                "such scores cannot be compared"
            )

    for task in ("kind", "classes"):
        sides = [getattr(run.source.task, task) for run in (first, other)]
        texts = [side if isinstance(side, str) else ", ".join(side) for side in sides]
        same("the kind of task" if task == "kind" else "the classes", *texts)
    same("the metric", first.recipe.metric, other.recipe.metric)
    same("the ignored values", *(_ignored_text(run) for run in (first, other)))


def _ignored_text(run: FinishedRun) -> str:
    values = [*sorted(run.source.coding.ignore), *sorted(run.source.coding.ignore_colours)]
    return ", ".join(map(str, values)) or "none"


def _common(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns the ids that every run scored out of fold, in the first run's order."""
    ids = [record.id for record in runs[0].records]
    for run in runs[1:]:
        ids = [record_id for record_id in ids if record_id in run.folds]
        if not ids:
            raise UserError(
                f"{run.folder.root}: expected images that {runs[0].folder.root} scored out of fold, too "
                f"({some_of(runs[0].folds, 3)}), found none of them ({some_of(run.folds, 3)}); compare runs on the "
                "same data"
            )
    return ids


def _of_records(counts: Mapping[str, Counts], ids: Sequence[str]) -> list[Counts]:
    return [counts[record_id] for record_id in ids]


def _check_truth(
    first: FinishedRun, other: FinishedRun, ids: Sequence[str], expected: Sequence[Counts], found: Sequence[Counts]
) -> None:
    place = first_other_truth(expected, found)
    if place is None:
        return
    pixels = [(counts[place].tp + counts[place].fn).tolist() for counts in (expected, found)]
    names = first.source.task.classes
    name, true, other_true = next(each for each in zip(names, *pixels, strict=True) if each[1] != each[2])
    raise UserError(
        f"{other.folder.root}: expected the truth of {first.folder.root}, found another of image {ids[place]!r}: "
        f"{other_true:,} pixels of {name!r} instead of {true:,}; compare runs on the same masks"
    )


def _groups(runs: Sequence[FinishedRun], ids: Sequence[str], stated: str | None) -> tuple[list[str], list[str]]:
    """Returns the group of each record, and a note where runs differ: what any of them groups stays together."""
    if stated is not None:
        compared = set(ids)
        records = [record for record in runs[0].records if record.id in compared]
        known = {name for record in records for name in record.attributes}
        return [record.group for record in grouped(tuple(records), stated, known)], []
    tables = [{record.id: record.group for record in run.records} for run in runs]
    groups = [[table[record_id] for record_id in ids] for table in tables]
    if all(each == groups[0] for each in groups):
        return groups[0], []
    together = UnionFind(ids)
    for table in groups:
        leaders: dict[str, str] = {}
        for record_id, group in zip(ids, table, strict=True):
            together.join(leaders.setdefault(group, record_id), record_id)
    return [together.find(record_id) for record_id in ids], [
        "the runs group the images differently; those that share a group in any run are drawn together"
    ]


def _common_folds(runs: Sequence[FinishedRun], ids: Sequence[str]) -> list[int] | None:
    """Returns the first run's fold of each record, or None unless all runs divide the records alike."""
    folds = [[run.folds[record_id] for record_id in ids] for run in runs]
    for other in folds[1:]:
        pairs = set(zip(folds[0], other, strict=True))
        if not len(pairs) == len(set(folds[0])) == len(set(other)):
            return None
    return folds[0]


def _left_out_notes(runs: Sequence[FinishedRun], left_out: Sequence[int]) -> Iterator[str]:
    for run, count in zip(runs, left_out, strict=True):
        if count:
            yield f"left out of {run.folder.root}: {plural(count, 'image')} that not every run scored out of fold"


def _few_notes(found: SystemGain) -> Iterator[str]:
    if 1 < found.gain.num_groups < FEW_GROUPS:
        yield f"with fewer than {FEW_GROUPS} groups, interval and noise are rough"
    if found.seed_error is None:
        yield "one run on a side: what another seed would change is not in these figures"


def _seed_notes(runs: Sequence[FinishedRun], side: str) -> Iterator[str]:
    """Yields what makes the spread of a side's runs something else than that of seeds."""
    if len({run.recipe.seed for run in runs}) < len(runs):
        yield f"{side}: some runs have the same seed, so their spread says less than that of seeds"
    first, *others = (_settings(run) for run in runs)
    differing = dict.fromkeys(key for other in others for key in _differing(first, other) if key != "seed")
    if differing:
        yield f"{side}: the runs differ in more than the seed: {some_of(differing, _NUM_SETTINGS)}"


def _setting_notes(first: FinishedRun, second: FinishedRun) -> Iterator[str]:
    differing = list(_differing(_settings(first), _settings(second)))
    if differing:
        yield f"settings in which B differs from A: {some_of(differing, _NUM_SETTINGS)}"


def _settings(run: FinishedRun) -> dict[str, Any]:
    return run.recipe.model_dump(mode="json", exclude={"name"})


def _differing(first: Any, second: Any, key: str = "") -> Iterator[str]:
    """Yields the dotted keys of plain values that differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        parts = [(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        parts = [(str(place), *pair) for place, pair in enumerate(zip(first, second, strict=True))]
    else:
        if first != second:
            yield key
        return
    for name, mine, other in parts:
        yield from _differing(mine, other, f"{key}.{name}" if key else name)


def _postprocess_notes(runs: Sequence[FinishedRun]) -> Iterator[str]:
    for run in runs:
        if run.lacks_postprocessing:
            yield f"{run.folder.root}: compared without its post-processing, whose gain `evaluate` shows"
