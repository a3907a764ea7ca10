"""The one training loop: initialise or restore, one step, one epoch's end, ``train``.

A training killed at any moment and started again ends, on the CPU, with the same bytes as an undisturbed one: order
and draws of the samples follow from (seed, epoch), the network's own randomness from (seed, step), everything else is
in the checkpoint, and files are written only from states that the checkpoint can reach again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from maskloom.data.augment import apply
from maskloom.data.loader import Batch, batches, num_batches
from maskloom.errors import UserError
from maskloom.files import remove_partial
from maskloom.models.bundle import save_bundle
from maskloom.models.segmenter import Segmenter
from maskloom.runtime import Precision, autocast, derive_seed, fast_precision, keep_freed_memory
from maskloom.training.checkpoint import Position, interrupt_waits, read_position, restore, save_checkpoint
from maskloom.training.job import TrainingJob, TrainingResult, TrainingSettings
from maskloom.training.memory import fitting_pieces, is_out_of_memory, release
from maskloom.training.optimisers import MovingAverage, build_optimiser
from maskloom.training.schedules import learning_rate_factor, num_without_gain
from maskloom.training.tracking import Log, OnProgress, Pace, TrainingProgress
from maskloom.training.updates import MAX_STREAK, Updater

__all__ = ["TrainingJob", "TrainingResult", "TrainingSettings", "train"]

PROGRESS_SECONDS = 0.5
"""At least so much time lies between two reports of progress, each of which waits for the device."""


@dataclass(kw_only=True)
class _Run:
    """A training under way."""

    job: TrainingJob
    position: Position
    updater: Updater
    log: Log
    precision: Precision
    on_progress: OnProgress | None
    steps_per_epoch: int
    pace: Pace = field(default_factory=Pace)
    saved: float = field(default_factory=time.monotonic)
    reported: float = -math.inf
    clocked: float = field(default_factory=time.monotonic)

    @property
    def num_steps(self) -> int:
        return self.job.training.epochs * self.steps_per_epoch

    @property
    def factor(self) -> float:
        """The learning rate's factor for the coming step."""
        position = self.position
        return learning_rate_factor(self.job.schedule, position.step, self.num_steps, scores=position.scores)


def train(job: TrainingJob, *, on_progress: OnProgress | None = None) -> TrainingResult:
    """Returns what the training left in ``job.folder``; continues from its checkpoint, at once when finished.

    Raises ``UserError`` when losses stop being finite, when a single image does not fit into memory, and for what
    the data cannot be read. Ctrl-C saves the state and is raised again.
    """
    position = read_position(job.checkpoint)
    ours = position is not None and position.fingerprint == job.fingerprint
    if position and ours and position.finished and job.best.is_file() and job.last.is_file():
        return _result(job, position)
    run = _begin(job, position, on_progress)
    try:
        while not run.position.finished:
            _train_epoch(run)
            _finish_epoch(run)
    except KeyboardInterrupt:
        _save(run)
        raise
    finally:
        run.log.close()
    return _result(job, run.position)


# Initialise or restore


