"""Crops at several offsets: every pixel once per offset, and the most frequent label of all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import BINARY, LAYERS, THREE, Constant, neighbourhood, pointwise, segmenter
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.data.input_policy import prepare_image
from maskloom.errors import UserError
from maskloom.inference.crop_votes import crop_cells, most_frequent, predict_by_votes
from maskloom.inference.inputs import Input
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.inference.view_merging import ViewMerger
from maskloom.inference.views import find_views
from maskloom.models.segmenter import Segmenter
from maskloom.records import Task

CPU = torch.device("cpu")


def photo(height: int = 45, width: int = 61) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (height, width, 3)).astype(np.uint8)


def ask(member: Segmenter, image: np.ndarray, **changes: object) -> np.ndarray:
    values = {"precision": "float32", "views": "none", "crop_offsets": 5, **changes}
    return Predictor(Merge(children=("m",)), {"m": member}, InferenceSettings.model_validate(values), CPU)(image)[
        "result"
    ]


class Position(nn.Module):
    """Says class 1 in the left half of whatever it sees, class 0 in the right: labels depend on the crop."""

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), 3, *images.shape[-2:])
        logits[:, 1, :, : images.shape[-1] // 2] = 5.0
        return logits


@given(st.integers(16, 90), st.integers(16, 70), st.integers(1, 7), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_every_offset_takes_every_pixel_once(height: int, width: int, num_offsets: int, margin: int) -> None:
    counts = np.zeros((num_offsets, height, width), int)
    for cell in crop_cells((height, width), (16, 16), num_offsets=num_offsets, margin=margin):
        crop, taken = cell.crop, cell.taken
        assert 0 <= crop.top <= height - 16 and 0 <= crop.left <= width - 16
        assert crop.top + margin <= taken.top and taken.top + taken.height <= crop.top + 16 - margin
        assert crop.left + margin <= taken.left and taken.left + taken.width <= crop.left + 16 - margin
        counts[(cell.offset, *taken.slices)] += 1
    inside = counts[:, margin : height - margin, margin : width - margin]
    assert np.all(inside == 1) and counts.sum() == inside.sum()


def test_offsets_are_fifths_of_the_crop_along_both_axes() -> None:
    corners: dict[int, set[tuple[int, int]]] = {}
    for cell in crop_cells((40, 60), (20, 20), num_offsets=5):
        corners.setdefault(cell.offset, set()).add((cell.taken.top, cell.taken.left))
    assert corners[0] == {(row, column) for row in (0, 20) for column in (0, 20, 40)}
    assert corners[3] == {(row, column) for row in (0, 12, 32) for column in (0, 12, 32, 52)}
    whole = [cell for cell in crop_cells((40, 60), (20, 20), num_offsets=5) if cell.offset == 1]
    assert {(cell.crop.top, cell.crop.left) for cell in whole} == {
        (row, column) for row in (0, 4, 20) for column in (0, 4, 24, 40)
    }


@given(st.integers(1, 7), st.integers(0, 1000))
def test_the_most_frequent_label_is_found(num_maps: int, seed: int) -> None:
    maps = np.random.default_rng(seed).integers(0, 4, (num_maps, 3, 5)).astype(np.uint8)
    found = most_frequent([torch.from_numpy(each) for each in maps]).numpy()
    for row, column in np.ndindex(3, 5):
        labels = maps[:, row, column].tolist()
        most = max(Counter(labels).values())
        first = next(label for label in labels if labels.count(label) == most)
        assert found[row, column] == first


def test_ties_go_to_the_lowest_offset() -> None:
    maps = [torch.tensor([label], dtype=torch.uint8) for label in (2, 7, 7, 2, 9)]
    assert most_frequent(maps).item() == 2
    assert most_frequent([maps[1], *maps]).item() == 7


@pytest.mark.parametrize("task", [BINARY, THREE, LAYERS])
def test_pointwise_networks_give_the_labels_of_the_full_prediction(task: Task) -> None:
    network = pointwise(task.num_maps)
    whole = ask(segmenter(network, task), photo(), crop_offsets=None)
    for changes in ({}, {"margin": 3}, {"padding": "edge"}):
        found = ask(segmenter(network, task, mode="window", size=(16, 24), **changes), photo())
        assert set(np.unique(found)) <= {0, 255}
        if task.kind == "multiclass":
            assert np.all(found.sum(axis=0, dtype=int) == 255)
            certain = np.sort(whole, axis=0)[-1].astype(int) - np.sort(whole, axis=0)[-2] > 1
            assert np.array_equal(found.argmax(axis=0)[certain], whole.argmax(axis=0)[certain])
        else:
            certain = np.abs(whole.astype(int) - 127.5) > 1
            assert np.array_equal((found == 255)[certain], (whole >= 128)[certain])


def test_votes_equal_five_predictions_put_together_by_hand() -> None:
    """Each offset's label map from a plain loop over its crops, and the mode of the five per pixel."""
    member = segmenter(neighbourhood(3), THREE, mode="window", size=(16, 16)).eval()
    image = photo(40, 56)
    prepared, _ = prepare_image(image, member.policy)
    pixels = torch.from_numpy(prepared).permute(2, 0, 1)[None]
    maps = []
    for offset in (0, 3, 6, 9, 12):  # fifths of 16
        labels = np.full((40, 56), 99)
        for top in range(offset - 16 if offset else 0, 40, 16):
            for left in range(offset - 16 if offset else 0, 56, 16):
                row, column = min(max(top, 0), 24), min(max(left, 0), 40)
                with torch.inference_mode():
                    logits = member.logits(pixels[..., row : row + 16, column : column + 16])
                whole = np.full((40, 56), 99)
                whole[row : row + 16, column : column + 16] = logits[0].argmax(dim=0).numpy()
                cell = slice(max(top, 0), min(top + 16, 40)), slice(max(left, 0), min(left + 16, 56))
                labels[cell] = whole[cell]
        maps.append(labels)
    expected = np.zeros((40, 56), int)
    for row, column in np.ndindex(40, 56):
        labels = [each[row, column] for each in maps]
        expected[row, column] = max(labels, key=lambda label: (labels.count(label), -labels.index(label)))
    found = ask(member, image)
    assert np.array_equal(found.argmax(axis=0), expected)
    assert any(np.any(each != expected) for each in maps), "the offsets differ, or this would show nothing"


