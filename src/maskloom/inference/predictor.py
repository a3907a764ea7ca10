"""One image through every network of an ensemble in one pass: 8-bit maps come out.

The image is prepared and moved to the device once per distinct input policy; every network sees every view there,
and the tree is evaluated there, in float32 and in a fixed order. Rounding to 8 bits is the last step. Takes decoded
images; knows nothing about files, thresholds or masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from maskloom.config import Config
from maskloom.errors import UnfitImage, UserError, closest
from maskloom.inference.frames import Frame
from maskloom.inference.fusing import fuse
from maskloom.inference.guidance import GuidanceSettings
from maskloom.inference.merging import RESULT, Merge, check_class_weights, store
from maskloom.inference.needs import Ensemble
from maskloom.inference.one_pass import Asking, OnePass
from maskloom.inference.view_merging import ViewMerger
from maskloom.inference.views import find_views
from maskloom.models.segmenter import Segmenter
from maskloom.records import Size, Task, is_part
from maskloom.runtime import Precision, autocast, fast_precision, keep_freed_memory

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
    """A set of test-time views ("none", "flip", "flips", "flips_transpose", "symmetry", "scales", "flip_scales"), or a
    list of views' names, each also at another scale ("hflip@0.75"): then the image or tile is resized to that for the
    network, to sides that it takes, and its answer back."""
    view_merge: Literal["mean", "logit_mean", "geometric"] = "mean"
    """How the views of one network are merged: mean of probabilities, of logits, or geometric mean."""
    overlap: float | None = Field(default=None, ge=0, lt=1)
    """Overlap of neighbouring tiles as a fraction of their shorter side; None: as each network's input policy says."""
    crop_offsets: int | None = Field(default=None, ge=2, le=25)
    """Networks of windows are asked about crops side by side, at so many offsets (parts of a crop, along both axes);
    each pixel takes the label that most of the offsets say, of equally frequent ones that of the lowest offset. 5 are
    published (Signate's 22nd place). None: overlapping tiles, blended. Other networks are asked as ever. Not with
    ``overlap``."""
    whole_pixels: int | None = Field(default=None, ge=1, le=10**11)
    """Networks of windows are asked at once about an image of at most so many pixels, as stored, and about each block
    of a raster of at most so many; about larger ones, and with None, in tiles. They always see tiles where windows have
    a margin, and in regions. Not with ``crop_offsets``, nor with ``seams=blended``."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """What networks compute in; "auto": the fastest that the device computes natively. Sums are always float32."""
    batch_pixels: int | None = Field(default=None, ge=1, le=10**11)
    """Views and tiles share a forward pass up to so many pixels; None: what suits the device."""
    seams: Literal["cut", "blended"] = "cut"
    """How rasters are predicted by block. "cut": from tiles inside what is read for a block, so tiles of two blocks are
    not blended where these meet. "blended": from all tiles of the whole raster that touch a block, which gives what the
    raster in one piece would; tiles on a border are computed for each block there. Only for networks that see windows,
    without `scale`, `clahe` and guidance."""

    @field_validator("views")
    @classmethod
    def _views_exist(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        find_views(value)
        return value

    @model_validator(mode="after")
    def _tiles_alone_are_blended(self) -> InferenceSettings:
        for name, otherwise in (("crop_offsets", "crops"), ("whole_pixels", "whole images")):
            if self.seams == "blended" and getattr(self, name) is not None:
                raise ValueError(f"seams: blended is for tiles, {name} asks for {otherwise}; state cut, or {name}=null")
        return self

    @model_validator(mode="after")
    def _crops_lie_side_by_side(self) -> InferenceSettings:
        for name in ("overlap", "whole_pixels"):
            if getattr(self, name) is not None and self.crop_offsets is not None:
                raise ValueError(
                    f"{name}: expected none with crop_offsets, by which every image is cut into crops side by side, "
                    f"found {getattr(self, name)}; state null here, or no crop_offsets"
                )
        return self


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
        guidance: Mapping[str, GuidanceSettings] | None = None,
        members: Mapping[str, Merge] | None = None,
        own: Mapping[str, InferenceSettings] | None = None,
        task: Task | None = None,
    ) -> None:
        """Copies the networks to ``device``, one after the other; the given segmenters stay as they are.

        With ``plain``, the tree's map without test-time views is returned too, at the cost of its sums alone.
        ``guidance`` says, by leaf, which networks are given members' maps; ``members`` how those maps are made, as
        trees over leaves. A leaf of a tree without "/" that is no network is a member: its map as stored. ``own`` holds
        settings whose views (and how they are merged) replace the ensemble's for single leaves. ``task`` is that of
        the maps; in a multilabel task a network may be for some of its classes. None: the networks' own, all the same.
        """
        guidance, members = guidance or {}, members or {}
        for name in guidance:
            if name not in segmenters:
                raise UserError(f"guidance: unknown network {name!r}; {closest(name, segmenters)}")
        if device.type == "cpu":
            keep_freed_memory()
        self.tree, self.device, self.plain = tree, device, plain
        self.notes: list[str] = []
        ready = {name: self._ready(name, segmenters[name]) for name in segmenters}
        ensemble = Ensemble(tree=tree, segmenters=ready, guidance=guidance, members=members)
        names = ensemble.networks()
        if not names:
            leaf = tree.leaves()[0]
            raise UserError(f"the ensemble tree: unknown network {leaf!r}; {closest(leaf, segmenters)}")
        self.task = task or ready[names[0]].task
        check_class_weights(tree, self.task)
        for name in names:
            if not is_part(ready[name].task, self.task):
                raise UserError(f"{name}: expected a network for {self.task}, found one for {ready[name].task}")
            self._check_guidance(name, ready[name], guidance.get(name))
            if settings.crop_offsets is not None and ready[name].policy.mode != "window":
                self.notes.append(
                    f"{name}: inference.crop_offsets is for networks of windows (input.mode=window), this one is asked "
                    "without crops"
                )
        self._segmenters = {name: ready[name] for name in names}
        self._ensemble = replace(ensemble, segmenters=self._segmenters)
        self._precision: Precision = fast_precision(device) if settings.precision == "auto" else settings.precision
        pixels = settings.batch_pixels or PIXELS_PER_FORWARD[device.type]

        def merger(stated: InferenceSettings) -> ViewMerger:
            return ViewMerger(find_views(stated.views), stated.view_merge, pixels, plain=plain)

        self._asking = Asking(
            views=merger(settings),
            own_views={name: merger(stated) for name, stated in (own or {}).items()},
            overlap=settings.overlap,
            crop_offsets=settings.crop_offsets,
            whole_pixels=settings.whole_pixels,
            device=device,
            task=self.task,
        )

    def _check_guidance(self, name: str, segmenter: Segmenter, guidance: GuidanceSettings | None) -> None:
        if guidance is None:
            return
        if guidance.region is not None and self.task.kind == "multiclass":
            raise UserError(
                f"{name}: guidance.region expects a binary or multilabel task, whose maps say where an object is, "
                f"found {self.task}; remove the region"
            )
        channels, guides = len(segmenter.normalisation.mean), self._num_guides(guidance)
        if channels <= guides:
            raise UserError(
                f"{name}: expected a network of more than {guides} channel(s), which the maps of "
                f"{', '.join(guidance.maps)} take, found {channels}; train it with this guidance"
            )

    def _num_guides(self, guidance: GuidanceSettings) -> int:
        return len(guidance.maps) * self.task.num_maps

    def _ready(self, name: str, segmenter: Segmenter) -> Segmenter:
        channels = len(segmenter.normalisation.mean)
        fused = fuse(segmenter.network, channels, side=max(64, 2 * segmenter.policy.multiple))
        if fused.reason:
            self.notes.append(f"{name}: batch normalisation is not folded into convolutions: {fused.reason}")
        # Own constants: made under inference mode, they must not reach a segmenter that is still being trained.
        copy = replace(segmenter, network=fused.network, _constants={})
        return copy.to(self.device, channels_last=True).eval()

    def __call__(
        self,
        image: np.ndarray,
        given: Mapping[str, np.ndarray] | None = None,
        *,
        raster: Size | None = None,
        frame: Frame | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns uint8 maps C×H×W, round(255·p), of an image H×W×C (uint8, uint16, float32) as stored.

        Under "result" the tree's map, under its own name each tap's, and under "plain" the map without views where
        the predictor was made so. ``given`` holds maps of members, uint8 C×H×W at the image's size: they are taken as
        they are, other members' are made by their networks; what the tree does not need is not looked at. Guides and
        regions are always of maps as stored, with views. ``raster`` is the (height, width) of the raster of which the
        image is a cut. ``frame`` says where it lies there: maps in its part are then those of the whole raster;
        networks must take tiles of images that are neither resized nor equalised nor given maps. Raises ``UserError``
        naming the network whose output is not a number, or the member whose map is missing or of another size.
        """
        if image.ndim != 3:
            raise ValueError(f"expected an image H×W×C, got shape {image.shape}")
        for name, segmenter in self._segmenters.items():
            self._check_image(image, name, segmenter)
        with torch.inference_mode(), autocast(self.device, self._precision):
            one_pass = OnePass(image, self._ensemble, self._asking, given or {}, 2 if self.plain else 1, raster, frame)
            result, taps = one_pass.evaluate(self.tree)
            stored = store({RESULT: result, **taps})
            one_pass.check()
        maps = {name: values[0] for name, values in stored.items()}
        return maps | {PLAIN: stored[RESULT][1]} if self.plain else maps

    def _check_image(self, image: np.ndarray, name: str, segmenter: Segmenter) -> None:
        if image.dtype != segmenter.normalisation.dtype:
            raise UnfitImage(
                f"expected {segmenter.normalisation.dtype} values as {name} was trained on, found {image.dtype}; "
                "convert the image to that depth"
            )
        guidance = self._ensemble.guidance.get(name)
        if guidance is None:
            return
        channels = len(segmenter.normalisation.mean) - self._num_guides(guidance)
        if image.shape[2] != channels:
            raise UserError(
                f"{name}: expected images of {channels} channel(s) beside {self._num_guides(guidance)} of members' "
                f"maps, found {image.shape[2]}; convert the images or train on such"
            )