def _begin(job: TrainingJob, position: Position | None, on_progress: OnProgress | None) -> _Run:
    """Returns the training at its start, or as its checkpoint left it."""
    settings = job.training
    remove_partial(job.folder)
    if position and (position.fingerprint != job.fingerprint or position.finished):
        position = None
    if position is None:
        for leftover in (job.checkpoint, job.best, job.last, job.log):
            leftover.unlink(missing_ok=True)
    if job.device.type == "cpu":
        keep_freed_memory()
    job.segmenter.to(job.device, channels_last=settings.channels_last).train()
    precision = fast_precision(job.device) if settings.precision == "auto" else settings.precision
    if job.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled():
        torch.backends.cudnn.benchmark = True
    resumed = position is not None
    position = position or Position(
        fingerprint=job.fingerprint,
        batch_size=settings.auto_batch_size if settings.batch_size == "auto" else settings.batch_size,
    )
    count = num_batches(job.dataset, batch_size=position.batch_size, images_per_epoch=settings.images_per_epoch)
    run = _Run(
        job=job,
        position=position,
        updater=_build_updater(job, precision),
        log=Log(job.log, position.events, tensorboard=job.folder / "tensorboard" if settings.tensorboard else None),
        precision=precision,
        on_progress=on_progress,
        steps_per_epoch=-(-count // settings.accumulation),
    )
    if resumed:
        restore(job.checkpoint, run.updater)
    elif settings.batch_size == "auto":
        position.pieces = _find_pieces(run)
    if settings.compile:
        job.segmenter.network.compile()
    run.log.add("resume" if resumed else "start", **_facts(run))
    if not resumed and settings.batch_size == "auto":
        _save(run)  # what was found by trying must not be found differently after a restart
    return run


def _build_updater(job: TrainingJob, precision: Precision) -> Updater:
    network, settings = job.segmenter.network, job.training
    return Updater(
        network,
        build_optimiser(job.optimiser, network),
        average=MovingAverage(network, settings.ema_decay) if settings.ema_decay else None,
        scaler=GradScaler(job.device.type, enabled=precision == "fp16"),
        clip_norm=settings.clip_norm,
        device=job.device,
    )


def _facts(run: _Run) -> dict[str, Any]:
    return {
        "step": run.position.step,
        "steps": run.num_steps,
        "batch_size": run.position.batch_size,
        "pieces": run.position.pieces,
        "accumulation": run.job.training.accumulation,
        "device": str(run.job.device),
        "precision": run.precision,
        "torch": torch.__version__,
    }


def _find_pieces(run: _Run) -> int:
    """Returns into how many pieces a batch must be cut, tried or measured with copies of one sample."""
    job = run.job
    sample = next(batches(job.dataset, epoch=0, batch_size=1, device=job.device))
    images, labels = _prepared(sample, job.device)

    def attempt(count: int) -> None:
        torch.manual_seed(derive_seed(job.seed, "attempt", count))
        _backward(run, torch.cat([images] * count), torch.cat([labels] * count), share=1.0)

    try:
        pieces = fitting_pieces(run.position.batch_size, attempt, device=job.device, network=job.segmenter.network)
    finally:
        run.updater.optimiser.zero_grad(set_to_none=True)
        run.updater.restore_buffers()
    return pieces


# One step


def _train_epoch(run: _Run) -> None:
    """Makes the steps of this epoch that are not done yet."""
    run.job.segmenter.train()
    for group in _groups(run):
        with interrupt_waits():
            _step(run, group)
        if time.monotonic() - run.saved >= run.job.training.checkpoint_seconds:
            _save(run)
        if time.monotonic() - run.reported >= PROGRESS_SECONDS:
            _report(run, _progress(run))


def _groups(run: _Run) -> Iterator[list[Batch]]:
    """Yields the batches of each remaining step of the epoch; the last step of an epoch may have fewer."""
    settings, position = run.job.training, run.position
    if position.step_in_epoch >= run.steps_per_epoch:
        return
    stream = batches(
        run.job.dataset,
        epoch=position.epoch,
        batch_size=position.batch_size,
        start=position.step_in_epoch * settings.accumulation,
        num_workers=run.job.num_workers,
        images_per_epoch=settings.images_per_epoch,
        device=run.job.device,
    )
    while group := list(islice(stream, settings.accumulation)):
        yield group


def _step(run: _Run, group: list[Batch]) -> None:
    """Moves the weights once, and counts."""
    position, updater = run.position, run.updater
    loss = _gradients(run, group)
    updater.apply(loss, learning_rate_factor=run.factor, number=position.step + 1)
    position.step += 1
    position.step_in_epoch += 1
    run.pace.images += sum(len(batch.ids) for batch in group)
    run.pace.steps += 1
    if updater.is_due(position.step):
        _look(run)


def _look(run: _Run) -> None:
    """Raises ``UserError`` when the latest losses were all not finite; waits for the device."""
    position, job = run.position, run.job
    if run.updater.check() >= MAX_STREAK:
        raise UserError(
            f"{job.folder}: expected a finite loss, found NaN or infinity {MAX_STREAK} steps in a row, up to epoch "
            f"{position.epoch + 1} of {job.training.epochs}, step {position.step} of {run.num_steps}; try a lower "
            f"learning rate (optimiser.lr is {job.optimiser.lr:g}), training.clip_norm=1 or "
            "training.precision=float32, and look for odd images with `maskloom inspect`"
        )


def _gradients(run: _Run, group: list[Batch]) -> Tensor:
    """Returns the mean loss over the group's images, detached, and leaves its gradients in the network.

    When memory runs out, the batches are cut into twice as many pieces and the step begins anew.
    """
    job, total = run.job, sum(len(batch.ids) for batch in group)
    while True:
        torch.manual_seed(derive_seed(job.seed, "step", run.position.step))
        run.updater.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=job.device)
        try:
            for batch in group:
                images, labels = _prepared(batch, job.device)
                pieces = zip(images.chunk(run.position.pieces), labels.chunk(run.position.pieces), strict=True)
                for some_images, some_labels in pieces:
                    loss += _backward(run, some_images, some_labels, share=len(some_images) / total)
            return loss
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only here, outside the handler, is the failed attempt's memory free to be given back.
        _cut_smaller(run)


