"""Networks of windows that are asked about a small image at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import BINARY, segmenter
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.frames import Frame
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.windows import Window

SIZE = (40, 64)
IMAGE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


class Seen(nn.Module):
    """Gives the same logit everywhere, and keeps the sizes (height, width) that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, int]] = set()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.add((images.shape[-2], images.shape[-1]))
        return images[:, :1] * 0 + self.bias


def sizes(
    policy: dict[str, object], settings: dict[str, object], *, image: np.ndarray = IMAGE, frame: Frame | None = None
) -> set[tuple[int, int]]:
    """Returns what the network is shown of the image, whose map must have the image's size."""
    asked = parse(InferenceSettings, {"views": "none", "precision": "float32", **settings})
    member = segmenter(Seen(), BINARY, **policy)
    predictor = Predictor(Merge(children=("m",)), {"m": member}, asked, torch.device("cpu"))
    (network,) = (
        module
        for each in predictor._segmenters.values()
        for module in each.network.modules()
        if isinstance(module, Seen)
    )
    network.sizes.clear()
    assert predictor(image, frame=frame)[RESULT].shape == (1, *image.shape[:2])
    return network.sizes


WINDOWS: dict[str, object] = {"mode": "window", "size": (16, 16)}


@pytest.mark.parametrize(
    ("policy", "most", "expected"),
    [
        (WINDOWS, None, {(16, 16)}),
        (WINDOWS, 40 * 64 - 1, {(16, 16)}),
        (WINDOWS, 40 * 64, {(40, 64)}),
        (WINDOWS | {"scale": 0.5}, 20 * 32, {(24, 32)}),
        (WINDOWS | {"scale": 0.5}, 20 * 32 - 1, {(16, 16)}),
        (WINDOWS | {"scale": 2.0}, 40 * 64, {(16, 16)}),
        (WINDOWS | {"margin": 4}, 10**6, {(16, 16)}),
        ({"mode": "resize", "size": (24, 24)}, 10**6, {(24, 24)}),
        ({"mode": "parts", "parts": (1, 2)}, 10**6, {(40, 32)}),
    ],
)
def test_what_a_network_is_shown(policy: dict[str, object], most: int | None, expected: set[tuple[int, int]]) -> None:
    assert sizes(policy, {"whole_pixels": most}) == expected


def test_a_cut_of_a_raster_with_blended_seams_stays_in_tiles() -> None:
    everything = Window(0, 0, *SIZE)
    assert sizes(WINDOWS, {"whole_pixels": 10**6}, frame=Frame(size=SIZE, window=everything, part=everything)) == {
        (16, 16)
    }


def test_whole_is_the_policy_of_whole_images() -> None:
    windows = InputPolicy(mode="window", size=(32, 32), prefer_class=0.5, padding="edge", scale=0.5, overlap=0.25)
    whole = windows.whole()
    assert whole == InputPolicy(mode="full", padding="edge", scale=0.5, overlap=0.25)
    assert parse(InputPolicy, whole.model_dump()) == whole


def test_crops_are_never_whole_images() -> None:
    with pytest.raises(UserError, match=r"whole_pixels: expected none with crop_offsets, .* found 1000; leave one"):
        parse(InferenceSettings, {"crop_offsets": 5, "whole_pixels": 1000})
