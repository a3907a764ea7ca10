"""Components of masks that can be counted by eye."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maskloom.masks import components, label_components
from maskloom.windows import Window


def test_components_of_a_known_mask() -> None:
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], bool)
    first, second, third = components(mask)
    assert (first.window, first.area) == (Window(0, 0, 2, 2), 2)  # corners touch: 8-connected
    assert first.mask.tolist() == [[True, False], [False, True]]
    assert (second.window, second.area) == (Window(0, 3, 1, 1), 1)
    assert (third.window, third.area) == (Window(2, 3, 1, 1), 1)


def test_a_piece_inside_the_box_of_another_is_not_in_its_mask() -> None:
    mask = np.ones((5, 5), bool)
    mask[1:4, 1:4] = False
    mask[2, 2] = True
    ring, dot = components(mask)
    assert ring.area == ring.mask.sum() == 16
    assert dot.window == Window(2, 2, 1, 1)


def test_empty_and_full() -> None:
    assert components(np.zeros((3, 4), bool)) == []
    assert [piece.area for piece in components(np.ones((3, 4), bool))] == [12]
    with pytest.raises(ValueError, match="bool mask"):
        label_components(np.ones((3, 4), np.uint8))


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(lambda size: arrays(bool, size)))
def test_pieces_put_together_are_the_mask(mask: np.ndarray) -> None:
    again = np.zeros(mask.shape, int)
    firsts = []
    for piece in components(mask):
        again[piece.window.slices] += piece.mask
        assert piece.area == piece.mask.sum()
        assert (piece.mask.any(axis=0).all() and piece.mask.any(axis=1).all()) or piece.area < piece.mask.size
        firsts.append((piece.window.top, piece.window.left + int(np.argmax(piece.mask[0]))))
    assert np.array_equal(again, mask)
    assert firsts == sorted(firsts)
