"""Stages ``survey`` and ``folds``: every labelled file is read once, then groups are dealt into folds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from maskloom.data.duplicates import SimilarPair, exact_duplicates, near_duplicates
from maskloom.data.folds import FoldSettings, FoldTable, check_ids, check_leaks, make_folds
from maskloom.data.record_images import image_files
from maskloom.data.scene_parts import parts_among
from maskloom.data.sources.base import DataSource, first_problem
from maskloom.data.statistics import RecordFacts, Survey, survey
from maskloom.errors import BadFile, UserError
from maskloom.files import checksum, fingerprint, read_json, write_json
from maskloom.outputs.findings import sizes_text
from maskloom.records import MaskFile, Record
from maskloom.stages.block_folds import check_block_folds, divided, write_block_folds
from maskloom.stages.context import Context


def source_fingerprint(source: DataSource) -> str:
    """Returns a fingerprint of what is learnt from: ids, groups, truth, and the content of every labelled file."""
    files = [path for record in source.records for path in labelled_files(record)]
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(checksum, files))
    description = source.to_json()
    for other in ("notes", "problems", "unlabelled", "sample_submission"):
        description.pop(other)
    return fingerprint(description, contents)


def summary(source: DataSource) -> str:
    """Returns what was opened in one line, such as ``768 images 512×512 in 48 groups; binary: car``."""
    sizes = Counter(record.size for record in source.records)
    groups = len({record.group for record in source.records})
    grouped = "each its own group" if groups == len(source.records) else f"in {groups:,} groups"
    parts = [f"{len(source.records):,} images", f"({sizes_text(sizes)})" if len(sizes) > 1 else sizes_text(sizes)]
    without = f"; {len(source.unlabelled):,} more without masks" if source.unlabelled else ""
    return f"{' '.join(parts)}, {grouped}{without}; {source.task.kind}: {', '.join(source.task.classes)}"


def labelled_files(record: Record) -> Iterable[Path]:
    """Returns the files that a record's image and truth are read from."""
    yield from image_files(record)
    if isinstance(record.truth, MaskFile):
        yield record.truth.path


def survey_data(context: Context) -> list[Path]:
    """Returns the files left: what reading every labelled file found.

    Raises the first problem unless the recipe leaves damaged records out, and ``UserError`` where the images have not
    the channels that the networks take.
    """
    found = survey(context.source, workers=8, on_progress=context.progress.advance)
    found = _of_one_kind(
        found, context.source.records, grey_is_colour=context.num_channels() == 3 and context.recipe.takes_grey
    )
    if found.problems and not context.recipe.data.skip_bad:
        raise first_problem(found.problems)
    _check_channels(found, context)
    write_json(context.run.survey, found.to_json())
    pairs = near_duplicates(found)
    write_json(context.run.near_duplicates, [pair.to_json() for pair in pairs])
    if pairs:
        context.progress.note(f"{len(pairs)} pair(s) of images of different groups look alike; see the report")
    return [context.run.survey, context.run.near_duplicates]


def _of_one_kind(found: Survey, records: Iterable[Record], *, grey_is_colour: bool) -> Survey:
    """Returns the survey with the images of another depth or number of channels than most among the bad ones.

    Networks learn from images of one kind; where ``grey_is_colour``, a grey image is as good as one of three channels.
    """

    def kind(facts: RecordFacts) -> tuple[int, str]:
        return 3 if grey_is_colour and facts.num_channels == 1 else facts.num_channels, facts.dtype

    if not found.records:
        return found
    usual, _ = Counter(kind(facts) for facts in found.records).most_common(1)[0]
    expected = f"expected {_kind_text(*usual)} as in most images"
    other = {
        facts.id: f"{expected}, found {_kind_text(facts.num_channels, facts.dtype)}; convert the image"
        for facts in found.records
        if kind(facts) != usual
    }
    bad = dict(found.bad)
    bad |= {record.id: BadFile(record.image, other[record.id]) for record in records if record.id in other}
    return replace(
        found,
        records=tuple(facts for facts in found.records if facts.id not in other),
        bad=tuple((record.id, bad[record.id]) for record in records if record.id in bad),
    )


def _kind_text(channels: int, dtype: str) -> str:
    return f"{channels} channel(s) of {dtype}"


def _check_channels(found: Survey, context: Context) -> None:
    """Raises ``UserError`` unless the recipe's networks can learn from images of the channels that were found."""
    there, wanted = found.num_channels, context.num_channels()
    if not found.records or there == wanted or (there == 1 and wanted == 3 and context.recipe.takes_grey):
        return
    are_named = any(member.input.bands is not None for member in context.recipe.members)
    remedy = f"use --set 'members.*.network.channels={there}'"
    if are_named:
        remedy = "name each of the images' bands in input.bands.names"
    raise UserError(
        f"{context.source.root}: expected images of {wanted} channel(s) as the networks take, found {there}; {remedy}"
    )


def load_survey(context: Context) -> Survey:
    """Returns what the ``survey`` stage found."""
    return Survey.from_json(read_json(context.run.checked(context.run.survey)), context.source.root)


def without_bad_records(context: Context) -> Context:
    """Returns the context without the records that the survey could not use, and says which those are.

    Where folds are of blocks, the records are those that scenes are divided into. Raises the first problem unless the
    recipe leaves damaged records out: the survey may be of an earlier ``fit`` that did.
    """
    found = load_survey(context)
    if not found.bad:
        return divided(context)
    if not context.recipe.data.skip_bad:
        raise first_problem(found.problems)
    bad = found.bad_ids
    context.progress.note(f"{len(bad)} damaged record(s) left out: {', '.join(sorted(bad)[:5])}{' …' * (len(bad) > 5)}")
    kept = tuple(record for record in context.source.records if record.id not in bad)
    return divided(context.with_source(replace(context.source, records=kept)))


def write_folds(context: Context, settings: FoldSettings, path: Path) -> list[Path]:
    """Returns the file of a fold table, after the check that nothing leaks from training into validation.

    Of blocks, also the files of their labels.
    """
    if parts_among(context.source.records):
        files = write_block_folds(context, settings, path)
        check_folds(context, path)
        return files
    found = load_survey(context)
    near = [SimilarPair.from_json(pair) for pair in read_json(context.run.checked(context.run.near_duplicates))]
    table = make_folds(
        context.source.records,
        settings,
        areas=found.areas(),
        exact=exact_duplicates(found),
        near=[(pair.first, pair.second) for pair in near],
    )
    table.to_csv(path)
    check_folds(context, path)
    return [path]


def check_folds(context: Context, path: Path) -> None:
    """Raises ``UserError`` when a fold table of the run does not list exactly the data's records, or leaks.

    Also asked when the table was made before, as it may have been edited since.
    """
    exact = exact_duplicates(load_survey(context))
    if parts_among(context.source.records):
        check_block_folds(context, path, exact)
        return
    table = FoldTable.from_csv(path)
    check_ids(table, context.source.records, path)
    check_leaks(table, context.source.records, exact)
