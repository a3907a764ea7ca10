"""A run's predicted masks as the submission of the Dstl challenge: water by index, classes joined, outlined, written.

Knows nothing about networks; it reads the rows that the stage ``predict`` left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from maskloom.contests.dstl.joining import PUBLISHED, JoiningRules, joined
from maskloom.contests.dstl.layout import table_of
from maskloom.contests.dstl.submission import DstlWriter, read_sample, validate
from maskloom.contests.dstl.truth import CLASSES
from maskloom.contests.dstl.water_finder import FAST_WATER, SLOW_WATER, SearchedWater, water_by_line
from maskloom.data.scene_parts import scenes_of
from maskloom.encodings.grid_coordinates import read_grids
from maskloom.encodings.outlines import outlines
from maskloom.encodings.rle import decode_runs
from maskloom.ensembling.precedence import Precedence, numbered
from maskloom.files import write_json
from maskloom.records import Record, Task
from maskloom.stages.context import Context
from maskloom.stages.prediction import left_out
from maskloom.stages.rows import Row, chunks_in, read_rows

if TYPE_CHECKING:
    from shapely import Polygon

WATER_FILE = "submission.water.json"
"""Index, threshold and Jaccard index on training polygons of every scene whose water was searched for."""


def write_submission(context: Context) -> Path:
    """Returns the submission, in the order of the data's sample where there is one.

    Where no member predicts water, and the images have the bands for it, water is found in the published way that
    ``delivery.water`` names; what "search" chose for each scene is stored in ``WATER_FILE``. When the data holds only
    some of the sample's images, or some could not be predicted, what there is is written as
    ``submission.partial.csv.gz``, and said: the contest would refuse it. Raises ``UserError`` for a damaged sample.
    """
    source, run = context.source, context.run
    whole, partial = (run.root / f"submission{kind}.csv.gz" for kind in ("", ".partial"))
    bad = left_out(run, source.root)
    records = {record.id: record for record in source.unlabelled if record.id not in bad}
    sample = source.sample_submission
    wanted = {image for image, _ in read_sample(sample)} if sample is not None else {*records, *bad}
    missing = sorted(wanted - records.keys())
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        context.progress.note(f"the submission is partial: no predictions for {len(missing)} image(s): {some}")
    target = partial if missing else whole
    grid_table = table_of(source.root, "grid_sizes")
    assert grid_table is not None, "the data was opened with it"
    grids = read_grids(grid_table)
    rules = joining_rules(context.recipe.delivery.precedence, source.task)
    find_water = water_finder(context, list(records.values()))
    rows = read_rows(chunks_in(run.predictions / "rows"))
    ordered = sample if not missing else None
    with DstlWriter(target, grids, sample=ordered, images=records.keys() & wanted) as writer:
        for done, (record, polygons) in enumerate(_polygons(rows, records), start=1):
            if record.id not in wanted:
                continue
            if find_water is not None:
                polygons |= find_water(record)
            writer.write(record.id, record.size, joined(polygons, record.size, grids[record.id], rules=rules))
            context.progress.advance(done, len(records))
    if ordered is not None:
        validate(target, ordered)
    (whole if missing else partial).unlink(missing_ok=True)
    if isinstance(find_water, SearchedWater):
        write_json(run.root / WATER_FILE, find_water.found())
    else:
        (run.root / WATER_FILE).unlink(missing_ok=True)
    return target


def water_finder(context: Context, unlabelled: Sequence[Record]) -> Callable[[Record], dict[int, list[Polygon]]] | None:
    """Returns what finds water of images by an index; None where a member predicts it or there are no bands for it."""
    recipe, stated = context.recipe, context.recipe.delivery.water
    predicted = recipe.partial_members(context.source.task)
    is_predicted = len(predicted) < len(recipe.members) or any(
        {FAST_WATER, SLOW_WATER} & set(numbers) for numbers in predicted.values()
    )
    labelled = scenes_of(context.source.records)
    has_bands = all(record.bands for record in (*labelled, *unlabelled))
    if is_predicted or not has_bands:
        if stated is not None:
            why = "a member predicts water" if is_predicted else "the images have no bands of M"
            context.progress.note(f"delivery.water={stated} is not used: {why}")
        return None
    if stated != "search":
        return water_by_line
    finder = SearchedWater(labelled, unlabelled)
    context.progress.note(f"water, searched on training polygons: {finder.told()}; see {WATER_FILE}")
    return finder


def joining_rules(precedence: Sequence[Precedence] | None, task: Task) -> JoiningRules:
    """Returns the published rules, with the order of the recipe where it states one; its names are the task's."""
    if precedence is None:
        return PUBLISHED
    rules = numbered(precedence, task)
    named = tuple((CLASSES[winner], tuple(CLASSES[loser] for loser in losers)) for winner, losers in rules)
    return replace(PUBLISHED, precedence=named)


def _polygons(rows: Iterator[Row], records: dict[str, Record]) -> Iterator[tuple[Record, dict[int, list[Polygon]]]]:
    """Yields each predicted image with the outlines of its masks by label; one image is in memory at a time."""
    for record_id, of_image in groupby(rows, key=lambda row: row.record_id):
        polygons = {
            label: outlines(decode_runs(row.runs, row.size, order="row", base=1)) for label, row in enumerate(of_image)
        }
        if record_id in records:
            yield records[record_id], polygons
