"""Stage ``oof/<name>`` of maps that were made elsewhere: checked, counted and stored like a member's own.

Whether their networks never saw the records that they are scored on only their makers know; the run says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from maskloom.data.image_io import read_image
from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import write_map
from maskloom.errors import BadFile
from maskloom.files import write_json
from maskloom.members import OutsideMember
from maskloom.metrics import from_labels
from maskloom.outputs.maps import probability_paths
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.stages.context import Context
from maskloom.stages.scoring import decided


def take_in(context: Context, outside: OutsideMember, *, fingerprint: str) -> list[Path]:
    """Returns the files left: ``scores.json`` and the map of every labelled record."""
    folder, task = context.run.oof(outside.name), context.source.task
    context.run.begin(f"oof/{outside.name}", folder, fingerprint)
    context.progress.note(f"{outside.name}: its maps are taken to be out-of-fold, which cannot be checked")
    scores = {}
    records = context.source.records
    for number, record in enumerate(records):
        values = outside_map(outside, record, task)
        truth = read_truth(record, task, context.source.coding)
        counts = from_labels(decided(values, task), truth, task).to_json()
        write_map(context.run.oof_map(outside.name, record.id), values)
        scores[record.id] = {"views": counts, "plain": counts, "fold": 0}
        context.progress.advance(number + 1, len(records))
    write_json(folder / "scores.json", scores)
    return [folder / "scores.json", *(context.run.oof_map(outside.name, record.id) for record in records)]


def outside_map(outside: OutsideMember, record: Record, task: Task) -> np.ndarray:
    """Returns the map uint8 C×H×W of one record; raises ``BadFile`` when it is missing or does not fit."""
    layers = []
    for path in probability_paths(outside.folder, record.id, task):
        if not path.is_file():
            raise _missing(path, outside, record)
        values = read_image(path)
        if values.dtype != np.uint8 or values.shape != (*record.size, 1):
            height, width = record.size
            raise BadFile(
                path,
                f"expected an 8-bit grey map of {width}×{height} (width×height) as the image has, found {values.dtype} "
                f"{values.shape[1]}×{values.shape[0]} with {values.shape[2]} channel(s)",
            )
        layers.append(values[:, :, 0])
    return np.stack(layers)


def check_maps(outside: OutsideMember, records: Sequence[Record], task: Task) -> None:
    """Raises ``BadFile`` for the first record without a map; images without truth are asked for theirs only at the end.

    The maps themselves are read when they are needed.
    """
    for record in records:
        for path in probability_paths(outside.folder, record.id, task):
            if not path.is_file():
                raise _missing(path, outside, record)


def _missing(path: Path, outside: OutsideMember, record: Record) -> BadFile:
    return BadFile(path, f"expected the 8-bit map of {record.id!r} for member {outside.name}, found no file")


def map_files(outside: OutsideMember, records: Sequence[Record], task: Task) -> list[Path]:
    """Returns the files of a member's maps that are there."""
    paths = [path for record in records for path in probability_paths(outside.folder, record.id, task)]
    return [path for path in paths if path.is_file()]


def reader_of_outside_maps(recipe: Recipe, task: Task) -> Callable[[Record], dict[str, np.ndarray]]:
    """Returns a function from record to its maps of every member from outside, by the member's name."""

    def read(record: Record) -> dict[str, np.ndarray]:
        return {outside.name: outside_map(outside, record, task) for outside in recipe.outside}

    return read
