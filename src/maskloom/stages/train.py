"""Stage ``train/<member>/fold<k>``: one network learns from the groups outside its fold."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from maskloom.data.dataset import SegmentationDataset
from maskloom.data.scene_parts import scenes_of
from maskloom.data.scene_windows import count_classes, is_scene
from maskloom.data.statistics import Survey
from maskloom.data.truth import read_truth
from maskloom.errors import BadFile, UserError
from maskloom.files import checksum
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.inference.streaming import predict_records
from maskloom.integrity import Damaged, Ledger
from maskloom.losses.terms import LossSettings, balanced, build_loss
from maskloom.members import MemberSettings
from maskloom.metrics import Counts, from_labels, score_records
from maskloom.models.bundle import load_bundle
from maskloom.models.classic.traits import NO_ENCODER
from maskloom.models.encoders import TIMM_PREFIX, NetworkSettings, encoder_normalisation, resolve
from maskloom.models.pretrained import choose, installed_file
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.progress import Silent
from maskloom.records import Record
from maskloom.runtime import derive_seed
from maskloom.stages.alignment import to_learn_from
from maskloom.stages.block_folds import training_ground
from maskloom.stages.context import Context
from maskloom.stages.data import load_survey
from maskloom.stages.fold_tables import leaf_name
from maskloom.stages.guides import (
    given_out_of_fold,
    network_settings,
    num_guides,
    training_guides,
    training_regions,
)
from maskloom.stages.index_member import search_fold
from maskloom.stages.pseudo import pseudo_records
from maskloom.stages.pseudo_views import round_of
from maskloom.stages.scoring import answer, decided, of_classes, reader_of_parts
from maskloom.stages.tree_member import grow_fold
from maskloom.training.checkpoint import Position, read_position
from maskloom.training.engine import TrainingJob, TrainingResult, train
from maskloom.training.supervisor import train_together
from maskloom.training.team import Team
from maskloom.training.tracking import Log, TrainingProgress
from maskloom.windows import Window


def train_fold(
    context: Context, member: MemberSettings, fold: int, *, fingerprint: str, devices: Sequence[torch.device] = ()
) -> list[Path]:
    """Returns the bundles and the log of one fold, those of its pretraining included; continues from its checkpoint.

    With two ``devices`` or more, a process on each of them learns its part of every batch; the context's own device is
    then left alone. Raises ``Damaged`` for a checkpoint that cannot be continued.
    """
    if member.network.index is not None:
        labelled, _ = _ground(context, member, fold)
        return search_fold(context, member, fold, labelled)
    if member.network.trees is not None:
        return grow_fold(context, member, fold, *_ground(context, member, fold))
    ledger = context.run.ledger(f"train/{leaf_name(member.name, fold)}")
    files: list[Path] = []
    for number, job in enumerate(_jobs(context, member, fold, fingerprint, learns_here=len(devices) < 2)):
        make_job = partial(job_of_rank, replace(context, progress=Silent()), member.name, fold, fingerprint, number)
        _trained(context, job, ledger, partial(train_together, make_job=make_job, devices=devices))
        left = [*job.kept(), job.log]
        for file in left:
            ledger.add(file)
        files += left
    return files


def job_of_rank(context: Context, name: str, fold: int, fingerprint: str, number: int, team: Team) -> TrainingJob:
    """Returns one rank's own of the jobs that a member's fold consists of; those before it have been done."""
    workers = max(context.workers // team.size, 1) if context.workers else 0
    own = replace(context, device=team.device, workers=workers)
    return next(islice(_jobs(own, own.recipe.member(name), fold, fingerprint, team), number, None))


def _jobs(
    context: Context,
    member: MemberSettings,
    fold: int,
    fingerprint: str,
    team: Team | None = None,
    *,
    learns_here: bool = True,
) -> Iterator[TrainingJob]:
    """Yields what a fold learns in one go, one after the other; each job must be done before the next is asked for.

    Where nothing ``learns_here``, jobs only say where things lie: they have no segmenter, and nothing is read for them.
    """
    tables = context.fold_tables()
    _, validation_ids = tables.of(member.name).split(fold)
    seed = derive_seed(context.recipe.seed, member.name, fold)
    validation = evenly_spread(context.records(set(validation_ids)), member.validation_images)
    labelled, forbidden = _ground(context, member, fold)
    seen = {record.id for record in labelled}
    segmenter = first_segmenter(context, member, fold, seed, seen) if learns_here else None
    job: TrainingJob | None = None
    for lesson in _lessons(context, member, fold, labelled):
        if job is not None and segmenter is not None:
            segmenter.network.load_state_dict(load_bundle(job.last).network.state_dict())
        job = TrainingJob(
            segmenter=segmenter,  # type: ignore[arg-type]  # None where ranks make their own
            dataset=training_samples(context, member, lesson.records, seed, forbidden=forbidden, counts=learns_here),
            loss=build_loss(
                balanced_loss(load_survey(context), member, seen),
                member.task_of(context.source.task),
                image_height=image_height(context, member),
            ),
            optimiser=member.optimiser,
            schedule=member.schedule,
            training=member.training,
            validate=lambda network: validation_score(context, member, network, validation, team),
            folder=lesson.folder,
            seed=seed,
            device=context.device,
            num_workers=context.workers,
            fingerprint=fingerprint,
        )
        yield job


def _trained(
    context: Context, job: TrainingJob, ledger: Ledger, learn: Callable[..., TrainingResult] = train
) -> TrainingResult:
    """Returns what the training left; a log that is gone is written again from the checkpoint.

    Where the checkpoint, or a bundle that an earlier session wrote, is damaged, nothing is continued: raises
    ``Damaged``, so that the training begins anew.
    """
    try:
        position = read_position(job.checkpoint)
        ours = position if position is not None and position.fingerprint == job.fingerprint else None
        if ours is not None:
            _check_written(job, ours, ledger)
        if ours is None or not ours.finished or not all(path.is_file() for path in job.kept()):
            ledger.forget([*job.kept(), job.log])  # what it will write is not what an earlier training left
        result = learn(job, on_progress=lambda progress: show(context, progress))
        position = None if job.log.is_file() else read_position(job.checkpoint)
    except BadFile as problem:
        if not problem.path.is_relative_to(job.folder):
            raise
        job.checkpoint.unlink(missing_ok=True)
        raise Damaged(problem.path, "is damaged") from problem
    if position is not None:
        Log(job.log, position.events).close()
    return result


def _check_written(job: TrainingJob, position: Position, ledger: Ledger) -> None:
    """Raises ``BadFile`` for a bundle that an earlier session wrote and that is gone or damaged."""
    if position.scores and not position.finished and not job.best.is_file():
        raise BadFile(job.best, "is gone")
    for bundle in (*job.kept(), *(job.epoch_bundles() if job.training.soup else ())):
        if bundle in ledger and bundle.is_file() and not ledger.is_sound(bundle, thorough=True):
            raise BadFile(bundle, "its checksum differs")
        if bundle.is_file():
            load_bundle(bundle)


def _ground(context: Context, member: MemberSettings, fold: int) -> tuple[list[Record], dict[str, list[Window]] | None]:
    """Returns the labelled records that train a fold, and by id what of them may not be seen; None: all may."""
    tables = context.fold_tables()
    if tables.blocks is not None:
        return training_ground(context, tables.blocks, fold, member.input)
    training_ids, _ = tables.of(member.name).split(fold)
    labelled = context.records(set(training_ids))
    return to_learn_from(context, labelled) if member.aligned else labelled, None


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What is learnt in one go, and where it leaves its files."""

    folder: Path
    records: list[Record]


