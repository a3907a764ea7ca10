"""What a report shows of a round of pseudo-labels: what became of the images in each fold, and some that were taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from maskloom.data.sources.base import DataSource
from maskloom.data.truth import read_sample
from maskloom.errors import BadFile
from maskloom.outputs.report_input import PseudoLabelled
from maskloom.records import BadSize, MaskFile
from maskloom.run_directory import RunDirectory
from maskloom.stages.pseudo import read_choices, with_labels


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldSummary:
    """What one fold learns from: how many images it was offered, and what became of them."""

    folds_of: str
    fold: int
    offered: int
    reasons: dict[str, int]
    """Images by reason; under "chosen" those it learns from."""
    least_confidence: float
    """Of the chosen ones."""


def summaries(rows: Iterable[dict[str, str]]) -> list[FoldSummary]:
    """Returns a summary of each fold, from the rows of ``choices.csv``."""
    of_fold: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in rows:
        of_fold.setdefault((row["folds_of"], int(row["fold"])), []).append(row)
    return [
        FoldSummary(
            folds_of=pupil,
            fold=fold,
            offered=len(inside),
            reasons=dict(Counter(row["reason"] for row in inside)),
            least_confidence=min(float(row["confidence"]) for row in inside if row["chosen"] == "yes"),
        )
        for (pupil, fold), inside in of_fold.items()
    ]


def labelled_examples(run: RunDirectory, source: DataSource, number: int, count: int) -> list[PseudoLabelled]:
    """Returns some chosen images with their labels, the least sure first; those whose file is gone are left out."""
    chosen: dict[str, dict[str, str]] = {}
    for row in read_choices(run, number):
        if row["chosen"] == "yes":
            chosen.setdefault(row["id"], row)
    records = {record.id: record for record in source.unlabelled}
    found: list[PseudoLabelled] = []
    for row in sorted(chosen.values(), key=lambda row: (float(row["confidence"]), row["id"]))[:count]:
        record = with_labels(run, number, records[row["id"]], row)
        if isinstance(record.truth, MaskFile) and record.truth.path.is_file():
            run.check([record.truth.path])
        try:
            sample = read_sample(record, source.task, source.coding)
        except (BadFile, BadSize, FileNotFoundError):
            continue
        image, labels = sample.image, sample.labels
        assert labels is not None, "the round gave it some"
        found.append(
            PseudoLabelled(
                id=record.id,
                fold=int(row["fold"]),
                why=row["why"],
                confidence=float(row["confidence"]),
                agreement=float(row["agreement"]),
                image=image,
                labels=labels,
            )
        )
    return found
