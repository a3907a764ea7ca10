"""What is worth telling about surveyed data: suspicious masks, duplicates, frequencies; and the table that says it.

Knows nothing about pages and pictures.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass

import numpy as np

from maskloom.data.duplicates import SimilarPair, exact_duplicates, near_duplicates
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import RecordFacts, Survey
from maskloom.errors import UserError, some_of
from maskloom.records import Record, Size, Task, TaskKind

NEARLY_FULL = 0.999
"""Share of the valid pixels from which a class counts as covering the whole image."""


BACKGROUND_NAMES = frozenset({"background", "bg", "void", "other"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What inspecting the data found beyond plain statistics.

    ``suspicious`` pairs ids with what is odd about their masks; ``exact`` are sets of ids of equal images; ``near``
    are pairs of images of different groups that look alike; ``problems`` are all files that could not be used.
    ``num_exact_across`` and ``num_near_across`` of them hold an image with a mask and one without (if the survey looked
    at those too).
    """

    suspicious: tuple[tuple[str, str], ...]
    exact: tuple[tuple[str, ...], ...]
    near: tuple[SimilarPair, ...]
    problems: tuple[UserError, ...]
    num_exact_across: int = 0
    num_near_across: int = 0


def find(source: DataSource, found: Survey) -> Findings:
    """Returns the findings about surveyed data, images without masks among them where the survey looked at them."""
    odd = [(facts.id, oddity(facts, source.task.kind, source.task.classes)) for facts in found.records]
    exact, near = exact_duplicates(found), near_duplicates(found)
    labelled = {record.id for record in source.records}
    return Findings(
        suspicious=tuple((record_id, text) for record_id, text in odd if text),
        exact=tuple(exact),
        near=tuple(near),
        problems=source.problems + found.problems,
        num_exact_across=sum(0 < len(labelled.intersection(ids)) < len(ids) for ids in exact),
        num_near_across=sum((pair.first in labelled) != (pair.second in labelled) for pair in near),
    )


def oddity(facts: RecordFacts, kind: TaskKind, classes: tuple[str, ...]) -> str:
    """Returns what is suspicious about a record's mask in words, or "" when nothing is."""
    if not facts.class_pixels:
        return ""
    if not facts.valid:
        return "every pixel is ignored"
    if not any(facts.class_pixels):
        return "empty: no pixel is marked"
    fullest = int(np.argmax(facts.class_pixels))
    share = facts.class_pixels[fullest] / facts.valid
    if share == 1:
        return "full: every pixel is marked" if kind == "binary" else f"every pixel is {classes[fullest]}"
    if share >= NEARLY_FULL:
        return f"nearly full: {share:.2%} of the pixels are {classes[fullest]}"
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassFrequency:
    """How often a class occurs: pixels, their share of all valid pixels, and images that show it at all."""

    name: str
    pixels: int
    share: float
    images: int


def class_frequencies(found: Survey) -> list[ClassFrequency]:
    """Returns the frequencies in the order of the task's classes."""
    labelled = [facts for facts in found.records if facts.class_pixels]
    valid = max(found.valid_pixels, 1)
    return [
        ClassFrequency(
            name=name,
            pixels=pixels,
            share=pixels / valid,
            images=sum(facts.class_pixels[index] > 0 for facts in labelled),
        )
        for index, (name, pixels) in enumerate(zip(found.task.classes, found.class_pixels, strict=True))
    ]


def has_background(task: Task) -> bool:
    """Returns whether the first of exclusive classes is a background, so that all others together are foreground."""
    return task.kind == "multiclass" and task.classes[0].strip().lower() in BACKGROUND_NAMES


def area_shares(found: Survey) -> list[float]:
    """Returns the share of foreground of each labelled record; none where a multiclass task has no background."""
    if found.task.kind == "multiclass" and not has_background(found.task):
        return []
    areas = found.areas()
    return [areas[facts.id] / facts.valid for facts in found.records if facts.id in areas and facts.valid]


def size_text(size: Size) -> str:
    """Returns a size as readers write it: width×height."""
    return f"{size[1]}×{size[0]}"


def sizes_text(sizes: Counter[Size]) -> str:
    """Returns the sizes in one phrase, the smallest and largest where there are many."""
    if not sizes:
        return "none"
    if len(sizes) == 1:
        return size_text(next(iter(sizes)))
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return f"{len(sizes)} sizes, {size_text(ordered[0])} to {size_text(ordered[-1])}"


