"""A scheduler ends a training: the state is saved at the end of the step, and the training goes on from there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tiny_job import bce, tiny_job
from torch import Tensor

from maskloom.files import checksum
from maskloom.records import Record
from maskloom.termination import terminable
from maskloom.training.checkpoint import read_position
from maskloom.training.engine import train


@pytest.mark.parametrize("in_background", [False, True])
def test_a_terminated_training_is_saved_and_continues_to_the_same_bytes(
    tmp_path: Path, records: list[Record], in_background: bool
) -> None:
    undisturbed = train(tiny_job(tmp_path / "a", records))
    calls, asked = 0, 0.0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls, asked
        calls += 1
        if calls == 9:  # the first of the two batches of step 5
            asked = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
        return bce(logits, labels)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.SIG_IGN if in_background else signal.default_int_handler)
    try:
        with terminable() as terminated, pytest.raises(KeyboardInterrupt):
            train(tiny_job(tmp_path / "b", records, loss=loss))
    finally:
        signal.signal(signal.SIGINT, before)
    assert terminated and time.monotonic() - asked < 30
    position = read_position(tmp_path / "b" / "checkpoint.safetensors")
    assert position is not None and (position.epoch, position.step_in_epoch, position.step) == (1, 2, 5)
    continued = train(tiny_job(tmp_path / "b", records))
    assert checksum(continued.last) == checksum(undisturbed.last)
