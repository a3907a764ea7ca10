"""What a training does differently from epoch to epoch: phases, fresh optimisers, mining, freezing, kept epochs."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_job import bce, many_phases, tiny_job, tiny_network
from torch import Tensor, nn

from maskloom.data.augment import AugmentSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.loader import batches
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.models.bundle import read_extra
from maskloom.records import Record
from maskloom.training.checkpoint import read_position
from maskloom.training.engine import TrainingJob, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import PIXEL_POWER, Phase
from maskloom.training.schedules import ScheduleSettings
from maskloom.training.tracking import TrainingProgress, read_log


def scores_in_turn(scores: list[float]) -> Any:
    remaining = iter(scores)
    return lambda segmenter: next(remaining)


class Watch:
    """A loss that remembers what it was given, and the weights before each step."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.labels: list[Tensor] = []
        self.losses: list[float] = []
        self.weights: list[Tensor] = []

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = bce(logits, labels)
        self.labels.append(labels.clone())
        self.losses.append(loss.item())
        self.weights.append(torch.cat([tensor.detach().flatten() for tensor in self.network.parameters()]))
        return loss


def test_phases_that_change_nothing_change_no_byte(tmp_path: Path, records: list[Record]) -> None:
    plain = train(tiny_job(tmp_path / "plain", records))
    phased = train(tiny_job(tmp_path / "phased", records, epochs=3, phases=(Phase(epochs=1), Phase(epochs=2))))
    assert checksum(phased.last) == checksum(plain.last)
    assert [epoch["phase"] for epoch in phased.epochs] == [1, 2, 2]


def test_every_phase_has_its_own_learning_rates_and_plateau(tmp_path: Path, records: list[Record]) -> None:
    """The plateau of the second phase forgets the high score of the first one."""
    phases = (
        Phase(epochs=2, schedule=ScheduleSettings(kind="decay", every=1, gamma=0.5)),
        Phase(
            epochs=4,
            optimiser=OptimiserSettings(lr=0.01),
            schedule=ScheduleSettings(kind="plateau", patience=0, gamma=0.1),
        ),
    )
    validate = scores_in_turn([0.2, 0.9, 0.3, 0.4, 0.4, 0.3])
    heard: list[TrainingProgress] = []
    job = tiny_job(tmp_path, records, epochs=6, phases=phases, validate=validate)
    result = train(job, on_progress=heard.append)
    rates = [epoch["learning_rate"] for epoch in result.epochs]
    assert rates == pytest.approx([0.02, 0.01, 0.01, 0.01, 0.01, 0.001])
    assert result.best_epoch == 2
    assert (heard[-1].step, heard[-1].steps) == (18, 18)


@pytest.mark.parametrize(("fresh", "moves_by_the_rate"), [("epoch", True), (None, False)])
def test_a_new_adam_each_epoch_remembers_no_gradient(
    tmp_path: Path, records: list[Record], fresh: Any, moves_by_the_rate: bool
) -> None:
    """The first step of an Adam moves each weight by the learning rate; the epoch before it stands still at rate 0."""
    network = tiny_network(with_norm=False, dropout=0.0)
    watch = Watch(network)
    settings: dict[str, Any] = {"batch_size": 4, "accumulation": 1, "clip_norm": None, "ema_decay": None}
    train(
        tiny_job(
            tmp_path,
            records,
            network=network,
            loss=watch,
            optimiser=OptimiserSettings(kind="adam", lr=0.001, weight_decay=0, epsilon=1e-20),
            schedule=ScheduleSettings(kind="cycles", cycle=((1, 0.0), (1, 1.0))),
            phases=(Phase(epochs=2, fresh_optimiser=fresh),),
            epochs=2,
            **settings,
        )
    )
    assert len(watch.weights) == 6
    assert torch.equal(watch.weights[3], watch.weights[0])
    moved = (watch.weights[4] - watch.weights[3]).abs()
    close = torch.isclose(moved[moved > 0], torch.tensor(0.001), rtol=1e-3)
    assert len(close) > 300
    assert bool(close.all()) == moves_by_the_rate


def test_each_phase_augments_in_its_own_way(tmp_path: Path, records: list[Record]) -> None:
    watch = Watch(tiny_network())
    phases = (Phase(epochs=1), Phase(epochs=1, augment=AugmentSettings(horizontal_flip=1.0)), Phase(epochs=1))
    settings: dict[str, Any] = {"batch_size": 4, "accumulation": 1, "epochs": 3}
    job = tiny_job(tmp_path, records, loss=watch, augmented=False, phases=phases, **settings)
    train(job)
    raw = [batch.labels for epoch in range(3) for batch in batches(job.dataset, epoch=epoch, batch_size=4)]
    assert len(raw) == len(watch.labels) == 9
    for number, (found, stored) in enumerate(zip(watch.labels, raw, strict=True)):
        assert torch.equal(found, stored if number < 3 else stored.flip(-1))


