"""Networks of windows that are asked about a small image at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tiny import BINARY, Constant, segmenter
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.blocks import CONTEXT, BlockGrid, block_grid, predict_block, read_block
from maskloom.inference.guidance import GuidanceSettings, RegionSettings
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.windows import Window

SIZE = (40, 64)
IMAGE = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)


class Raster:
    """A raster of 40×80 in memory."""

    size = (40, 80)

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((window.height, window.width, 3), np.uint8), np.ones((window.height, window.width), bool)


class Seen(nn.Module):
    """Gives the same logit everywhere, and keeps the sizes (height, width) that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[tuple[int, int]] = set()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.add((images.shape[-2], images.shape[-1]))
        return images[:, :1] * 0 + self.bias


def shown(
    policy: dict[str, object], settings: dict[str, object], use: Callable[[Predictor], object]
) -> set[tuple[int, int]]:
    """Returns the sizes that a network of this policy is shown when its predictor is used so."""
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
    use(predictor)
    return network.sizes


def sizes(policy: dict[str, object], settings: dict[str, object]) -> set[tuple[int, int]]:
    """Returns what the network is shown of the image, whose map must have the image's size."""
    maps: list[np.ndarray] = []
    found = shown(policy, settings, lambda ask: maps.append(ask(IMAGE)[RESULT]))
    assert [each.shape for each in maps] == [(1, *SIZE)]
    return found


WINDOWS: dict[str, object] = {"mode": "window", "size": (16, 16)}


@pytest.mark.parametrize(
    ("policy", "most", "expected"),
    [
        (WINDOWS, None, {(16, 16)}),
        (WINDOWS, 40 * 64 - 1, {(16, 16)}),
        (WINDOWS, 40 * 64, {(40, 64)}),
        (WINDOWS | {"scale": 0.5}, 40 * 64, {(24, 32)}),
        (WINDOWS | {"scale": 0.5}, 40 * 64 - 1, {(16, 16)}),
        (WINDOWS | {"margin": 4}, 10**6, {(16, 16)}),
        ({"mode": "resize", "size": (24, 24)}, 10**6, {(24, 24)}),
        ({"mode": "parts", "parts": (1, 2)}, 10**6, {(40, 32)}),
    ],
)
def test_what_a_network_is_shown(policy: dict[str, object], most: int | None, expected: set[tuple[int, int]]) -> None:
    assert sizes(policy, {"whole_pixels": most}) == expected


def test_a_region_stays_in_tiles() -> None:
    fine = Seen()
    networks = {
        "coarse": segmenter(Constant(10.0), BINARY, mode="resize", size=(16, 16)),
        "fine": segmenter(fine, BINARY, **WINDOWS),
    }
    members = {name: Merge(children=(name,)) for name in networks}
    predictor = Predictor(
        Merge(children=("fine",)),
        networks,
        InferenceSettings(views="none", precision="float32", whole_pixels=10**6),
        torch.device("cpu"),
        guidance={"fine": GuidanceSettings(region=RegionSettings(of="coarse"))},
        members=members,
    )
    asked = next(module for module in predictor._segmenters["fine"].network.modules() if isinstance(module, Seen))
    asked.sizes.clear()
    predictor(IMAGE)
    assert asked.sizes == {(16, 16)}


@pytest.mark.parametrize(("most", "expected"), [(40 * 80, {(40, 48), (40, 32)}), (40 * 80 - 1, {(16, 16)})])
def test_all_blocks_of_a_raster_are_asked_in_one_way(most: int, expected: set[tuple[int, int]]) -> None:
    grid = BlockGrid(Raster.size, 48)
    pixels = [read_block(Raster(), grid, block) for block in grid.blocks()]
    found = shown(WINDOWS, {"whole_pixels": most}, lambda ask: [predict_block(ask, each) for each in pixels])
    assert found == expected


def test_whole_is_the_policy_of_whole_images() -> None:
    windows = InputPolicy(mode="window", size=(32, 32), prefer_class=0.5, padding="edge", scale=0.5, overlap=0.25)
    whole = windows.whole()
    assert whole == InputPolicy(mode="full", padding="edge", scale=0.5, overlap=0.25)
    assert whole is not None and parse(InputPolicy, whole.model_dump()) == whole
    assert windows.model_copy(update={"margin": 4}).whole() is None
    assert InputPolicy(mode="resize", size=(32, 32)).whole() is None


def test_more_is_read_around_blocks_that_are_asked_whole() -> None:
    """Tiles of 32 that do not overlap need nothing around a block of them."""
    windows, size = InputPolicy(mode="window", size=(32, 32), overlap=0), (4000, 4000)
    halos = [
        block_grid(size, [(windows, None)], channels=3, whole_pixels=most).halo
        for most in (4000 * 4000 - 1, 4000 * 4000)
    ]
    assert halos == [(0, 0), (CONTEXT, CONTEXT)]


@pytest.mark.parametrize("name", ["crop_offsets", "whole_pixels"])
def test_only_tiles_are_blended_at_seams(name: str) -> None:
    with pytest.raises(UserError, match=rf"seams: blended is for tiles, {name} asks for .*; state cut, or {name}=null"):
        parse(InferenceSettings, {"seams": "blended", name: 9})


def test_crops_are_never_whole_images() -> None:
    with pytest.raises(UserError, match=r"whole_pixels: expected none with crop_offsets, .* found 1234567; state"):
        parse(InferenceSettings, {"crop_offsets": 5, "whole_pixels": 1234567})