def _prepared(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the batch's images and labels on the device, augmented there."""
    images = batch.images.to(device, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    return (images, labels) if batch.draws is None else apply(images, labels, batch.draws)


def _backward(run: _Run, images: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """Returns ``share`` times the loss, detached, and adds its gradients."""
    try:
        with autocast(run.job.device, run.precision):
            logits = run.job.segmenter.logits(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{run.job.folder}: this network normalises over the images of a batch, expected at least 2 at once, "
            "found 1; set training.batch_size to 2 or more, smaller images or windows if memory is short"
        ) from error
    loss = run.job.loss(logits.float(), labels) * share
    run.updater.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _cut_smaller(run: _Run) -> None:
    """Doubles the pieces of a batch after memory ran out; raises ``UserError`` when they are single images."""
    position = run.position
    if position.pieces >= position.batch_size:
        raise UserError(
            f"{run.job.folder}: the memory of {run.job.device} does not hold one training image; expected room for at "
            "least one: choose smaller images or windows (input.size), a smaller encoder, or stop what else runs there"
        )
    run.updater.optimiser.zero_grad(set_to_none=True)
    run.updater.restore_buffers()
    release()
    position.pieces = min(position.pieces * 2, position.batch_size)
    run.log.add("out_of_memory", step=position.step, pieces=position.pieces)
    note = f"out of memory: each batch of {position.batch_size} is now cut into {position.pieces} pieces"
    _report(run, _progress(run, note=note))


# The end of an epoch


def _finish_epoch(run: _Run) -> None:
    """Validates, writes bundles and the log, and steps over to the next epoch."""
    job, position, updater = run.job, run.position, run.updater
    epoch = position.epoch + 1
    _look(run)
    factor = learning_rate_factor(job.schedule, max(position.step - 1, 0), run.num_steps, scores=position.scores)
    segmenter = job.segmenter
    if updater.average is not None:
        segmenter = segmenter.with_network(updater.average.refreshed(segmenter.network))
    score = _validated(run, segmenter, epoch)
    scores = [*position.scores, score] if score is not None else position.scores
    stopping = job.training.early_stopping
    finished = epoch == job.training.epochs or (stopping is not None and num_without_gain(scores) >= stopping)
    extra = {**job.extra, "epoch": epoch, "score": score}
    if (score is not None and num_without_gain(scores) == 0) or (finished and job.validate is None):
        save_bundle(job.best, segmenter, extra)
    if finished:
        save_bundle(job.last, segmenter, extra)
    with interrupt_waits():
        _clock(run)
        run.log.add(
            "epoch",
            epoch=epoch,
            step=position.step,
            loss=updater.mean_loss(),
            score=score,
            learning_rate=job.optimiser.lr * factor,
            skipped_steps=int(updater.num_skipped),
            images_per_second=round(run.pace.rate, 3),
            seconds=round(position.seconds, 3),
        )
        progress = _progress(run)
        updater.begin_epoch()
        position.epoch, position.step_in_epoch, position.finished = epoch, 0, finished
    _save(run)
    _report(run, progress)


def _validated(run: _Run, segmenter: Segmenter, epoch: int) -> float | None:
    """Returns the score after this epoch, or None where it is not this epoch's turn."""
    job, settings = run.job, run.job.training
    turn = epoch % settings.validate_every == 0 and epoch >= settings.validate_from * settings.epochs
    if job.validate is None or not (turn or epoch == settings.epochs):
        return None
    if time.monotonic() - run.saved >= settings.checkpoint_seconds:
        _save(run)
    score = float(job.validate(segmenter.eval()))
    if not math.isfinite(score):
        raise UserError(
            f"{job.folder}: expected a finite validation score, found {score} after epoch {epoch}; see that the "
            "validation images have truth, or try a lower learning rate (optimiser.lr)"
        )
    return score


def _save(run: _Run) -> None:
    """Writes the checkpoint; a finished training keeps only where it stands."""
    _clock(run)
    finished = run.position.finished
    if not finished:
        run.updater.check()
    save_checkpoint(run.job.checkpoint, run.position, None if finished else run.updater)
    run.saved = time.monotonic()


def _clock(run: _Run) -> None:
    now = time.monotonic()
    run.position.seconds += now - run.clocked
    run.clocked = now


def _progress(run: _Run, *, note: str = "") -> TrainingProgress:
    position, scores = run.position, run.position.scores
    return TrainingProgress(
        epoch=position.epoch + 1,
        epochs=run.job.training.epochs,
        step=position.step,
        steps=run.num_steps,
        loss=run.updater.mean_loss(),
        rate=run.pace.rate,
        eta=run.pace.seconds_for(run.num_steps - position.step),
        score=scores[-1] if scores else None,
        best=max(scores, default=None),
        note=note,
    )


def _report(run: _Run, progress: TrainingProgress) -> None:
    if run.on_progress is not None:
        run.on_progress(progress)
    run.reported = time.monotonic()


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
    )
