"""One step's gradients by several processes: each runs its part of every batch, all judge the whole batch.

The logits of all ranks come together before the loss, so that any loss, also one that looks at the whole batch (Dice,
Lovász, hardest pixels), is what one process would compute; its gradients go back to where the logits came from, and
the weights' are added up. The counterpart of ``gradients``, with the same pieces for memory's sake.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from maskloom.data.loader import Batch, Part
from maskloom.errors import UserError
from maskloom.runtime import derive_seed
from maskloom.training.gradients import cut_smaller, logits_of, prepared
from maskloom.training.memory import is_out_of_memory
from maskloom.training.session import Session
from maskloom.training.team import Team, room_for
from maskloom.training.team_norm import SharedNorm, running_statistics


@dataclass(frozen=True, slots=True)
class Piece:
    """Images ``start`` to ``stop`` (exclusive) of a whole batch, of which every rank has its part."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self, part: Part) -> slice:
        """Returns where the piece's images lie in that part of the batch; nowhere, if it has none of them."""
        first, last = (-((part.number - place) // part.of) for place in (self.start, self.stop))
        return slice(max(first, 0), max(last, 0))

    def places(self, part: Part) -> slice:
        """Returns where that part's images lie in the piece."""
        return slice((part.number - self.start) % part.of, len(self), part.of)

    def order(self, count: int) -> list[int]:
        """Returns where each image lies when ``count`` parts, each filled up to the longest, follow on each other."""
        longest = -(-len(self) // count)
        before = [self.rows(Part(number, count)).start for number in range(count)]
        indices = range(self.start, self.stop)
        return [index % count * longest + index // count - before[index % count] for index in indices]


def pieces_of(num_images: int, count: int) -> list[Piece]:
    """Returns the pieces into which ``Tensor.chunk(count)`` would cut a batch of so many images."""
    size = -(-num_images // count)
    return [Piece(start, min(start + size, num_images)) for start in range(0, num_images, size)]


def team_gradients(session: Session, team: Team, group: list[Batch]) -> Tensor:
    """Returns the mean loss over the group's images, detached, and leaves its gradients in the network: on every rank.

    When memory runs out on one of them, all cut the batches into twice as many pieces and begin the step anew. Raises
    ``UserError`` when it runs out while ranks wait for each other inside the network.
    """
    job, position = session.job, session.position
    while True:
        torch.manual_seed(derive_seed(job.seed, "step", position.step, team.rank))
        session.updater.optimiser.zero_grad(set_to_none=True)
        loss = _attempt(session, team, group)
        if loss is not None:
            return team.tensor_of_leader(loss)
        # Only here, where the failed attempt's memory is free to be given back.
        cut_smaller(session)


def _attempt(session: Session, team: Team, group: list[Batch]) -> Tensor | None:
    """Returns the loss after leaving the gradients in the network; None where memory ran out on any rank."""
    job, total = session.job, sum(batch.num_whole for batch in group)
    margin = session.dataset.policy.margin
    loss = torch.zeros((), device=job.device)
    memory = _Memory(session)
    for batch in group:
        images = labels = None
        with memory:
            images, labels = prepared(batch, job.device, margin=margin)
        for piece in pieces_of(batch.num_whole, session.position.pieces):
            own = None
            if images is not None and labels is not None:
                with memory:
                    own = _forward(session, team, piece, images, labels)
            if team.highest([memory.ran_out])[0]:
                return None
            assert own is not None, "memory had not run out"
            with memory:
                loss += _learn(session, team, piece, own, share=len(piece) / total)
    parameters = [parameter for parameter in job.segmenter.network.parameters() if parameter.requires_grad]
    statistics = [] if job.training.sync_batch_norm else running_statistics(job.segmenter.network)
    learning: list[int] = [parameter.grad is not None for parameter in parameters]
    sums: list[Tensor] = []
    room: Tensor | None = None
    with memory:  # for all that adding up takes, before ranks wait for each other in it
        sums = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        room = room_for([*parameters, *statistics], job.device)
    ran_out, *learning = team.highest([memory.ran_out, *learning])
    if ran_out:
        return None
    assert room is not None, "memory had not run out"
    of_any = [number for number, learns in enumerate(learning) if learns]
    for number in of_any:
        parameters[number].grad = sums[number]
    team.add_up([sums[number] for number in of_any], room)
    if statistics:  # become the mean of all ranks', each of which weighs as many images as it has seen
        torch._foreach_mul_(statistics, sum(len(batch.ids) for batch in group) / total)
        team.add_up(statistics, room)
    return loss


class _Memory:
    """Remembers whether memory ran out in its blocks on this rank, which then end at once."""

    def __init__(self, session: Session) -> None:
        self.ran_out = False
        self._session = session

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
            return False
        job, position = self._session.job, self._session.position
        if job.training.sync_batch_norm:  # the others wait in the middle of the network
            raise UserError(
                f"{job.folder}: the memory of {job.device} does not hold its part of a batch of {position.batch_size} "
                f"image(s) in {position.pieces} piece(s), which training.sync_batch_norm cannot cut smaller on the "
                "way; start again with training.batch_size=auto or a smaller one, and more training.accumulation"
            ) from None
        self.ran_out = True
        return True


@dataclass(frozen=True, slots=True)
class _Own:
    """What a rank knows of a piece before the others tell theirs, and room for that."""

    outputs: tuple[Tensor, ...]
    """The network's logits of this rank's images, or of a stand-in."""
    counts: bool
    """Whether they are of this rank's images."""
    tensors: tuple[Tensor, ...]
    """Outputs and labels, filled up to as many rows as the longest part has."""
    room: tuple[Tensor, ...]
    """Of those of all ranks."""


def _forward(session: Session, team: Team, piece: Piece, images: Tensor, labels: Tensor) -> _Own:
    """Runs the network on this rank's images of the piece; on a stand-in, which leaves no trace, if it has none."""
    rows = piece.rows(team.part)
    counts = rows.start < rows.stop
    if not counts:
        rows = slice(0, 1)
    synchronised = session.job.training.sync_batch_norm
    if counts and not synchronised:
        logits = logits_of(session, images[rows])
    else:
        stance = torch.compiler.set_stance("force_eager") if session.job.training.compile else nullcontext()
        with stance, SharedNorm(team if synchronised else None, counts=counts):
            logits = logits_of(session, images[rows])
    outputs = logits if isinstance(logits, tuple) else (logits,)
    longest = -(-len(piece) // team.size)
    # Contiguous now, where memory may run out, and not when the others wait for them.
    tensors = tuple(_filled(tensor.detach(), longest).contiguous() for tensor in (*outputs, labels[rows]))
    room = tuple(tensor.new_empty((team.size, *tensor.shape)) for tensor in tensors)
    return _Own(outputs, counts, tensors, room)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """Returns the tensor with rows of zeros up to so many; itself where it has as many."""
    missing = rows - len(tensor)
    return torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))]) if missing else tensor


def _learn(session: Session, team: Team, piece: Piece, own: _Own, *, share: float) -> Tensor:
    """Returns ``share`` times the loss of the whole piece, detached, and adds the gradients of this rank's part."""
    filled = [team.gathered(tensor, room) for tensor, room in zip(own.tensors, own.room, strict=True)]
    order = torch.tensor(piece.order(team.size), device=session.job.device)
    *logits, labels = (tensor.flatten(0, 1).index_select(0, order) for tensor in filled)
    for each in logits:
        each.requires_grad_()
    judged = tuple(logits) if len(logits) > 1 else logits[0]
    loss = session.job.loss(judged, labels) * share  # type: ignore[arg-type]  # a tuple, with deep supervision
    session.updater.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
    reached = [(output, each.grad) for output, each in zip(own.outputs, logits, strict=True) if each.grad is not None]
    if own.counts:
        places = piece.places(team.part)
        torch.autograd.backward([output for output, _ in reached], [gradient[places] for _, gradient in reached])
    elif session.job.training.sync_batch_norm:  # the others wait for it on their way back
        torch.autograd.backward([o for o, _ in reached], [torch.zeros_like(o) for o, _ in reached])
    return loss.detach()
