"""Tiles of which the centre is kept: every pixel once, and the full prediction of the mirrored image."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LAYERS, THREE, Constant, neighbourhood, pointwise, segmenter
from torch import Tensor, nn

from maskloom.data.input_policy import InputPolicy, place, tile_windows
from maskloom.inference.inputs import Input
from maskloom.inference.tiles import TileAccumulator, kept_spans
from maskloom.inference.view_merging import ViewMerger
from maskloom.inference.views import find_views
from maskloom.models.segmenter import Segmenter
from maskloom.records import Size, Task
from maskloom.windows import tile_starts

CPU = torch.device("cpu")
SIDES = st.integers(1, 90)
SIZES: list[Size] = [(45, 61), (20, 20), (7, 50), (1, 3), (40, 60)]


def photo(size: Size, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (*size, channels)).astype(np.uint8)


def ask(
    member: Segmenter, image: np.ndarray, *, overlap: float | None = None, views: str = "none", pixels: int = 5000
) -> Tensor:
    """Returns float probabilities C×H×W."""
    prepared = Input.prepare([image], member.policy, CPU, channels=image.shape[2])
    with torch.inference_mode():
        return prepared.predict(member.eval(), ViewMerger(find_views(views), "mean", pixels), overlap)[0, 0]


def mirrored(member: Segmenter, image: np.ndarray, margin: int) -> Tensor:
    """Returns the full prediction of the image mirrored about its border, the margin then cut off: C×H×W."""
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)], mode="reflect")
    with torch.inference_mode():
        logits = member.eval().logits(torch.from_numpy(padded).permute(2, 0, 1)[None])
        return member.probabilities(logits)[0, :, margin:-margin, margin:-margin]


class Mean(nn.Module):
    """The mean of the 3×3 pixels around each as a logit."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 3, stride=1, padding=1)


