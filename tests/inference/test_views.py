from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import LAYERS, neighbourhood, segmenter

from maskloom.errors import UserError
from maskloom.inference.view_merging import ViewMerger
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


def test_published_four_views_are_the_geometric_mean_of_four_predictions() -> None:
    """Dstl, 3rd place: (p₁·p₂·p₃·p₄)^¼ of the image, its two mirror images and its transposed."""
    assert VIEW_SETS["flips_transpose"] == ("identity", "hflip", "vflip", "transpose")
    member = segmenter(neighbourhood(2), LAYERS).eval()
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moves = (lambda each: each, lambda each: each.flip(-1), lambda each: each.flip(-2), lambda each: each.mT)
    with torch.inference_mode():
        found = [move(member.logits(move(images)).sigmoid()) for move in moves]  # each move undoes itself
        merger = ViewMerger(find_views("flips_transpose"), "geometric", 16 * 24 * 3)
        merged = merger.merge(member, merger.see(images))
    expected = torch.stack(found).prod(dim=0) ** (1 / 4)
    torch.testing.assert_close(merged[:, 0], expected, rtol=1e-5, atol=1e-6)
    assert (torch.stack(found).mean(dim=0) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("names", ["flop", ("identity", "identity"), ("hflop",), ()])
def test_unknown_views_are_refused(names: str | tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="views"):
        find_views(names)
