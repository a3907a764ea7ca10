"""The soup of a training: one network with the mean of the weights of its best epochs.

Wortsman et al., "Model soups" (2022), https://arxiv.org/abs/2203.05482, in its uniform form, over the epochs of one
training as stochastic weight averaging does (Izmailov et al., 2018, https://arxiv.org/abs/1803.05407). Since batch-norm
statistics are no mean of those of other weights, they are measured anew on training images. The bundles of the epochs
that may become part of it lie in the folder ``epochs`` until it is made. Knows nothing about how a step is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from maskloom.data.loader import batches
from maskloom.models.segmenter import Segmenter
from maskloom.runtime import autocast
from maskloom.training.checkpoint import Position
from maskloom.training.freezing import train_mode
from maskloom.training.gradients import prepared
from maskloom.training.job import TrainingJob
from maskloom.training.session import Session

STATISTICS_BATCHES = 100
"""So many batches of training images, or an epoch's where it has fewer, give the batch-norm statistics."""

Scores = Sequence[tuple[int, float | None]]
"""(epoch, score) of finished epochs, counted from 1, in the order of time; None where an epoch was not validated."""


def scored_epochs(position: Position) -> list[tuple[int, float | None]]:
    """Returns the finished epochs and their scores."""
    return [(entry["epoch"], entry["score"]) for entry in position.epochs_done]


def needed_epochs(job: TrainingJob, scores: Scores) -> tuple[int, ...]:
    """Returns the epochs that the soup would be made of if the training ended with these; none where none is asked for.

    Those with the highest scores, of equal ones the earlier; the last ones where nothing is validated.
    """
    count = job.training.soup
    if count is None:
        return ()
    if job.validate is None:
        return tuple(epoch for epoch, _ in scores)[-count:]
    validated = [(score, epoch) for epoch, score in scores if score is not None]
    best = sorted(validated, key=lambda pair: -pair[0])[:count]
    return tuple(sorted(epoch for _, epoch in best))


def forget_epochs(job: TrainingJob, position: Position) -> None:
    """Removes the bundles that were kept for the soup and cannot become part of it any more.

    To be called once the checkpoint stands at this position: one that led back might need them again.
    """
    if job.training.soup is None or job.training.keep_epochs:
        return
    needed = () if position.finished else needed_epochs(job, scored_epochs(position))
    for path in job.epoch_bundles():
        if int(path.stem) not in needed:
            path.unlink()


def make_soup(
    session: Session, segmenter: Segmenter, epochs: Sequence[int], *, score: Callable[[Segmenter], float] | None
) -> dict[str, Any]:
    """Writes the bundle with the mean of these epochs' weights, and returns its ``epochs`` and ``score``.

    ``segmenter`` is one of that network, which is left alone; ``score`` is asked once, None: there is nothing to ask.
    """
    job = session.job
    network = copy.deepcopy(segmenter.network)
    network.load_state_dict(mean_weights([job.epoch_bundle(epoch) for epoch in epochs]))
    soup = segmenter.with_network(network)
    with autocast(job.device, session.precision):
        measure_statistics(soup, _images(session), frozen=session.plan.optimiser.frozen)
    facts = {"epochs": list(epochs), "score": None if score is None else score(soup)}
    session.keep(job.soup, soup, {**job.extra, **facts})
    return facts


def _images(session: Session) -> Iterator[Tensor]:
    """Yields training images of the present epoch as the network sees them in training."""
    position, dataset, job = session.position, session.dataset, session.job
    source = batches(
        dataset,
        epoch=position.epoch,
        batch_size=position.batch_size,
        num_workers=job.num_workers,
        images_per_epoch=job.training.images_per_epoch,
        device=job.device,
    )
    for batch in islice(source, STATISTICS_BATCHES):
        images, _ = prepared(batch, job.device, margin=dataset.policy.margin)
        yield from images.chunk(position.pieces)


def mean_weights(bundles: Sequence[Path]) -> dict[str, Tensor]:
    """Returns the mean of what these bundles of one network hold, by name; whole numbers are those of the last.

    Summed in float64, in the order given, with one bundle in memory at a time.
    """
    if not bundles:
        raise ValueError("expected at least one bundle to average, got none")
    sums: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    for path in bundles:
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor.double() if name in sums else tensor.double()
    return {
        name: (sums[name] / len(bundles)).to(tensor.dtype) if name in sums else tensor
        for name, tensor in tensors.items()
    }


@torch.no_grad()
def measure_statistics(segmenter: Segmenter, images: Iterable[Tensor], *, frozen: Sequence[str]) -> None:
    """Sets the batch norms to the mean of their statistics over these batches, and the network to evaluation mode.

    ``images`` are N×C×H×W of stored values on the network's device; every batch counts the same. Dropout is off, as it
    will be. Batch norms that training leaves alone (see ``train_mode``) keep what they have.
    """
    network = segmenter.network
    train_mode(network, frozen)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and _measures(module)]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
    for batch in images:
        segmenter.logits(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def _measures(norm: _BatchNorm) -> bool:
    return norm.training and norm.track_running_stats and norm.running_mean is not None