def test_labels_that_depend_on_the_crop_are_voted_on() -> None:
    found = ask(segmenter(Position(), THREE, mode="window", size=(16, 16)), photo(16, 64)).argmax(axis=0)
    assert set(np.unique(found)) == {0, 1}
    tiles = segmenter(Position(), THREE, mode="window", size=(16, 16), overlap=0.0)
    single = ask(tiles, photo(16, 64), crop_offsets=None)
    assert np.any(found != single.argmax(axis=0))


@pytest.mark.parametrize("pixels", [1, 16 * 24 * 5, 10**7])
def test_batching_changes_nothing(pixels: int) -> None:
    member = segmenter(neighbourhood(3), THREE, mode="window", size=(16, 24), margin=4)
    expected = ask(member, photo(), views="flip", batch_pixels=16 * 24)
    assert (expected != ask(member, photo(), views="flip", batch_pixels=pixels)).mean() < 1e-3


def test_crops_that_offsets_share_are_seen_once() -> None:
    member = segmenter(neighbourhood(3), THREE, mode="window", size=(16, 24)).eval()
    prepared = Input.prepare([photo(30, 40), photo(30, 40)], member.policy, CPU, channels=3)
    seen: list[int] = []
    member.network.register_forward_hook(lambda module, images, _: seen.append(len(images[0])))
    with torch.inference_mode():
        found = predict_by_votes(prepared, member, ViewMerger(find_views("none"), "mean", 10**6), num_offsets=5)
    cells = crop_cells((30, 40), (16, 24), num_offsets=5)
    assert found.shape == (2, 1, 3, 30, 40) and torch.equal(found[0], found[1])
    assert sum(seen) == 2 * len({cell.crop for cell in cells}) < 2 * len(cells)


def test_small_images_are_one_crop() -> None:
    found = ask(segmenter(Constant(0.3, 2.0, 0.1), THREE, mode="window", size=(32, 32)), photo(9, 40))
    assert found.shape == (3, 9, 40) and np.all(found[1] == 255) and not found[[0, 2]].any()


def test_the_map_without_views_is_voted_on_too() -> None:
    member = segmenter(neighbourhood(3), THREE, mode="window", size=(16, 16))
    options = InferenceSettings(views="flip", precision="float32", crop_offsets=3)
    maps = Predictor(Merge(children=("m",)), {"m": member}, options, CPU, plain=True)(photo())
    assert (maps["plain"] != ask(member, photo(), crop_offsets=3)).mean() < 1e-3


def test_not_a_number_names_the_network() -> None:
    member = segmenter(Constant(float("nan"), 0.0, 0.0), THREE, mode="window", size=(16, 16))
    with pytest.raises(UserError, match=r"^m: expected finite logits, found NaN"):
        ask(member, photo())


def test_other_networks_are_asked_as_ever_and_that_is_said() -> None:
    member = segmenter(neighbourhood(3), THREE)
    predictor = Predictor(Merge(children=("m",)), {"m": member}, InferenceSettings(crop_offsets=5, views="none"), CPU)
    assert any("inference.crop_offsets is for networks of windows" in note for note in predictor.notes)
    assert np.array_equal(ask(member, photo()), ask(member, photo(), crop_offsets=None))
    prepared = Input.prepare([photo()], member.policy, CPU, channels=3)
    with pytest.raises(ValueError, match="mode window"):
        predict_by_votes(prepared, member, ViewMerger(find_views("none"), "mean", 1000), num_offsets=5)


@pytest.mark.parametrize("count", [0, 1, 26, 2.5])
def test_counts_that_make_no_sense_are_refused(count: float) -> None:
    with pytest.raises(UserError, match="crop_offsets"):
        parse(InferenceSettings, {"crop_offsets": count})


def test_crops_have_no_overlap() -> None:
    with pytest.raises(UserError, match=r"overlap: expected none with crop_offsets, .* found 0\.5; state null"):
        parse(InferenceSettings, {"crop_offsets": 5, "overlap": 0.5})
    with pytest.raises(ValueError, match="expected crops inside an array"):
        crop_cells((10, 40), (16, 16), num_offsets=5)
