from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import BINARY, LAYERS, THREE, Constant, neighbourhood, pointwise, segmenter
from torch import nn
from torch.nn import functional

from maskloom.data.input_policy import InputPolicy, prepare_image
from maskloom.errors import UnfitImage, UserError
from maskloom.inference import predictor as room
from maskloom.inference.merging import Merge, standard_tree
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.inference.views import find_views
from maskloom.models import bundle
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Task

CPU = torch.device("cpu")
POLICIES = [
    {"mode": "full"},
    {"mode": "resize", "size": (24, 40)},
    {"mode": "window", "size": (16, 24)},
    {"mode": "window", "size": (64, 64)},
    {"mode": "window", "size": (16, 16), "scale": 0.7, "overlap": 0.5},
]


def photo(height: int = 45, width: int = 61, channels: int = 3, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(5)
    top = {"uint8": 255, "uint16": 60000, "float32": 255}[dtype]
    return rng.integers(0, top, (height, width, channels)).astype(dtype)


def ask(member: Segmenter, image: np.ndarray, **settings: object) -> np.ndarray:
    options = InferenceSettings.model_validate({"precision": "float32", **settings})
    return Predictor(Merge(children=("m",)), {"m": member}, options, CPU)(image)["result"]


def floats(member: Segmenter, image: np.ndarray, views: str = "none") -> torch.Tensor:
    """The slow way: every view alone, brought back to the image's size, then averaged."""
    prepared, placement = prepare_image(image, member.policy)
    images = torch.from_numpy(prepared.copy()).permute(2, 0, 1)[None].float()
    rows, columns = placement.padding.interior(placement.padded).slices
    found = []
    with torch.no_grad():
        for view in find_views(views):
            values = view.inverse(member.probabilities(member.logits(view.forward(images))))[..., rows, columns]
            size = image.shape[:2]
            found.append(functional.interpolate(values, size, mode="bilinear", align_corners=False)[0])
    return torch.stack(found).mean(dim=0)


def stored(values: torch.Tensor) -> np.ndarray:
    return (values * 255).round().numpy().astype(int)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("views", ["none", "symmetry"])
@pytest.mark.parametrize("merge", ["mean", "logit_mean", "geometric"])
def test_a_constant_network_gives_the_constant(policy: dict[str, object], views: str, merge: str) -> None:
    found = ask(segmenter(Constant(0.85), **policy), photo(), views=views, view_merge=merge)
    assert found.shape == (1, 45, 61) and found.dtype == np.uint8
    assert np.all(found == round(255 / (1 + np.exp(-0.85))))


@pytest.mark.parametrize("policy", POLICIES)
def test_constant_classes_stay_constant(policy: dict[str, object]) -> None:
    found = ask(segmenter(Constant(0.1, 1.0, -0.4), THREE, **policy), photo(), views="flips")
    expected = np.exp([0.1, 1.0, -0.4]) / np.exp([0.1, 1.0, -0.4]).sum()
    assert np.all(found == np.round(255 * expected).astype(int)[:, None, None])


@pytest.mark.parametrize("task", [BINARY, THREE, LAYERS])
@pytest.mark.parametrize("views", ["none", "symmetry"])
def test_tiles_equal_the_whole_for_a_pointwise_network(task: Task, views: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "store", lambda maps: {name: values.numpy() for name, values in maps.items()})
    network = pointwise(task.num_maps)
    whole = ask(segmenter(network, task), photo(), views="none")
    tiled = ask(segmenter(network, task, mode="window", size=(16, 24)), photo(), views=views, batch_pixels=16 * 24 * 3)
    assert whole.dtype == np.float32
    assert np.abs(whole - tiled).max() <= 1e-6


@pytest.mark.parametrize("batch_pixels", [1, 16 * 24 * 5, 10**7])
def test_batching_changes_nothing(batch_pixels: int) -> None:
    for policy in POLICIES:
        member = segmenter(neighbourhood(2), LAYERS, **policy)
        expected = ask(member, photo(), views="symmetry", batch_pixels=16 * 24)
        found = ask(member, photo(), views="symmetry", batch_pixels=batch_pixels)
        assert np.abs(expected.astype(int) - found).max() <= 1


@pytest.mark.parametrize("policy", POLICIES[:2])
@pytest.mark.parametrize("views", ["none", "flip", "symmetry"])
def test_one_pass_is_the_mean_of_separate_float_maps(policy: dict[str, object], views: str) -> None:
    members = {f"m/{fold}": segmenter(neighbourhood(seed=fold), **policy) for fold in range(3)}
    members["other/0"] = segmenter(neighbourhood(seed=9))
    tree = standard_tree({"m": ["m/0", "m/1", "m/2"], "other": ["other/0"]}, weights=(2, 1))
    found = Predictor(tree, members, InferenceSettings(views=views, precision="float32"), CPU)(photo())["result"]
    maps = {name: floats(member, photo(), views) for name, member in members.items()}
    expected = (2 * (maps["m/0"] + maps["m/1"] + maps["m/2"]) / 3 + maps["other/0"]) / 3
    assert np.abs(found - stored(expected)).max() <= 1
    assert (found != stored(expected)).mean() < 1e-3  # only where rounding falls the other way


def test_reduced_precision_stays_near() -> None:
    member = segmenter(neighbourhood())
    difference = ask(member, photo(), precision="bf16").astype(int) - ask(member, photo())
    assert np.abs(difference).max() <= 2


def test_taps_and_plain_map() -> None:
    members = {
        "a": segmenter(neighbourhood(seed=1)),
        "b": segmenter(neighbourhood(seed=2), mode="resize", size=(24, 32)),
    }
    tree = Merge(children=(Merge(children=("a",), name="first"), "b"))
    settings = InferenceSettings(views="flips", view_merge="logit_mean", precision="float32")
    maps = Predictor(tree, members, settings, CPU, plain=True)(photo())
    assert maps.keys() == {"result", "first", "plain"}
    bare = Predictor(tree, members, settings.model_copy(update={"views": "none"}), CPU)(photo())
    assert np.array_equal(maps["plain"], bare["result"])
    alone = Predictor(Merge(children=("a",)), members, settings, CPU)(photo())
    assert np.array_equal(maps["first"], alone["result"])
    assert not np.array_equal(maps["result"], maps["plain"])


def test_a_network_that_occurs_twice_runs_once() -> None:
    member = segmenter(nn.Sequential(pointwise()))
    ensemble = Predictor(
        Merge(children=("m", Merge(children=("m",), name="tap"))), {"m": member}, InferenceSettings(), CPU
    )
    calls: list[int] = []
    ensemble._segmenters["m"].network.register_forward_hook(lambda *_: calls.append(1))
    maps = ensemble(photo())
    assert len(calls) == 1 and np.array_equal(maps["result"], maps["tap"])


def test_views_are_merged_as_asked() -> None:
    class Left(nn.Module):
        """Logit 2 on the left half, -1 on the right, wherever the image was turned."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            logits = torch.full_like(images[:, :1], -1.0)
            logits[..., : images.shape[-1] // 2] = 2.0
            return logits

    p, q = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(1))
    expected = {"mean": (p + q) / 2, "logit_mean": 1 / (1 + np.exp(-0.5)), "geometric": np.sqrt(p * q)}
    for merge, value in expected.items():
        found = ask(segmenter(Left()), photo(16, 16), views="flip", view_merge=merge)
        assert np.all(found == round(255 * value)), merge


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_images_of_other_types(dtype: str) -> None:
    image = photo(channels=1, dtype=dtype)
    image.setflags(write=False)
    network = segmenter(pointwise(channels=1), channels=1, dtype=dtype)
    found = ask(network, image, views="flip")
    assert np.abs(found - stored(floats(network, image))).max() <= 1


def test_not_a_number_names_the_network() -> None:
    members = {"good/0": segmenter(Constant(0.0)), "bad/1": segmenter(Constant(float("nan")))}
    ensemble = Predictor(standard_tree({"m": list(members)}), members, InferenceSettings(), CPU)
    with pytest.raises(UserError, match=r"^bad/1: expected finite logits, found NaN"):
        ensemble(photo())


def test_mistakes_are_named() -> None:
    member = segmenter(Constant(0.0))
    with pytest.raises(UserError, match="unknown network 'x'"):
        Predictor(Merge(children=("x",)), {"m": member}, InferenceSettings(), CPU)
    with pytest.raises(UserError, match="expected a network for"):
        both = {"m": member, "n": segmenter(Constant(0.0, 0.0, 0.0), THREE)}
        Predictor(Merge(children=("m", "n")), both, InferenceSettings(), CPU)
    with pytest.raises(ValueError, match="H×W×C"):
        Predictor(Merge(children=("m",)), {"m": member}, InferenceSettings(), CPU)(photo()[..., 0])
    with pytest.raises(UserError, match="identity first"):
        settings = InferenceSettings(views=("hflip", "identity"))
        Predictor(Merge(children=("m",)), {"m": member}, settings, CPU, plain=True)
    with pytest.raises(ValueError, match="views"):
        InferenceSettings(views="flop")


def test_the_given_network_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)).train()
    member = segmenter(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ask(member, photo())
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    member.logits(torch.zeros(1, 3, 8, 8)).sum().backward()


def test_networks_are_read_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ensemble holds its own copies; at no moment does it need two networks as they were read."""
    for name in ("a", "b", "c"):
        network = NetworkSettings(architecture="unet_scratch", width=1 / 16)
        member = build_segmenter(
            network,
            task=BINARY,
            policy=InputPolicy(mode="full", multiple=64),
            normalisation=Normalisation(mean=(0,) * 3, std=(1,) * 3),
        )
        save_bundle(tmp_path / name, member)
    alive: weakref.WeakSet[nn.Module] = weakref.WeakSet()
    most = []

    def watched(path: Path) -> Segmenter:
        member = load_bundle(path)
        alive.add(member.network)
        most.append(len(alive))
        return member

    monkeypatch.setattr(bundle, "load_bundle", watched)
    bundles = bundle.Bundles({name: tmp_path / name for name in ("a", "b", "c")})
    gc.disable()
    try:
        Predictor(Merge(children=("a", "b", "c")), bundles, InferenceSettings(), CPU)
    finally:
        gc.enable()
    assert most == [1, 1, 1], "each is read once, and let go before the next"


def test_memory_running_out_halves_what_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    class Narrow(nn.Module):
        """Runs out of memory with more than 2 images."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return images[:, :1]

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    for policy in POLICIES:
        found = ask(segmenter(Narrow(), **policy), photo(), views="flips", batch_pixels=10**6)
        assert np.array_equal(found, ask(segmenter(Narrow(), **policy), photo(), views="flips", batch_pixels=1))

    class Never(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="does not hold one image of 48×64"):
        ask(segmenter(Never()), photo())


def test_an_image_of_another_depth_is_refused() -> None:
    predictor = Predictor(Merge(children=("m/0",)), {"m/0": segmenter(pointwise())}, InferenceSettings(), CPU)
    with pytest.raises(UnfitImage, match="expected uint8 values as m/0 was trained on, found uint16"):
        predictor(np.zeros((32, 32, 3), np.uint16))


def test_single_networks_are_asked_in_their_own_way() -> None:
    image, first, second = photo(), segmenter(neighbourhood(seed=1)), segmenter(neighbourhood(seed=2))
    settings = InferenceSettings(precision="float32", views="none")
    own = {"b": InferenceSettings(views="flip", view_merge="logit_mean")}
    tree = Merge(children=("a", "b"))
    predictor = Predictor(tree, {"a": first, "b": second}, settings, CPU, own=own)
    with_flip = Predictor(
        Merge(children=("b",)), {"b": second}, own["b"].model_copy(update={"precision": "float32"}), CPU
    )
    expected = (ask(first, image, views="none").astype(float) + with_flip(image)["result"]) / 2
    assert np.abs(predictor(image)["result"] - expected).max() <= 1
    assert np.abs(ask(second, image, views="none").astype(int) - with_flip(image)["result"]).max() > 2
