"""Rasters cut into blocks: what is read, that seams do not show, and that invalid pixels stay empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import BINARY, Constant, neighbourhood, pointwise, segmenter
from torch import nn

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference import blocks as room
from maskloom.inference.blocks import BlockGrid, block_grid, predict_block, read_block
from maskloom.inference.guidance import GuidanceSettings, RegionSettings
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.windows import Window

RNG = np.random.default_rng(0)
WINDOWS: dict[str, Any] = {"mode": "window", "size": (32, 32), "multiple": 8}
Maps = dict[str, np.ndarray]


@dataclass
class Pixels:
    """A raster in memory, which counts what is read of it."""

    values: np.ndarray
    is_valid: np.ndarray | None = None
    num_read: int = 0

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def read(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
        assert window.clipped(self.size) == window
        self.num_read += window.height * window.width
        is_valid = np.ones(self.size, bool) if self.is_valid is None else self.is_valid
        return self.values[window.slices].copy(), is_valid[window.slices].copy()


def photo(height: int, width: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 255, (height, width, channels)).astype(np.uint8)


def predictor(network: nn.Module, **policy: Any) -> Predictor:
    settings = InferenceSettings(views="none", precision="float32")
    return Predictor(Merge(children=("a",)), {"a": segmenter(network, **policy)}, settings, torch.device("cpu"))


def by_blocks(predict: Any, raster: Pixels, grid: BlockGrid, num_maps: int = 1) -> np.ndarray:
    """Returns the raster's map from its blocks, predicted in a shuffled order."""
    whole = np.full((num_maps, *raster.size), 77, np.uint8)
    for number in RNG.permutation(len(grid.blocks())):
        block = grid.blocks()[number]
        maps = predict_block(predict, read_block(raster, grid, block))
        whole[(..., *block.slices)] = 0 if maps is None else maps[RESULT]
    return whole


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SIDES", (48,))
    monkeypatch.setattr(room, "CONTEXT", 20)


def test_the_side_holds_whole_strides_of_usual_tiles() -> None:
    grid = block_grid((9000, 9000), [(InputPolicy(mode="window", size=(512, 512)), None)], channels=8)
    assert (grid.side, grid.halo, grid.stride) == (1536, (64, 64), (384, 384))
    inner = Window(1536, 3072, 1536, 1536)
    assert grid.seen(inner) == Window(1472, 3008, 1664, 1664)


def test_margins_are_read_where_tiles_do_not_overlap() -> None:
    policy = InputPolicy(mode="window", size=(112, 112), margin=16, multiple=16)
    grid = block_grid((3400, 3300), [(policy, None)], channels=3)
    assert grid.halo == (16, 16)


def test_many_channels_make_smaller_blocks() -> None:
    policy = InputPolicy(mode="window", size=(256, 256))
    sides = [block_grid((9000, 9000), [(policy, None)], channels=channels).side for channels in (3, 20, 60, 500)]
    assert sides == sorted(sides, reverse=True) and sides[-1] == 512 < sides[0]


@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    tile=st.tuples(st.sampled_from([16, 32, 64]), st.sampled_from([16, 32, 64])),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    side=st.integers(10, 120),
    scale=st.sampled_from([1.0, 0.5, 1.7]),
)
def test_blocks_cover_the_raster_once(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, side: int, scale: float
) -> None:
    policy = InputPolicy(mode="window", size=tile, overlap=overlap, multiple=8, scale=scale)
    made = block_grid(size, [(policy, None)], channels=1)
    grid = BlockGrid(size, side, made.halo, made.least)
    count = np.zeros(size, int)
    for block in grid.blocks():
        assert block.clipped(size) == block
        count[block.slices] += 1
        seen = grid.seen(block)
        assert seen.clipped(size) == seen and block.clipped(size) == block
        assert seen.top <= block.top and seen.top + seen.height >= block.top + block.height
        assert seen.left <= block.left and seen.left + seen.width >= block.left + block.width
        assert seen.height >= min(made.least[0], size[0]) and seen.width >= min(made.least[1], size[1])
    assert (count == 1).all()


