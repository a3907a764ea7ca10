"""Stage ``align``: how the polygons of every labelled image lie on it, so that what is learnt from is moved onto it.

Each record leaves a small file, so a killed stage goes on where it stood. Truth that scores is never moved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskloom.data.polygon_alignment import (
    LARGEST,
    Alignment,
    AlignmentSettings,
    can_be_aligned,
    find_alignment,
    moved,
)
from maskloom.errors import UserError
from maskloom.files import read_json, write_json
from maskloom.records import Record, Shapes
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context


def align_polygons(context: Context, settings: AlignmentSettings, *, fingerprint: str) -> list[Path]:
    """Returns the files left, one per labelled record whose polygons can be moved; it is said how many cannot.

    Raises ``UserError`` where no truth is polygons, and ``BadFile`` for an image that cannot be read.
    """
    context.run.begin("align", _folder(context.run), fingerprint)
    source, ledger = context.source, context.run.ledger("align")
    records = [record for record in source.records if can_be_aligned(record, settings)]
    if not any(isinstance(record.truth, Shapes) for record in source.records):
        raise UserError("alignment: expected truth as polygons in WKT or a vector file, found none; remove alignment")
    if others := len(source.records) - len(records):
        context.progress.note(
            f"alignment: {others} of {len(source.records)} images stay as they lie; it takes polygons in WKT or a "
            f"vector file, on images of at most {LARGEST} pixels whose sides have more than {4 * settings.reach}"
        )
    for done, record in enumerate(records, start=1):
        path = _path(context.run, record)
        if not ledger.is_sound(path):
            found = find_alignment(record, source.task, source.coding, settings)
            write_json(path, found.to_json())
            ledger.add(path)
            if found.is_moved:
                context.progress.note(
                    f"{record.id}: polygons lie beside the image; moved by ({found.x:+.1f}, {found.y:+.1f}) pixels "
                    f"where they are learnt from (between classes {found.before:.3f} of the variance, then "
                    f"{found.best:.3f})"
                )
        context.progress.advance(done, len(records))
    return [_path(context.run, record) for record in records]


def to_learn_from(context: Context, records: Sequence[Record]) -> list[Record]:
    """Returns labelled records as they are learnt from: with polygons where the stage found the image's content."""
    found = shifts(context, records)
    return [moved(record, *found[record.id]) if record.id in found else record for record in records]


def shifts(context: Context, records: Sequence[Record]) -> dict[str, tuple[float, float]]:
    """Returns by id how far (to the right, down) the polygons are moved of those records where they are at all."""
    settings = context.recipe.alignment
    if settings is None:
        return {}
    paths = {record.id: _path(context.run, record) for record in records if can_be_aligned(record, settings)}
    context.run.check(paths.values())
    found = {name: Alignment.from_json(read_json(path)) for name, path in paths.items()}
    return {name: (each.x, each.y) for name, each in found.items() if each.is_moved}


def _folder(run: RunDirectory) -> Path:
    return run.root / "data" / "alignment"


def _path(run: RunDirectory, record: Record) -> Path:
    return _folder(run) / f"{record.id}.json"
