"""Training of networks that give coarser maps too, as those with deep supervision do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_job import TASK, tiny_job
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.losses.terms import LossSettings, build_loss
from maskloom.records import Record
from maskloom.training.engine import train


class TwoOutputs(nn.Module):
    """Logits, and in training mode those of a coarser stage."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head, self.coarse = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 1, 1)

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        maps = self.first(images)
        logits: Tensor = self.head(maps)
        return (logits, self.coarse(nn.functional.avg_pool2d(maps, 2))) if self.training else logits


@pytest.mark.parametrize("weight", [0.4, 0.0])
def test_coarser_maps_learn_with_the_others(tmp_path: Path, records: list[Record], weight: float) -> None:
    network = TwoOutputs()
    before = network.coarse.weight.detach().clone()
    loss = build_loss(parse(LossSettings, {"deep_supervision": weight}), TASK, image_height=32)
    job = tiny_job(tmp_path, records, network=network, loss=loss, epochs=4, ema_decay=None, soup=2)
    result = train(job)
    losses = [epoch["loss"] for epoch in result.epochs]
    assert losses[-1] < 0.9 * losses[0] and result.best_score is not None
    learnt = load_file(result.last)["coarse.weight"]
    if weight:
        assert not torch.allclose(learnt, before, atol=0.01)
    assert result.soup is not None and load_file(result.soup).keys() == load_file(result.last).keys()


def test_the_loss_is_the_sum_of_both(tmp_path: Path, records: list[Record]) -> None:
    def first_loss(name: str, weight: float) -> float:
        loss = build_loss(parse(LossSettings, {"deep_supervision": weight}), TASK, image_height=32)
        job = tiny_job(tmp_path / name, records, network=TwoOutputs(), loss=loss, epochs=1, batch_size=12)
        return float(train(job).epochs[0]["loss"])

    plain, half, whole = first_loss("a", 0.0), first_loss("b", 0.5), first_loss("c", 1.0)
    assert half - plain == pytest.approx((whole - plain) / 2, rel=1e-4) and half > plain
