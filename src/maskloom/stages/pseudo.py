"""Stage ``pseudo/<round>``: images without truth are labelled by networks, and each fold is told which to learn from.

What fold k of a learning member (a pupil) is told comes from those networks alone that never saw a group which fold k
validates, with shared folds the fold-k networks of the teachers. All networks see an image in one pass. Left under
``pseudo/<round>/``: a small file of facts per image, label masks ``<pupil>/fold<k>/<id>.png`` (0…n-1, 255 where the
teachers are unsure; of multilabel tasks one map below the other), and ``choices.csv``. Pupils whose folds are the same
share the masks of the first of them. A killed stage keeps the images that it finished.
"""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maskloom.data.dataset import with_channels
from maskloom.data.fingerprints import THUMBNAIL_SIDE, pixel_digest, thumbnail
from maskloom.data.image_io import write_png
from maskloom.data.record_images import read_record_image
from maskloom.ensembling.pseudo_labels import (
    ROWS,
    Candidate,
    Choice,
    agreement,
    choose,
    confidence,
    is_sure,
    nothing_chosen,
    pseudo_label,
)
from maskloom.ensembling.pseudo_leaks import Unlabelled, barred, kin
from maskloom.errors import BadFile
from maskloom.files import read_json, write_json, write_text
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import Predictor
from maskloom.inference.streaming import predict_records
from maskloom.records import MaskFile, Record
from maskloom.run_directory import RunDirectory
from maskloom.stages.context import Context
from maskloom.stages.data import load_survey
from maskloom.stages.fold_tables import leaf_name, leaf_parts
from maskloom.stages.guides import bundles_of, own_inference
from maskloom.stages.pseudo_views import View, folds_of, views_of

COLUMNS = ("id", "folds_of", "fold", "confidence", "agreement", "chosen", "reason", "why")
"""Of ``choices.csv``; ``folds_of`` names the first pupil with the same folds."""


def choose_pseudo_labels(context: Context, number: int, *, fingerprint: str) -> list[Path]:
    """Returns the files left: ``choices.csv``, the facts of every image and the masks that some fold learns from.

    Raises ``UserError`` when a fold has nothing to learn from, saying what the best image lacked.
    """
    folder = round_folder(context.run, number)
    context.run.begin(f"pseudo/{number}", folder, fingerprint)
    views = views_of(context, number)
    damaged = _label(context, number, views)
    choices = _choose(context, number, views, damaged)
    masks = _chosen_masks(folder, choices)
    lost = {choice.id for view, chosen in choices for choice in chosen if choice.chosen}
    ledger = context.run.ledger(f"pseudo/{number}")
    lost = {image_id for image_id in lost if not all(map(ledger.is_sound, masks[image_id]))}
    for image_id in lost:  # deleted or damaged since an attempt finished them
        _facts_path(folder, image_id).unlink(missing_ok=True)
    if lost:
        _label(context, number, views)
    for view, chosen in choices:
        for choice in chosen:
            if not choice.chosen:
                _mask_path(folder, view.name, choice.id).unlink(missing_ok=True)
    write_text(folder / "choices.csv", _rows(choices))
    facts = [_facts_path(folder, record.id) for record in context.source.unlabelled if record.id not in damaged]
    return [folder / "choices.csv", *facts, *(path for paths in masks.values() for path in paths)]


def round_folder(run: RunDirectory, number: int) -> Path:
    """Returns where a round leaves its files."""
    return run.root / "pseudo" / str(number)


def _facts_path(folder: Path, image_id: str) -> Path:
    return folder / "images" / f"{image_id}.json"


def _mask_path(folder: Path, view: str, image_id: str) -> Path:
    return folder / view / f"{image_id}.png"