@pytest.mark.parametrize("policy", [{"mode": "full"}, WINDOWS, {"mode": "parts", "parts": (2, 2), "multiple": 8}])
@pytest.mark.usefixtures("small_blocks")
def test_what_looks_at_single_pixels_gives_the_same_by_blocks(policy: dict[str, Any]) -> None:
    raster = Pixels(photo(130, 171))
    table = RNG.permutation(256).astype(np.uint8)

    def predict(image: np.ndarray, **_: Any) -> Maps:
        return {RESULT: table[image[None, ..., 0]], "tap": table[image[None, ..., 1]]}

    grid = block_grid(raster.size, [(InputPolicy(**policy), None)], channels=3)
    assert len(grid.blocks()) == 12
    assert np.array_equal(by_blocks(predict, raster, grid), predict(raster.values)[RESULT])
    maps = predict_block(predict, read_block(raster, grid, grid.blocks()[5]))
    assert maps is not None and set(maps) == {RESULT, "tap"}


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
@pytest.mark.usefixtures("small_blocks")
def test_a_constant_network_gives_its_constant(overlap: float) -> None:
    raster = Pixels(photo(100, 130))
    grid = block_grid(raster.size, [(InputPolicy(**WINDOWS, overlap=overlap), None)], channels=3)
    found = by_blocks(predictor(Constant(1.0), **WINDOWS, overlap=overlap), raster, grid)
    assert (found == round(255 / (1 + np.exp(-1)))).all()


@pytest.mark.usefixtures("small_blocks")
def test_a_pointwise_network_is_within_a_rounding_of_the_whole() -> None:
    raster = Pixels(photo(130, 171))
    whole = predictor(pointwise(), **WINDOWS)
    grid = block_grid(raster.size, [(InputPolicy(**WINDOWS), None)], channels=3)
    difference = by_blocks(whole, raster, grid).astype(int) - whole(raster.values)[RESULT]
    assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 1e-3


@pytest.mark.parametrize(
    "policy", [WINDOWS, {"mode": "full", "multiple": 8}, {**WINDOWS, "margin": 4}, {**WINDOWS, "size": (32, 24)}]
)
@pytest.mark.usefixtures("small_blocks")
def test_seams_of_blocks_show_no_more_than_those_of_tiles(policy: dict[str, Any]) -> None:
    """Tiles end where a network that looks at neighbours sees zeros; what is kept of them must not show it."""
    raster = Pixels(photo(140, 151))
    network = neighbourhood()
    everywhere = predictor(network, mode="full", multiple=8)(raster.values)[RESULT].astype(int)
    grid = block_grid(raster.size, [(InputPolicy(**policy), None)], channels=3)
    tiled = predictor(network, **policy)
    inside = (..., slice(4, -4), slice(4, -4))  # at the raster's border, padding differs
    of_tiles, of_blocks = (
        np.abs(found - everywhere)[inside].max()
        for found in (tiled(raster.values)[RESULT], by_blocks(tiled, raster, grid))
    )
    assert of_blocks <= max(of_tiles, 1)


def test_a_raster_of_one_block_is_an_image() -> None:
    raster = Pixels(photo(70, 91))
    whole = predictor(neighbourhood(), **WINDOWS)
    grid = block_grid(raster.size, [(InputPolicy(**WINDOWS), None)], channels=3)
    assert grid.blocks() == [Window(0, 0, 70, 91)]
    assert np.array_equal(by_blocks(whole, raster, grid), whole(raster.values)[RESULT])


