from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_job import bce, score_of_weights, tiny_job, tiny_network
from torch import Tensor, nn

import maskloom
from maskloom.config import parse
from maskloom.errors import BadFile, UserError
from maskloom.files import checksum
from maskloom.models.bundle import read_extra
from maskloom.models.segmenter import Segmenter
from maskloom.records import Record
from maskloom.training import gradients
from maskloom.training.checkpoint import read_position
from maskloom.training.engine import TrainingSettings, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings
from maskloom.training.tracking import TrainingProgress, read_log


def weights(path: Path) -> Tensor:
    """Returns all float tensors of a bundle as one vector."""
    return torch.cat([tensor.flatten() for tensor in load_file(path).values() if tensor.is_floating_point()])


def test_training_learns_and_leaves_its_files(tmp_path: Path, records: list[Record]) -> None:
    heard: list[TrainingProgress] = []
    job = tiny_job(tmp_path, records, epochs=8, ema_decay=None, extra={"fold": 3})
    result = train(job, on_progress=heard.append)
    losses = [epoch["loss"] for epoch in result.epochs]
    assert len(losses) == 8 and losses[-1] < 0.6 * losses[0]
    assert result.best_score == max(epoch["score"] for epoch in result.epochs)
    assert result.epochs[result.best_epoch - 1]["score"] == result.best_score
    assert read_extra(result.last) == {"fold": 3, "epoch": 8, "score": result.epochs[-1]["score"]}
    assert read_extra(result.best)["epoch"] == result.best_epoch
    assert read_log(job.log) == list(result.epochs)
    assert (heard[-1].step, heard[-1].steps, heard[-1].epoch, heard[-1].epochs) == (24, 24, 8, 8)
    assert heard[-1].best == result.best_score
    assert heard[-1].eta == 0
    assert heard[-1].rate > 0
    assert job.checkpoint.stat().st_size < 10_000  # a finished training keeps no tensors


def test_a_finished_training_returns_at_once(tmp_path: Path, records: list[Record]) -> None:
    first = train(tiny_job(tmp_path, records, epochs=1))
    network = tiny_network()
    before = [parameter.clone() for parameter in network.parameters()]
    again = train(tiny_job(tmp_path, records, network=network, epochs=1, validate=None))
    assert again == first
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


def test_another_jobs_checkpoint_is_replaced(tmp_path: Path, records: list[Record]) -> None:
    train(tiny_job(tmp_path, records, epochs=1))
    (tmp_path / "kept.txt").write_text("not ours")
    result = train(tiny_job(tmp_path, records, epochs=2, fingerprint="b"))
    assert [epoch["epoch"] for epoch in result.epochs] == [1, 2]
    assert len(read_log(tmp_path / "log.jsonl")) == 2
    assert (tmp_path / "kept.txt").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path, records: list[Record]) -> None:
    job = tiny_job(tmp_path, records)
    job.checkpoint.write_bytes(b"\x80\x05 a pickle")
    with pytest.raises(BadFile, match="delete it to train anew"):
        train(job)