@given(SIDES, SIDES, st.sampled_from([8, 16, 24]), st.sampled_from([8, 32]), st.integers(1, 11))
@settings(max_examples=80, deadline=None)
def test_every_pixel_of_every_size_comes_from_one_tile(
    height: int, width: int, tile_height: int, tile_width: int, margin: int
) -> None:
    margin = min(margin, (min(tile_height, tile_width) - 1) // 2)
    policy = InputPolicy(mode="window", size=(tile_height, tile_width), multiple=8, margin=margin)
    placement = place((height, width), policy)
    windows = tile_windows((height, width), policy)
    maps = TileAccumulator(placement.padded, windows, margin=margin, blends=False)
    for number, window in enumerate(windows):
        ours = torch.full((1, tile_height, tile_width), torch.nan)  # what lies in the margin must not be looked at
        ours[:, margin:-margin, margin:-margin] = number + 1
        maps.feed(window, ours)
    found = maps.done()[0]
    numbers = found[margin:-margin, margin:-margin]
    assert torch.equal(numbers, numbers.round()) and numbers.min() >= 1 and numbers.max() <= len(windows)
    assert set(numbers.unique().tolist()) == {float(number + 1) for number in range(len(windows))}
    assert found.sum() == numbers.sum()
    centres = -(-max(height, 1) // (tile_height - 2 * margin)), -(-max(width, 1) // (tile_width - 2 * margin))
    assert len(windows) == centres[0] * centres[1], "no more tiles than their centres need"


@given(st.integers(1, 40), st.integers(0, 200), st.floats(0, 0.95))
def test_spans_follow_one_another_inside_their_windows(length: int, more: int, overlap: float) -> None:
    starts = tile_starts(length + more, length, int(overlap * length))
    spans = kept_spans(starts, length)
    assert spans[starts[0]][0] == 0 and spans[starts[-1]][1] == length + more
    for (_, end), (begin, _) in pairwise(spans.values()):
        assert end == begin
    for start, (first, last) in spans.items():
        assert start <= first < last <= start + length
    for (one, (_, end)), (two, _) in pairwise(spans.items()):
        assert 0 <= (end - two) - (one + length - end) <= 1, "each gives half of what they share"


def test_published_tiles_abut() -> None:
    starts = tile_starts(240, 80, 0)
    assert kept_spans(starts, 80) == {0: (0, 80), 80: (80, 160), 160: (160, 240)}
    assert kept_spans([0, 5], 8) == {0: (0, 7), 5: (7, 13)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [None, 0.5])
def test_a_constant_network_gives_the_constant(size: Size, overlap: float | None) -> None:
    member = segmenter(Constant(0.85, -0.3), LAYERS, mode="window", size=(24, 32), margin=6)
    found = ask(member, photo(size), overlap=overlap, views="symmetry")
    assert found.shape == (2, *size)
    expected = torch.tensor([0.85, -0.3]).sigmoid()[:, None, None].expand(found.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("task", [LAYERS, THREE])
@pytest.mark.parametrize("overlap", [None, 0.3])
def test_a_pointwise_network_gives_the_full_prediction(task: Task, overlap: float | None) -> None:
    network = pointwise(task.num_maps)
    whole = ask(segmenter(network, task), photo((45, 61)))
    tiled = segmenter(network, task, mode="window", size=(16, 24), margin=5)
    torch.testing.assert_close(ask(tiled, photo((45, 61)), overlap=overlap), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("margin", [1, 2, 7])
@pytest.mark.parametrize("overlap", [None, 0.4])
def test_a_network_that_sees_no_farther_than_the_margin_gives_the_full_prediction(
    size: Size, margin: int, overlap: float | None
) -> None:
    image = photo(size)
    for network, reach in ((Mean(), 1), (neighbourhood(2), 2)):
        if reach <= margin:
            task = LAYERS if reach == 2 else Task(kind="binary", classes=("thing",))
            member = segmenter(network, task, mode="window", size=(24, 16), margin=margin)
            expected = mirrored(member, image, margin)
            found = ask(member, image, overlap=overlap)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_without_a_margin_borders_of_tiles_show() -> None:
    """The law above has teeth."""
    image, network = photo((45, 61)), neighbourhood(2)
    expected = mirrored(segmenter(network, LAYERS), image, 2)
    plain = ask(segmenter(network, LAYERS, mode="window", size=(24, 16)), image)
    assert (plain - expected).abs().max() > 1e-3


@given(SIDES, SIDES)
@settings(max_examples=25, deadline=None)
def test_a_mean_of_neighbours_knows_no_tiles_at_any_size(height: int, width: int) -> None:
    image = photo((height, width), channels=1)
    member = segmenter(Mean(), channels=1, mode="window", size=(16, 8), margin=2)
    torch.testing.assert_close(ask(member, image), mirrored(member, image, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixels", [1, 16 * 24 * 5, 10**7])
def test_batching_changes_nothing(pixels: int) -> None:
    member = segmenter(neighbourhood(2), LAYERS, mode="window", size=(16, 24), margin=4)
    expected = ask(member, photo((45, 61)), views="symmetry", pixels=16 * 24)
    found = ask(member, photo((45, 61)), views="symmetry", pixels=pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_centres_that_overlap_are_blended_inside_themselves() -> None:
    """The margins of tiles never count, and the middle of a centre counts most."""
    policy = InputPolicy(mode="window", size=(16, 16), multiple=8, margin=4, overlap=0.5)
    windows = tile_windows((8, 12), policy)
    assert [(window.top, window.left) for window in windows] == [(0, 0), (0, 4)]
    maps = TileAccumulator((16, 20), windows, margin=4)
    for window, value in zip(windows, (0.0, 1.0), strict=True):
        tile = torch.full((1, 16, 16), torch.nan)
        tile[:, 4:12, 4:12] = value
        maps.feed(window, tile)
    found = maps.done()[0]
    row = found[4, 4:16]
    assert torch.all(row.diff() >= 0) and row[3] == 0 and row[8] == 1 and row[4] < 0.1 and row[7] > 0.9
    assert not found[:4].any() and not found[12:].any() and not found[:, :4].any() and not found[:, 16:].any()


def test_scaled_images_keep_their_size() -> None:
    member = segmenter(pointwise(), mode="window", size=(16, 16), margin=4, scale=0.7)
    assert ask(member, photo((45, 61))).shape == (1, round(45 * 0.7), round(61 * 0.7))


def test_several_images_at_once_are_as_good_as_one() -> None:
    member = segmenter(neighbourhood(), mode="window", size=(16, 16), margin=4).eval()
    images = [photo((30, 40)), photo((30, 40))[::-1].copy()]
    prepared = Input.prepare(images, member.policy, CPU, channels=3)
    with torch.inference_mode():
        found = prepared.predict(member, ViewMerger(find_views("flip"), "mean", 5000), None)
    for image, values in zip(images, found, strict=True):
        torch.testing.assert_close(values[0], ask(member, image, views="flip"), rtol=0, atol=1e-6)


def test_margins_that_leave_nothing_are_refused() -> None:
    windows = tile_windows((20, 20), InputPolicy(mode="window", size=(8, 8), multiple=8))
    for margin in (4, -1):
        with pytest.raises(ValueError, match="expected a margin that leaves something of tiles of"):
            TileAccumulator((20, 20), windows, margin=margin)
