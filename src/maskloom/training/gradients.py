"""One step's gradients: forward, loss and backward over its batches, in as few pieces as memory allows.

Knows nothing about what the gradients are used for.
"""

from __future__ import annotations

from typing import Any

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
    """Returns into how many pieces a batch must be cut, tried or measured with copies of one sample.

    Of a batch that several processes share, each tries its part, and the least that fits holds for all.
    """
    job, team = session.job, session.team
    num_ranks = session.num_ranks
    sample = next(batches(session.dataset, epoch=0, batch_size=1, device=job.device))
    images, labels = prepared(sample, job.device, margin=session.dataset.policy.margin)

    def attempt(count: int) -> None:
        torch.manual_seed(derive_seed(job.seed, "attempt", count))
        _backward(session, torch.cat([images] * count), torch.cat([labels] * count), share=1.0, judged_by=num_ranks)

    try:
        pieces = fitting_pieces(
            -(-session.position.batch_size // num_ranks),
            attempt,
            device=job.device,
            network=job.segmenter.network,
            sharers=num_ranks,
        )
    finally:
        session.updater.optimiser.zero_grad(set_to_none=True)
        session.updater.restore_buffers()
    return pieces if team is None else team.highest([pieces])[0]


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
        cut_smaller(session)


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


def _backward(session: Session, images: Tensor, labels: Tensor, *, share: float, judged_by: int = 1) -> Tensor:
    """Returns ``share`` times the loss, detached, and adds its gradients.

    With ``judged_by`` ranks the loss is that of as many copies of the batch, each of which gives its share.
    """
    logits = logits_of(session, images)
    if judged_by > 1:
        outputs = logits if isinstance(logits, tuple) else (logits,)
        copies = tuple(torch.cat([output] * judged_by) for output in outputs)
        logits, labels = copies if isinstance(logits, tuple) else copies[0], torch.cat([labels] * judged_by)
    loss = session.job.loss(logits, labels) * share
    session.updater.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def logits_of(session: Session, images: Tensor) -> Any:  # Tensor, or a tuple of them with deep supervision
    """Returns the network's logits in training; raises ``UserError`` where it cannot learn from so few images."""
    try:
        with autocast(session.job.device, session.precision):
            return session.job.segmenter.logits(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        team, settings = session.team, session.job.training
        where, least, else_ = "", 2, ""
        if team is not None and not settings.sync_batch_norm:
            where, least = f" on each of {team.size} devices", 2 * team.size
            else_ = ", or training.sync_batch_norm to true"
        raise UserError(
            f"{session.job.folder}: this network normalises over the images of a batch, expected at least 2 at once"
            f"{where}, found 1; set training.batch_size to {least} or more{else_}, smaller images or windows if memory "
            "is short"
        ) from error


def cut_smaller(session: Session) -> None:
    """Doubles the pieces of a batch after memory ran out; raises ``UserError`` when they are single images."""
    position = session.position
    most = -(-position.batch_size // session.num_ranks)
    if position.pieces >= most:
        raise UserError(
            f"{session.job.folder}: the memory of {session.job.device} does not hold one training image; expected "
            "room for at least one: choose smaller images or windows (input.size), a smaller encoder, or stop what "
            "else runs there"
        )
    session.updater.optimiser.zero_grad(set_to_none=True)
    session.updater.restore_buffers()
    release()
    position.pieces = min(position.pieces * 2, most)
    session.log.add("out_of_memory", step=position.step, pieces=position.pieces)
    note = f"out of memory: each batch of {position.batch_size} is now cut into {position.pieces} pieces"
    session.report(session.progress(note=note))
