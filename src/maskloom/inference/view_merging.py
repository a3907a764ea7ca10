"""One network asked about every test-time view of some images, its answers moved back and merged.

Views share forward passes up to a pixel budget, which shrinks when the device's memory runs out. Views at other scales
are resized to them just before the network is asked, bilinearly, and its answers back, in the form in which they are
merged. Knows nothing about where the images come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from maskloom.errors import UserError
from maskloom.inference.views import View
from maskloom.models.segmenter import Segmenter
from maskloom.records import Size


@dataclass(frozen=True, slots=True)
class Seen:
    """What one forward pass takes: images of one or more views of one scale, stacked view by view, not yet resized."""

    views: tuple[View, ...]
    images: Tensor


class ViewMerger:
    """Asks a network about every view of a batch and merges what it says, sums in float32."""

    def __init__(self, views: tuple[View, ...], kind: str, batch_pixels: int, *, plain: bool = False) -> None:
        self.views, self.batch_pixels = views, batch_pixels
        self._kind, self._plain = kind, plain
        if plain and not views[0].is_identity:
            raise UserError(f"views: expected the identity first, for the score without views, found {views[0].name}")

    def see(self, images: Tensor) -> Iterator[Seen]:
        """Yields N×C×H×W images as the views see them, several views together up to the pixel budget."""
        pixels = images.shape[0] * images.shape[-2] * images.shape[-1]
        for scale, swaps in product(dict.fromkeys(view.scale for view in self.views), (False, True)):
            views = tuple(view for view in self.views if (view.scale, view.swaps) == (scale, swaps))
            together = max(1, int(self.batch_pixels // (pixels * scale**2)))
            for start in range(0, len(views), together):
                chunk = views[start : start + together]
                moved = [view.forward(images) for view in chunk]
                batch = moved[0] if len(moved) == 1 else torch.cat(moved)
                yield Seen(chunk, batch.contiguous(memory_format=torch.channels_last))

    def merge(self, segmenter: Segmenter, seen: Iterable[Seen]) -> Tensor:
        """Returns probabilities N×K×maps×H×W: K is 1 (merged), or 2 with the identity view's beside them."""
        total: Tensor | None = None
        plain: Tensor | None = None
        for part in seen:
            size = (part.images.shape[-2], part.images.shape[-1])
            seen_at = part.views[0].size_of(size, segmenter.policy.multiple)
            logits = segmenter.logits(at_size(part.images, seen_at))
            if self._plain and part.views[0].is_identity:  # first: sums are made in place
                plain = segmenter.probabilities(logits[: len(logits) // len(part.views)]).contiguous()
            encoded = at_size(_encode(logits, self._kind, segmenter), size)
            for view, values in zip(part.views, encoded.chunk(len(part.views)), strict=True):
                moved = view.inverse(values)
                total = moved.contiguous() if total is None else total.add_(moved)
        assert total is not None, "there is at least one view"
        merged = _decode(total.div_(len(self.views)) if len(self.views) > 1 else total, self._kind, segmenter)
        return merged.unsqueeze(1) if plain is None else torch.stack((merged, plain), dim=1)

    def in_chunks(
        self, segmenter: Segmenter, count: int, size: Size, see: Callable[[slice], Iterable[Seen]]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yields (which, their probabilities) for ``count`` images of one size, as many at a time as share a pass.

        ``see`` gives what the views see of the images of a slice. After memory ran out it is asked for fewer.
        """
        start = 0
        while start < count:
            chunk = slice(start, min(count, start + max(1, self.batch_pixels // (size[0] * size[1]))))
            try:
                values = self.merge(segmenter, see(chunk))
            except torch.OutOfMemoryError:
                self.shrink(size)
                continue
            yield chunk, values
            start = chunk.stop

    def shrink(self, size: Size) -> None:
        """Halves what shares a forward pass, after memory ran out; raises ``UserError`` when one image is too much."""
        height, width = size
        if self.batch_pixels <= height * width:
            raise UserError(
                f"the device's memory does not hold one image of {height}×{width} (height×width); "
                "use a network trained on windows or smaller images, or --device cpu"
            )
        self.batch_pixels //= 2
        torch.cuda.empty_cache()


def at_size(values: Tensor, size: Size) -> Tensor:
    """Returns images or maps N×C×h×w at ``size``: themselves, or bilinear float32, antialiased where they shrink."""
    if values.shape[-2:] == size:
        return values
    shrinks = values.shape[-2] > size[0] or values.shape[-1] > size[1]
    return functional.interpolate(values.float(), size, mode="bilinear", align_corners=False, antialias=shrinks)


def _encode(logits: Tensor, kind: str, segmenter: Segmenter) -> Tensor:
    """Returns what is averaged over views: probabilities, logits, or logarithms of probabilities."""
    if kind == "mean":
        return segmenter.probabilities(logits)
    if kind == "logit_mean":
        return logits
    if segmenter.task.kind == "multiclass":
        return logits.log_softmax(dim=1)
    return functional.logsigmoid(logits)


def _decode(total: Tensor, kind: str, segmenter: Segmenter) -> Tensor:
    """Returns probabilities from the mean of what ``_encode`` gave."""
    if kind == "mean":
        return total
    return segmenter.probabilities(total) if kind == "logit_mean" else total.exp_()