def _chosen_masks(folder: Path, choices: Sequence[tuple[View, list[Choice]]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for view, chosen in choices:
        for choice in chosen:
            if choice.chosen:
                found.setdefault(choice.id, []).append(_mask_path(folder, view.name, choice.id))
    return found


def _label(context: Context, number: int, views: Sequence[View]) -> dict[str, str]:
    """Predicts every image that has no facts yet; returns what is wrong with those that cannot be predicted, by id.

    An image leaves the mask of every fold that may be sure enough of it, and then its facts.
    """
    settings, task, folder = context.recipe.pseudo[number], context.source.task, round_folder(context.run, number)
    ledger, unlabelled = context.run.ledger(f"pseudo/{number}"), context.source.unlabelled
    waiting = [record for record in unlabelled if not ledger.is_sound(_facts_path(folder, record.id))]
    damaged: dict[str, str] = {}
    if not waiting:
        return damaged
    predictor = _open_teachers(context, views)
    context.say(predictor.notes)
    seen: dict[str, dict[str, str]] = {}

    def read(record: Record) -> np.ndarray:
        image = read_record_image(record)
        small = base64.b64encode(thumbnail(image).tobytes()).decode()
        seen[record.id] = {"digest": pixel_digest(image), "thumbnail": small}
        return with_channels(image, context.num_channels(), record.image)

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        facts: dict[str, Any] = {"confidence": {}, "agreement": {}, **seen.pop(record.id)}
        for view in views:
            values = maps[view.name]
            if view.pupil not in facts["agreement"]:
                of_folds = [maps[other.name] for other in views if other.pupil == view.pupil]
                facts["agreement"][view.pupil] = round(agreement(of_folds, task), 6)
            band = settings.band * (values.shape[1] / ROWS if settings.scale_pixels else 1)
            facts["confidence"][view.name] = round(confidence(values, task, band=band), 6)
            if is_sure(facts["confidence"][view.name], facts["agreement"][view.pupil], settings):
                labels = pseudo_label(values, task, ignore_below=settings.ignore_below)
                mask = _mask_path(folder, view.name, record.id)
                write_png(mask, labels.reshape(-1, labels.shape[-1]))
                ledger.add(mask)
        write_json(_facts_path(folder, record.id), facts)
        ledger.add(_facts_path(folder, record.id))  # last: that it is known says that the image is finished

    def leave_out(record: Record, problem: BadFile) -> None:
        context.progress.note(f"left out: {problem}")
        damaged[record.id] = problem.reason

    predict_records(
        predictor,
        waiting,
        consume,
        read=read,
        on_bad=leave_out if context.recipe.data.skip_bad else None,
        on_progress=context.progress.advance,
    )
    return damaged


def _open_teachers(context: Context, views: Sequence[View]) -> Predictor:
    """Returns the predictor whose taps are the views: of each the mean over members of the mean over its networks."""
    run, recipe = context.run, context.recipe
    task = context.source.task
    classes = recipe.partial_members(task)
    leaves = dict.fromkeys(leaf for view in views for leaf in view.networks)
    segmenters = bundles_of(run, recipe, leaves)

    def tap(view: View) -> Merge:
        of_member: dict[str, list[str]] = {}
        for leaf in view.networks:
            of_member.setdefault(leaf_parts(leaf)[0], []).append(leaf)
        members = (Merge(children=tuple(each), classes=classes.get(name)) for name, each in of_member.items())
        return Merge(name=view.name, children=tuple(members))

    tree = Merge(children=tuple(tap(view) for view in views))
    own = own_inference(recipe, leaves)
    return Predictor(tree, segmenters, recipe.inference, context.device, own=own, task=task)


def _choose(
    context: Context, number: int, views: Sequence[View], damaged: dict[str, str]
) -> list[tuple[View, list[Choice]]]:
    """Returns what becomes of every image in every view; raises ``UserError`` for a view without any."""
    settings, folder = context.recipe.pseudo[number], round_folder(context.run, number)
    facts = {
        record.id: read_json(_facts_path(folder, record.id))
        for record in context.source.unlabelled
        if record.id not in damaged
    }
    images = [
        Unlabelled(
            id=record.id,
            group=record.group,
            digest=facts[record.id]["digest"],
            thumbnail=_thumbnail(facts[record.id]["thumbnail"]),
        )
        for record in context.source.unlabelled
        if record.id in facts
    ]
    relatives = kin(load_survey(context).records, images)
    unread = [
        Candidate(id=image_id, confidence=0, agreement=0, barred="damaged", barred_by=reason)
        for image_id, reason in damaged.items()
    ]
    result = []
    for view in views:
        candidates = list(unread)
        for image in images:
            bar = barred(image, relatives.get(image.id, {}), validated=view.validated, groups=view.groups)
            candidates.append(
                Candidate(
                    id=image.id,
                    confidence=facts[image.id]["confidence"][view.name],
                    agreement=facts[image.id]["agreement"][view.pupil],
                    barred=None if bar is None else bar[0],
                    barred_by="" if bar is None else bar[1],
                )
            )
        choices = choose(candidates, settings, num_labelled=view.num_labelled)
        if not any(choice.chosen for choice in choices):
            fold = f"fold {view.fold} of {view.pupil}"
            raise nothing_chosen(choices, settings, round_=f"pseudo.{number}", fold=fold)
        result.append((view, choices))
    return result


def _thumbnail(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def _rows(choices: Sequence[tuple[View, list[Choice]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for view, chosen in choices:
        for each in chosen:
            measured = (f"{each.confidence:.6f}", f"{each.agreement:.6f}")
            answer = "yes" if each.chosen else "no"
            writer.writerow((each.id, view.pupil, view.fold, *measured, answer, each.reason, each.why))
    return text.getvalue()


def read_choices(run: RunDirectory, number: int) -> list[dict[str, str]]:
    """Returns the rows of a finished round's ``choices.csv``."""
    with run.checked(round_folder(run, number) / "choices.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def pseudo_records(context: Context, number: int, member_name: str, fold: int) -> list[Record]:
    """Returns the images that one fold of a pupil learns from, the surest first, with their labels as truth."""
    pupil = folds_of(context.recipe, context.fold_tables(), number, member_name)
    records = {record.id: record for record in context.source.unlabelled}
    found = [
        with_labels(context.run, number, records[row["id"]], row)
        for row in read_choices(context.run, number)
        if row["folds_of"] == pupil and int(row["fold"]) == fold and row["chosen"] == "yes"
    ]
    context.run.check(record.truth.path for record in found if isinstance(record.truth, MaskFile))
    return found


def with_labels(run: RunDirectory, number: int, record: Record, row: dict[str, str]) -> Record:
    """Returns the record with the labels of a chosen row as truth."""
    path = _mask_path(round_folder(run, number), leaf_name(row["folds_of"], int(row["fold"])), record.id)
    return replace(record, truth=MaskFile(path=path, coded="labels"))