@pytest.mark.usefixtures("small_blocks")
def test_what_holds_no_data_is_not_predicted() -> None:
    is_valid = np.zeros((240, 240), bool)
    is_valid[100:140, 60:110] = RNG.random((40, 50)) > 0.3
    values = photo(240, 240)
    raster = Pixels(values, is_valid)
    seen: list[tuple[int, ...]] = []

    def predict(image: np.ndarray, **_: Any) -> Maps:
        seen.append(image.shape)
        return {RESULT: np.full((1, *image.shape[:2]), 200, np.uint8)}

    grid = block_grid(raster.size, [(InputPolicy(**WINDOWS), None)], channels=3)
    found = by_blocks(predict, raster, grid)
    assert np.array_equal(found[0], is_valid * np.uint8(200))
    assert len(seen) == 2  # rows 96…143, columns 48…143


def test_invalid_pixels_are_shown_as_zeros() -> None:
    is_valid = np.ones((40, 40), bool)
    is_valid[5:9] = False
    shown: list[np.ndarray] = []

    def predict(image: np.ndarray, **_: Any) -> Maps:
        shown.append(image)
        return {RESULT: image[None, ..., 0]}

    raster = Pixels(np.full((40, 40, 1), 9, np.uint8), is_valid)
    by_blocks(predict, raster, block_grid(raster.size, [(InputPolicy(), None)], channels=1))
    assert np.array_equal(shown[0][..., 0], 9 * is_valid)
    assert (raster.values == 9).all()


@pytest.mark.usefixtures("small_blocks")
def test_leaving_empty_strides_out_barely_changes_anything() -> None:
    policy: dict[str, Any] = {**WINDOWS, "overlap": 0.5}
    is_valid = np.zeros((192, 192), bool)
    is_valid[60:70, 70:90] = True
    raster = Pixels(photo(192, 192), is_valid)
    raster.values[~is_valid] = 0
    ask = predictor(neighbourhood(), **policy)
    grid = block_grid(raster.size, [(InputPolicy(**policy), None)], channels=3)
    assert grid.stride == (16, 16)
    sizes: list[int] = []

    def predict(image: np.ndarray, **_: Any) -> Maps:
        sizes.append(image.shape[0] * image.shape[1])
        return ask(image)

    trimmed = by_blocks(predict, raster, grid)
    all_of_it = by_blocks(ask, raster, BlockGrid(grid.size, grid.side, grid.halo, grid.least))
    assert np.abs(trimmed.astype(int) - all_of_it).max() <= 2
    assert trimmed[0][is_valid].any() and max(sizes) < (48 + 16) ** 2


@given(data=st.data(), stride=st.sampled_from([8, 16, 24]))
def test_the_filled_part_holds_all_valid_pixels(data: st.DataObject, stride: int) -> None:
    grid = BlockGrid((480, 480), 48, (16, 16), (32, 32), (stride, stride))
    block = data.draw(st.sampled_from(grid.blocks()))
    is_valid = np.zeros((48, 48), bool)
    for _ in range(data.draw(st.integers(1, 3))):
        is_valid[data.draw(st.integers(0, 47)), data.draw(st.integers(0, 47))] = True
    part = grid.filled(block, is_valid)
    rows, columns = np.nonzero(is_valid)
    assert part.top - block.top <= rows.min() and rows.max() < part.top - block.top + part.height
    assert part.left - block.left <= columns.min() and columns.max() < part.left - block.left + part.width
    assert block.top <= part.top and part.top + part.height <= block.top + block.height
    assert (part.top - block.top) % stride == (part.left - block.left) % stride == 0


REGION = GuidanceSettings(region=RegionSettings(of="a"))


@pytest.mark.parametrize(
    ("policy", "guidance", "words"),
    [({"mode": "resize", "size": (64, 64)}, None, "mode=resize"), ({"mode": "full"}, REGION, "guidance.region")],
)
def test_networks_that_need_all_of_a_raster(policy: dict[str, Any], guidance: Any, words: str) -> None:
    networks = [(InputPolicy(**WINDOWS), None), (InputPolicy(**policy), guidance)]
    assert block_grid((3000, 4000), networks, channels=3).blocks() == [Window(0, 0, 3000, 4000)]
    with pytest.raises(UserError, match=words) as caught:
        block_grid((30_000, 30_000), networks, channels=3)
    assert "\n" not in str(caught.value) and "train on windows" in str(caught.value)


