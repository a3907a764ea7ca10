"""A run's predicted masks as the submission of Signate's AI Edge contest, and as pictures in the contest's colours.

Knows nothing about networks; it reads the rows that the stage ``predict`` left.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from maskloom.contests.signate.class_table import category_labels
from maskloom.contests.signate.colours import SCORED
from maskloom.contests.signate.layout import is_test
from maskloom.contests.signate.submission import SignateWriter, label_segments, validate
from maskloom.data.image_io import write_png
from maskloom.data.palettes import palette
from maskloom.encodings.rle import decode_runs
from maskloom.records import IGNORE
from maskloom.stages.context import Context
from maskloom.stages.prediction import left_out
from maskloom.stages.rows import Row, chunks_in, read_rows

COLOURS_FOLDER = "colours"
"""Below the run's predictions: ``<id>.png`` in the colours of the annotations."""


def write_submission(context: Context) -> Path:
    """Returns the submission of the photos of ``seg_test_images/`` in their order, the four scored categories alone.

    Without any such photo it is about all photos that were predicted. A category is what its class holds, whatever that
    is called; one without a class, because a table merged it or left it out, is absent, and a class that bears its name
    but holds others as well is sent whole; both are said. Where the recipe asks for masks, pictures in the contest's
    colours are written as well. When some photos could not be predicted, what there is is written as
    ``submission.partial.json``, and said: the contest would score them 0.
    """
    source, run = context.source, context.run
    whole, partial = (run.root / f"submission{kind}.json" for kind in ("", ".partial"))
    bad = left_out(run, source.root)
    wanted = [record for record in source.unlabelled if is_test(record)] or list(source.unlabelled)
    records = {record.id: record for record in wanted if record.id not in bad}
    missing = sorted({record.id for record in wanted} & bad.keys())
    if missing:
        some = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        context.progress.note(f"the submission is partial: no predictions for {len(missing)} image(s): {some}")
    names = _sent_as(context)
    colours = np.array(palette(source.task, source.coding), np.uint8)
    target = partial if missing else whole
    rows = read_rows(chunks_in(run.predictions / "rows"))
    with SignateWriter(target, [record.image.name for record in records.values()]) as writer:
        for done, (record_id, labels) in enumerate(_labels(rows), start=1):
            if context.recipe.delivery.masks:
                write_png(run.predictions / COLOURS_FOLDER / f"{record_id}.png", colours[labels])
            if record_id in records:
                writer.write(records[record_id].image.name, label_segments(labels, names))
            context.progress.advance(done, len(source.unlabelled))
    if not missing:
        validate(target, {record.image.name: record.size for record in records.values()})
    (whole if missing else partial).unlink(missing_ok=True)
    return target


def _sent_as(context: Context) -> tuple[str, ...]:
    """Returns as which category each class is sent, "" for none; says which are absent, and which hold others, too."""
    task = context.source.task
    labels = category_labels(task, context.source.coding)
    sent = {labels.alone[category]: category for category in SCORED if category in labels.alone}
    for category in SCORED:
        if category in labels.shared:
            sent[task.classes.index(category)] = category
            context.progress.note(
                f"the class {category} holds {', '.join(labels.shared[category])}, too: all of it is sent as {category}"
            )
    absent = [category for category in SCORED if category not in sent.values()]
    if absent:
        context.progress.note(f"no class of the data is {', '.join(absent)}: absent in the submission, worth 0")
    return tuple(sent.get(label, "") for label in range(len(task.classes)))


def _labels(rows: Iterator[Row]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields each predicted image's id and labels, uint8 H×W; one image is in memory at a time."""
    for record_id, of_image in groupby(rows, key=lambda row: row.record_id):
        labels: np.ndarray | None = None
        for label, row in enumerate(of_image):
            if labels is None:
                labels = np.full(row.size, IGNORE, np.uint8)
            labels[decode_runs(row.runs, row.size, order="row", base=1)] = label
        assert labels is not None and labels.max() < IGNORE, "every pixel of a multiclass mask has a class"
        yield record_id, labels
