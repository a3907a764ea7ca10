"""Training in 16 bits: bf16 learns as float32 does and leaves float32 weights; fp16 outlives overflows."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import TASK, bce, tiny_job
from torch import Tensor, nn

from maskloom.data.image_io import read_image
from maskloom.data.input_policy import InputPolicy
from maskloom.errors import UserError
from maskloom.inference.merging import Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.models.bundle import load_bundle
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.records import Record
from maskloom.training.engine import TrainingJob, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

EPOCHS = 4
STEPS = 6 * EPOCHS


def small_segmenter() -> Segmenter:
    """Returns a published network of few filters, always the same one, that its bundle can be built from."""
    torch.manual_seed(0)
    return build_segmenter(
        NetworkSettings(architecture="unet_dilated", width=1 / 16, weights="none"),
        task=TASK,
        policy=InputPolicy(mode="full", multiple=8),
        normalisation=Normalisation(mean=(0.2,) * 3, std=(0.2,) * 3),
    )


def job(folder: Path, records: list[Record], precision: str, **changes: Any) -> TrainingJob:
    settings: dict[str, Any] = {
        "segmenter": small_segmenter(), "precision": precision, "augmented": False, "epochs": EPOCHS,
        "accumulation": 1, "ema_decay": None, "validate": None, "schedule": ScheduleSettings(kind="constant"),
        "optimiser": OptimiserSettings(lr=0.01),
    }  # fmt: skip
    return tiny_job(folder, records, **(settings | changes))


def assert_float32_and_finite(path: Path) -> None:
    for name, tensor in load_file(path).items():
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32, name
        assert torch.isfinite(tensor.float()).all(), name


def test_bf16_learns_as_float32_does_and_its_bundle_predicts(tmp_path: Path, records: list[Record]) -> None:
    trained = {}
    for precision, expected in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        made, seen = job(tmp_path / precision, records, precision), set()
        network = made.segmenter.network
        first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda module, given, made_of, seen=seen: seen.add(made_of.dtype))
        trained[precision] = train(made)
        assert seen == {expected}, "what the network computes in"
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    losses = {precision: [epoch["loss"] for epoch in result.epochs] for precision, result in trained.items()}
    assert losses["bf16"][-1] < 0.6 * losses["bf16"][0]
    assert losses["bf16"] != losses["float32"]
    assert losses["bf16"] == pytest.approx(losses["float32"], abs=0.1)

    last = trained["bf16"].last
    assert_float32_and_finite(last)
    predictor = Predictor(
        Merge(children=("a",)), {"a": load_bundle(last)}, InferenceSettings(views="none"), torch.device("cpu")
    )
    found = [predictor(read_image(record.image))["result"][0] >= 128 for record in records]
    truth = [read_image(record.truth.path)[..., 0] > 0 for record in records]  # type: ignore[union-attr]
    shared = np.logical_and(found, truth).sum()
    assert 2 * shared / (np.sum(found) + np.sum(truth)) > 0.8


def test_fp16_halves_its_scale_until_gradients_fit_and_then_learns(tmp_path: Path, records: list[Record]) -> None:
    """A loss of 1000 times the usual size: its scaled gradients do not fit into 16 bits at first."""
    made = job(tmp_path, records, "fp16", clip_norm=None)
    weights = [weight for weight in made.segmenter.network.parameters() if weight.ndim == 4]
    before: list[list[Tensor]] = []

    def large(logits: Tensor, labels: Tensor) -> Tensor:
        before.append([weight.detach().clone() for weight in weights])
        return 1000 * bce(logits.float(), labels)

    result = train(replace(made, loss=large))
    steps = before[-STEPS:]  # what was tried before the first step is not among them
    moved = [not all(map(torch.equal, *pair)) for pair in pairwise(steps)]
    assert not moved[0] and moved[-1], "skipped at first, and no more at the end"
    assert sum(moved) > STEPS / 3
    losses = [epoch["loss"] for epoch in result.epochs]
    assert losses[-1] < 0.8 * losses[0]
    assert_float32_and_finite(result.last)
    assert sum(epoch["skipped_steps"] for epoch in result.epochs) >= moved.count(False)


def test_fp16_gives_up_where_no_scale_lets_gradients_fit(tmp_path: Path, records: list[Record]) -> None:
    """A finite loss whose gradients are infinite: the scaler alone would halve its scale to 0, and learn nothing."""

    def steep(logits: Tensor, labels: Tensor) -> Tensor:
        logits.register_hook(lambda gradient: gradient * torch.inf)
        return bce(logits.float(), labels)

    made = replace(job(tmp_path, records, "fp16", epochs=20), loss=steep)
    with pytest.raises(UserError, match=r"fit into the 16 bits .* epoch 6 of 20, step 33 of 120") as caught:
        train(made)
    assert "\n" not in str(caught.value) and "state training.precision=float32" in str(caught.value)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [each["skipped_steps"] for each in log if each["event"] == "epoch"] == [6] * 5
