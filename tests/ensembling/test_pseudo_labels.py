"""Measures with closed answers, and a selection that gives its reasons."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.config import parse
from maskloom.data.statistics import RecordFacts
from maskloom.ensembling.pseudo_labels import (
    Candidate,
    PseudoLabelSettings,
    agreement,
    choose,
    confidence,
    nothing_chosen,
    pseudo_label,
    sureness,
)
from maskloom.ensembling.pseudo_leaks import Unlabelled, barred, kin
from maskloom.errors import UserError
from maskloom.records import IGNORE, Task

CAR = Task(kind="binary", classes=("car",))
LAYERS = Task(kind="multilabel", classes=("road", "tree"))
TWO = Task(kind="multiclass", classes=("ground", "car"))
THREE = Task(kind="multiclass", classes=("ground", "house", "water"))


def wanted(**values: Any) -> PseudoLabelSettings:
    return parse(PseudoLabelSettings, {"members": ["pupil"], **values})


# --- how sure --------------------------------------------------------------------------------------------------------


def test_sureness_by_hand() -> None:
    values = np.array([[[0, 127, 128, 255, 191]]], np.uint8)
    assert sureness(values, CAR).tolist() == [[[255, 1, 1, 255, 127]]]
    assert sureness(values.repeat(2, 0), LAYERS).shape == (2, 1, 5)
    three = np.array([[[200]], [[30]], [[25]]], np.uint8)
    assert sureness(three, THREE).tolist() == [[[170]]]
    opposite = np.concatenate([255 - values, values])
    assert np.array_equal(sureness(opposite, TWO), sureness(values, CAR))  # two exclusive classes are one


def test_confidence_looks_near_the_boundary_alone() -> None:
    values = np.full((1, 20, 40), 10, np.uint8)
    values[:, :, 20:] = 250
    values[:, :, 18:20] = 100
    edge = (55 + 245) / 2 / 255  # columns 19 (100) and 20 (250)
    assert confidence(values, CAR, band=0) == pytest.approx(edge)
    wider = (2 * 55 + 235 + 3 * 245) / 6 / 255  # columns 17 … 22, distance 2 from 19 and 20
    assert confidence(values, CAR, band=2) == pytest.approx(wider)
    far = values.copy()
    far[:, :, :10] = 120  # as unsure as can be, and not near anything
    assert confidence(far, CAR, band=2) == confidence(values, CAR, band=2)
    assert confidence(np.concatenate([255 - values, values]), TWO, band=2) == pytest.approx(wider)


def test_an_image_without_a_boundary_is_looked_at_whole() -> None:
    assert confidence(np.full((1, 4, 4), 55, np.uint8), CAR, band=3) == pytest.approx(145 / 255)
    mixed = np.full((2, 4, 4), 55, np.uint8)
    mixed[0, 2:] = 255
    near = (145 + 255) / 2 / 255  # rows 1 and 2 of the first map; the second has no boundary
    assert confidence(mixed, LAYERS, band=0) == pytest.approx(near)


def test_agreement_is_the_mean_dice_of_all_pairs() -> None:
    maps = [np.zeros((1, 4, 4), np.uint8) for _ in range(3)]
    maps[0][0, :2], maps[1][0, :2], maps[2][0, 1:3] = 200, 130, 255
    assert agreement(maps, CAR) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert agreement(maps[:1], CAR) == 1
    assert agreement([np.zeros((1, 4, 4), np.uint8)] * 2, CAR) == 1
    classes = [np.concatenate([255 - values, values, values * 0]) for values in maps[1:]]
    assert agreement(classes, THREE) == pytest.approx(0.5)  # no water in either


def test_unsure_pixels_are_ignored() -> None:
    values = np.array([[[0, 102, 103, 152, 153, 255]]], np.uint8)
    assert pseudo_label(values, CAR, ignore_below=0.2).tolist() == [[0, 0, IGNORE, IGNORE, 1, 1]]
    assert pseudo_label(values, CAR, ignore_below=0).tolist() == [[0, 0, 0, 1, 1, 1]]
    layers = pseudo_label(np.concatenate([values, 255 - values]), LAYERS, ignore_below=0.2)
    assert layers[1].tolist() == [[1, 1, IGNORE, IGNORE, 0, 0]]
    three = np.array([[[90, 90]], [[89, 0]], [[76, 165]]], np.uint8)
    assert pseudo_label(three, THREE, ignore_below=0.2).tolist() == [[IGNORE, 2]]


# --- which -----------------------------------------------------------------------------------------------------------


def candidates(*measured: tuple[float, float]) -> list[Candidate]:
    return [Candidate(id=f"i{index}", confidence=a, agreement=b) for index, (a, b) in enumerate(measured)]


def test_the_surest_are_taken_and_everything_has_a_reason() -> None:
    images = candidates((0.9, 0.8), (0.4, 1), (0.7, 0.9), (0.9, 0.9), (0.95, 0.1))
    images.append(Candidate(id="copy", confidence=1, agreement=1, barred="look-alike", barred_by="it is a copy of x"))
    choices = choose(images, wanted(number=2, minimum_agreement=0.5), num_labelled=10)
    assert [(choice.id, choice.reason, choice.why) for choice in choices] == [
        ("copy", "look-alike", "it is a copy of x"),
        ("i4", "disagreement", "agreement 0.100 is below 0.5"),
        ("i3", "chosen", "number 1 by confidence"),
        ("i0", "chosen", "number 2 by confidence"),
        ("i2", "beyond the number", "number 3 by confidence, 2 are taken"),
        ("i1", "unsure", "confidence 0.400 is below 0.5"),
    ]
    by_agreement = choose(images, wanted(number=1, rank_by="agreement"), num_labelled=10)
    assert [choice.id for choice in by_agreement if choice.chosen] == ["i3"]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=12), st.randoms())
def test_the_order_of_the_images_does_not_matter(measured: list[tuple[float, float]], random: Any) -> None:
    images = candidates(*measured)
    shuffled = images.copy()
    random.shuffle(shuffled)
    for rules in (wanted(share=0.5), wanted(rank_by="agreement", number=3, minimum_confidence=0.2)):
        choices = choose(images, rules, num_labelled=3)
        assert choose(shuffled, rules, num_labelled=3) == choices
        taken = [choice for choice in choices if choice.chosen]
        assert all(choice.confidence >= rules.minimum_confidence for choice in taken)
        assert len(choices) == len(images) and len(taken) <= rules.limit(len(images), 3)


def test_limits() -> None:
    assert wanted().limit(100, 1000) == 100
    assert wanted().limit(100, 10) == 40  # at most four for each label
    assert wanted(outnumber=19).limit(100_064, 4070) == 77_330
    assert wanted(share=0.25).limit(100, 1000) == 25
    assert wanted(number=7).limit(100, 1000) == 7 and wanted(number=700).limit(100, 1000) == 100
    assert wanted(outnumber=0.01).limit(100, 10) == 1
    with pytest.raises(UserError, match="number or share"):
        wanted(number=3, share=0.5)
    with pytest.raises(UserError, match="pupil cannot learn from its own labels"):
        wanted(teachers=["pupil"])


def test_nothing_to_choose_says_how_far_the_best_was_off() -> None:
    def message(choices: list[Any], **values: Any) -> str:
        return str(nothing_chosen(choices, wanted(**values), round_="pseudo.0", fold="fold 1 of pupil"))

    rules: dict[str, Any] = {"minimum_confidence": 0.9}
    text = message(choose(candidates((0.3, 1), (0.617, 1)), wanted(**rules), num_labelled=3), **rules)
    assert "fold 1 of pupil, found none among 2: the best confidence was 0.617 (i1)" in text
    assert "pseudo.0.minimum_confidence=0.9; set it to 0.61 or less" in text
    rules = {"minimum_agreement": 0.9}
    text = message(choose(candidates((0.9, 0.8)), wanted(**rules), num_labelled=3), **rules)
    assert "the best agreement was 0.800 (i0), below pseudo.0.minimum_agreement=0.9; set it to 0.8 or less" in text
    shown = [Candidate(id="i", confidence=1, agreement=1, barred="validated", barred_by="the fold validates its group")]
    text = message(choose(shown, wanted(), num_labelled=3))
    assert "for instance i: the fold validates its group; add images of other groups" in text


# --- what a fold must not learn from ---------------------------------------------------------------------------------


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32)).astype(np.uint8)


def facts(name: str, pixels: np.ndarray) -> RecordFacts:
    return RecordFacts(
        id=name, group=name, size=(32, 32), dtype="uint8", mean=(0,), std=(1,), class_pixels=(1,), ignored=0, valid=1,
        digest=str(hash(pixels.tobytes())), thumbnail=pixels,
    )  # fmt: skip


def unlabelled(name: str, pixels: np.ndarray, group: str = "") -> Unlabelled:
    return Unlabelled(id=name, group=group or name, digest=str(hash(pixels.tobytes())), thumbnail=pixels)


def noisy(pixels: np.ndarray, seed: int, amount: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-amount, amount + 1, pixels.shape)
    return np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)


def test_copies_and_look_alikes_are_kin() -> None:
    labelled = [facts(f"l{index}", picture(index)) for index in range(6)]
    images = [
        unlabelled("other", picture(20)),
        unlabelled("copy", picture(0)),
        unlabelled("alike", noisy(picture(1), 0, 12)),
        unlabelled("twin of other", noisy(picture(20), 1, 12)),
    ]
    found = kin(labelled, images)
    assert found.keys() == {"copy", "alike"}
    assert found["copy"] == {"l0": "it is a copy of l0"}
    assert list(found["alike"]) == ["l1"] and found["alike"]["l1"].startswith("it looks like l1 (0.9")
    assert kin([], images[:1]) == {}
    labelled.append(facts("twin of l0", noisy(picture(0), 2, 12)))
    assert kin(labelled, images)["copy"].keys() == {"l0", "twin of l0"}


def test_a_chain_of_look_alikes_counts_as_one() -> None:
    first = 70 + picture(3) // 2  # away from the ends, so that noise is not cut off
    middle = noisy(first, 101, 18)
    last = noisy(middle, 102, 18)
    others = [facts(f"l{index}", picture(30 + index)) for index in range(40)]
    found = kin([facts("first", first), facts("last", last), *others], [unlabelled("middle", middle)])
    assert found["middle"].keys() == {"first", "last"}
    further = noisy(last, 103, 18)
    found = kin([facts("first", first), facts("last", last), *others], [
        unlabelled("middle", middle), unlabelled("further", further),
    ])  # fmt: skip
    assert found["further"].keys() == {"first", "last"} and "at second hand" in found["further"]["first"]


def test_a_fold_is_barred_from_what_it_validates_only() -> None:
    image = unlabelled("u", picture(0), group="car7")
    relatives = {"l1": "it is a copy of l1"}
    assert barred(image, relatives, validated={"l1"}, groups={"car1"}) == (
        "look-alike",
        "it is a copy of l1, which the fold validates",
    )
    assert barred(image, relatives, validated={"l2"}, groups={"car2"}) is None
    assert barred(image, {}, validated={"x"}, groups={"car7"}) == ("validated", "the fold validates its group car7")