def _lessons(context: Context, member: MemberSettings, fold: int, labelled: list[Record]) -> list[_Lesson]:
    """Returns what a fold learns from: true labels, with pseudo-labels beside or before them where a round says so."""
    folder = context.run.fold(member.name, fold)
    number = round_of(context.recipe, member.name)
    if number is None:
        return [_Lesson(folder, labelled)]
    pseudo = pseudo_records(context, number, member.name, fold)
    if context.recipe.pseudo[number].train == "pretrain_then_refine":
        return [_Lesson(folder / "pretraining", pseudo), _Lesson(folder, labelled)]
    return [_Lesson(folder, labelled + pseudo)]


def training_samples(
    context: Context,
    member: MemberSettings,
    records: list[Record],
    seed: int,
    *,
    forbidden: Mapping[str, Sequence[Window]] | None = None,
    counts: bool = True,
) -> SegmentationDataset:
    """Returns the samples that a member learns from, drawn from these records; by id, what no window may touch.

    Where the classes of rasters will be asked for, it ``counts`` them now, so that no loader process need do it.
    """
    source = context.source
    counts &= member.input.prefer_class > 0 and member.guidance is None
    for record in records if counts else ():
        if forbidden is not None or is_scene(record, member.input, source.coding):
            count_classes(record, source.task, source.coding)
    return SegmentationDataset(
        records=records,
        task=context.source.task,
        part=member.task_of(context.source.task),
        coding=context.source.coding,
        policy=member.input,
        augment=member.augment,
        seed=seed,
        channels=member.image_channels,
        guides=training_guides(context.run, member),
        regions=training_regions(context.run, member),
        forbidden=forbidden,
    )