def channels_text(found: Survey) -> str:
    """Returns channels and number type in one phrase, such as ``3 channels, uint8``."""
    kinds = Counter((facts.num_channels, facts.dtype) for facts in found.records)
    ordered = [kind for kind, _ in kinds.most_common(3)]
    texts = [f"{count} channel{'s' * (count != 1)}, {dtype}" for count, dtype in ordered]
    return " or ".join(texts) or "none"


def kinds_note(found: Survey) -> str:
    """Returns which labelled images `fit` would refuse because most are of another kind; "" where there are none.

    Grey beside three channels is no other kind: networks are given it three times.
    """
    has_colour = any(facts.num_channels == 3 for facts in found.records)

    def kind(facts: RecordFacts) -> tuple[int, str]:
        return 3 if has_colour and facts.num_channels == 1 else facts.num_channels, facts.dtype

    kinds = Counter(map(kind, found.records))
    if len(kinds) < 2:
        return ""
    usual, _ = kinds.most_common(1)[0]
    others = [facts.id for facts in found.records if kind(facts) != usual]
    return (
        f"{len(others):,} of {len(found.records):,} images have another number of channels or another depth than most "
        f"({some_of(others, 3)}): `fit` takes images of one kind; convert them, or leave them out with --skip-bad"
    )


def groups_text(records: tuple[Record, ...]) -> str:
    """Returns how the records are grouped in one phrase."""
    counts = Counter(record.group for record in records)
    if len(counts) == len(records):
        return "each image is its own group"
    low, high = min(counts.values()), max(counts.values())
    return f"{len(counts):,} groups of {low}{'' if low == high else f' to {high}'} images"


def inspection_table(source: DataSource, found: Survey, findings: Findings | None = None) -> str:
    """Returns the findings as a table for a terminal, without colour, then the guesses that were made, then damage."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    seen = findings if findings is not None else find(source, found)
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(source, found, seen):
        table.add_row(name, value)
    console = Console(file=io.StringIO(), width=110, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(table)
    for note in filter(None, (*source.notes, kinds_note(found))):
        console.print(f"note: {note}", soft_wrap=True)
    for problem in seen.problems[:10]:
        console.print(f"problem: {problem}", soft_wrap=True)
    if len(seen.problems) > 10:
        console.print(f"… and {len(seen.problems) - 10} more problems, all of them on the page")
    if seen.problems:
        count = len(seen.problems)
        console.print(
            f"{count:,} damaged or mismatched file{'s' * (count != 1)}: mend or remove them, or `fit` with --skip-bad",
            soft_wrap=True,
        )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def _rows(source: DataSource, found: Survey, seen: Findings) -> list[tuple[str, str]]:
    shares = area_shares(found)
    num_labelled = sum(bool(facts.class_pixels) for facts in found.records)
    rows = [
        ("data", f"{source.root} ({source.layout})"),
        ("task", f"{source.task.kind}: {', '.join(source.task.classes)}"),
        ("images", f"{len(source.records):,} with masks, {len(source.unlabelled):,} without"),
        ("sizes", f"{sizes_text(found.sizes)} (width×height)"),
        ("pixels", channels_text(found)),
        ("channel mean", "  ".join(f"{value:.4g}" for value in found.channel_mean)),
        ("channel deviation", "  ".join(f"{value:.4g}" for value in found.channel_std)),
        ("groups", groups_text(source.records)),
    ]
    for each in class_frequencies(found):
        text = f"{each.share:7.2%} of the pixels, in {each.images:,} of {num_labelled:,} images"
        rows.append((f"class {each.name}", text))
    if shares:
        low, middle, high = np.percentile(shares, [5, 50, 95])
        rows.append(("area per image", f"median {middle:.2%}, 5th to 95th percentile {low:.2%} to {high:.2%}"))
    rows += [
        ("exact duplicates", _counted(len(seen.exact), "set", "of equal images") + _across(seen.num_exact_across)),
        ("near-duplicates", _counted(len(seen.near), "pair", "across groups") + _across(seen.num_near_across)),
        ("suspicious masks", _suspicious_text(seen)),
        ("damaged or mismatched", _counted(len(seen.problems), "file", "")),
    ]
    return rows


def _suspicious_text(seen: Findings) -> str:
    kinds = Counter(text.partition(":")[0] for _, text in seen.suspicious)
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"


def _across(count: int) -> str:
    return f", {count:,} of them of images with and without a mask" if count else ""


def _counted(count: int, noun: str, rest: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)} {rest}".strip() if count else "none"
