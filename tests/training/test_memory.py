from __future__ import annotations

import pytest
import torch
from torch import nn

from maskloom.training import memory
from maskloom.training.memory import fitting_pieces, is_out_of_memory, saved_bytes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("room", "pieces"), [(100, 1), (12, 1), (11, 2), (6, 2), (5, 4), (2, 8), (1, 12), (0, 12)])
def test_fewest_pieces_that_fit_are_found_by_trying(room: int, pieces: int) -> None:
    tried = []

    def attempt(count: int) -> None:
        tried.append(count)
        if count > room:
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert fitting_pieces(12, attempt, device=CUDA, network=nn.Identity()) == pieces
    assert tried == sorted(tried, reverse=True)


def test_other_errors_while_trying_are_not_hidden() -> None:
    def attempt(count: int) -> None:
        raise RuntimeError("wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape"):
        fitting_pieces(4, attempt, device=CUDA, network=nn.Identity())


def test_what_backward_keeps_is_measured_without_the_weights() -> None:
    network = nn.Linear(1000, 10)
    images = torch.zeros(4, 1000)

    def run() -> None:
        network(images).exp().sum().backward()

    assert saved_bytes(run, network) == 4 * (4 * 1000) + 4 * (4 * 10)  # the input, and exp's result


def test_on_a_cpu_the_need_of_one_image_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Linear(250, 1)

    def attempt(count: int) -> None:
        network(torch.zeros(count, 250)).sum().backward()  # keeps 1000 bytes an image

    monkeypatch.setattr(memory, "free_memory", lambda: 4_100 / memory.SHARE)
    assert fitting_pieces(16, attempt, device=CPU, network=network) == 4


def test_out_of_memory_is_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 5 bytes"))
    assert not is_out_of_memory(RuntimeError("shape"))


def test_free_memory_is_a_number_of_bytes() -> None:
    assert memory.free_memory() > 2**20
