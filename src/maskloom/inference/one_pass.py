"""One image through an ensemble: its tree evaluated on the device, every network asked once.

Knows nothing about how networks are made ready and in what form the maps leave.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskloom.data.dataset import with_guides
from maskloom.data.input_policy import InputPolicy, cut_image, place
from maskloom.errors import UserError
from maskloom.inference.crop_votes import predict_by_votes
from maskloom.inference.frames import Frame
from maskloom.inference.guidance import guides_of, regions_of
from maskloom.inference.inputs import Input, resized
from maskloom.inference.merging import Merge, evaluate, to_stored
from maskloom.inference.needs import Ensemble, Kept, Leaf, MemberMap, Prepared
from maskloom.inference.tiles import paste
from maskloom.inference.view_merging import ViewMerger
from maskloom.models.segmenter import Segmenter
from maskloom.records import Size, Task
from maskloom.windows import Window


@dataclass(frozen=True, kw_only=True, slots=True)
class Asking:
    """How networks are asked, the same for every image."""

    views: ViewMerger
    own_views: Mapping[str, ViewMerger]
    """Of the networks that are asked in their own way, by leaf."""
    overlap: float | None
    """Of neighbouring tiles; None: as each network's input policy says."""
    crop_offsets: int | None = None
    """Networks of windows are asked about crops at so many offsets instead of tiles, and their labels vote."""
    whole_pixels: int | None = None
    """Networks of windows are asked about images of at most so many pixels at once; None: about tiles."""
    device: torch.device
    task: Task


class OnePass:
    """What one image needs while the tree is evaluated: prepared inputs, members' maps, and checks.

    Maps have a leading axis: the map, and where views are also left out, the map without views. ``raster`` is the size
    of the raster of which the image is a cut, None where it is one by itself. With a ``frame`` maps are those of the
    raster in the part that the frame names.
    """

    def __init__(
        self,
        image: np.ndarray,
        ensemble: Ensemble,
        asking: Asking,
        given: Mapping[str, np.ndarray],
        num_copies: int,
        raster: Size | None = None,
        frame: Frame | None = None,
    ) -> None:
        self._image, self._ensemble, self._asking = image, ensemble, asking
        self._given, self._num_copies, self._frame = given, num_copies, frame
        self._size = raster or (image.shape[0], image.shape[1])
        self._kept = Kept(ensemble.uses(given))
        self._sums: list[tuple[str, Tensor]] = []

    def evaluate(self, node: Merge) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the map of a tree and of its taps by name, float32 K×C×H×W at the image's size."""

        return evaluate(
            node,
            self._leaf,
            exclusive=self._asking.task.kind == "multiclass",
            space_of=self._space_of,
            restore=self._restore,
            remember=self._kept.get,
        )

    def check(self) -> None:
        """Raises ``UserError`` when a network gave something that is not a number; waits for the device once."""
        finite = torch.stack([total for _, total in self._sums]).isfinite().tolist()
        for (name, _), good in zip(self._sums, finite, strict=True):
            if not good:
                raise UserError(
                    f"{name}: expected finite logits, found NaN; try --set inference.precision=float32, "
                    "and train this network again if that does not help"
                )

    def _leaf(self, name: str) -> Tensor:
        """Returns one network's probabilities K×C×h×w in its space, or the map of a member."""
        if name not in self._ensemble.segmenters:
            return self._floats(self._member(name))
        return self._kept.get(Leaf(name), lambda: self._asked(name))

    def _asked(self, name: str) -> Tensor:
        need = self._ensemble.prepared(name)
        segmenter = self._ensemble.segmenters[name]
        windows, source = self._kept.get(need, lambda: self._prepare(need))
        coarse = None if need.region is None else self._floats(self._member(need.region.of))
        values = coarse
        if source is not None:
            found = placed(self._predict(name, segmenter, source), segmenter.task, self._asking.task)
            values = found[0]
            if coarse is not None:
                values = paste(coarse, windows, resized(found, (windows[0].height, windows[0].width)))
        assert values is not None, "without a region the whole image is looked at"
        self._sums.append((name, values.sum()))
        return values

    def _predict(self, name: str, segmenter: Segmenter, source: Input) -> Tensor:
        """Returns what a network says of prepared images, N×K×c×h×w, in the way in which it is to be asked."""
        asking = self._asking
        views = asking.own_views.get(name, asking.views)
        if asking.crop_offsets is not None and source.policy.mode == "window":
            return predict_by_votes(source, segmenter, views, num_offsets=asking.crop_offsets)
        return source.predict(segmenter, views, asking.overlap)

    def _prepare(self, need: Prepared) -> tuple[list[Window], Input | None]:
        """Returns the windows of the image that networks look at, and these as they see them (None: at nothing)."""
        image, (height, width, channels) = self._image, self._image.shape
        if need.maps:
            image = with_guides(image, guides_of([self._member(name)[0] for name in need.maps]))
        windows = [Window(0, 0, height, width)]
        if need.region is not None:
            windows = regions_of(self._member(need.region.of)[0], need.region)
        if not windows:
            return [], None
        cuts = [cut_image(image, window) for window in windows]
        device, frame = self._asking.device, self._frame
        return windows, Input.prepare(cuts, self._policy(need), device, channels=channels, frame=frame)

    def _policy(self, need: Prepared) -> InputPolicy:
        """Returns how the network of this need sees the image: what it learnt, or whole instead of in tiles."""
        if need.region is not None:
            return need.policy
        return need.policy.asked_about(self._size, self._asking.whole_pixels)

    def _member(self, name: str) -> np.ndarray:
        """Returns a member's map as stored, uint8 K×C×H×W."""
        return self._kept.get(MemberMap(name), lambda: self._made(name))

    def _made(self, name: str) -> np.ndarray:
        if name not in self._given:
            return to_stored(self.evaluate(self._ensemble.members[name])[0]).cpu().numpy()
        values, expected = self._given[name], (self._asking.task.num_maps, *self._image.shape[:2])
        if values.dtype != np.uint8 or values.shape != expected:
            raise UserError(
                f"{name}: expected its given map as uint8 {'×'.join(map(str, expected))} (maps×height×width) like the "
                f"image, found {values.dtype} {'×'.join(map(str, values.shape))}; give the map of this image"
            )
        return np.repeat(values[None], self._num_copies, axis=0)

    def _floats(self, stored: np.ndarray) -> Tensor:
        return torch.from_numpy(stored).to(self._asking.device, torch.float32).div_(255)

    def _space_of(self, name: str) -> Hashable:
        if name not in self._ensemble.segmenters:
            return None
        need = self._ensemble.prepared(name)
        placement = place((self._image.shape[0], self._image.shape[1]), need.policy)
        return placement.content if placement.resized and need.region is None else None

    def _restore(self, space: Hashable, values: Tensor) -> Tensor:
        return resized(values, (self._image.shape[0], self._image.shape[1]))


def placed(maps: Tensor, part: Task, whole: Task) -> Tensor:
    """Returns maps …×c×h×w of a network for some classes as …×C×h×w of the whole task, 0 for the others."""
    if part == whole:
        return maps
    found = maps.new_zeros((*maps.shape[:-3], whole.num_maps, *maps.shape[-2:]))
    found[..., [whole.classes.index(name) for name in part.classes], :, :] = maps
    return found
