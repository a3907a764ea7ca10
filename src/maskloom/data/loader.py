"""Samples to batches: the order of an epoch, worker processes, padding to a common size.

The same batches come out whatever the number of workers and wherever an epoch is taken up again. A user's error in a
worker arrives as the same one line as without workers. Knows nothing of networks or of how a step is made.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskloom.data.augment import DrawBatch, stack
from maskloom.data.dataset import Item, Key, SegmentationDataset
from maskloom.data.input_policy import InputPolicy, pad_image, pad_labels, policy_padding
from maskloom.errors import BadFile, UserError
from maskloom.records import Size
from maskloom.runtime import generator
from maskloom.windows import round_up


class Part(NamedTuple):
    """What one of several processes reads of every batch: each ``of``-th of its images."""

    number: int
    """From 0; the first image that is read."""
    of: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step starts from."""

    images: Tensor
    """N×C×H×W as stored: uint8, uint16 or float32; guides are the last channels."""
    labels: Tensor
    """uint8 N×H×W, or N×C×H×W for multilabel; padding is IGNORE."""
    draws: DrawBatch | None
    """What ``augment.apply`` does to them on the device; None where nothing is to be done."""
    ids: list[str]
    """Of the records, in the order of the images; none where one image stands in for an empty part."""
    whole: int | None = None
    """How many images the batch has of which this is a part; None: it is whole."""

    @property
    def num_whole(self) -> int:
        """Images of the whole batch."""
        return len(self.ids) if self.whole is None else self.whole

    def to(self, device: torch.device) -> Batch:
        """Returns the batch with images and labels on the device; the draws stay on the CPU, where they are read."""
        if device.type == "cpu":
            return self
        images, labels = self.images.pin_memory(), self.labels.pin_memory()
        return replace(self, images=images.to(device, non_blocking=True), labels=labels.to(device, non_blocking=True))