def weights_mark(network: NetworkSettings) -> str:
    """Returns the checksum of the file that the first weights are read from, else "none" or "hub".

    Raises ``UserError`` when weights that were asked for are not there.
    """
    if network.bundle is not None:
        bundle = Path(network.bundle)
        if not bundle.is_file():
            raise UserError(f"network.bundle: expected the path of a bundle, found no file {network.bundle!r}")
        return checksum(bundle)
    if network.encoder == NO_ENCODER:
        return "none"
    if network.weights == "auto":  # asked without the warning, which belongs to where the network is built
        path = installed_file(resolve(network.encoder).removeprefix(TIMM_PREFIX))
        return "none" if path is None else checksum(path)
    source = choose(network)
    return source.kind if source.path is None else checksum(source.path)


def check_weights(network: NetworkSettings, mark: str) -> None:
    """Raises ``UserError`` where this host has other first weights than those of ``mark``, which were planned with."""
    try:
        found = weights_mark(network)
    except UserError as problem:
        found = str(problem)
    if found != mark:
        raise UserError(
            f"{network.encoder} on {platform.node()}: expected the first weights that were found at the start "
            f"({mark:.24}), found others ({found:.200}); install the same package, or put the same file, on every node"
        )


def show(context: Context, progress: TrainingProgress) -> None:
    """Hands the loop's progress to the run's listener."""
    if progress.note:
        context.progress.note(progress.note)
    context.progress.advance(progress.step, progress.steps, progress.detail, seconds_left=progress.eta)


def first_segmenter(
    context: Context, member: MemberSettings, fold: int, seed: int, training_ids: set[str]
) -> Segmenter:
    """Returns the segmenter that training begins with, the same for the same seed.

    Fresh (or pretrained), or with the weights of the same fold of the member that the settings name as its start.
    """
    torch.manual_seed(seed)
    task = member.task_of(context.source.task)
    segmenter = build_segmenter(
        network_settings(member, context.source.task),
        task=task,
        policy=member.input,
        normalisation=with_guides(
            normalisation(load_survey(context), member, training_ids),
            num_guides(member, context.source.task),
            bands=member.input.bands is not None,
        ),
    )
    if member.start is not None:
        first = context.recipe.member(member.start)
        kept = "last" if first.keep == "snapshots" else first.keep
        trained = load_bundle(context.run.checked(context.run.bundle(first.name, fold, kept)))
        segmenter.network.load_state_dict(trained.network.state_dict())
    return segmenter