def test_progressive_resizing_shows_smaller_images_first(tmp_path: Path, records: list[Record]) -> None:
    """Two epochs at half the sides, one at all; one schedule runs over them."""
    whole = InputPolicy(mode="resize", size=(64, 96))
    plain, watch = tiny_job(tmp_path, records), Watch(tiny_network())
    job = replace(
        tiny_job(tmp_path, records, epochs=3, progressive=0.7, loss=watch),
        dataset=replace(plain.dataset, policy=whole),
    )
    result = train(job)
    shapes = [tuple(labels.shape[-2:]) for labels in watch.labels]
    assert shapes == [(32, 64)] * 12 + [(64, 96)] * 6, "two batches a step; 32×48 is padded to multiples of 32"
    assert [epoch["learning_rate"] for epoch in result.epochs] == pytest.approx(
        [epoch["learning_rate"] for epoch in train(tiny_job(tmp_path / "plain", records)).epochs]
    )
    with pytest.raises(UserError, match=r"training.progressive: expected whole resized images .* found mode full"):
        train(tiny_job(tmp_path / "full", records, progressive=0.5))


def test_progressive_resizing_continues_to_the_same_bytes(tmp_path: Path, records: list[Record]) -> None:
    def job(name: str, **changes: Any) -> TrainingJob:
        plain = tiny_job(tmp_path / name, records, progressive=0.7, **changes)
        return replace(plain, dataset=replace(plain.dataset, policy=InputPolicy(mode="resize", size=(64, 64))))

    undisturbed = train(job("undisturbed"))
    calls = iter(range(100))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return bce(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        train(job("stopped", loss=loss))
    assert checksum(train(job("stopped")).last) == checksum(undisturbed.last)


def test_the_remaining_time_is_that_of_each_scale(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 epochs of 5 steps, 3 at half the sides; by a clock of our own a step there takes 2 s, a whole one 6 s."""
    clock = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    left: dict[int, float] = {}

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        clock[0] += 1 if logits.shape[-1] == 32 else 3
        return bce(logits, labels)

    def remember(progress: TrainingProgress) -> None:
        left[progress.step] = progress.eta

    plain = tiny_job(tmp_path, records, loss=loss, progressive=0.75, epochs=4, images_per_epoch=20)
    policy = InputPolicy(mode="resize", size=(64, 64))
    train(replace(plain, dataset=replace(plain.dataset, policy=policy)), on_progress=remember)
    assert left.keys() == set(range(1, 21))
    guessed = 2 * 4**PIXEL_POWER
    assert guessed == pytest.approx(2 * 2.7, abs=0.05)
    for step in range(1, 18):  # two whole steps are too few to believe
        assert left[step] == pytest.approx(2 * max(15 - step, 0) + guessed * min(20 - step, 5))
    assert [left[step] for step in (18, 19, 20)] == pytest.approx([12, 6, 0])


def test_the_hardest_batch_is_trained_on_once_more(tmp_path: Path, records: list[Record]) -> None:
    network = tiny_network(dropout=0.0)
    watch = Watch(network)
    settings: dict[str, Any] = {"batch_size": 2, "accumulation": 1, "epochs": 2, "hard_negative_every": 3}
    result = train(tiny_job(tmp_path, records, network=network, loss=watch, **settings))
    assert [epoch["step"] for epoch in result.epochs] == [8, 16]  # 6 batches and 2 repeats
    for start in (0, 4, 8, 12):
        hardest = max(range(start, start + 3), key=watch.losses.__getitem__)
        assert torch.equal(watch.labels[start + 3], watch.labels[hardest])
        assert all(
            torch.equal(watch.labels[start + 3], watch.labels[start + k]) == (start + k == hardest) for k in range(3)
        )
    seen = torch.cat([watch.labels[start + k] for start in (0, 4) for k in range(3)])
    assert len(seen.flatten(1).unique(dim=0)) == 12


def test_all_batches_of_the_hardest_step_are_repeated(tmp_path: Path, records: list[Record]) -> None:
    watch = Watch(tiny_network())
    train(tiny_job(tmp_path, records, loss=watch, epochs=1, hard_negative_every=2))  # 3 steps of 2 batches
    assert len(watch.labels) == 8
    first = sum(watch.losses[:2]) >= sum(watch.losses[2:4])
    expected = watch.labels[:2] if first else watch.labels[2:4]
    assert torch.equal(torch.cat(watch.labels[4:6]), torch.cat(expected))


def test_frozen_parameters_keep_their_bytes_until_they_are_freed(tmp_path: Path, records: list[Record]) -> None:
    """The convolution and batch norm at the start of the network, under weight decay and averaging."""
    network = tiny_network()
    first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    frozen = OptimiserSettings(lr=0.02, weight_decay=0.1, decay_norm_and_bias=True, frozen=("0.", "1."))
    job = tiny_job(
        tmp_path,
        records,
        network=network,
        phases=(Phase(epochs=2, optimiser=frozen), Phase(epochs=1, optimiser=OptimiserSettings(lr=0.02))),
        epochs=3,
        keep_epochs=True,
    )
    train(job)
    assert [path.name for path in job.epoch_bundles()] == ["0001.safetensors", "0002.safetensors", "0003.safetensors"]
    for epoch, is_frozen in ((1, True), (2, True), (3, False)):
        found = load_file(job.epoch_bundle(epoch))
        kept = {name for name in first if torch.equal(found[name], first[name])}
        assert kept == ({name for name in first if name.startswith(("0.", "1."))} if is_frozen else set())


def test_what_the_network_lacks_in_a_later_phase_is_said_at_once(tmp_path: Path, records: list[Record]) -> None:
    watch = Watch(tiny_network())
    phases = (Phase(epochs=1), Phase(epochs=1, optimiser=OptimiserSettings(frozen=("encoder.",))))
    with pytest.raises(UserError, match=r"found 'encoder\.'"):
        train(tiny_job(tmp_path, records, loss=watch, epochs=2, phases=phases))
    assert not watch.losses


def test_every_epoch_is_kept_with_its_score(tmp_path: Path, records: list[Record]) -> None:
    job = tiny_job(tmp_path, records, epochs=4, validate_every=2, keep_epochs=True, extra={"fold": 3})
    result = train(job)
    kept = [read_extra(path) for path in job.epoch_bundles()]
    assert kept == [{"fold": 3, "epoch": epoch["epoch"], "score": epoch["score"]} for epoch in result.epochs]
    assert [one["score"] is None for one in kept] == [True, False, True, False]
    assert checksum(job.epoch_bundle(4)) == checksum(result.last)
    assert checksum(job.epoch_bundle(result.best_epoch)) == checksum(result.best)
    other = tiny_job(tmp_path, records, epochs=1, fingerprint="b")
    train(other)
    assert other.epoch_bundles() == []


def test_early_stopping_asks_for_more_than_its_delta(tmp_path: Path, records: list[Record]) -> None:
    validate = scores_in_turn([0.5, 0.52, 0.54, 0.53, 0.9])
    settings: dict[str, Any] = {"epochs": 9, "early_stopping": 3, "early_stopping_delta": 0.05}
    result = train(tiny_job(tmp_path, records, validate=validate, **settings))
    assert [epoch["score"] for epoch in result.epochs] == [0.5, 0.52, 0.54, 0.53]
    assert result.best_epoch == 3  # what is kept is the best, by however little


def finished(folder: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Returns the checksums of a training's bundles, and what its log says of the epochs, times left out."""
    keys = ("epoch", "phase", "step", "loss", "score", "learning_rate")
    bundles = [path for path in folder.rglob("*.safetensors") if path.stem != "checkpoint"]
    log = [{key: line[key] for key in keys} for line in read_log(folder / "log.jsonl")]
    return {str(path.relative_to(folder)): checksum(path) for path in bundles}, log


def phased_settings(precision: str) -> dict[str, Any]:
    """Returns 5 epochs of 5 steps and 1 repeat, in 3 phases."""
    return many_phases(batch_size=2, accumulation=1, images_per_epoch=10, precision=precision)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> dict[str, Any]:
    found = {}
    for precision in ("auto", "fp16"):
        folder = tmp_path_factory.mktemp(precision)
        train(tiny_job(folder, records, **phased_settings(precision)))
        found[precision] = finished(folder)
    return found


@pytest.mark.parametrize(
    ("call", "precision"),
    [(call, "auto") for call in (2, 5, 6, 13, 17, 28)] + [(12, "fp16"), (16, "fp16")],
)
def test_an_interrupted_training_of_many_phases_continues_to_the_same_bytes(
    tmp_path: Path, records: list[Record], undisturbed: dict[str, Any], call: int, precision: str
) -> None:
    """Ctrl-C in the ``call``-th step, as a real signal: before, in and after repeats, phases and fresh optimisers."""
    settings = phased_settings(precision)
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGINT)
        return bce(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(tmp_path, records, loss=loss, **settings))
    position = read_position(tmp_path / "checkpoint.safetensors")
    assert position is not None and position.step == call
    train(tiny_job(tmp_path, records, **settings))
    assert len(undisturbed[precision][0]) == 7
    assert finished(tmp_path) == undisturbed[precision]


def test_a_checkpoint_at_the_end_of_a_phase_holds_the_next_phases_optimiser(
    tmp_path: Path, records: list[Record]
) -> None:
    def stop(segmenter: Any) -> float:
        if (tmp_path / "epochs" / "0001.safetensors").exists():
            raise KeyboardInterrupt
        return 0.5

    phases = (Phase(epochs=1), Phase(epochs=2, optimiser=OptimiserSettings(kind="sgd", lr=0.01)))
    settings: dict[str, Any] = {"phases": phases, "epochs": 3, "keep_epochs": True}
    seen: list[set[str]] = []

    def watch(progress: TrainingProgress) -> None:
        path = tmp_path / "checkpoint.safetensors"
        tensors = load_file(path) if path.exists() else {}
        seen.append({name.split(".")[1] for name in tensors if name.startswith("optimiser.")})

    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(tmp_path, records, validate=stop, **settings), on_progress=watch)
    assert seen[-1] == {"momentum_buffer"}
    header = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (header["event"], header["phase"]) == ("epoch", 1)
