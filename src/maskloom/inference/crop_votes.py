"""Crops side by side at several offsets, merged by the label that most of them say.

As Signate's 22nd place predicted: the image is cut into crops of the network's window, side by side and without
overlap, as often as there are offsets, each time begun a part of a crop further down and right. Each time the crops'
labels make up one map of labels, and of these maps each pixel takes the most frequent label. A pixel that lies at the
border of a crop at one offset lies inside at others.

Choices made here: the offsets are 0, 1, … n-1 parts of n of the crop's sides, along both axes at once. Crops that would
reach beyond the image are moved inside, and only the pixels that they stand for are taken from them; so every crop is
seen with all its surroundings, and one that several offsets share is seen once. Where several labels are as frequent,
the one of the lowest offset is taken. Of windows with a margin the centres lie side by side. Knows nothing about
ensembles and where the images come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from maskloom.inference.inputs import Input
from maskloom.inference.view_merging import ViewMerger
from maskloom.models.segmenter import Segmenter
from maskloom.records import Size
from maskloom.windows import Window


@dataclass(frozen=True, slots=True)
class Cell:
    """What one offset takes from one crop; both are windows of the prepared array."""

    offset: int
    """Its number, from 0."""
    crop: Window
    """What the network sees."""
    taken: Window
    """The pixels whose labels are taken; inside the crop."""


def crop_cells(size: Size, crop: Size, *, num_offsets: int, margin: int = 0) -> list[Cell]:
    """Returns the cells of an array of ``size`` (height, width), offset by offset and row by row.

    The cells of each offset cover the array but for ``margin`` pixels on every side exactly once. The array holds at
    least one ``crop``.
    """
    if num_offsets < 1 or min(size[0] - crop[0], size[1] - crop[1]) < 0 or not 0 <= 2 * margin < min(crop):
        raise ValueError(f"expected crops inside an array of {size}, got {crop}, {margin=}, {num_offsets=}")
    return [
        Cell(number, Window(top, left, *crop), Window(first, begin, last - first, end - begin))
        for number in range(num_offsets)
        for top, first, last in _spans(size[0], crop[0], number, num_offsets, margin)
        for left, begin, end in _spans(size[1], crop[1], number, num_offsets, margin)
    ]


def _spans(length: int, side: int, number: int, num_offsets: int, margin: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start of a crop, first, last) along an axis: the pixels [first, last) are taken from it."""
    length, side = length - 2 * margin, side - 2 * margin
    cuts = [0, *range(number * side // num_offsets or side, length, side), length]
    for first, last in pairwise(cuts):
        yield min(first, length - side), margin + first, margin + last


def most_frequent(labels: Sequence[Tensor]) -> Tensor:
    """Returns the most frequent label of every pixel; of equally frequent ones that of the first map that has one."""
    best, votes = labels[0], _num_equal(labels, labels[0])
    for other in labels[1:]:
        own = _num_equal(labels, other)
        best, votes = torch.where(own > votes, other, best), torch.maximum(own, votes)
    return best


def _num_equal(labels: Sequence[Tensor], like: Tensor) -> Tensor:
    """Returns in how many maps a pixel's label is that of ``like``, uint8."""
    total = torch.zeros_like(like, dtype=torch.uint8)
    for each in labels:
        total += each == like
    return total


def predict_by_votes(source: Input, segmenter: Segmenter, views: ViewMerger, *, num_offsets: int) -> Tensor:
    """Returns N×…×C×h×w of the contents (padding cut off): 1 for each pixel's most frequent label, 0 elsewhere.

    In binary and multilabel tasks each map is decided for itself, at a probability of one half. Views are merged, in
    each crop, before it is decided. Only for input policies of windows. Numbers that are none are found again in the
    result.
    """
    policy, placement = source.policy, source.placement
    if policy.mode != "window" or policy.size is None:
        raise ValueError(f"an image is only cut into crops by mode window, got mode {policy.mode}")
    cells: dict[Window, list[Cell]] = {}
    for cell in crop_cells(placement.padded, policy.size, num_offsets=num_offsets, margin=policy.margin):
        cells.setdefault(cell.crop, []).append(cell)
    crops = [(number, crop) for number in range(len(source.images)) for crop in cells]
    exclusive = segmenter.task.kind == "multiclass"
    maps: list[Tensor] = []
    total = torch.zeros((), device=source.images.device)

    def cut(chunk: slice) -> Tensor:
        return torch.stack([source.images[(number, ..., *crop.slices)] for number, crop in crops[chunk]])

    for chunk, values in views.in_chunks(segmenter, len(crops), policy.size, lambda chunk: views.see(cut(chunk))):
        total += values.sum()
        found = values.argmax(dim=-3, keepdim=True) if exclusive else values >= 0.5
        if not maps:
            shape = (len(source.images), *found.shape[1:-2], *placement.padded)
            maps = [found.new_zeros(shape, dtype=torch.uint8) for _ in range(num_offsets)]
        for (number, crop), labels in zip(crops[chunk], found, strict=True):
            for cell in cells[crop]:
                inside = Window(
                    cell.taken.top - crop.top, cell.taken.left - crop.left, cell.taken.height, cell.taken.width
                )
                maps[cell.offset][(number, ..., *cell.taken.slices)] = labels[(..., *inside.slices)]
    rows, columns = placement.padding.interior(placement.padded).slices
    chosen = most_frequent([each[..., rows, columns] for each in maps])
    result = chosen.to(torch.float32)
    if exclusive:
        shape = (*chosen.shape[:-3], segmenter.task.num_maps, *chosen.shape[-2:])
        result = result.new_zeros(shape).scatter_(-3, chosen.long(), 1)
    return result.add_(total * 0)  # 0 unless something was no number