def normalisation(found: Survey, member: MemberSettings, training_ids: set[str]) -> Normalisation:
    """Returns the encoder's own normalisation for 8-bit images, else the statistics of the images trained on.

    Pretrained encoders expect 8-bit photos on the scale 0…1; deeper images use a part of their range that only the
    data tells. Bands that are brought to 0…1 with indices beside them stay as they are.
    """
    if member.input.bands is not None:
        return Normalisation.as_stored(member.network.channels, found.dtype)
    if found.dtype == "uint8":
        mean, std = encoder_normalisation(member.network)
        return Normalisation(mean=mean, std=std, scale=255)
    seen = replace(found, records=tuple(facts for facts in found.records if facts.id in training_ids))
    mean, std = seen.channel_mean, seen.channel_std
    if len(mean) == 1:
        mean, std = mean * member.network.channels, std * member.network.channels
    dtype = "uint16" if found.dtype == "uint16" else "float32"
    return Normalisation(mean=mean, std=tuple(max(value, 1e-6) for value in std), scale=1, dtype=dtype)


def balanced_loss(found: Survey, member: MemberSettings, training_ids: set[str]) -> LossSettings:
    """Returns the member's loss with class weights in numbers where it states a rule: from the images learnt from."""
    counted = [facts for facts in found.records if facts.id in training_ids and facts.class_pixels]
    pixels, valid = [facts.class_pixels for facts in counted], [facts.valid for facts in counted]
    return balanced(member.loss, member.task_of(found.task), pixels, valid)


def with_guides(image: Normalisation, count: int, *, bands: bool = False) -> Normalisation:
    """Returns the normalisation of images with so many guides behind their channels: centred, like the image's own.

    ``bands`` says that all is on the scale 0…1, whatever is stored.
    """
    if count == 0:
        return image
    half = 257 * 127.5 if image.dtype == "uint16" and not bands else 0.5
    guides = (half,) * count
    return image.model_copy(update={"mean": image.mean + guides, "std": image.std + guides})


def image_height(context: Context, member: MemberSettings) -> int:
    """Returns the rows of a whole image at the scale in which the member's networks see it, the most frequent ones."""
    if member.input.mode == "resize" and member.input.size is not None:
        return member.input.size[0]
    (rows, _), *_ = Counter(record.size[0] for record in scenes_of(context.source.records)).most_common(1)
    return max(round(rows * member.input.scale), 1)


def evenly_spread(records: list[Record], count: int | None) -> list[Record]:
    """Returns at most ``count`` records at even distances, always the same ones."""
    if count is None or count >= len(records):
        return records
    return [records[index] for index in np.linspace(0, len(records) - 1, count).round().astype(int)]


def validation_score(
    context: Context, member: MemberSettings, segmenter: Segmenter, records: list[Record], team: Team | None = None
) -> float:
    """Returns the recipe's metric of one network without test-time views, at probability 0.5.

    Tiles overlap as the member's own input policy says, so that how trained networks are asked changes no training.
    Each rank of a ``team`` predicts its part of the records, and all get the score of them all.
    """
    leaf = leaf_name(member.name, 0)
    settings = InferenceSettings(views="none")
    guidance = {leaf: member.guidance} if member.guidance else None
    task, part = context.source.task, member.task_of(context.source.task)
    tree = Merge(children=(leaf,))
    predictor = Predictor(tree, {leaf: segmenter}, settings, context.device, guidance=guidance, task=task)
    counts: dict[str, Counts] = {}

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        truth = read_truth(record, task, context.source.coding)
        prediction = decided(maps[RESULT], task)
        counts[record.id] = from_labels(of_classes(prediction, part, task), of_classes(truth, part, task), part)

    read = reader_of_parts(member.image_channels, member.input, given_out_of_fold(context.run, member))
    own = records if team is None else records[team.part.number :: team.part.of]
    predict_records(answer(predictor, task, (RESULT,)), own, consume, read=read, on_progress=lambda *_: context.go_on())
    if team is not None:
        told = team.merged({record_id: each.to_json() for record_id, each in counts.items()})
        counts = {record_id: Counts.from_json(each) for record_id, each in told.items()}
    return score_records([counts[record.id] for record in records], context.recipe.metric)
