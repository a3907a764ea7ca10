"""A bundle and a checkpoint carry checksums: no flipped bit of their content passes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.amp.grad_scaler import GradScaler

from maskloom.errors import BadFile
from maskloom.training.checkpoint import KEY, Position, is_sealed_checkpoint, read_position, restore, save_checkpoint
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
    with pytest.raises(BadFile, match="delete it to train anew"):
        is_sealed_checkpoint(path)


def test_whether_a_checkpoint_carries_checksums(tmp_path: Path) -> None:
    path, header = tmp_path / "checkpoint.safetensors", {"version": 1, "position": {}}
    save_checkpoint(path, Position(fingerprint="a", batch_size=4, step=2), updater())
    assert is_sealed_checkpoint(path)
    save_file({}, path, metadata={KEY: json.dumps(header)})  # of an earlier version
    assert not is_sealed_checkpoint(path)
    save_file({}, path, metadata={KEY: json.dumps(header | {"tensors": 0, "checkrum": "a bit of its name is flipped"})})
    with pytest.raises(BadFile, match="its checksum differs"):
        is_sealed_checkpoint(path)
    with pytest.raises(BadFile):
        is_sealed_checkpoint(tmp_path / "none.safetensors")
