"""One image through every network of an ensemble in one pass: 8-bit maps come out.

The image is prepared and moved to the device once per distinct input policy; every network sees every view there,
and the tree is evaluated there, in float32 and in a fixed order. Rounding to 8 bits is the last step. Takes decoded
images; knows nothing about files, thresholds or masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from maskloom.config import Config
from maskloom.data.input_policy import InputPolicy, Placement, prepare_image
from maskloom.errors import UnfitImage, UserError, closest
from maskloom.inference.fusing import fuse
from maskloom.inference.merging import RESULT, Merge, evaluate, store
from maskloom.inference.tiles import TileAccumulator
from maskloom.inference.views import View, find_views
from maskloom.models.segmenter import Segmenter
from maskloom.runtime import Precision, autocast, fast_precision, keep_freed_memory
from maskloom.windows import Window

PLAIN = "plain"
"""The name under which the result without test-time views is returned."""
PIXELS_PER_FORWARD = {"cpu": 400_000, "cuda": 16_000_000}
"""Views and tiles share a forward pass up to so many pixels (one always goes).

Large batches leave a CPU's caches: two views of 1280×1920 took 13 % longer together than apart, and four tiles of
256×256 at a time took 10 % less than 22 and 18 % less than one (U-Net, EfficientNet-Lite0).
"""


class InferenceSettings(Config):
    """How networks are asked."""

    views: str | tuple[str, ...] = "flip"
    """A set of test-time views ("none", "flip", "flips", "symmetry"), or a list of names of views."""
    view_merge: Literal["mean", "logit_mean", "geometric"] = "mean"
    """How the views of one network are merged: mean of probabilities, of logits, or geometric mean."""
    overlap: float | None = Field(default=None, ge=0, lt=1)
    """Overlap of neighbouring tiles as a fraction of their shorter side; None: as each network's input policy says."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """What networks compute in; "auto": the fastest that the device computes natively. Sums are always float32."""
    batch_pixels: int | None = Field(default=None, ge=1)
    """Views and tiles share a forward pass up to so many pixels; None: what suits the device."""

    @field_validator("views")
    @classmethod
    def _views_exist(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        find_views(value)
        return value


class Predictor:
    """An ensemble ready to be asked; one call is one image."""

    def __init__(
        self,
        tree: Merge,
        segmenters: Mapping[str, Segmenter],
        settings: InferenceSettings,
        device: torch.device,
        *,
        plain: bool = False,
    ) -> None:
        """Copies the networks that the tree names to ``device``; the given segmenters stay as they are.

        With ``plain``, the tree's map without test-time views is returned too, at the cost of its sums alone.
        """
        names = tree.leaves()
        missing = sorted(set(names) - set(segmenters))
        if missing:
            raise UserError(f"the ensemble tree: unknown network {missing[0]!r}; {closest(missing[0], segmenters)}")
        if device.type == "cpu":
            keep_freed_memory()
        self.tree, self.device, self.plain = tree, device, plain
        self.notes: list[str] = []
        self.task = segmenters[names[0]].task
        for name in names:
            if segmenters[name].task != self.task:
                raise UserError(f"{name}: expected a network for {self.task}, found one for {segmenters[name].task}")
        self._uses = Counter(names)
        self._segmenters = {name: self._ready(name, segmenters[name]) for name in self._uses}
        self._overlap = settings.overlap
        self._precision: Precision = fast_precision(device) if settings.precision == "auto" else settings.precision
        pixels = settings.batch_pixels or PIXELS_PER_FORWARD[device.type]
        self._views = ViewMerger(find_views(settings.views), settings.view_merge, pixels, plain=plain)

    def _ready(self, name: str, segmenter: Segmenter) -> Segmenter:
        channels = len(segmenter.normalisation.mean)
        fused = fuse(segmenter.network, channels, side=max(64, 2 * segmenter.policy.multiple))
        if fused.reason:
            self.notes.append(f"{name}: batch normalisation is not folded into convolutions: {fused.reason}")
        # Own constants: made under inference mode, they must not reach a segmenter that is still being trained.
        copy = replace(segmenter, network=fused.network, _constants={})
        return copy.to(self.device, channels_last=True).eval()

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns uint8 maps C×H×W, round(255·p), of an image H×W×C (uint8, uint16, float32) as stored.

        Under "result" the tree's map, under its own name each tap's, and under "plain" the map without views where
        the predictor was made so. Raises ``UserError`` naming the network whose output is not a number.
        """
        if image.ndim != 3:
            raise ValueError(f"expected an image H×W×C, got shape {image.shape}")
        for name, segmenter in self._segmenters.items():
            if image.dtype != segmenter.normalisation.dtype:
                raise UnfitImage(
                    f"expected {segmenter.normalisation.dtype} values as {name} was trained on, found {image.dtype}; "
                    "convert the image to that depth"
                )
        with torch.inference_mode(), autocast(self.device, self._precision):
            one_pass = _OnePass(image, self._segmenters, self._views, self._overlap, self.device, self._uses)
            result, taps = evaluate(
                self.tree,
                one_pass.leaf,
                exclusive=self.task.kind == "multiclass",
                space_of=one_pass.space_of,
                restore=one_pass.restore,
            )
            stored = store({RESULT: result, **taps})
            one_pass.check()
        maps = {name: values[0] for name, values in stored.items()}
        return maps | {PLAIN: stored[RESULT][1]} if self.plain else maps


class _OnePass:
    """What one image needs while the tree is evaluated: prepared inputs per policy, and checks."""

    def __init__(
        self,
        image: np.ndarray,
        segmenters: Mapping[str, Segmenter],
        views: ViewMerger,
        overlap: float | None,
        device: torch.device,
        uses: Mapping[str, int],
    ) -> None:
        self._image, self._segmenters, self._views = image, segmenters, views
        self._overlap, self._device = overlap, device
        self._left = dict(uses)
        self._again: dict[str, Tensor] = {}
        self._inputs: dict[InputPolicy, Input] = {}
        self._sums: list[tuple[str, Tensor]] = []

    def leaf(self, name: str) -> Tensor:
        """Returns one network's probabilities …×C×h×w at the size of its placement's content."""
        self._left[name] -= 1
        if name in self._again:
            return self._again[name] if self._left[name] else self._again.pop(name)
        segmenter = self._segmenters[name]
        source = self._input(segmenter.policy)
        values = source.predict(segmenter, self._views, self._overlap)
        self._sums.append((name, values.sum()))
        if self._left[name]:
            self._again[name] = values
        return values

    def space_of(self, name: str) -> Hashable:
        placement = self._input(self._segmenters[name].policy).placement
        return placement.content if placement.resized else None

    def restore(self, space: Hashable, values: Tensor) -> Tensor:
        """Returns a map …×C×H×W at the image's size: bilinear, pixel centres kept, antialiased where it shrinks."""
        height, width = self._image.shape[:2]
        shrinks = values.shape[-2] > height or values.shape[-1] > width
        return functional.interpolate(values, (height, width), mode="bilinear", align_corners=False, antialias=shrinks)

    def check(self) -> None:
        """Raises ``UserError`` when a network gave something that is not a number; waits for the device once."""
        finite = torch.stack([total for _, total in self._sums]).isfinite().tolist()
        for (name, _), good in zip(self._sums, finite, strict=True):
            if not good:
                raise UserError(
                    f"{name}: expected finite logits, found NaN; try --set inference.precision=float32, "
                    "and train this network again if that does not help"
                )

    def _input(self, policy: InputPolicy) -> Input:
        geometry = policy.model_copy(update={"prefer_class": 0.0})
        if geometry not in self._inputs:
            self._inputs[geometry] = Input.prepare(self._image, geometry, self._device)
        return self._inputs[geometry]


class Input:
    """One image as one input policy prepares it, on the device."""

    def __init__(self, images: Tensor, placement: Placement, policy: InputPolicy) -> None:
        self.images, self.placement, self.policy = images, placement, policy
        self._seen: dict[int, list[Seen]] = {}

    @classmethod
    def prepare(cls, image: np.ndarray, policy: InputPolicy, device: torch.device) -> Input:
        """Returns the prepared image; values stay as stored (uint8), or become float32 of the same value."""
        prepared, placement = prepare_image(image, policy)
        array = prepared if prepared.dtype == np.uint8 else prepared.astype(np.float32)
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
        return cls(tensor.permute(2, 0, 1).unsqueeze(0), placement, policy)  # channels-last without a copy

    def predict(self, segmenter: Segmenter, views: ViewMerger, overlap: float | None) -> Tensor:
        """Returns the network's probabilities …×C×h×w of the content (padding cut off), views merged."""
        if self.policy.mode == "window" and self.policy.size is not None:
            values = self._tiled(segmenter, views, self.policy.overlap if overlap is None else overlap)
        else:
            values = self._whole(segmenter, views)
        rows, columns = self.placement.padding.interior(self.placement.padded).slices
        return values[..., rows, columns]

    def _whole(self, segmenter: Segmenter, views: ViewMerger) -> Tensor:
        budget = views.batch_pixels
        if budget not in self._seen:  # the views of an image are the same for every network
            self._seen = {budget: list(views.see(self.images))}
        try:
            return views.merge(segmenter, self._seen[budget])[0]
        except torch.OutOfMemoryError:
            self._seen = {}
            views.shrink(self.images)
            return self._whole(segmenter, views)

    def _tiled(self, segmenter: Segmenter, views: ViewMerger, overlap: float) -> Tensor:
        tile = self.policy.size
        assert tile is not None
        blend = TileAccumulator(self.placement.padded, tile, int(overlap * min(tile)))
        start = 0
        while start < len(blend.windows):
            windows = blend.windows[start : start + max(1, views.batch_pixels // (tile[0] * tile[1]))]
            batch = self._cut(windows)
            try:
                values = views.merge(segmenter, views.see(batch))
            except torch.OutOfMemoryError:
                views.shrink(batch)
                continue
            blend.feed(windows, values)
            start += len(windows)
        return blend.done()

    def _cut(self, windows: list[Window]) -> Tensor:
        cuts = []
        for window in windows:
            rows, columns = window.slices
            cuts.append(self.images[..., rows, columns])
        return torch.cat(cuts)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one forward pass takes: images of one or more views, stacked view by view."""

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
        together = max(1, self.batch_pixels // (images.shape[0] * images.shape[-2] * images.shape[-1]))
        for swaps in (False, True):
            views = tuple(view for view in self.views if view.swaps == swaps)
            for start in range(0, len(views), together):
                chunk = views[start : start + together]
                moved = [view.forward(images) for view in chunk]
                batch = moved[0] if len(moved) == 1 else torch.cat(moved)
                yield Seen(chunk, batch.contiguous(memory_format=torch.channels_last))

    def merge(self, segmenter: Segmenter, seen: Iterator[Seen] | list[Seen]) -> Tensor:
        """Returns probabilities N×K×maps×H×W: K is 1 (merged), or 2 with the identity view's beside them."""
        total: Tensor | None = None
        plain: Tensor | None = None
        for part in seen:
            logits = segmenter.logits(part.images)
            if self._plain and part.views[0].is_identity:  # first: sums are made in place
                plain = segmenter.probabilities(logits[: len(logits) // len(part.views)]).contiguous()
            encoded = _encode(logits, self._kind, segmenter)
            for view, values in zip(part.views, encoded.chunk(len(part.views)), strict=True):
                moved = view.inverse(values)
                total = moved.contiguous() if total is None else total.add_(moved)
        assert total is not None, "there is at least one view"
        merged = _decode(total.div_(len(self.views)) if len(self.views) > 1 else total, self._kind, segmenter)
        return merged.unsqueeze(1) if plain is None else torch.stack((merged, plain), dim=1)

    def shrink(self, images: Tensor) -> None:
        """Halves what shares a forward pass, after memory ran out; raises ``UserError`` when one image is too much."""
        pixels = images.shape[-2] * images.shape[-1]
        if self.batch_pixels <= pixels:
            raise UserError(
                f"the device's memory does not hold one image of {images.shape[-2]}×{images.shape[-1]} (height×width); "
                "use a network trained on windows or smaller images, or --device cpu"
            )
        self.batch_pixels //= 2
        torch.cuda.empty_cache()


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
