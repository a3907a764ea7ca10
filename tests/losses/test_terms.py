"""The weighted sum: which terms fit which task, and the laws that every loss obeys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskloom.config import parse
from maskloom.errors import UserError
from maskloom.losses import boundary
from maskloom.losses.bootstrap import bootstrapped_bce, online_bootstrapping
from maskloom.losses.distance import signed_log_distance
from maskloom.losses.pixel import bce
from maskloom.losses.region import soft_dice, soft_jaccard, soft_jaccard_exclusive
from maskloom.losses.terms import Loss, LossSettings, build_loss, num_auxiliary_maps
from maskloom.records import IGNORE, Task

BINARY = Task(kind="binary", classes=("car",))
THREE = Task(kind="multiclass", classes=("sky", "road", "car"))
TWO_MAPS = Task(kind="multilabel", classes=("water", "crops"))

HEIGHT = 64
"""Rows of the whole image: windows of some pixels on the 8×8 cases."""

SUMS: dict[str, list[dict[str, Any]]] = {
    "bce": [{"kind": "bce"}],
    "dice": [{"kind": "dice"}],
    "bce+dice": [{"kind": "bce"}, {"kind": "dice"}],
    "dice-per-image": [{"kind": "dice", "per_image": True}],
    "bce-log-dice": [{"kind": "bce"}, {"kind": "dice", "log": True, "smooth": 1e-15}],
    "jaccard": [{"kind": "jaccard"}],
    "jaccard-per-image": [{"kind": "jaccard", "per_image": True}],
    "bce-log-jaccard": [{"kind": "bce"}, {"kind": "jaccard", "log": True, "smooth": 1e-12}],
    "band": [{"kind": "boundary_bce"}, {"kind": "boundary_dice"}],
    "band-log": [{"kind": "boundary_bce"}, {"kind": "boundary_dice", "log": True}],
    "hill": [{"kind": "boundary_bce", "weighting": "hill"}, {"kind": "dice"}],
    "border-dice": [{"kind": "border_dice", "weight": 0.05}, {"kind": "dice", "weight": 0.95}],
    "border-bce": [{"kind": "border_bce", "weight": 0.05}, {"kind": "dice", "weight": 0.95}],
    "soft": [{"kind": "bootstrapped_bce", "weight": 0.2}, {"kind": "dice", "weight": 0.8}],
    "hard": [{"kind": "bootstrapped_bce", "mixture": "hard", "weight": 0.2}, {"kind": "dice", "weight": 0.8}],
    "online": [{"kind": "online_bootstrapping"}],
    "distance": [{"kind": "bce"}, {"kind": "signed_distance"}],
    "focal": [{"kind": "focal"}],
    "lovasz": [{"kind": "lovasz"}],
    "lovasz-batch": [{"kind": "lovasz", "per_image": False}],
    "tversky": [{"kind": "tversky"}],
    "focal-tversky": [{"kind": "tversky", "power": 0.75, "per_image": True}],
}
"""The sums of the published systems, and their parts."""

EXCLUSIVE_SUMS: dict[str, list[dict[str, Any]]] = {
    "cross_entropy": [{"kind": "cross_entropy"}],
    "dice": [{"kind": "dice"}],
    "cross_entropy+dice": [{"kind": "cross_entropy"}, {"kind": "dice"}],
    "jaccard": [{"kind": "jaccard"}],
    "cross_entropy-log-jaccard": [{"kind": "cross_entropy"}, {"kind": "jaccard", "log": True, "smooth": 1e-12}],
    "log-jaccards": [
        {"kind": "cross_entropy", "weight": 0.7},
        {"kind": "jaccard", "weight": 0.3, "log": True, "over_classes": "sum", "smooth": 1e-15},
    ],
    "focal": [{"kind": "focal"}],
    "lovasz": [{"kind": "cross_entropy"}, {"kind": "lovasz"}],
    "lovasz-alone": [{"kind": "lovasz"}],
    "tversky": [{"kind": "tversky"}],
    "focal-tversky": [{"kind": "tversky", "power": 0.75}],
    "ohem": [{"kind": "ohem", "fraction": 0.25}],
    "ohem-least": [{"kind": "ohem", "least": 2000}],
}

CASES = [
    pytest.param(task, terms, id=f"{task.kind}-{name}")
    for task, sums in ((BINARY, SUMS), (THREE, EXCLUSIVE_SUMS), (TWO_MAPS, SUMS))
    for name, terms in sums.items()
]


def loss_of(task: Task, terms: list[dict[str, Any]], image_height: int = HEIGHT, **settings: str) -> Loss:
    return build_loss(parse(LossSettings, {"terms": terms, **settings}), task, image_height=image_height)


def random_labels(task: Task, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, task.num_maps, 8, 8) if task.kind == "multilabel" else (2, 8, 8)
    return torch.randint(0, 3 if task.kind == "multiclass" else 2, shape, generator=generator, dtype=torch.uint8)


def random_logits(task: Task, terms: list[dict[str, Any]], seed: int = 0) -> Tensor:
    num_maps = task.num_maps + num_auxiliary_maps(parse(LossSettings, {"terms": terms}), task)
    return torch.randn(2, num_maps, 8, 8, generator=torch.Generator().manual_seed(seed))


def sure_logits(task: Task, terms: list[dict[str, Any]], labels: Tensor, strength: float) -> Tensor:
    """Returns logits that say the labels with this certainty, and their distances where they are learnt."""
    if task.kind == "multiclass":
        return (torch.stack([labels == index for index in range(task.num_maps)], dim=1).float() * 2 - 1) * strength
    planes = labels.reshape(2, task.num_maps, 8, 8)
    logits = (planes.float() * 2 - 1) * strength
    if not num_auxiliary_maps(parse(LossSettings, {"terms": terms}), task):
        return logits
    distances = signed_log_distance(planes, pixel_size=1280 / HEIGHT)
    return torch.cat([logits, distances * (1 if strength > 0 else -1)], dim=1)


@pytest.mark.parametrize(("task", "terms"), CASES)
class TestLaws:
    def test_a_perfect_prediction_costs_nothing(self, task: Task, terms: list[dict[str, Any]]) -> None:
        labels = random_labels(task)
        logits = sure_logits(task, terms, labels, 30.0)
        assert loss_of(task, terms)(logits, labels).item() == pytest.approx(0, abs=1e-5)

    def test_an_inverted_prediction_costs_most(self, task: Task, terms: list[dict[str, Any]]) -> None:
        labels = random_labels(task)
        assert loss_of(task, terms)(sure_logits(task, terms, labels, -30.0), labels).item() > 0.5

    def test_ignored_pixels_change_nothing(self, task: Task, terms: list[dict[str, Any]]) -> None:
        """Not even through windows and distances: the image is worth what is left of it when they are cut off."""
        loss, labels = loss_of(task, terms), random_labels(task)
        labels[..., :3] = IGNORE
        logits = random_logits(task, terms).requires_grad_()
        value = loss(logits, labels)
        value.backward()
        assert logits.grad is not None
        assert not logits.grad[..., :3].any() and logits.grad[..., 3:].any()
        torch.testing.assert_close(value, loss(logits[..., 3:], labels[..., 3:]))

    def test_nothing_but_ignored_pixels_gives_zero_with_a_zero_gradient(
        self, task: Task, terms: list[dict[str, Any]]
    ) -> None:
        logits = random_logits(task, terms).requires_grad_()
        value = loss_of(task, terms)(logits, torch.full_like(random_labels(task), IGNORE))
        value.backward()
        assert value.item() == 0
        assert logits.grad is not None and not logits.grad.any()

    def test_losses_and_gradients_of_extreme_logits_are_finite(self, task: Task, terms: list[dict[str, Any]]) -> None:
        labels = random_labels(task)
        signs = random_logits(task, terms).sign()
        for right in (1, -1):
            for mixed in (signs, torch.ones_like(signs)):
                logits = (sure_logits(task, terms, labels, right * 1e4).clamp(-1e4, 1e4) * mixed).requires_grad_()
                value = loss_of(task, terms)(logits, labels)
                value.backward()
                assert value.isfinite()
                assert logits.grad is not None and logits.grad.isfinite().all()

    @pytest.mark.parametrize("value", [0, 1])
    def test_masks_of_one_class_are_learnt(self, task: Task, terms: list[dict[str, Any]], value: int) -> None:
        labels = torch.full_like(random_labels(task), value)
        logits = sure_logits(
            task, terms, labels, 200.0
        )  # so sure that -log(Dice) of nothing is 0 with 1e-15 pixels too
        assert loss_of(task, terms)(logits, labels).item() == pytest.approx(0, abs=1e-5)
        logits = random_logits(task, terms).requires_grad_()
        loss_of(task, terms)(logits, labels).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_logits_are_judged_in_float32(
        self, task: Task, terms: list[dict[str, Any]], dtype: torch.dtype
    ) -> None:
        loss, labels = loss_of(task, terms), random_labels(task)
        logits = random_logits(task, terms).to(dtype)
        value = loss(logits, labels)
        assert value.dtype == torch.float32
        assert value.item() == loss(logits.float(), labels).item()

    def test_a_step_down_the_gradient_lowers_the_loss(self, task: Task, terms: list[dict[str, Any]]) -> None:
        loss, labels = loss_of(task, terms), random_labels(task)
        logits = random_logits(task, terms, seed=1).requires_grad_()
        before = loss(logits, labels)
        before.backward()
        assert logits.grad is not None
        assert loss(logits.detach() - 0.1 * logits.grad, labels) < before


def test_terms_add_up_by_their_weights() -> None:
    labels, logits = random_labels(BINARY), random_logits(BINARY, SUMS["bce"])
    both = [{"kind": "bce", "weight": 0.2}, {"kind": "dice", "weight": 0.8}]
    expected = 0.2 * loss_of(BINARY, SUMS["bce"])(logits, labels) + 0.8 * loss_of(BINARY, SUMS["dice"])(logits, labels)
    torch.testing.assert_close(loss_of(BINARY, both)(logits, labels), expected)


def test_the_published_sum_of_dstl_is_bce_less_the_logarithm_of_jaccard() -> None:
    for task in (BINARY, TWO_MAPS):
        labels, logits = random_labels(task), random_logits(task, SUMS["bce"])
        planes = labels.reshape(logits.shape)
        expected = bce(logits, planes) + soft_jaccard(logits.sigmoid(), planes, smooth=1e-12, log=True)
        torch.testing.assert_close(loss_of(task, SUMS["bce-log-jaccard"])(logits, labels), expected)
    labels, logits = random_labels(THREE), random_logits(THREE, SUMS["bce"])
    expected = torch.nn.functional.cross_entropy(logits, labels.long())
    expected = expected + soft_jaccard_exclusive(logits.softmax(dim=1), labels, smooth=1e-12, log=True)
    torch.testing.assert_close(loss_of(THREE, EXCLUSIVE_SUMS["cross_entropy-log-jaccard"])(logits, labels), expected)


def drawing(height: int, *, factor: int = 1) -> tuple[Tensor, Tensor]:
    """Returns logits (a map and an auxiliary one) and labels of a disc, every pixel repeated ``factor`` times."""
    rows, columns = np.mgrid[:height, : height + 20]
    disc = 0.3 * height - np.hypot(rows - 0.45 * height, columns - 0.5 * height)
    logits = np.stack([disc / 10 + np.sin(rows / 7) * 2, np.tanh(disc / 20)])
    labels = (disc + 3 * np.sin(columns / 5) > 0).astype(np.uint8)
    labels[: height // 8] = IGNORE
    logits, labels = (np.repeat(np.repeat(array, factor, -1), factor, -2) for array in (logits, labels))
    return torch.from_numpy(logits).float()[None], torch.from_numpy(labels)[None]


PIXEL_TERMS = [
    {"kind": "boundary_bce"},
    {"kind": "boundary_dice"},
    {"kind": "boundary_bce", "weighting": "hill"},
    {"kind": "border_bce"},
    {"kind": "border_dice"},
    {"kind": "online_bootstrapping", "hardest": 8000},
    {"kind": "signed_distance"},
]


def judged(term: dict[str, Any], image: tuple[Tensor, Tensor], image_height: int) -> float:
    logits, labels = image
    num_maps = 2 if term["kind"] == "signed_distance" else 1
    return loss_of(BINARY, [term], image_height)(logits[:, :num_maps], labels).item()


@pytest.mark.parametrize("term", PIXEL_TERMS, ids=lambda term: "-".join(map(str, term.values())))
def test_pixel_constants_follow_the_image(term: dict[str, Any]) -> None:
    """Twice the pixels at twice the height are the same to within the rounding of windows and distances."""
    small, large = drawing(160), drawing(160, factor=2)
    height = 512 if "boundary" in term["kind"] and "weighting" not in term else 640
    here = judged(term, small, height)
    assert judged(term, large, 2 * height) == pytest.approx(here, rel=0.02)
    fixed = {**term, "scale_pixels": False}
    assert judged(fixed, small, height) == judged(fixed, small, 1280) == judged(term, small, 1280)
    assert judged(fixed, small, height) != pytest.approx(here, rel=0.02)


def test_terms_are_the_published_ones() -> None:
    """Which function, window and count a kind stands for, at the published sizes."""
    logits, labels = drawing(160)
    logits, planes = logits[:, :1], labels[:, None]
    p = logits.sigmoid()
    band = boundary.band_weights(planes, 41)
    border = boundary.border_mask(planes, 21)
    expected = {
        ("boundary_bce", 1024): bce(logits, planes, weights=band),
        ("boundary_dice", 1024): soft_dice(p, planes, weights=band * band, per_image=True),
        ("border_bce", 1280): bce(logits, planes, weights=border),
        ("border_dice", 1280): soft_dice(p, planes, weights=border, per_image=True),
        ("bootstrapped_bce", 1280): bootstrapped_bce(logits, planes, alpha=0.95, mixture="soft"),
        ("online_bootstrapping", 1280): online_bootstrapping(logits, planes, hardest=32_768, threshold=0.3),
        ("online_bootstrapping", 128): online_bootstrapping(logits, planes, hardest=328, threshold=0.3),
    }
    for (kind, height), value in expected.items():
        torch.testing.assert_close(loss_of(BINARY, [{"kind": kind}], height)(logits, labels), value)
    hill = boundary.hill_weights(planes, 50)
    found = loss_of(BINARY, [{"kind": "boundary_bce", "weighting": "hill"}], 1280)(logits, labels)
    torch.testing.assert_close(found, bce(logits, planes, weights=hill))
    stated = boundary.band_weights(planes, 15)  # 31 at half the height
    found = loss_of(BINARY, [{"kind": "boundary_bce", "window": 31}], 640)(logits, labels)
    torch.testing.assert_close(found, bce(logits, planes, weights=stated))


def test_weight_maps_are_computed_once_for_all_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compute = boundary.band_weights

    def counting(labels: Tensor, window: int) -> Tensor:
        calls.append(window)
        return compute(labels, window)

    monkeypatch.setattr(boundary, "band_weights", counting)
    loss = loss_of(
        BINARY, [*SUMS["band"], {"kind": "boundary_dice", "log": True}, {"kind": "boundary_bce", "window": 31}]
    )
    assert not calls
    loss(random_logits(BINARY, SUMS["bce"]), random_labels(BINARY))
    assert calls == [5, 3]


@pytest.mark.parametrize("name", SUMS)
def test_the_background_is_learnt_with_everything_turned_round(name: str) -> None:
    terms, labels = SUMS[name], random_labels(BINARY)
    labels[:, :2] = IGNORE
    logits = random_logits(BINARY, terms)
    inverted = (1 - labels).where(labels != IGNORE, labels)
    found = loss_of(BINARY, terms, target="background")(logits, labels)
    torch.testing.assert_close(found, loss_of(BINARY, terms)(-logits, inverted))
    sure = sure_logits(BINARY, terms, random_labels(BINARY), 30.0)  # the network still says the foreground
    assert loss_of(BINARY, terms, target="background")(sure, random_labels(BINARY)).item() == pytest.approx(0, abs=1e-5)


def test_background_dice_differs_from_foreground_dice() -> None:
    logits = torch.full((1, 1, 2, 2), -30.0)
    labels = torch.tensor([[[1, 0], [0, 0]]], dtype=torch.uint8)
    assert loss_of(BINARY, SUMS["dice"])(logits, labels).item() == pytest.approx(1 - 1 / 2)
    assert loss_of(BINARY, SUMS["dice"], target="background")(logits, labels).item() == pytest.approx(1 - 7 / 8)


def test_auxiliary_maps_are_seen_by_the_distance_alone() -> None:
    labels = random_labels(TWO_MAPS)
    assert num_auxiliary_maps(parse(LossSettings, {"terms": SUMS["distance"]}), TWO_MAPS) == 2
    assert num_auxiliary_maps(parse(LossSettings, {"terms": SUMS["bce+dice"]}), TWO_MAPS) == 0
    logits = random_logits(TWO_MAPS, SUMS["distance"]).requires_grad_()
    target = signed_log_distance(labels, pixel_size=1280 / HEIGHT)
    expected = loss_of(TWO_MAPS, SUMS["bce"])(logits[:, :2], labels) + (logits[:, 2:] - target).abs().mean()
    found = loss_of(TWO_MAPS, SUMS["distance"])(logits, labels)
    torch.testing.assert_close(found, expected)
    loss_of(TWO_MAPS, SUMS["distance"][1:])(logits, labels).backward()
    assert logits.grad is not None
    assert not logits.grad[:, :2].any() and logits.grad[:, 2:].all()


def test_labels_of_another_size_are_refused() -> None:
    for task in (BINARY, THREE):
        with pytest.raises(ValueError, match="labels"):
            loss_of(task, SUMS["dice"])(torch.zeros(2, task.num_maps, 8, 8), torch.zeros((2, 8, 9), dtype=torch.uint8))
    with pytest.raises(ValueError, match="1 auxiliary"):
        loss_of(BINARY, SUMS["distance"])(torch.zeros(2, 1, 8, 8), torch.zeros((2, 8, 8), dtype=torch.uint8))
    with pytest.raises(ValueError, match="image height"):
        loss_of(BINARY, SUMS["dice"], 0)


@pytest.mark.parametrize(
    ("task", "term", "message"),
    [
        (THREE, {"kind": "bce"}, "use 'cross_entropy'"),
        (THREE, {"kind": "border_dice"}, "for binary and multilabel tasks"),
        (THREE, {"kind": "dice", "log": True}, "log: for binary and multilabel tasks"),
        (THREE, {"kind": "dice", "per_image": True}, "per_image: for binary"),
        (THREE, {"kind": "jaccard", "per_image": True}, "per_image: for binary"),
        (BINARY, {"kind": "jaccard", "window": 11}, "window: 'jaccard' has no such option"),
        (BINARY, {"kind": "bce", "log": True}, "only 'dice', 'boundary_dice', 'border_dice', 'jaccard'"),
        (BINARY, {"kind": "cross_entropy"}, "use 'bce'"),
        (BINARY, {"kind": "dice", "label_smoothing": 0.1}, "no such option"),
        (BINARY, {"kind": "bce", "smooth": 2.0}, "only 'dice'"),
        (BINARY, {"kind": "bce", "class_weights": [1.0]}, "only 'cross_entropy'"),
        (BINARY, {"kind": "dice", "window": 11}, "only 'boundary_bce', 'boundary_dice', 'border_bce', 'border_dice'"),
        (BINARY, {"kind": "border_bce", "weighting": "hill"}, "weighting: 'border_bce' has no such option"),
        (BINARY, {"kind": "bce", "alpha": 0.9}, "only 'bootstrapped_bce'"),
        (BINARY, {"kind": "bce", "hardest": 9}, "only 'online_bootstrapping'"),
        (BINARY, {"kind": "dice", "scale_pixels": False}, "no such option"),
        (THREE, {"kind": "cross_entropy", "class_weights": [1.0, 2.0]}, "expected 3 weights"),
        (BINARY, {"kind": "ohem"}, "for multiclass tasks, found a binary task; use 'bce'"),
        (TWO_MAPS, {"kind": "focal", "class_weights": [1.0]}, "expected 2 weights"),
        (THREE, {"kind": "tversky", "per_image": True}, "per_image: for binary"),
        (THREE, {"kind": "lovasz", "smooth": 2.0}, "smooth: 'lovasz' has no such option"),
        (BINARY, {"kind": "jaccard", "over_classes": "sum"}, "over_classes: for multiclass tasks"),
        (THREE, {"kind": "dice", "over_classes": "sum"}, "only 'jaccard'"),
        (THREE, {"kind": "cross_entropy", "gamma": 1.0}, "only 'focal'"),
        (THREE, {"kind": "ohem", "fraction": 0.1, "least": 9}, "least: fraction takes its place"),
        (THREE, {"kind": "cross_entropy", "fraction": 0.1}, "only 'ohem'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(task: Task, term: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        loss_of(task, [term])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", [THREE, TWO_MAPS])
def test_only_binary_tasks_have_one_background(task: Task) -> None:
    with pytest.raises(UserError, match=r"loss.target: 'background' is for binary tasks") as caught:
        loss_of(task, SUMS["dice"], target="background")
    assert "\n" not in str(caught.value)
