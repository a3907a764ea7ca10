"""A bundle and a checkpoint carry checksums: no flipped bit of their content passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from maskloom.errors import BadFile
from maskloom.training.checkpoint import Position, read_position, restore, save_checkpoint
from maskloom.training.optimisers import OptimiserSettings, build_optimiser
from maskloom.training.updates import Updater


def updater() -> Updater:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return Updater(
        network,
        build_optimiser(OptimiserSettings(), network),
        average=None,
        scaler=GradScaler("cpu", enabled=False),
        clip_norm=None,
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.99])
def test_no_flipped_bit_of_a_checkpoint_is_continued(tmp_path: Path, share: float) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, Position(fingerprint="a", batch_size=4, step=2), updater())
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(BadFile, match="delete it to train anew"):
        read_position(path)
        restore(path, updater())
