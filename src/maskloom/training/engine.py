"""The one training loop: initialise or restore, one step, one epoch's end, ``train``.

A training killed at any moment and started again ends, on the CPU, with the same bytes as an undisturbed one: order
and draws of the samples follow from (seed, epoch), the network's own randomness from (seed, step), what holds in an
epoch from the settings, everything else is in the checkpoint, and files are written only from states that the
checkpoint can reach again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from maskloom.data.loader import Batch, batches, num_batches
from maskloom.errors import UserError
from maskloom.files import remove_partial
from maskloom.models.encoders import encoder_prefixes
from maskloom.models.segmenter import Segmenter
from maskloom.runtime import fast_precision, keep_freed_memory, return_freed_memory
from maskloom.training.checkpoint import Position, interrupt_waits, read_position, restore
from maskloom.training.freezing import freeze, learnable_names, train_mode
from maskloom.training.gradients import find_pieces, gradients
from maskloom.training.job import TrainingJob, TrainingResult, TrainingSettings, snapshot_epochs
from maskloom.training.mining import HardNegatives
from maskloom.training.optimisers import MovingAverage, OptimiserSettings, build_optimiser
from maskloom.training.phases import EpochPlan
from maskloom.training.schedules import num_without_gain
from maskloom.training.session import Session, samples
from maskloom.training.soup import forget_epochs, make_soup, needed_epochs, scored_epochs
from maskloom.training.team import Team
from maskloom.training.team_gradients import team_gradients
from maskloom.training.tracking import Log, OnProgress
from maskloom.training.updates import MAX_STREAK, Updater

__all__ = ["TrainingJob", "TrainingResult", "TrainingSettings", "train"]

PROGRESS_SECONDS = 0.5
"""At least so much time lies between two reports of progress, each of which waits for the device."""


def train(job: TrainingJob, *, on_progress: OnProgress | None = None, team: Team | None = None) -> TrainingResult:
    """Returns what the training left in ``job.folder``; continues from its checkpoint, at once when finished.

    With a ``team`` its processes, each of which calls this with the same job on a device of its own, make every step
    together; ``supervisor`` starts them.

    Raises ``UserError`` when losses stop being finite, when a single image does not fit into memory, when settings do
    not fit the network, and for what the data cannot be read. Ctrl-C saves the state and is raised again.
    """
    result = finished_result(job)
    if result is not None:
        return result
    position = read_position(job.checkpoint)
    if team is not None:
        team.wait()  # all have read the position before it is written again
    session = _begin(job, position, on_progress, team)
    try:
        while not session.position.finished:
            _train_epoch(session)
            _finish_epoch(session)
    except KeyboardInterrupt:
        session.save()
        raise
    finally:
        session.log.close()
    return _result(job, session.position)


def finished_result(job: TrainingJob) -> TrainingResult | None:
    """Returns what the training left in ``job.folder``, or None where it is not finished or was another job's."""
    position = read_position(job.checkpoint)
    if position is None or position.fingerprint != job.fingerprint or not position.finished:
        return None
    if not all(path.is_file() for path in job.kept()):
        return None
    forget_epochs(job, position)
    return _result(job, position)


# Initialise or restore


