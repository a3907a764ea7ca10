from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskloom.training.mining import HardNegatives

CPU = torch.device("cpu")


def order(num_groups: int, every: int | None, losses: list[float]) -> list[int]:
    """Returns the numbers of the groups that the updates of an epoch learn from; group k has the loss losses[k]."""
    mining = HardNegatives(num_groups, every=every, device=CPU)
    found = []
    for update in range(mining.num_updates):
        group = mining.hardest(update) if mining.is_repeat(update) else mining.num_before(update)
        # A repeat's own loss is the lowest here; if it were remembered, a later choice would change.
        loss = -9.0 if mining.is_repeat(update) else losses[group]
        mining.remember(update, torch.tensor(loss))
        found.append(group)
    return found


def test_the_hardest_of_each_window_comes_once_more() -> None:
    losses = [0.1, 0.9, 0.2, 0.5, 0.3, 0.4, 7.0, 0.2]
    assert order(8, 3, losses) == [0, 1, 2, 1, 3, 4, 5, 3, 6, 7]  # the last two are no whole window


def test_a_window_can_end_the_epoch() -> None:
    assert order(4, 2, [1.0, 2.0, 3.0, 4.0]) == [0, 1, 1, 2, 3, 3]


def test_an_epoch_shorter_than_the_window_is_one() -> None:
    assert order(3, 10, [0.2, 0.1, 0.3]) == [0, 1, 2, 2]
    assert order(1, 10, [0.2]) == [0, 0]


def test_without_mining_nothing_is_repeated() -> None:
    assert order(5, None, [0.1] * 5) == [0, 1, 2, 3, 4]


def test_of_equal_losses_the_first_is_taken_and_what_is_not_finite_never() -> None:
    assert order(3, 3, [0.5, 0.5, 0.1])[-1] == 0
    assert order(4, 4, [torch.nan, 0.1, torch.inf, 0.05])[-1] == 1


@given(st.integers(1, 60), st.integers(1, 12), st.data())
def test_every_group_comes_in_order_and_each_whole_window_once_more(
    num_groups: int, every: int, data: st.DataObject
) -> None:
    values = st.lists(st.floats(0, 8, width=32), min_size=num_groups, max_size=num_groups)
    losses = data.draw(values)
    found = order(num_groups, every, losses)
    window = min(every, num_groups)
    expected = []
    for first in range(0, num_groups, window):
        groups = list(range(first, min(first + window, num_groups)))
        expected += groups + ([max(groups, key=losses.__getitem__)] if len(groups) == window else [])
    assert found == expected


@pytest.mark.parametrize("start", range(10))
def test_an_epoch_taken_up_anywhere_goes_on_alike(start: int) -> None:
    losses = [0.1, 0.9, 0.2, 0.5, 0.3, 0.4, 7.0, 0.2]
    whole = order(8, 3, losses)
    first, second = (HardNegatives(8, every=3, device=CPU) for _ in range(2))
    for update in range(start):
        first.remember(update, torch.tensor(losses[whole[update]]))
    second.losses.copy_(first.losses)  # as through a checkpoint
    for update in range(start, second.num_updates):
        group = second.hardest(update) if second.is_repeat(update) else second.num_before(update)
        assert group == whole[update]
        second.remember(update, torch.tensor(losses[group]))
