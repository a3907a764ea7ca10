"""Views at other scales: what a network sees, and what becomes of its answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import BINARY, LAYERS, THREE, Constant, neighbourhood, pointwise, segmenter
from torch import Tensor, nn
from torch.nn import functional

from maskloom.errors import UserError
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.inference.view_merging import ViewMerger
from maskloom.inference.views import VIEWS, View, find_views
from maskloom.models.segmenter import Segmenter
from maskloom.records import Task

CPU = torch.device("cpu")
POLICIES = [
    {"mode": "full"},
    {"mode": "resize", "size": (24, 40)},
    {"mode": "window", "size": (16, 24)},
    {"mode": "window", "size": (24, 24), "margin": 4},
    {"mode": "parts", "parts": (1, 2)},
]


def photo(height: int = 45, width: int = 61) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (height, width, 3)).astype(np.uint8)


def ask(member: Segmenter, image: np.ndarray, **settings: object) -> np.ndarray:
    options = InferenceSettings.model_validate({"precision": "float32", **settings})
    return Predictor(Merge(children=("m",)), {"m": member}, options, CPU)(image)["result"]


def merged(
    member: Segmenter, images: Tensor, views: tuple[str, ...], kind: str = "mean", pixels: int = 10**6
) -> Tensor:
    merger = ViewMerger(find_views(views), kind, pixels)
    with torch.inference_mode():
        return merger.merge(member.eval(), merger.see(images))[:, 0]


def random_images(*size: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def bilinear(values: Tensor, size: tuple[int, int]) -> Tensor:
    shrinks = size[0] < values.shape[-2] or size[1] < values.shape[-1]
    return functional.interpolate(values.float(), size, mode="bilinear", align_corners=False, antialias=shrinks)


class Sizes(nn.Module):
    """Remembers what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return images[:, :1]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("merge", ["mean", "logit_mean", "geometric"])
def test_a_constant_network_gives_the_constant(policy: dict[str, object], merge: str) -> None:
    found = ask(segmenter(Constant(0.85), **policy), photo(), views="flip_scales", view_merge=merge)
    assert found.shape == (1, 45, 61)
    assert np.all(found == round(255 / (1 + np.exp(-0.85))))


@pytest.mark.parametrize("task", [BINARY, THREE, LAYERS])
@pytest.mark.parametrize("kind", ["mean", "logit_mean", "geometric"])
def test_maps_are_brought_back_and_averaged(task: Task, kind: str) -> None:
    member, images = segmenter(neighbourhood(task.num_maps), task).eval(), random_images(32, 48)
    names = ("identity", "hflip@0.75", "transpose@1.5")
    log = torch.nn.functional.logsigmoid
    encode = {
        "mean": member.probabilities,
        "logit_mean": lambda logits: logits,
        "geometric": (lambda x: x.log_softmax(dim=1)) if task.kind == "multiclass" else log,
    }[kind]
    decode = {"mean": lambda x: x, "logit_mean": member.probabilities, "geometric": torch.exp}[kind]
    with torch.inference_mode():
        plain = encode(member.logits(images))
        small = bilinear(encode(member.logits(bilinear(images.flip(-1), (24, 32 + 8)))), (32, 48)).flip(-1)
        large = bilinear(encode(member.logits(bilinear(images.mT, (72, 48)))), (48, 32)).mT
        expected = decode((plain + small + large) / 3)
    torch.testing.assert_close(merged(member, images, names, kind), expected, rtol=1e-5, atol=1e-6)


def test_networks_see_sides_that_they_take() -> None:
    network = Sizes()
    merged(segmenter(network), random_images(40, 64), ("identity@0.75", "vflip@0.75", "identity", "rot90@1.25"))
    # 30 and 48 to multiples of 8 (of two the larger), 1.25 · 64 = 80 and 50 → 48
    assert network.seen == [(4, 3, 32, 48), (2, 3, 40, 64), (2, 3, 80, 48)]


