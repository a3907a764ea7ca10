"""An index classifier as a network: logits by hand, the same decision as its rule, nothing but pixels by themselves."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.models.index_network import LIMIT, IndexNetwork
from maskloom.rasters.indices import IndexRule, IndexSettings, index

RULES = (
    IndexRule(expression="(nir - red) / (nir + red)", threshold=0.25),
    None,
    IndexRule(expression="(nir - red) / (nir + red)", threshold=0.25, direction="below"),
    IndexRule(expression="red", threshold=2, direction="below"),
)
SETTINGS = IndexSettings(bands=("red", "nir"), rules=RULES, steepness=8)


def network() -> IndexNetwork:
    return IndexNetwork(SETTINGS, 4)


def test_logits_by_hand() -> None:
    images = torch.tensor([[[[1, 3, 0]], [[3, 1, 0]]]], dtype=torch.uint8)
    logits = network()(images)
    assert logits.dtype == torch.float32 and logits.shape == (1, 4, 1, 3)
    assert logits[0, :, 0].tolist() == [[2, -6, -LIMIT], [-LIMIT] * 3, [-2, 6, -LIMIT], [8, -8, 16]]


def test_logits_are_finite_whatever_the_pixels() -> None:
    strange = torch.tensor([0.0, -0.0, 1.0, torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 1e-45])
    images = torch.cartesian_prod(strange, strange).T.reshape(1, 2, 9, 9)
    logits = network()(images)
    assert bool(logits.isfinite().all()) and float(logits.abs().max()) == LIMIT
    assert float(torch.sigmoid(logits.new_tensor(LIMIT))) == 1
    values = index(RULES[0].expression).evaluate({"red": images[:, 0], "nir": images[:, 1]})  # type: ignore[union-attr]
    assert bool((logits[:, 0][~values.isfinite()] == -LIMIT).all()), "what is not finite is not in the class"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=30), st.integers(-20, 20))
def test_logits_from_0_on_where_the_rule_holds(pixels: list[tuple[int, int]], hundredths: int) -> None:
    rules = tuple(
        IndexRule(expression="(a - b) / (a + b)", threshold=hundredths / 20, direction=direction)
        for direction in ("above", "below")
    )
    image = np.array(pixels, np.uint16)
    logits = IndexNetwork(IndexSettings(bands=("a", "b"), rules=rules), 2)(torch.from_numpy(image).T[None, :, None])
    values = index(rules[0].expression).evaluate({"a": image[:, 0], "b": image[:, 1]})
    for rule, found in zip(rules, logits[0, :, 0], strict=True):
        np.testing.assert_array_equal(found.numpy() >= 0, rule.holds(values))


def test_every_pixel_by_itself() -> None:
    images = torch.randint(0, 2048, (3, 2, 20, 24), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    whole = network()(images)
    assert torch.equal(network()(images[1:2, :, 3:10, 5:6]), whole[1:2, :, 3:10, 5:6])
    assert torch.equal(network()(images.flip(-1).contiguous(memory_format=torch.channels_last)), whole.flip(-1))


def test_thresholds_travel_in_the_state() -> None:
    state = network().state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "thresholds": (torch.float32, (4,)),
        "signs": (torch.float32, (4,)),
    }
    assert state["signs"].tolist() == [1, 0, -1, -1]
    other = network()
    first, last = (rule for rule in (RULES[0], RULES[3]) if rule)
    other.set_rules(
        [first.model_copy(update={"threshold": -0.5}), None, None, last.model_copy(update={"direction": "above"})]
    )
    with torch.device("meta"):
        loaded = IndexNetwork(SETTINGS, 4)
    loaded = loaded.to_empty(device="cpu")
    loaded.load_state_dict(other.state_dict())
    images = torch.randint(0, 9, (2, 2, 4, 5))
    assert torch.equal(loaded(images), other(images)) and not torch.equal(loaded(images), network()(images))
    assert bool((other(images)[:, 2] == -LIMIT).all()), "a map that was switched off is found nowhere"
    assert not list(other.parameters())
    for same in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        assert torch.equal(same(images), other(images))


def test_bf16_autocast_changes_nothing() -> None:
    images = torch.rand(1, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = network()(images)
    assert torch.equal(found, network()(images))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.index\.rules: expected 2, one per class .*, found 4"):
        IndexNetwork(SETTINGS, 2)
    with pytest.raises(UserError, match=r"expected 2 channels \(red, nir\), found 3"):
        network()(torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match="build another network"):
        network().set_rules([IndexRule(expression="nir"), None, None, None])
    with pytest.raises(ValueError):
        network().set_rules(RULES[:3])