def num_batches(dataset: SegmentationDataset, *, batch_size: int, images_per_epoch: int | None = None) -> int:
    """Returns the batches of an epoch: a last, short batch is dropped unless it is the only one."""
    return max((images_per_epoch or len(dataset)) // batch_size, 1)


def epoch_keys(
    dataset: SegmentationDataset, *, epoch: int, images_per_epoch: int | None = None, shuffle: bool = True
) -> list[Key]:
    """Returns the samples of an epoch in order.

    Every record comes once before any comes again; an epoch of fewer images than records takes the first of its
    order. The order of each round depends on the dataset's seed, the epoch and the round alone.
    """
    total, count = images_per_epoch or len(dataset), len(dataset)
    keys: list[Key] = []
    for turn in range(-(-total // count)):
        order = np.arange(count)
        if shuffle:
            generator(dataset.seed, "order", epoch, turn).shuffle(order)
        keys.extend(Key(epoch, index, turn) for index in order.tolist())
    return keys[:total]


def batches(
    dataset: SegmentationDataset,
    *,
    epoch: int,
    batch_size: int,
    start: int = 0,
    num_workers: int = 0,
    images_per_epoch: int | None = None,
    shuffle: bool = True,
    device: torch.device | None = None,
    part: Part | None = None,
) -> Iterator[Batch]:
    """Yields the batches of an epoch from number ``start`` on, without loading the earlier ones.

    ``num_workers`` processes read ahead; 0 reads here. Of each batch only ``part`` is read, where one is stated: all
    parts together hold every image once, each as it is in the whole batch. Raises ``UserError`` (``BadFile``,
    ``BadSize``) for data that cannot be used, in the order of the batches, and for a worker that was killed.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: expected at least 1, found {batch_size}")
    keys = epoch_keys(dataset, epoch=epoch, images_per_epoch=images_per_epoch, shuffle=shuffle)
    count = num_batches(dataset, batch_size=batch_size, images_per_epoch=images_per_epoch)
    groups = [keys[number * batch_size : (number + 1) * batch_size] for number in range(start, count)]
    target = device or torch.device("cpu")
    if num_workers == 0:
        yield from (read_batch(dataset, group, part).to(target) for group in groups)
    elif groups:
        yield from (batch.to(target) for batch in _read_ahead(dataset, groups, min(num_workers, len(groups)), part))


def read_batch(dataset: SegmentationDataset, keys: Sequence[Key], part: Part | None = None) -> Batch:
    """Returns the samples of these keys, or that part of them, as one batch.

    A part without an image holds the batch's first one as a stand-in, which must count in nothing. Raises ``UserError``
    for data that cannot be used.
    """
    if part is None:
        return collate([dataset[key] for key in keys], dataset.policy)
    own = keys[part.number :: part.of]
    heights, widths = zip(*map(dataset.content_of, keys), strict=True)
    batch = collate([dataset[key] for key in own or keys[:1]], dataset.policy, at_least=(max(heights), max(widths)))
    return replace(batch, ids=batch.ids[: len(own)], whole=len(keys))


def collate(items: Sequence[Item], policy: InputPolicy, *, at_least: Size = (0, 0)) -> Batch:
    """Returns the samples as one batch; whole images are padded to the smallest allowed size that holds them all.

    ``at_least`` is a size (height, width) before padding that the batch must hold too. Raises ``BadFile`` when images
    of different depth meet.
    """
    first = items[0]
    for item in items:
        if item.image.dtype != first.image.dtype:
            raise BadFile(
                item.path,
                f"expected {first.image.dtype} values as in {first.path}, found {item.image.dtype}; "
                "save all images with the same depth",
            )
    height = max(at_least[0], *(item.image.shape[0] for item in items))
    width = max(at_least[1], *(item.image.shape[1] for item in items))
    size = (height, width) if policy.mode == "window" else round_up((height, width), policy.multiple)
    images = np.empty((len(items), first.image.shape[2], *size), first.image.dtype)
    labels = np.empty((len(items), *first.labels.shape[:-2], *size), np.uint8)
    for number, item in enumerate(items):
        padding = policy_padding((item.image.shape[0], item.image.shape[1]), size, policy)
        images[number] = pad_image(item.image, padding, policy).transpose(2, 0, 1)
        labels[number] = pad_labels(item.labels, padding)
    draws = [item.draw for item in items if item.draw is not None]
    return Batch(
        torch.from_numpy(images),
        torch.from_numpy(labels),
        stack(draws, channels=first.channels) if draws else None,
        [item.id for item in items],
    )


# Worker processes


@dataclass(frozen=True, slots=True)
class _Failure:
    """A user's error on its way out of a worker, where torch would wrap it into a traceback of many lines."""

    error: UserError


class _Reader(Dataset[Batch | _Failure]):
    """Reads whole batches: torch's "index" is the list of a batch's keys."""

    def __init__(self, dataset: SegmentationDataset, part: Part | None) -> None:
        self._dataset = dataset
        self._part = part

    def __getitem__(self, keys: list[Key]) -> Batch | _Failure:
        try:
            return read_batch(self._dataset, keys, self._part)
        except UserError as error:
            return _Failure(error)


def _read_ahead(
    dataset: SegmentationDataset, groups: list[list[Key]], num_workers: int, part: Part | None
) -> Iterator[Batch]:
    """Yields the batches in order, read by worker processes."""
    stream = _start_workers(dataset, groups, num_workers, part)
    try:
        while True:
            try:
                batch = next(stream)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise _killed(num_workers, error) from error
            except (ConnectionError, EOFError) as error:  # it died while it handed over a batch
                raise _killed(num_workers, error) from error
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    finally:
        del stream  # ends the processes


def _start_workers(
    dataset: SegmentationDataset, groups: list[list[Key]], num_workers: int, part: Part | None
) -> Iterator[Batch | _Failure]:
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") and in_main_thread else None
    with warnings.catch_warnings():
        # More workers than cores are the caller's choice. Workers use neither torch's nor OpenCV's threads, so that
        # forking beside them is safe.
        warnings.filterwarnings("ignore", message=".*worker processes in total")
        warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
        stream = iter(
            DataLoader(
                _Reader(dataset, part),
                batch_size=None,
                sampler=groups,
                num_workers=num_workers,
                collate_fn=_unchanged,
                worker_init_fn=partial(_prepare_worker, parent=os.getpid()),
                multiprocessing_context="fork" if sys.platform == "linux" else None,
                generator=torch.Generator(),  # or torch's global generator would be advanced
            )
        )
    if handler is not None:
        # torch raises a dead worker's error out of a signal handler, wherever the main thread happens to be; without
        # it the error comes from `next`, where it can be told.
        signal.signal(signal.SIGCHLD, handler)
    return stream


def _killed(num_workers: int, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"expected {num_workers} loader processes to live, found one killed ({reason}), mostly for want of memory or "
        "of shared memory; start the same command again with fewer workers or smaller batches, it continues"
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _prepare_worker(number: int, *, parent: int) -> None:
    if os.getppid() != parent:  # killed already: torch's own watch starts later, over whoever took the orphan in
        os._exit(1)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
