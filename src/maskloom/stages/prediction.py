"""Stages ``predict`` and ``submit``: the data's unlabelled images through the whole ensemble, once.

Images that turn out damaged are left out where the recipe says so, and remembered in a file as soon as they are met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.ensembling.thresholds import decide
from maskloom.errors import BadFile, UserError
from maskloom.executors.tasks import Call, Here, ShardProgress
from maskloom.files import read_json, write_json
from maskloom.inference.merging import RESULT
from maskloom.inference.predictor import Predictor
from maskloom.integrity import Ledger, Seal
from maskloom.outputs.maps import mask_paths, write_mask
from maskloom.outputs.tables import (
    SubmissionFormat,
    SubmissionWriter,
    check_against_sample,
    read_names,
    validate_submission,
)
from maskloom.recipe import Recipe
from maskloom.records import ClassMap, Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.ensemble import Ensemble, load_ensemble, open_predictor
from maskloom.stages.outside import reader_of_outside_maps
from maskloom.stages.postprocess import load_postprocessor
from maskloom.stages.rows import chunk_file, chunk_files, chunk_of, chunks_in, read_rows, write_chunk
from maskloom.stages.scoring import reader_with_maps
from maskloom.storage.placeholders import at_hand


def predict_unlabelled(context: Context, *, fingerprint: str) -> list[Path]:
    """Returns the files left: rows, PNG masks where the recipe asks for them, and what was left out, if anything."""
    run, task = context.run, context.source.task
    run.begin("predict", run.predictions, fingerprint)
    ledger = run.ledger("predict")
    masks, rows, unlabelled = run.predictions / "masks", run.predictions / "rows", context.source.unlabelled
    if context.recipe.delivery.masks:
        _forget_rows_without_masks(rows, masks, task, ledger)
    files = _written_rows(context, rows, ledger)
    written = {row.record_id for row in read_rows(files)}
    told = left_out(run, context.source.root)
    for record in unlabelled:
        if record.id not in written and record.id not in told:
            _remember(run, record, BadFile(record.image, "left out by an earlier attempt"), context.source.root)
    files += [run.left_out] if run.left_out.is_file() else []
    if context.recipe.delivery.masks:
        files += [path for record_id in written for path in mask_paths(masks, record_id, task)]
    return files


def _written_rows(context: Context, folder: Path, ledger: Ledger) -> list[Path]:
    """Returns the files of rows of all images without truth, a task each; the ledger learns what they leave."""
    run, source, executor = context.run, context.source, context.executor
    chunks = chunk_files(source.unlabelled, folder)
    # Files of rows are read when all are there, so all of those that are kept are read now.
    missing = [number for number, path in enumerate(chunks) if not ledger.is_sound(path, thorough=True)]
    progress = ShardProgress(
        context.progress,
        done=len(source.unlabelled) - _num_images(source.unlabelled, missing),
        total=len(source.unlabelled),
    )

    def enter(told: tuple[Any, Seal | BadFile]) -> None:
        about, found = told
        if isinstance(found, Seal):
            ledger.add(about, found)
        else:
            context.progress.note(f"left out: {found}")
            _remember(run, about, found, source.root)
            ledger.add(run.left_out)

    shared = executor.share(context)
    shards = [[number] for number in missing] if executor.is_parallel else [missing] if missing else []
    tickets = [
        executor.submit(
            Call(
                name="predict",
                function=_predict_chunks,
                shared=shared,
                arguments=(folder, tuple(shard)),
                shard=f"chunk {shard[0] + 1} of {len(chunks)}" if executor.is_parallel else "",
            ),
            progress=progress.listener(),
            on_told=enter,
        )
        for shard in shards
    ]
    for ticket in tickets:
        executor.collect(ticket)
    return chunks


def _num_images(records: Sequence[Record], chunks: Iterable[int]) -> int:
    return sum(len(chunk_of(records, number)) for number in chunks)


def _predict_chunks(here: Here, shared: Context, folder: Path, numbers: Sequence[int]) -> None:
    """Writes some of the files of rows, and masks where the recipe asks for them; tells every file, rows last."""
    context = shared.at(here)
    run, recipe, task = context.run, context.recipe, context.source.task
    masks, unlabelled = run.predictions / "masks", context.source.unlabelled

    def opened() -> tuple[Predictor, Callable[[dict[str, np.ndarray]], np.ndarray]]:
        ensemble = load_ensemble(run)
        predictor = open_predictor(run, ensemble, recipe, context.device)
        context.say(predictor.notes)
        return predictor, decider(run, recipe, ensemble, task)

    def write(mask: ClassMap) -> None:
        write_mask(masks, mask, task)
        for path in mask_paths(masks, mask.id, task):
            here.tell((path, Seal.of(path)))

    predictor, decide_labels = here.keeper.get("predict", opened)
    done, total = 0, _num_images(unlabelled, numbers)
    for number in numbers:
        path, chunk = chunk_file(folder, number), chunk_of(unlabelled, number)
        write_chunk(
            lambda seen: predictor(*seen),
            chunk,
            path,
            task,
            decide=decide_labels,
            read=reader_with_maps(
                context.num_channels(), reader_of_outside_maps(recipe, task), takes_grey=recipe.takes_grey
            ),
            also=write if recipe.delivery.masks else None,
            on_bad=(lambda record, problem: here.tell((record, problem))) if recipe.data.skip_bad else None,
            on_progress=lambda within, _, before=done: here.progress.advance(before + within, total),  # type: ignore[misc]
        )
        here.tell((path, Seal.of(path)))
        done += len(chunk)


def decider(
    run: RunDirectory, recipe: Recipe, ensemble: Ensemble, task: Task
) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """Returns the function from an image's 8-bit maps by name to its labels: thresholds, then what was chosen after."""
    after = load_postprocessor(run, task) if recipe.postprocess.steps else None

    def labels(maps: dict[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = decide(maps[RESULT], ensemble.thresholds, task)
        return found if after is None else after(found, maps)

    return labels


def left_out(run: RunDirectory, root: Path) -> dict[str, BadFile]:
    """Returns what is wrong with the images that were not predicted, by id; ``root`` is the data folder."""
    if run.left_out.is_file():
        run.check([run.left_out])
    found = _told(run)
    return {record_id: BadFile(root / row["path"], row["reason"]) for record_id, row in found.items()}


def _told(run: RunDirectory) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = read_json(run.left_out) if run.left_out.is_file() else {}
    return found


def _remember(run: RunDirectory, record: Record, problem: BadFile, root: Path) -> None:
    """Adds a record to the file of those left out; a chunk that is finished is not looked at again."""
    path = problem.path
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path.absolute())
    found = _told(run)
    write_json(run.left_out, found | {record.id: {"path": name, "reason": problem.reason}})


def _forget_rows_without_masks(rows: Path, masks: Path, task: Task, ledger: Ledger) -> None:
    """Removes finished chunks of which a mask is no longer what was written, so that they are predicted again."""
    for chunk in sorted(rows.glob("*.csv")):
        if not ledger.is_sound(chunk):
            continue  # it is predicted again in any case
        ids = {row.record_id for row in read_rows([chunk])}
        if not all(ledger.is_sound(path) for record_id in ids for path in mask_paths(masks, record_id, task)):
            chunk.unlink()


def write_submission(context: Context, form: SubmissionFormat) -> Path:
    """Returns the submission, with exactly the names of the data's sample, in its order, where there is one.

    When the data holds only some of the sample's images, or some could not be predicted, what there is is written as
    ``submission.partial.csv.gz``, and said: a contest would refuse it.
    """
    whole, partial = (context.run.root / f"submission{kind}.csv.gz" for kind in ("", ".partial"))
    target, sample, names = whole, context.source.sample_submission, None
    bad = left_out(context.run, context.source.root)
    if sample is not None:
        at_hand(sample)  # a store that does not give it makes no submission partial
    try:
        if sample is not None:
            there = {form.name(record.id) for record in context.source.unlabelled if record.id not in bad}
            check_against_sample(there, sample, form)
            names = read_names(sample, form)
        elif bad:
            some = ", ".join(sorted(bad)[:5]) + (", …" if len(bad) > 5 else "")
            raise UserError(f"{len(bad)} damaged image(s) left out: {some}")
    except UserError as error:
        target = partial
        context.progress.note(f"the submission is partial: {error}")
    rows = chunks_in(context.run.predictions / "rows")
    with SubmissionWriter(target, form, names=names) as writer:
        for row in read_rows(rows):
            writer.write(form.name(row.record_id), row.runs, row.class_name if form.has_classes else "")
    if target == whole and sample is not None:
        sizes = {form.name(record.id): record.size for record in context.source.unlabelled}
        validate_submission(target, sample, form, size_of=sizes.__getitem__)
    (partial if target == whole else whole).unlink(missing_ok=True)
    return target
