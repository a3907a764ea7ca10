"""Boosted trees as a network: smoothed bands are OpenCV's, a tree by hand, hostile tensors, tiles and views."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from maskloom.data.input_policy import InputPolicy
from maskloom.errors import BadFile, UserError
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.models import tree_network
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.encoders import NetworkSettings
from maskloom.models.index_network import LIMIT
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.models.smoothing import mirrored, smoothed
from maskloom.models.tree_network import TreeNetwork
from maskloom.models.tree_settings import TreeSettings, radius
from maskloom.records import Task

SIGMAS = (0.0, 0.3, 0.7, 1.0, 2.0, 4.0)


def some_trees(settings: TreeSettings, channels: int, num_maps: int, seed: int = 0) -> dict[str, Tensor]:
    """The state of random trees: each node but the first hangs at a leaf, which it makes its own left child."""
    rng = np.random.default_rng(seed)
    state = {name: value.numpy() for name, value in TreeNetwork(settings, channels, num_maps).state_dict().items()}
    trees, nodes = state["features"].shape
    state["features"][:] = rng.integers(0, channels * len(settings.sigmas), (trees, nodes))
    state["thresholds"][:] = rng.normal(size=(trees, nodes))
    state["values"][:] = rng.normal(size=(trees, nodes + 1)) / 10
    for tree in range(trees):
        hangs = {0: (0, 0), 1: (0, 1)}
        for node in range(1, nodes):
            leaf = int(rng.integers(node + 1))
            state["branches"][tree][hangs[leaf]] = node
            hangs |= {leaf: (node, 0), node + 1: (node, 1)}
        for leaf, place in hangs.items():
            state["branches"][tree][place] = -1 - leaf
    return {name: torch.from_numpy(value) for name, value in state.items()}


def network(settings: TreeSettings, channels: int = 2, num_maps: int = 1) -> TreeNetwork:
    found = TreeNetwork(settings, channels, num_maps)
    found.load_state_dict(some_trees(settings, channels, num_maps))
    return found


SMALL = TreeSettings(sigmas=(0.0, 1.0, 2.0), num_trees=20, num_leaves=7)


@pytest.mark.parametrize("size", [(40, 33), (1, 50), (7, 3), (1, 1)])
def test_smoothed_bands_are_those_of_opencv(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).uniform(0, 1, (*size, 3)).astype(np.float32)
    settings = TreeSettings(sigmas=SIGMAS)
    found = TreeNetwork(settings, 3, 1).features_of(torch.from_numpy(image).permute(2, 0, 1)[None], 0, size[0])
    assert found.shape == (1, 3 * len(SIGMAS), *size)
    for number, sigma in enumerate(SIGMAS):
        for band in range(3):
            plane = np.ascontiguousarray(image[..., band])
            expected = plane if sigma == 0 else cv2.GaussianBlur(plane, (0, 0), sigma)
            np.testing.assert_allclose(found[0, 3 * number + band].numpy(), expected, atol=1e-5)


def test_deviations_are_those_of_the_pixels_below_a_gaussian() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (30, 26, 2)).astype(np.float32)
    settings = TreeSettings(sigmas=(0.0,), deviations=(1.5, 3.0))
    found = TreeNetwork(settings, 2, 1).features_of(torch.from_numpy(image).permute(2, 0, 1)[None], 0, 30)[0].numpy()
    assert settings.num_planes == 3 and settings.reach == 12 and found.shape == (6, 30, 26)
    for number, sigma in enumerate(settings.deviations):
        for band in range(2):
            exact = image[..., band].astype(np.float64)
            width = 2 * radius(sigma) + 1
            mean, squares = (cv2.GaussianBlur(plane, (width, width), sigma) for plane in (exact, exact**2))
            np.testing.assert_allclose(found[2 + 2 * number + band], np.sqrt(squares - mean**2), rtol=1e-5)
    flat = torch.full((1, 2, 20, 20), 65535.0)
    assert (TreeNetwork(settings, 2, 1).features_of(flat, 0, 20)[0, 2:] < 0.01).all()


def test_contrasts_are_deviations_of_the_surroundings_above_their_mean() -> None:
    image = np.random.default_rng(0).integers(1000, 65536, (30, 26, 2)).astype(np.float32)
    settings = TreeSettings(sigmas=(0.0, 1.0), deviations=(2.0,), contrasts=(3.0, 9.0))

    def found(pixels: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        return TreeNetwork(settings, 2, 1).features_of(tensor, 0, 30)[0].numpy()

    seen = found(image)
    assert settings.num_planes == 7 and settings.reach == 36 and seen.shape == (14, 30, 26)
    for number, around in enumerate(settings.contrasts):
        for place, sigma in enumerate(settings.sigmas):
            for band in range(2):
                exact = image[..., band].astype(np.float64)
                near = exact if sigma == 0 else cv2.GaussianBlur(exact, (9, 9), sigma)
                width = 2 * radius(around) + 1
                mean, squares = (cv2.GaussianBlur(plane, (width, width), around) for plane in (exact, exact**2))
                unit = np.sqrt(squares - mean**2) + 0.001 * mean
                plane = seen[6 + 4 * number + 2 * place + band]
                np.testing.assert_allclose(plane, (near - mean) / unit, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found(image / 4)[6:], seen[6:], rtol=1e-4, atol=1e-5, err_msg="a gain changes nothing")
    for flat in (0.0, 65535.0):
        assert (np.abs(found(np.full_like(image, flat))[6:]) < 0.01).all(), "what is even has none"


def test_a_gaussian_reaches_as_far_as_is_said() -> None:
    settings = TreeSettings(sigmas=(0, 3))
    point = torch.zeros(1, 1, 81, 81)
    point[..., 40, 40] = 1
    spread = TreeNetwork(settings, 1, 1).features_of(point, 0, 81)[0, 1]
    assert settings.reach == 12 == 40 - int(spread[40].nonzero()[0])
    assert smoothed(point, (0, 3), 12).shape == (1, 2, 57, 57)
    assert mirrored(-4, 6, 3, torch.device("cpu")).tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0, 1]


def test_a_tree_by_hand() -> None:
    settings = TreeSettings(sigmas=(0,), num_trees=2, num_leaves=3)
    state = TreeNetwork(settings, 2, 1).state_dict()
    state["features"][0], state["thresholds"][0] = torch.tensor([1, 0]), torch.tensor([0.5, 2.0])
    state["branches"][0] = torch.tensor([[-1, 1], [-2, -3]])
    state["values"][:] = torch.tensor([[1.0, 2.0, 4.0], [0.25, 99, 99]])
    found = TreeNetwork(settings, 2, 1)
    found.load_state_dict(state)
    images = torch.tensor([[[[9.0, 2.0, 2.5, 9.0, torch.nan]], [[0.5, 0.75, 0.75, torch.inf, 0.75]]]])
    assert found(images).tolist() == [[[[1.25, 2.25, 4.25, 1.25, 2.25]]]]  # what is not finite is 0
    state["values"][0] = 1e30
    found.load_state_dict(state)
    assert bool((found(images) == LIMIT).all())


def test_a_fresh_network_finds_nothing() -> None:
    assert bool((TreeNetwork(SMALL, 2, 3)(torch.rand(1, 2, 4, 5)) == -LIMIT).all())


def test_pieces_and_symmetries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, images = network(SMALL, num_maps=2), torch.randn(2, 2, 21, 18, generator=torch.Generator().manual_seed(0))
    whole = found(images)
    assert whole.std() > 0.1
    for axes in ([2], [3], [2, 3]):
        torch.testing.assert_close(found(images.flip(axes)).flip(axes), whole, rtol=0, atol=1e-6)
    assert torch.equal(found(images.contiguous(memory_format=torch.channels_last)), whole)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found(images), whole)
    monkeypatch.setattr(tree_network, "VALUES", 18 * 6 * 4)
    monkeypatch.setattr(tree_network, "STEPS", {"cpu": 16 * 13})
    torch.testing.assert_close(found(images), whole, rtol=0, atol=1e-6)


def test_the_state_travels() -> None:
    found, images = network(SMALL), torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    for same in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert torch.equal(same(images), found(images))
    with pytest.raises(UserError, match="expected 2 channels, which the trees know, found 3"):
        found(torch.zeros(1, 3, 4, 4))


def segmenter(policy: InputPolicy) -> Segmenter:
    settings = NetworkSettings(architecture="trees", channels=2, trees=SMALL)
    normalisation = Normalisation(mean=(0, 0), std=(1, 1), scale=1, dtype="float32")
    task = Task(kind="multilabel", classes=("a", "b"))
    built = build_segmenter(settings, task=task, policy=policy, normalisation=normalisation)
    built.network.load_state_dict(some_trees(SMALL, 2, 2))
    return built.eval()


def test_tiles_with_a_margin_give_what_the_whole_image_gives() -> None:
    image = np.random.default_rng(0).normal(size=(70, 53, 2)).astype(np.float32)
    whole = InputPolicy(mode="full", multiple=1)
    tiles = InputPolicy(mode="window", multiple=1, size=(33, 35), margin=SMALL.reach)
    bare = InputPolicy(mode="window", multiple=1, size=(33, 35), overlap=0.25)
    maps = [
        Predictor(Merge(children=("m/0",)), {"m/0": segmenter(policy)}, InferenceSettings(views=views), CPU)(image)
        for policy, views in ((whole, "none"), (tiles, "none"), (whole, "symmetry"), (bare, "none"))
    ]
    np.testing.assert_array_equal(maps[1][RESULT], maps[0][RESULT])
    assert np.abs(maps[2][RESULT].astype(int) - maps[0][RESULT]).max() <= 1
    assert (maps[3][RESULT] != maps[0][RESULT]).any(), "without a margin borders of tiles show"


CPU = torch.device("cpu")


def test_a_bundle_gives_the_same_and_hostile_trees_are_one_line(tmp_path: Path) -> None:
    built, path = segmenter(InputPolicy(mode="full", multiple=1)), tmp_path / "b.safetensors"
    save_bundle(path, built)
    images = torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_bundle(path).network(images), built.network(images))
    hostile: list[tuple[str, tuple[int, ...], float]] = [
        ("features", (3, 2), -1),
        ("features", (3, 2), 6),
        ("branches", (3, 2, 0), 2),  # itself
        ("branches", (3, 2, 1), 0),  # back
        ("branches", (3, 2, 0), 6),
        ("branches", (3, 2, 0), -8),
        ("branches", (3, 2, 0), -(2**31)),
        ("values", (3, 2), 2e30),
    ]
    for name, place, value in hostile:
        save_bundle(path, built)
        tensor = built.network.state_dict()[name]
        before = tensor[place].clone()
        tensor[place] = value
        save_bundle(path, built)
        tensor[place] = before
        with pytest.raises(BadFile, match=rf"b\.safetensors: its weights: expected trees .* found '{name}' of tree 3"):
            load_bundle(path)
    broken = built.network.state_dict()["thresholds"]
    broken[0, 0] = torch.nan
    with pytest.raises(UserError, match="'thresholds' of tree 0"):
        TreeNetwork(SMALL, 2, 2).load_state_dict(built.network.state_dict())