def test_networks_with_maps_of_others_see_more() -> None:
    policy = InputPolicy(mode="window", size=(256, 256))
    alone = block_grid((9000, 9000), [(policy, None)], channels=3)
    guided = block_grid((9000, 9000), [(policy, None), (policy, GuidanceSettings(maps=("a",)))], channels=3)
    assert guided.halo == (2 * alone.halo[0], 2 * alone.halo[1]) and guided.stride is None


def test_a_resizing_network_by_one_block_is_an_image() -> None:
    raster = Pixels(photo(40, 61))
    policy: dict[str, Any] = {"mode": "resize", "size": (24, 32)}
    whole = predictor(neighbourhood(), **policy)
    grid = block_grid(raster.size, [(InputPolicy(**policy), None)], channels=3)
    assert np.array_equal(by_blocks(whole, raster, grid), whole(raster.values)[RESULT])
    assert whole.task == BINARY


# Blocks of the whole raster's tiles ----------------------------------------------------------------------------------


def together(raster: Pixels, policies: dict[str, dict[str, Any]], side: int, *, views: str = "none") -> np.ndarray:
    """Returns the raster's map, put together from blocks that have all its tiles; checks it against one piece."""
    networks = {name: segmenter(neighbourhood(seed=seed), **policies[name]) for seed, name in enumerate(policies)}
    settings = InferenceSettings(views=views, precision="float32", seams="blended")
    predict = Predictor(Merge(children=tuple(networks)), networks, settings, torch.device("cpu"))
    asked = [(InputPolicy(**one), None) for one in policies.values()]
    made = block_grid(raster.size, asked, channels=3, seams="blended")
    grid = BlockGrid(raster.size, side, lines=made.lines)
    shown = raster.values if raster.is_valid is None else raster.values * raster.is_valid[..., None]
    whole = predict(shown)[RESULT]
    if raster.is_valid is not None:
        whole = whole * raster.is_valid
    found = by_blocks(predict, raster, grid)
    assert np.array_equal(found, whole)
    return found


@given(
    size=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    tile=st.tuples(st.sampled_from([16, 32, 48]), st.sampled_from([16, 32])),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.7]),
    margin=st.integers(0, 7),
    side=st.integers(20, 90),
)
@hypothesis_settings(max_examples=60)
def test_blocks_of_all_tiles_are_the_raster_in_one_piece(
    size: tuple[int, int], tile: tuple[int, int], overlap: float, margin: int, side: int
) -> None:
    policy: dict[str, Any] = {"mode": "window", "size": tile, "multiple": 8, "overlap": overlap, "margin": margin}
    together(Pixels(photo(*size)), {"a": policy}, side)


@pytest.mark.parametrize("views", ["none", "flips"])
def test_networks_of_other_tiles_and_pixels_without_data(views: str) -> None:
    is_valid = np.zeros((140, 151), bool)
    is_valid[13:90, 37:120] = RNG.random((77, 83)) > 0.3
    policies: dict[str, dict[str, Any]] = {
        "a": WINDOWS,
        "b": {**WINDOWS, "size": (48, 24), "margin": 4},
        "c": {**WINDOWS, "padding": "edge", "overlap": 0.5},
    }
    assert together(Pixels(photo(140, 151), is_valid), policies, 48, views=views).any()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ({"mode": "full"}, "input.mode=full"),
        ({**WINDOWS, "scale": 0.5}, "scale"),
        ({**WINDOWS, "clahe": True}, "clahe"),
    ],
)
def test_networks_whose_tiles_are_others_in_a_part(policy: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=rf"found {words}; set inference\.seams=cut"):
        block_grid((300, 300), [(InputPolicy(**policy), None)], channels=3, seams="blended")
    whole = block_grid((300, 300), [(InputPolicy(mode="resize", size=(32, 32)), None)], channels=3, seams="blended")
    assert whole.lines == () and len(whole.blocks()) == 1