@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([1, 8, 32]),
    st.floats(0.25, 4),
    st.sampled_from(list(VIEWS)),
)
def test_sizes_are_multiples_near_the_scale(rows: int, columns: int, multiple: int, scale: float, name: str) -> None:
    size = (rows * multiple, columns * multiple)
    found = View(name, scale=scale).size_of(size, multiple)
    for side, before in zip(found, size, strict=True):
        assert side % multiple == 0 and side >= multiple
        assert abs(side - before * scale) <= multiple / 2 + 1e-6 or side == multiple
    assert View(name).size_of((7, 9), multiple) == (7, 9)


def test_a_smooth_map_is_brought_back_as_it_was() -> None:
    """A network that gives back a ramp: bilinear there and back keeps it away from the borders."""
    ramp = torch.linspace(0, 200, 96).expand(1, 3, 64, 96)
    member = segmenter(nn.Identity(), LAYERS)
    member.network = nn.Conv2d(3, 2, 1, bias=False)
    nn.init.constant_(member.network.weight, 0.5)
    for name in ("identity@0.5", "hflip@2", "vflip@0.75"):
        found = merged(member, ramp, (name,), "logit_mean").logit()
        expected = merged(member, ramp, ("identity",), "logit_mean").logit()
        torch.testing.assert_close(found[..., 6:-6], expected[..., 6:-6], rtol=1e-3, atol=1e-3)


def test_views_at_scale_one_are_as_ever() -> None:
    member = segmenter(neighbourhood(2), LAYERS)
    images = random_images(32, 48)
    assert torch.equal(merged(member, images, ("identity", "hflip@1")), merged(member, images, ("identity", "hflip")))


@pytest.mark.parametrize("pixels", [1, 32 * 48 * 5, 10**7])
def test_batching_changes_nothing(pixels: int) -> None:
    member, images = segmenter(neighbourhood(2), LAYERS), random_images(32, 48)
    names = ("identity", "hflip", "transpose", "identity@0.75", "hflip@0.75", "identity@1.25", "rot90@1.25")
    expected = merged(member, images, names, pixels=32 * 48)
    torch.testing.assert_close(merged(member, images, names, pixels=pixels), expected, rtol=0, atol=1e-6)


def test_the_map_without_views_stays_that_of_the_identity() -> None:
    member = segmenter(neighbourhood())
    settings = InferenceSettings(views="scales", precision="float32")
    maps = Predictor(Merge(children=("m",)), {"m": member}, settings, CPU, plain=True)(photo())
    assert np.array_equal(maps["plain"], ask(member, photo(), views="none"))
    assert not np.array_equal(maps["result"], maps["plain"])
    with pytest.raises(UserError, match="identity first"):
        ViewMerger(find_views(("identity@0.75", "identity")), "mean", 1000, plain=True)


def test_pointwise_networks_of_flat_images_know_no_scale() -> None:
    flat = np.full((45, 61, 3), 90, np.uint8)
    for policy in POLICIES:
        member = segmenter(pointwise(), **policy)
        assert np.array_equal(ask(member, flat, views="flip_scales"), ask(member, flat, views="none"))


def test_names_of_scaled_views() -> None:
    first, second = find_views(("identity", "hflip@0.75"))
    assert first.is_identity and not second.is_identity
    assert second == View("hflip@0.75", flips_columns=True, scale=0.75)
    assert not find_views(("identity@0.5",))[0].is_identity


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("hflop@0.75",), "unknown view 'hflop@0.75'"),
        (("hflip@",), "factor from 0.25 to 4 after @, found ''"),
        (("hflip@big",), "found 'big'"),
        (("hflip@nan",), "found 'nan'"),
        (("hflip@9",), "write for instance hflip@0.75"),
        (("hflip@0.5", "hflip@0.50"), "each only once"),
        (("identity", "identity@1"), "each only once"),
    ],
)
def test_scales_that_make_no_sense_are_refused(names: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find_views(names)
    assert "\n" not in str(caught.value)