def _begin(job: TrainingJob, position: Position | None, on_progress: OnProgress | None, team: Team | None) -> Session:
    """Returns the training at its start, or as its checkpoint left it."""
    settings, plans = job.training, job.plan()
    writes = team is None or team.leads
    if writes:
        remove_partial(job.folder)
    if position and (position.fingerprint != job.fingerprint or position.finished):
        position = None
    if position is None and writes:
        old = (job.best, job.last, job.soup, *job.epoch_bundles(), *job.snapshots_there())
        for leftover in (job.checkpoint, job.log, *old):
            leftover.unlink(missing_ok=True)
    if job.device.type == "cpu":
        keep_freed_memory()
    job.segmenter.to(job.device, channels_last=settings.channels_last)
    precision = fast_precision(job.device) if settings.precision == "auto" else settings.precision
    if job.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = True
    resumed = position is not None
    position = position or Position(
        fingerprint=job.fingerprint,
        batch_size=settings.auto_batch_size if settings.batch_size == "auto" else settings.batch_size,
    )
    count = num_batches(job.dataset, batch_size=position.batch_size, images_per_epoch=settings.images_per_epoch)
    network, learnable = job.segmenter.network, learnable_names(job.segmenter.network)
    _check_phases(job, plans, learnable)
    session = Session(
        job=job,
        plans=plans,
        learnable=learnable,
        position=position,
        updater=Updater(
            network,
            _optimiser(job, plans[position.epoch].optimiser, learnable),
            average=MovingAverage(network, settings.ema_decay) if settings.ema_decay else None,
            scaler=GradScaler(job.device.type, enabled=precision == "fp16"),
            clip_norm=settings.clip_norm,
            device=job.device,
        ),
        mining=HardNegatives(-(-count // settings.accumulation), every=settings.hard_negative_every, device=job.device),
        log=Log(
            job.log if writes else None,
            position.events,
            tensorboard=job.folder / "tensorboard" if settings.tensorboard and writes else None,
        ),
        precision=precision,
        on_progress=on_progress,
        team=team,
    )
    train_mode(network, session.plan.optimiser.frozen)
    if resumed:
        restore(job.checkpoint, session.updater, session.mining)
    tries = settings.batch_size == "auto" and not (resumed and _num_ranks(position) == session.num_ranks)
    if tries:
        position.pieces = find_pieces(session)
    if settings.compile:
        network.compile()
    session.log.add("resume" if resumed else "start", **_facts(session))
    if team is not None:
        team.wait()  # all have read the checkpoint before it is written again
    if tries:
        session.save()  # what was found by trying must not be found differently after a restart
    return session


def _num_ranks(position: Position) -> int:
    """Returns how many processes made the latest session of a training."""
    sessions = [event for event in position.events if event["event"] in ("start", "resume")]
    return int(sessions[-1].get("processes", 1)) if sessions else 1


def _optimiser(job: TrainingJob, settings: OptimiserSettings, learnable: frozenset[str]) -> torch.optim.Optimizer:
    """Returns a fresh optimiser over the parameters that it does not freeze."""
    network = job.segmenter.network
    freeze(network, settings.frozen, learnable=learnable)
    return build_optimiser(settings, network, encoder=encoder_prefixes(job.segmenter.network_settings))


def _check_phases(job: TrainingJob, plans: tuple[EpochPlan, ...], learnable: frozenset[str]) -> None:
    """Raises now for what the network or the images lack in a later phase, and for settings that exclude each other."""
    if job.training.compile and job.training.sync_batch_norm:
        raise UserError(
            "training.compile: expected false with training.sync_batch_norm, whose processes meet inside the network, "
            "found true; set one of them to false"
        )
    if snapshot_epochs(plans) and job.training.early_stopping is not None:
        raise UserError(
            "training.early_stopping: expected none with schedule.kind=snapshots, whose cycles all run to their end, "
            f"found {job.training.early_stopping}; leave it out"
        )
    for plan in {(plan.augment, plan.image_scale): plan for plan in plans}.values():
        samples(job.dataset, plan)
    for optimiser in dict.fromkeys(plan.optimiser for plan in plans):
        _optimiser(job, optimiser, learnable)


def _facts(session: Session) -> dict[str, Any]:
    return {
        "step": session.position.step,
        "steps": session.num_steps,
        "batch_size": session.position.batch_size,
        "pieces": session.position.pieces,
        "accumulation": session.job.training.accumulation,
        "device": str(session.job.device),
        "precision": session.precision,
        "torch": torch.__version__,
        **({} if session.team is None else {"processes": session.num_ranks}),
    }


# One step


def _train_epoch(session: Session) -> None:
    """Makes the steps of this epoch that are not done yet."""
    if session.job.device.type == "cpu":
        return_freed_memory()  # images may be larger than before, and validation has left pieces
    train_mode(session.job.segmenter.network, session.plan.optimiser.frozen)
    for group in _groups(session):
        with interrupt_waits():
            _step(session, group)
        if session.writes and time.monotonic() - session.saved >= session.job.training.checkpoint_seconds:
            session.save()
        if time.monotonic() - session.reported >= PROGRESS_SECONDS:
            session.report(session.progress())


def _groups(session: Session) -> Iterator[list[Batch]]:
    """Yields the batches of each remaining step of the epoch; the last new step of an epoch may have fewer."""
    settings, position, mining = session.job.training, session.position, session.mining
    dataset = session.dataset

    def read(number: int, num_workers: int) -> Iterator[Batch]:
        return batches(
            dataset,
            epoch=position.epoch,
            batch_size=position.batch_size,
            start=number * settings.accumulation,
            num_workers=num_workers,
            images_per_epoch=settings.images_per_epoch,
            device=session.job.device,
            part=None if session.team is None else session.team.part,
        )

    stream = read(mining.num_before(position.step_in_epoch), session.job.num_workers)
    for update in range(position.step_in_epoch, session.steps_per_epoch):
        source = read(mining.hardest(update), 0) if mining.is_repeat(update) else stream
        yield list(islice(source, settings.accumulation))


def _step(session: Session, group: list[Batch]) -> None:
    """Moves the weights once, and counts."""
    position, updater = session.position, session.updater
    team = session.team
    loss = gradients(session, group) if team is None else team_gradients(session, team, group)
    updater.apply(loss, learning_rate_factor=session.factor(position.step), number=position.step + 1)
    session.mining.remember(position.step_in_epoch, loss)
    position.step += 1
    position.step_in_epoch += 1
    session.pace.images += sum(batch.num_whole for batch in group)
    if updater.is_due(position.step):
        _look(session)


def _look(session: Session) -> None:
    """Raises ``UserError`` when the latest losses were all not finite, or no gradient fits into 16 bits any more.

    Waits for the device.
    """
    position, job = session.position, session.job
    place = f"epoch {position.epoch + 1} of {job.training.epochs}, step {position.step} of {session.num_steps}"
    if session.updater.check() >= MAX_STREAK:
        raise UserError(
            f"{job.folder}: expected a finite loss, found NaN or infinity {MAX_STREAK} steps in a row, up to {place}; "
            f"try a lower learning rate (optimiser.lr is {session.plan.optimiser.lr:g}), training.clip_norm=1 or "
            "training.precision=float32, and look for odd images with `maskloom inspect`"
        )
    if session.updater.is_scale_lost():
        raise UserError(
            f"{job.folder}: expected gradients that fit into the 16 bits of training.precision fp16, found infinite "
            f"ones however far they were scaled down (scale {session.updater.scaler.get_scale():.0e}, in {place}), so "
            "nothing is learnt any more; state training.precision=float32, or bf16 where the device computes it, or "
            f"try a lower learning rate (optimiser.lr is {session.plan.optimiser.lr:g})"
        )


# The end of an epoch


def _finish_epoch(session: Session) -> None:
    """Validates, writes bundles and the log, and steps over to the next epoch."""
    job, position, updater, plan = session.job, session.position, session.updater, session.plan
    settings, epoch = job.training, position.epoch + 1
    _look(session)
    factor = session.factor(position.step - 1)
    segmenter = job.segmenter
    if updater.average is not None:
        segmenter = segmenter.with_network(updater.average.refreshed(segmenter.network))
    score = _validated(session, segmenter, epoch)
    scores = [*position.scores, score] if score is not None else position.scores
    finished = epoch == settings.epochs or _stops_early(settings, scores)
    extra = {**job.extra, "epoch": epoch, "score": score}
    scored = [*scored_epochs(position), (epoch, score)]
    if settings.keep_epochs or epoch in needed_epochs(job, scored):
        session.keep(job.epoch_bundle(epoch), segmenter, extra)
    ends = snapshot_epochs(session.plans)
    if epoch in ends:
        session.keep(job.snapshot(ends.index(epoch) + 1), segmenter, extra)
    if (score is not None and num_without_gain(scores) == 0) or (finished and job.validate is None):
        session.keep(job.best, segmenter, extra)
    if finished:
        session.keep(job.last, segmenter, extra)
    soup = _soup(session, segmenter, scored) if finished and settings.soup else None
    with interrupt_waits():
        session.clock()
        session.log.add(
            "epoch",
            epoch=epoch,
            phase=plan.phase,
            step=position.step,
            loss=updater.mean_loss(),
            score=score,
            learning_rate=plan.optimiser.lr * factor,
            skipped_steps=int(updater.num_skipped),
            images_per_second=round(session.pace.rate, 3),
            seconds=round(position.seconds, 3),
        )
        if soup is not None:
            session.log.add("soup", **soup)
        progress = session.progress()
        updater.begin_epoch()
        position.epoch, position.step_in_epoch, position.finished = epoch, 0, finished
        if not finished and session.plan.is_fresh:
            # Now rather than with the first step, so that a checkpoint always holds the optimiser of its own epoch.
            updater.renew(_optimiser(job, session.plan.optimiser, session.learnable))
    session.save()
    if session.writes:
        forget_epochs(job, position)  # only now that the checkpoint does not lead back to where they are needed
    session.report(progress)


def _stops_early(settings: TrainingSettings, scores: list[float]) -> bool:
    stopping = settings.early_stopping
    return stopping is not None and num_without_gain(scores, min_delta=settings.early_stopping_delta) >= stopping


def _validated(session: Session, segmenter: Segmenter, epoch: int) -> float | None:
    """Returns the score after this epoch, or None where it is not this epoch's turn."""
    job, settings = session.job, session.job.training
    turn = epoch % settings.validate_every == 0 and epoch >= settings.validate_from * settings.epochs
    if job.validate is None or not (turn or epoch == settings.epochs):
        return None
    if session.writes and time.monotonic() - session.saved >= settings.checkpoint_seconds:
        session.save()
    return _score(session, segmenter, f"after epoch {epoch}")


def _score(session: Session, segmenter: Segmenter, when: str) -> float:
    job, team = session.job, session.team
    assert job.validate is not None, "asked only where there is something to validate on"
    score = float(job.validate(segmenter.eval()))
    if team is not None:
        score = float(team.of_leader(score))
    if not math.isfinite(score):
        raise UserError(
            f"{job.folder}: expected a finite validation score, found {score} {when}; see that the "
            "validation images have truth, or try a lower learning rate (optimiser.lr)"
        )
    return score


def _soup(session: Session, segmenter: Segmenter, scored: list[tuple[int, float | None]]) -> dict[str, Any]:
    """Returns what there is to tell of the soup, which is made of the best of these epochs."""
    job = session.job
    score = (lambda soup: _score(session, soup, "of the soup")) if job.validate is not None else None
    if session.team is not None:
        session.team.wait()  # for the bundles of its epochs
    return make_soup(session, segmenter, needed_epochs(job, scored), score=score)


def _result(job: TrainingJob, position: Position) -> TrainingResult:
    epochs = position.epochs_done
    scored = [entry for entry in epochs if entry["score"] is not None]
    best = max(scored, key=lambda entry: entry["score"], default=None)
    return TrainingResult(
        best=job.best,
        last=job.last,
        best_score=best["score"] if best else None,
        best_epoch=best["epoch"] if best else len(epochs),
        epochs=tuple(epochs),
        soup=job.soup if job.training.soup else None,
        snapshots=job.snapshots(),
    )
