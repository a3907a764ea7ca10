"""One step's gradients: forward, loss and backward over its batches, in as few pieces as memory allows.

Knows nothing about what the gradients are used for.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from maskloom.data.augment import apply
from maskloom.data.loader import Batch, batches
from maskloom.errors import UserError
from maskloom.records import IGNORE
from maskloom.runtime import autocast, derive_seed
from maskloom.training.memory import fitting_pieces, is_out_of_memory, release
from maskloom.training.session import Session


def find_pieces(session: Session) -> int:
    """Returns into how many pieces a batch must be cut, tried or measured with copies of one sample."""
    job = session.job
    sample = next(batches(session.dataset, epoch=0, batch_size=1, device=job.device))
    images, labels = prepared(sample, job.device, margin=session.dataset.policy.margin)

    def attempt(count: int) -> None:
        torch.manual_seed(derive_seed(job.seed, "attempt", count))
        _backward(session, torch.cat([images] * count), torch.cat([labels] * count), share=1.0)

    try:
        pieces = fitting_pieces(session.position.batch_size, attempt, device=job.device, network=job.segmenter.network)
    finally:
        session.updater.optimiser.zero_grad(set_to_none=True)
        session.updater.restore_buffers()
    return pieces


def gradients(session: Session, group: list[Batch]) -> Tensor:
    """Returns the mean loss over the group's images, detached, and leaves its gradients in the network.

    When memory runs out, the batches are cut into twice as many pieces and the step begins anew.
    """
    job, total = session.job, sum(len(batch.ids) for batch in group)
    margin = session.dataset.policy.margin
    while True:
        torch.manual_seed(derive_seed(job.seed, "step", session.position.step))
        session.updater.optimiser.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=job.device)
        try:
            for batch in group:
                images, labels = prepared(batch, job.device, margin=margin)
                pieces = zip(images.chunk(session.position.pieces), labels.chunk(session.position.pieces), strict=True)
                for some_images, some_labels in pieces:
                    loss += _backward(session, some_images, some_labels, share=len(some_images) / total)
            return loss
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Only here, outside the handler, is the failed attempt's memory free to be given back.
        _cut_smaller(session)


def prepared(batch: Batch, device: torch.device, *, margin: int) -> tuple[Tensor, Tensor]:
    """Returns the batch's images and labels on the device, augmented there.

    What shifts and turns brought into the policy's margin is ignored again.
    """
    images = batch.images.to(device, non_blocking=True)
    labels = batch.labels.to(device, non_blocking=True)
    if batch.draws is None:
        return images, labels
    images, labels = apply(images, labels, batch.draws)
    if margin:
        labels = functional.pad(labels[..., margin:-margin, margin:-margin], (margin,) * 4, value=IGNORE)
    return images, labels


def _backward(session: Session, images: Tensor, labels: Tensor, *, share: float) -> Tensor:
    """Returns ``share`` times the loss, detached, and adds its gradients."""
    try:
        with autocast(session.job.device, session.precision):
            logits = session.job.segmenter.logits(images)  # with deep supervision, several
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            f"{session.job.folder}: this network normalises over the images of a batch, expected at least 2 at once, "
            "found 1; set training.batch_size to 2 or more, smaller images or windows if memory is short"
        ) from error
    loss = session.job.loss(logits, labels) * share
    session.updater.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _cut_smaller(session: Session) -> None:
    """Doubles the pieces of a batch after memory ran out; raises ``UserError`` when they are single images."""
    position = session.position
    if position.pieces >= position.batch_size:
        raise UserError(
            f"{session.job.folder}: the memory of {session.job.device} does not hold one training image; expected "
            "room for at least one: choose smaller images or windows (input.size), a smaller encoder, or stop what "
            "else runs there"
        )
    session.updater.optimiser.zero_grad(set_to_none=True)
    session.updater.restore_buffers()
    release()
    position.pieces = min(position.pieces * 2, position.batch_size)
    session.log.add("out_of_memory", step=position.step, pieces=position.pieces)
    note = f"out of memory: each batch of {position.batch_size} is now cut into {position.pieces} pieces"
    session.report(session.progress(note=note))
