from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.errors import UserError
from maskloom.inference.views import VIEW_SETS, VIEWS, find_views


@given(st.sampled_from(sorted(VIEWS)), st.integers(1, 7), st.integers(1, 7), st.integers(1, 3))
def test_inverse_undoes_every_view_exactly(name: str, height: int, width: int, channels: int) -> None:
    images = torch.arange(2 * channels * height * width).reshape(2, channels, height, width)
    view = VIEWS[name]
    assert torch.equal(view.inverse(view.forward(images)), images)


def test_views_are_what_their_names_say() -> None:
    image = torch.arange(6).reshape(2, 3)
    expected = {
        "identity": image,
        "hflip": torch.tensor([[2, 1, 0], [5, 4, 3]]),
        "vflip": torch.tensor([[3, 4, 5], [0, 1, 2]]),
        "rot180": torch.rot90(image, 2),
        "transpose": image.T,
        "rot90": torch.rot90(image, 1),
        "rot270": torch.rot90(image, 3),
        "antitranspose": torch.rot90(image.flip(1), 3),
    }
    for name, moved in expected.items():
        assert torch.equal(VIEWS[name].forward(image), moved), name


def test_the_eight_views_differ() -> None:
    image = torch.arange(9).reshape(3, 3)
    assert len({tuple(view.forward(image).flatten().tolist()) for view in VIEWS.values()}) == 8


def test_sets_and_lists() -> None:
    assert [view.name for view in find_views("flip")] == ["identity", "hflip"]
    assert [view.name for view in find_views(("transpose", "identity"))] == ["transpose", "identity"]
    assert all(find_views(name)[0].is_identity for name in VIEW_SETS)


@pytest.mark.parametrize("names", ["flop", ("identity", "identity"), ("hflop",), ()])
def test_unknown_views_are_refused(names: str | tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="views"):
        find_views(names)
