"""A run's predicted masks as the submission of the Dstl challenge: water by index, classes joined, outlined, written.

Knows nothing about networks; it reads the rows that the stage ``predict`` left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskloom.contests.dstl.joining import PUBLISHED, JoiningRules, joined
from maskloom.contests.dstl.layout import table_of
from maskloom.contests.dstl.submission import DstlWriter, read_sample, validate
from maskloom.contests.dstl.truth import CLASSES
from maskloom.contests.dstl.water import CCCI, FULL_SCALE, ccci_water
from maskloom.data.record_images import read_record_image
from maskloom.encodings.grid_coordinates import read_grids
from maskloom.encodings.outlines import outlines
from maskloom.encodings.rle import decode_runs
from maskloom.ensembling.precedence import Precedence, numbered
from maskloom.rasters.indices import band_names, index
from maskloom.records import Record, Task
from maskloom.stages.context import Context
from maskloom.stages.prediction import left_out
from maskloom.stages.rows import Row, read_rows

if TYPE_CHECKING:
    from shapely import Polygon

FAST_WATER, SLOW_WATER = CLASSES.index("fast_water"), CLASSES.index("slow_water")
BANDS = band_names("dstl")


def write_submission(context: Context) -> Path:
    """Returns the submission, in the order of the data's sample where there is one.

    Where no member predicts water, and the images have the bands for it, water is where the published index says. When
    the data holds only some of the sample's images, or some could not be predicted, what there is is written as
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
    predicted = context.recipe.partial_members(source.task)
    finds_water = len(predicted) == len(context.recipe.members) and not any(
        {FAST_WATER, SLOW_WATER} & set(numbers) for numbers in predicted.values()
    )
    rows = read_rows(sorted((run.predictions / "rows").glob("*.csv")))
    ordered = sample if not missing else None
    with DstlWriter(target, grids, sample=ordered, images=records.keys() & wanted) as writer:
        for done, (record, polygons) in enumerate(_polygons(rows, records), start=1):
            if record.id not in wanted:
                continue
            if finds_water and len(record.bands):
                polygons |= _water(record)
            writer.write(record.id, record.size, joined(polygons, record.size, grids[record.id], rules=rules))
            context.progress.advance(done, len(records))
    if ordered is not None:
        validate(target, ordered)
    (whole if missing else partial).unlink(missing_ok=True)
    return target


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


def _water(record: Record) -> dict[int, list[Polygon]]:
    """Returns both kinds of water by label, where the published index of the image's bands says that it is."""
    pixels = read_record_image(record)
    expression = index(CCCI.index, BANDS)
    bands = {name: pixels[..., BANDS.index(name)].astype(np.float32) / FULL_SCALE for name in expression.names}
    found = ccci_water(np.asarray(expression.evaluate(bands)))
    return {FAST_WATER: found.fast, SLOW_WATER: found.slow}