def test_best_and_last_are_the_average_of_the_weights(tmp_path: Path, records: list[Record]) -> None:
    """One epoch of three steps, replayed by hand."""
    network = tiny_network()
    seen: list[Tensor] = []

    def watch(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(network[0].weight.detach().clone())
        return bce(logits, labels)

    result = train(tiny_job(tmp_path, records, network=network, loss=watch, epochs=1, accumulation=1, batch_size=4))
    steps = [*seen[1:], network[0].weight.detach()]
    expected = seen[0]
    for number, step in enumerate(steps, start=1):
        decay = min(0.9, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * step
    bundle = load_file(result.last)
    torch.testing.assert_close(bundle["0.weight"], expected)
    assert torch.equal(bundle["1.running_mean"], network[1].running_mean)
    assert bundle["1.num_batches_tracked"] == 3


@pytest.mark.parametrize("portions", [{"batch_size": 2, "accumulation": 6}, {"batch_size": 3, "accumulation": 4}])
def test_accumulation_equals_a_larger_batch(tmp_path: Path, records: list[Record], portions: dict[str, int]) -> None:
    def run(name: str, **settings: Any) -> Tensor:
        network = tiny_network(with_norm=False, dropout=0.0)
        job = tiny_job(tmp_path / name, records, network=network, precision="float32", ema_decay=None, **settings)
        return weights(train(job).last)

    whole = run("whole", batch_size=12, accumulation=1)
    torch.testing.assert_close(run("portions", **portions), whole, rtol=1e-3, atol=1e-5)


def test_a_short_last_group_of_batches_is_a_step(tmp_path: Path, records: list[Record]) -> None:
    result = train(tiny_job(tmp_path, records, epochs=1, batch_size=2, accumulation=4))  # 6 batches: 4 + 2
    assert result.epochs[0]["step"] == 2


class RunsOutOfMemory(nn.Module):
    """Fails on more than ``room`` images, after ``grace`` good calls."""

    def __init__(self, room: int, grace: int = 0) -> None:
        super().__init__()
        self.inner, self.room, self.grace = tiny_network(with_norm=False, dropout=0.0), room, grace

    def forward(self, images: Tensor) -> Tensor:
        self.grace -= 1
        if self.grace < 0 and len(images) > self.room and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images)


def test_batches_are_cut_when_memory_runs_out(tmp_path: Path, records: list[Record]) -> None:
    def run(name: str, room: int, heard: list[TrainingProgress]) -> Tensor:
        network = RunsOutOfMemory(room, grace=3)
        settings = {"batch_size": 4, "accumulation": 1, "precision": "float32", "epochs": 2}
        return weights(
            train(tiny_job(tmp_path / name, records, network=network, **settings), on_progress=heard.append).last
        )

    heard: list[TrainingProgress] = []
    torch.testing.assert_close(run("short", 1, heard), run("ample", 4, []), rtol=1e-3, atol=1e-5)
    assert [progress.note for progress in heard if progress.note] == [
        "out of memory: each batch of 4 is now cut into 2 pieces",
        "out of memory: each batch of 4 is now cut into 4 pieces",
    ]
    events = [json.loads(line) for line in (tmp_path / "short" / "log.jsonl").read_text().splitlines()]
    cuts = [(event["step"], event["pieces"]) for event in events if event["event"] == "out_of_memory"]
    assert cuts == [(3, 2), (3, 4)]
    position = read_position(tmp_path / "short" / "checkpoint.safetensors")
    assert position is not None and position.pieces == 4


def test_one_image_that_does_not_fit_is_an_error_of_one_line(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(UserError, match="does not hold one training image") as caught:
        train(tiny_job(tmp_path, records, network=RunsOutOfMemory(0)))
    assert "\n" not in str(caught.value)


def test_a_network_that_needs_two_images_says_so(tmp_path: Path, records: list[Record]) -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Upsample((32, 32)))
    with pytest.raises(UserError, match="batch_size to 2 or more"):
        train(tiny_job(tmp_path, records, network=pooled, batch_size=1))


def test_the_batch_size_is_found_once(tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def pieces(batch_size: int, attempt: Any, **rest: Any) -> int:
        tried.append(batch_size)
        attempt(2)
        return 2

    monkeypatch.setattr(gradients, "fitting_pieces", pieces)
    settings: dict[str, Any] = {"batch_size": "auto", "auto_batch_size": 4, "accumulation": 1}

    def stop(segmenter: Segmenter) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(tmp_path / "a", records, validate=stop, **settings))
    found = train(tiny_job(tmp_path / "a", records, **settings))
    assert tried == [4]
    position = read_position(tmp_path / "a" / "checkpoint.safetensors")
    assert position is not None and (position.batch_size, position.pieces) == (4, 2)
    plain = train(tiny_job(tmp_path / "b", records, **settings))
    assert checksum(found.last) == checksum(plain.last)


def test_the_attempt_leaves_no_trace(tmp_path: Path, records: list[Record]) -> None:
    auto = train(tiny_job(tmp_path / "auto", records, batch_size="auto", auto_batch_size=4))
    given = train(tiny_job(tmp_path / "given", records, batch_size=4))
    assert checksum(auto.last) == checksum(given.last)


def test_losses_that_are_not_finite_end_the_training(tmp_path: Path, records: list[Record]) -> None:
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return bce(logits, labels) * (torch.nan if calls > 4 else 1.0)

    job = tiny_job(tmp_path, records, loss=loss, batch_size=3, accumulation=1)
    with pytest.raises(UserError, match=r"5 steps in a row, up to epoch 3 of 3, step 9 of 12") as caught:
        train(job)
    assert "\n" not in str(caught.value) and "lower learning rate" in str(caught.value)
    position = read_position(job.checkpoint)  # of the end of the second epoch
    assert position is not None and position.step == 8
    assert [epoch["skipped_steps"] for epoch in position.epochs_done] == [0, 4]


def test_a_single_bad_loss_is_skipped_and_told(tmp_path: Path, records: list[Record]) -> None:
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return bce(logits, labels) * (torch.nan if calls == 2 else 1.0)

    result = train(tiny_job(tmp_path, records, loss=loss, epochs=1))
    assert result.epochs[0]["skipped_steps"] == 1
    assert torch.isfinite(weights(result.last)).all()


def scores_in_turn(scores: list[float]) -> Any:
    remaining = iter(scores)
    return lambda segmenter: next(remaining)


def test_early_stopping_waits_for_its_patience(tmp_path: Path, records: list[Record]) -> None:
    validate = scores_in_turn([0.1, 0.3, 0.2, 0.3, 0.9])
    result = train(tiny_job(tmp_path, records, epochs=9, early_stopping=2, validate=validate))
    assert [epoch["score"] for epoch in result.epochs] == [0.1, 0.3, 0.2, 0.3]
    assert (result.best_epoch, result.best_score) == (2, 0.3)
    assert (read_extra(result.best)["epoch"], read_extra(result.last)["epoch"]) == (2, 4)
    assert train(tiny_job(tmp_path, records, epochs=9, early_stopping=2)) == result


def test_validation_keeps_its_turns(tmp_path: Path, records: list[Record]) -> None:
    settings = {"epochs": 7, "validate_every": 2, "validate_from": 0.5}
    result = train(tiny_job(tmp_path, records, **settings))
    assert [epoch["epoch"] for epoch in result.epochs if epoch["score"] is not None] == [4, 6, 7]


def test_without_validation_the_best_is_the_last(tmp_path: Path, records: list[Record]) -> None:
    result = train(tiny_job(tmp_path, records, validate=None))
    assert checksum(result.best) == checksum(result.last)
    assert (result.best_score, result.best_epoch) == (None, 3)


def test_a_score_that_is_no_number_is_refused(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(UserError, match="finite validation score, found nan after epoch 1"):
        train(tiny_job(tmp_path, records, validate=lambda segmenter: float("nan")))


def test_plateau_lowers_the_learning_rate(tmp_path: Path, records: list[Record]) -> None:
    schedule = ScheduleSettings(kind="plateau", patience=0, gamma=0.5)
    validate = scores_in_turn([0.5, 0.4, 0.6, 0.6, 0.1])
    job = tiny_job(
        tmp_path, records, epochs=5, schedule=schedule, validate=validate, optimiser=OptimiserSettings(lr=0.02)
    )
    rates = [epoch["learning_rate"] for epoch in train(job).epochs]
    assert rates == pytest.approx([0.02, 0.02, 0.01, 0.01, 0.005])


def test_a_plateau_of_the_loss_needs_no_validation(tmp_path: Path, records: list[Record]) -> None:
    schedule = ScheduleSettings(kind="plateau", monitor="loss", patience=0, gamma=0.5, min_delta=9.0)
    job = tiny_job(tmp_path, records, epochs=4, schedule=schedule, validate=None, optimiser=OptimiserSettings(lr=0.02))
    rates = [epoch["learning_rate"] for epoch in train(job).epochs]
    assert rates == pytest.approx([0.02, 0.02, 0.01, 0.005])  # no loss falls by 9


@pytest.mark.parametrize("kind", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_an_interrupted_training_continues_to_the_same_bytes(
    tmp_path: Path, records: list[Record], kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C arrives in the middle of a step, as a real signal; the state is saved after it."""
    settings = {"precision": precision, "optimiser": OptimiserSettings.model_validate({"kind": kind, "lr": 0.01})}
    undisturbed = train(tiny_job(tmp_path / "a", records, **settings))
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 9:  # the first of the two batches of step 5
            os.kill(os.getpid(), signal.SIGINT)
        return bce(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(tmp_path / "b", records, loss=loss, **settings))
    position = read_position(tmp_path / "b" / "checkpoint.safetensors")
    assert position is not None and (position.epoch, position.step_in_epoch, position.step) == (1, 2, 5)
    continued = train(tiny_job(tmp_path / "b", records, **settings))
    assert checksum(continued.last) == checksum(undisturbed.last)
    assert checksum(continued.best) == checksum(undisturbed.best)
    keys = ("epoch", "step", "loss", "score", "learning_rate")
    assert [{k: e[k] for k in keys} for e in continued.epochs] == [{k: e[k] for k in keys} for e in undisturbed.epochs]


def test_an_interrupt_during_validation_repeats_no_step(tmp_path: Path, records: list[Record]) -> None:
    def stop(segmenter: Segmenter) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(tmp_path, records, validate=stop))
    position = read_position(tmp_path / "checkpoint.safetensors")
    assert position is not None and (position.epoch, position.step_in_epoch) == (0, 3)
    losses = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal losses
        losses += 1
        return bce(logits, labels)

    train(tiny_job(tmp_path, records, loss=loss, validate=score_of_weights))
    assert losses == 2 * 3 * 2  # two more epochs of three steps of two batches


def test_tensorboard_gets_curves(tmp_path: Path, records: list[Record]) -> None:
    pytest.importorskip("tensorboard")
    train(tiny_job(tmp_path, records, epochs=1, tensorboard=True))
    assert list((tmp_path / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"batch_size": "some"}, {"epochs": 0}, {"ema_decay": 1.0}])
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UserError):
        parse(TrainingSettings, values)


def test_killed_at_any_moment_a_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 at random times, and around the renaming of files.

    With workers, average, accumulation, dropout, phases, a fresh optimiser each epoch, frozen parameters, hard
    negative mining, a bundle of every epoch and a soup.
    """
    source = str(Path(maskloom.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tiny_job.py")), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    undisturbed, *killed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [training["name"] for training in killed] == ["times", "renames"]
    assert sum(training["kills"] for training in killed) >= 6
    assert any(step % 13 for training in killed for step in training["resumed"])  # 11 steps and 2 repeats an epoch
    assert len(undisturbed["bundles"]) == 2 + 5 + 1
    for training in killed:
        assert training["bundles"] == undisturbed["bundles"]
