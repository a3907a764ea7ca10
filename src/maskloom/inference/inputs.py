"""Images as one input policy prepares them, on the device, and how a network is asked about them.

Whole images, tiles and parts go the same way: what the network sees is cut from the prepared arrays, and its answers
are blended where they overlap. Knows nothing about ensembles and where the images come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from maskloom.data.input_policy import (
    InputPolicy,
    Placement,
    pad_image,
    part_windows,
    prepare_image,
    tile_windows,
    to_content,
)
from maskloom.inference.frames import Frame, place_cut, tile_lines
from maskloom.inference.tiles import Line, TileAccumulator
from maskloom.inference.view_merging import Seen, ViewMerger, at_size
from maskloom.inference.views import View
from maskloom.models.segmenter import Segmenter
from maskloom.records import Size
from maskloom.windows import Window


class Input:
    """Images of one size as one input policy prepares them, on the device."""

    def __init__(self, images: Tensor, placement: Placement, policy: InputPolicy, frame: Frame | None = None) -> None:
        self.images, self.placement, self.policy, self.frame = images, placement, policy, frame
        self._seen: dict[tuple[tuple[View, ...], int], list[Seen]] = {}
        self._seen_within = 0

    @classmethod
    def prepare(
        cls,
        images: Sequence[np.ndarray],
        policy: InputPolicy,
        device: torch.device,
        *,
        channels: int,
        frame: Frame | None = None,
    ) -> Input:
        """Returns the prepared images; values stay as stored (uint8), or become float32 of the same value.

        ``images`` are H×W×C, all of one shape; the first ``channels`` are the image's own, guides follow. With a
        ``frame`` they are cuts of a raster and tiled as it is (mode "window", neither resized nor equalised).
        """
        if frame is None:
            prepared = [prepare_image(image, policy, channels=channels) for image in images]
        else:
            where = place_cut(frame, policy)
            contents = [to_content(image, policy, channels=channels) for image in images]
            prepared = [(pad_image(content, where.padding, policy), where) for content in contents]
        arrays = [array if array.dtype == np.uint8 else array.astype(np.float32) for array, _ in prepared]
        array = arrays[0][None] if len(arrays) == 1 else np.stack(arrays)
        tensor = torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
        return cls(tensor.permute(0, 3, 1, 2), prepared[0][1], policy, frame)  # channels-last without a copy

    def predict(self, segmenter: Segmenter, views: ViewMerger, overlap: float | None) -> Tensor:
        """Returns the network's probabilities N×…×C×h×w of the contents (padding cut off), views merged.

        ``overlap`` of neighbouring tiles is a fraction of their shorter side (of what the policy's margin leaves of
        it); None: as the policy says. Where a margin leaves them no overlap, each pixel is taken from one tile alone.
        """
        if self.policy.mode == "window":
            share = self.policy.overlap if overlap is None else overlap
            blends = share > 0 or self.policy.margin == 0
            if self.frame is not None:
                values = self._framed(segmenter, views, self.frame, share, blends)
            else:
                windows = tile_windows(self.placement.original, self.policy, overlap=share)
                values = self._cut(segmenter, views, windows, blends=blends)
        elif self.policy.mode == "parts":
            values = self._cut(segmenter, views, part_windows(self.placement.original, self.policy))
        else:
            values = self._whole(segmenter, views)
        rows, columns = self.placement.padding.interior(self.placement.padded).slices
        return values[..., rows, columns]

    def _framed(self, segmenter: Segmenter, views: ViewMerger, frame: Frame, overlap: float, blends: bool) -> Tensor:
        """Returns the probabilities of cuts of a raster from those of its tiles that touch the frame's part."""
        rows, columns = tile_lines(frame.size, self.policy, overlap)
        part, padding = frame.part, self.placement.padding
        # Where the prepared cut begins in the prepared raster.
        top = frame.window.top + rows.before - padding.top
        left = frame.window.left + columns.before - padding.left
        windows = [
            Window(start - top, at - left, rows.tile, columns.tile)
            for start in rows.touching(part.top, part.top + part.height)
            for at in columns.touching(part.left, part.left + part.width)
        ]
        lines = Line(rows.starts, rows.length, top), Line(columns.starts, columns.length, left)
        return self._cut(segmenter, views, windows, blends=blends, lines=lines)

    def _whole(self, segmenter: Segmenter, views: ViewMerger) -> Tensor:
        def see(chunk: slice) -> list[Seen]:
            if self._seen_within != views.batch_pixels:
                self._seen, self._seen_within = {}, views.batch_pixels
            key = (views.views, chunk.start)
            if key not in self._seen:  # networks that are asked in the same way share an image's views
                self._seen[key] = list(views.see(self.images[chunk]))
            return self._seen[key]

        chunks = views.in_chunks(segmenter, len(self.images), self.placement.padded, see)
        found = [values for _, values in chunks]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _cut(
        self, segmenter: Segmenter, views: ViewMerger, windows: list[Window], *, blends: bool = True,
        lines: tuple[Line, Line] | None = None,
    ) -> Tensor:  # fmt: skip
        """Returns the probabilities of the prepared images, put together from windows of them."""
        size, margin = self.placement.padded, self.policy.margin
        maps = [TileAccumulator(size, windows, margin=margin, blends=blends, lines=lines) for _ in self.images]
        cuts = [(number, window) for number in range(len(self.images)) for window in windows]

        def cut(chunk: slice) -> Tensor:
            return torch.stack([self.images[(number, ..., *window.slices)] for number, window in cuts[chunk]])

        tile = (windows[0].height, windows[0].width)
        for chunk, values in views.in_chunks(segmenter, len(cuts), tile, lambda chunk: views.see(cut(chunk))):
            for (number, window), value in zip(cuts[chunk], values, strict=True):
                maps[number].feed(window, value)
        return maps[0].done().unsqueeze(0) if len(maps) == 1 else torch.stack([each.done() for each in maps])


def resized(maps: Tensor, size: Size) -> Tensor:
    """Returns maps …×C×h×w at ``size``: bilinear, pixel centres kept, antialiased where they shrink."""
    found = at_size(maps.reshape(-1, *maps.shape[-3:]), size)
    return found.reshape(*maps.shape[:-2], *size)
