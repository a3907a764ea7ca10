"""Stage ``register``: how each further band file lies against its record's image, found once and kept.

Each record leaves a small file, so a killed stage goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from maskloom.data.band_registration import RegistrationSettings, registered
from maskloom.data.record_images import image_files
from maskloom.files import fingerprint, read_json, write_json
from maskloom.rasters.registration import Registration
from maskloom.records import BandFile, Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context

_THREADS = 4


def registration_fingerprint(context: Context, settings: RegistrationSettings) -> str:
    """Returns a fingerprint of what the stage reads: its settings, and every file by name, length and time."""
    files = [
        (record.id, [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in image_files(record)])
        for record in _all_records(context)
    ]
    return fingerprint(settings.model_dump(mode="json"), files)


def register_bands(context: Context, settings: RegistrationSettings, *, fingerprint: str) -> list[Path]:
    """Returns the files left, one per record with further bands; raises ``UserError`` for what cannot be registered."""
    folder = _folder(context.run)
    context.run.begin("register", folder, fingerprint)
    records = [record for record in _all_records(context) if record.bands]
    ledger = context.run.ledger("register")
    waiting = [record for record in records if not ledger.is_sound(_path(context.run, record))]

    def find(record: Record) -> list[str]:
        found, problems = registered(record, settings)
        write_json(_path(context.run, record), {str(number): each.to_json() for number, each in found.items()})
        ledger.add(_path(context.run, record))
        return problems

    with ThreadPoolExecutor(_THREADS) as pool:
        for done, problems in enumerate(pool.map(find, waiting), start=len(records) - len(waiting) + 1):
            context.say(f"left as it lies: {problem}" for problem in problems)
            context.progress.advance(done, len(records))
    return [_path(context.run, record) for record in records]


def with_registration(context: Context) -> Context:
    """Returns the context whose records' bands lie as the stage found them."""
    source = context.source
    context.run.check(_path(context.run, record) for record in _all_records(context) if record.bands)

    def moved(record: Record) -> Record:
        if not record.bands:
            return record
        found = read_json(_path(context.run, record))
        places = {int(number): Registration.from_json(place) for number, place in found.items()}
        return replace(record, bands=moved_bands(record, places))

    records, unlabelled = tuple(map(moved, source.records)), tuple(map(moved, source.unlabelled))
    return context.with_source(replace(source, records=records, unlabelled=unlabelled))


def moved_bands(record: Record, places: Mapping[int, Registration]) -> tuple[BandFile, ...]:
    """Returns a record's further files with the places that were found for some of them, by their number."""
    return tuple(
        replace(band, moved=places[number].moved) if number in places else band
        for number, band in enumerate(record.bands)
    )


def _all_records(context: Context) -> list[Record]:
    return [*context.source.records, *context.source.unlabelled]


def _folder(run: RunDirectory) -> Path:
    return run.root / "data" / "registration"


def _path(run: RunDirectory, record: Record) -> Path:
    return _folder(run) / f"{record.id}.json"
