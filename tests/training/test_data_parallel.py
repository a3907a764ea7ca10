"""One network by several processes: what one process would learn, whatever the batch, the loss and the phases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from team_jobs import (
    RunsOutOfMemory,
    WithCoarserMap,
    in_ranks,
    job,
    supervised,
    trained_alone,
    trained_in_ranks,
    weights_of,
)
from tiny_job import TASK, bce, many_phases, tiny_network
from torch import Tensor, nn
from torch.nn import functional

from maskloom.data.augment import AugmentSettings
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.input_policy import InputPolicy
from maskloom.data.loader import Part, batches
from maskloom.data.mask_coding import MaskCoding
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.records import MaskFile, Record
from maskloom.training.checkpoint import read_position
from maskloom.training.engine import train
from maskloom.training.team import Team
from maskloom.training.team_gradients import pieces_of
from maskloom.training.team_norm import SharedNorm
from maskloom.training.tracking import TrainingProgress, read_log


def assert_alike(first: dict[str, Tensor], second: dict[str, Tensor], *, tolerance: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(
            tensor, second[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name, tensor in first.items() if not torch.equal(tensor, second[name])] == []


# Parts of batches


@pytest.fixture(scope="module")
def unequal(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    """Seven whole images, no two of one size."""
    folder = tmp_path_factory.mktemp("unequal")
    records = []
    for number in range(7):
        size = (20 + 9 * number, 70 - 7 * number)
        image, mask = folder / f"{number}.png", folder / f"{number}_mask.png"
        cv2.imwrite(str(image), np.full((*size, 3), 20 * number, np.uint8))
        cv2.imwrite(str(mask), np.full(size, 255 * (number % 2), np.uint8))
        records.append(Record(id=str(number), image=image, size=size, truth=MaskFile(path=mask)))
    return SegmentationDataset(
        records=records, task=TASK, coding=MaskCoding(), policy=InputPolicy(mode="full"),
        augment=AugmentSettings(horizontal_flip=0.5), seed=2,
    )  # fmt: skip


@pytest.mark.parametrize(("batch_size", "ranks"), [(3, 2), (7, 3), (2, 3), (1, 2)])
@pytest.mark.parametrize("workers", [0, 1])
def test_parts_together_are_the_batch(unequal: SegmentationDataset, batch_size: int, ranks: int, workers: int) -> None:
    wholes = list(batches(unequal, epoch=1, batch_size=batch_size))
    parts = [
        list(batches(unequal, epoch=1, batch_size=batch_size, part=Part(rank, ranks), num_workers=workers))
        for rank in range(ranks)
    ]
    for number, whole in enumerate(wholes):
        own = [part[number] for part in parts]
        assert sorted(name for each in own for name in each.ids) == sorted(whole.ids)
        for rank, each in enumerate(own):
            assert each.num_whole == whole.num_whole == batch_size
            assert each.ids == whole.ids[rank::ranks]
            expected = slice(rank, None, ranks) if each.ids else slice(0, 1)
            assert torch.equal(each.images, whole.images[expected])
            assert torch.equal(each.labels, whole.labels[expected])
            assert each.draws is not None and whole.draws is not None
            assert torch.equal(each.draws.matrices, whole.draws.matrices[expected])


@pytest.mark.parametrize(
    "policy",
    [
        {"mode": "full", "scale": 0.7},
        {"mode": "resize", "size": (40, 24)},
        {"mode": "window", "size": (32, 32), "scale": 1.4},
        {"mode": "parts", "parts": (1, 2), "multiple": 8, "overlap": 0.2},
    ],
)
@pytest.mark.parametrize("with_regions", [False, True])
def test_a_samples_size_is_known_before_it_is_read(
    unequal: SegmentationDataset, policy: dict[str, Any], with_regions: bool
) -> None:
    from maskloom.data.dataset import Key
    from maskloom.windows import Window

    regions = (lambda record: [Window(2, 3, 15, 20), Window(5, 5, 12, 12)]) if with_regions else None
    dataset = replace(unequal, policy=InputPolicy(**policy), regions=regions)
    for record in range(len(dataset)):
        for draw in range(2):
            key = Key(0, record, draw)
            assert dataset.content_of(key) == dataset[key].image.shape[:2]


@given(num_images=st.integers(1, 40), pieces=st.integers(1, 40), ranks=st.integers(2, 9))
def test_pieces_come_together_in_the_order_of_the_batch(num_images: int, pieces: int, ranks: int) -> None:
    batch = torch.arange(num_images)
    parts = [batch[rank::ranks] for rank in range(ranks)]
    found = pieces_of(num_images, pieces)
    assert [batch[piece.start : piece.stop].tolist() for piece in found] == [c.tolist() for c in batch.chunk(pieces)]
    for piece in found:
        longest = -(-len(piece) // ranks)
        own = [part[piece.rows(Part(rank, ranks))] for rank, part in enumerate(parts)]
        filled = torch.cat([functional.pad(each, (0, longest - len(each)), value=-1) for each in own])
        together = filled[piece.order(ranks)]
        assert together.tolist() == batch[piece.start : piece.stop].tolist()
        for rank, each in enumerate(own):
            assert together[piece.places(Part(rank, ranks))].tolist() == each.tolist()


# The same weights


WHOLE_BATCH = ("bce", "dice", "lovasz", "tversky", "online_bootstrapping")


@pytest.mark.parametrize(
    ("size", "settings"),
    [
        (2, {"terms": WHOLE_BATCH, "batch_size": 5, "accumulation": 1}),
        (2, {"batch_size": 1, "accumulation": 5, "hard_negative_every": 1, "clip_norm": 0.05}),
        (3, {"terms": ("bce", "dice"), "batch_size": 2, "accumulation": 3, "num_workers": 1}),
    ],
)
def test_ranks_learn_what_one_process_learns(
    tmp_path: Path, records: list[Record], size: int, settings: dict[str, Any]
) -> None:
    settings = {"epochs": 2, "images_per_epoch": 15, **settings}
    alone = trained_alone(tmp_path / "alone", records, **settings)
    told = trained_in_ranks(tmp_path / "ranks", records, size=size, **settings)
    assert_alike(told[0], alone)
    for other in told[1:]:
        assert_equal(other, told[0])
    one, several = (read_log(tmp_path / name / "log.jsonl") for name in ("alone", "ranks"))
    assert [entry["step"] for entry in one] == [entry["step"] for entry in several]
    assert [entry["loss"] for entry in several] == pytest.approx([entry["loss"] for entry in one], rel=1e-5)
    assert_alike(load_file(tmp_path / "ranks" / "best.safetensors"), load_file(tmp_path / "alone" / "best.safetensors"))


def test_all_phases_with_synchronised_norms_are_those_of_one_process(tmp_path: Path, records: list[Record]) -> None:
    """Fresh optimisers, frozen parts, hard batches, averages, kept epochs, soup: the same files, the same weights."""
    settings = many_phases(norm=True, sync_batch_norm=True, soup=2, batch_size=3, images_per_epoch=18)
    alone = trained_alone(tmp_path / "alone", records, **settings)
    told = trained_in_ranks(tmp_path / "ranks", records, **settings)
    assert_equal(told[0], told[1])
    assert_alike(told[0], alone, tolerance=1e-4)
    bundles = [path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("*.safetensors")]
    assert len(bundles) == 4 + 5
    for bundle in bundles:
        if bundle.name != "checkpoint.safetensors":
            assert_alike(load_file(tmp_path / "ranks" / bundle), load_file(tmp_path / "alone" / bundle), tolerance=1e-4)


def test_snapshots_are_kept_once(tmp_path: Path, records: list[Record]) -> None:
    from maskloom.training.schedules import ScheduleSettings

    settings = {"epochs": 4, "schedule": ScheduleSettings(kind="snapshots", num_cycles=2), "images_per_epoch": 8}
    trained_alone(tmp_path / "alone", records, **settings)
    trained_in_ranks(tmp_path / "ranks", records, **settings)
    for number in (1, 2):
        name = f"snapshots/{number}.safetensors"
        assert_alike(load_file(tmp_path / "ranks" / name), load_file(tmp_path / "alone" / name))


def test_coarser_maps_reach_the_loss_of_the_whole_batch(tmp_path: Path, records: list[Record]) -> None:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 3, "loss": supervised}

    def network() -> nn.Module:
        torch.manual_seed(1)
        return WithCoarserMap()

    alone = trained_alone(tmp_path / "alone", records, network=network(), **settings)
    assert_alike(trained_in_ranks(tmp_path / "ranks", records, network=network(), **settings)[1], alone)


def test_memory_that_runs_out_on_one_rank_cuts_the_batches_of_all(tmp_path: Path, records: list[Record]) -> None:
    settings: dict[str, Any] = {"batch_size": 6, "accumulation": 1, "epochs": 2, "terms": ("bce", "dice")}

    def work(team: Team) -> dict[str, Tensor]:
        network = RunsOutOfMemory(1 if team.rank == 1 else 100)
        own = job(tmp_path / "ranks", records, network=network, **settings)
        train(own, team=team)
        return weights_of(network.inner)

    told = in_ranks(tmp_path / "ranks", work)
    assert_equal(told[0], told[1])
    assert (tmp_path / "ranks" / "log.jsonl").read_text().count("out_of_memory") == 2
    position = read_position(tmp_path / "ranks" / "checkpoint.safetensors")
    assert position is not None and position.pieces == 3  # of two images, one on each rank
    # One process with room for two images learns the same: its four pieces of six images are of two, too.
    network = RunsOutOfMemory(2)
    train(job(tmp_path / "alone", records, network=network, **settings))
    assert_alike(told[0], weights_of(network.inner))


def test_an_overflow_on_one_rank_is_skipped_by_all(tmp_path: Path, records: list[Record]) -> None:
    """The first steps overflow at the gradient scaler's first scale."""

    def loud(logits: Tensor, labels: Tensor) -> Tensor:
        return bce(logits, labels) * 1e4

    settings: dict[str, Any] = {"precision": "fp16", "epochs": 4, "ema_decay": None, "loss": loud}
    trained_alone(tmp_path / "alone", records, **settings)
    told = trained_in_ranks(tmp_path / "ranks", records, **settings)
    assert_equal(told[0], told[1])
    one, several = (read_log(tmp_path / name / "log.jsonl") for name in ("alone", "ranks"))
    skipped = [sum(entry["skipped_steps"] for entry in log) for log in (one, several)]
    assert min(skipped) >= 8, "from 2**16 on, each halves the scale"
    assert max(skipped) - min(skipped) <= 2, "parts of a batch have smaller gradients in 16 bits than the whole"


def test_a_loss_that_is_not_finite_stops_all(tmp_path: Path, records: list[Record]) -> None:
    def wrong(logits: Tensor, labels: Tensor) -> Tensor:
        return bce(logits, labels) * float("nan")

    told = in_ranks(tmp_path, lambda team: train(job(tmp_path / "job", records, epochs=3, loss=wrong), team=team))
    assert all("expected a finite loss" in each.splitlines()[-1] for each in told)


# Batch norm


def test_norms_over_ranks_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(5, 3, 4, 6, dtype=torch.float64, generator=generator) * 3 + 7
    upstream = torch.randn(values.shape, dtype=torch.float64, generator=generator)
    weight, bias = torch.tensor([0.5, 2.0, 1.0]).double(), torch.tensor([0.0, 1.0, -1.0]).double()

    def run(values: Tensor, upstream: Tensor) -> dict[str, Tensor]:
        norm = nn.BatchNorm2d(3, momentum=0.3).double()
        with torch.no_grad():
            norm.weight.copy_(weight), norm.bias.copy_(bias)
        values = values.clone().requires_grad_()
        result = norm(values)
        result.backward(upstream)
        assert values.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
        return {
            "result": result.detach(), "of_values": values.grad, "of_weight": norm.weight.grad,
            "of_bias": norm.bias.grad, "mean": norm.running_mean, "var": norm.running_var,
            "batches": norm.num_batches_tracked,
        }  # fmt: skip

    def work(team: Team) -> dict[str, Tensor]:
        own = [slice(0, 3), slice(0, 1), slice(3, 5)][team.rank]
        counts = team.rank != 1  # one rank has nothing but a stand-in
        with SharedNorm(team, counts=counts):
            return run(values[own], upstream[own] if counts else torch.zeros_like(upstream[own]))

    expected = run(values, upstream)
    told = in_ranks(tmp_path, work, size=3)
    for name in ("result", "of_values"):
        torch.testing.assert_close(torch.cat([told[0][name], told[2][name]]), expected[name])
    assert not told[1]["of_values"].any()
    for name in ("of_weight", "of_bias"):
        torch.testing.assert_close(told[0][name] + told[1][name] + told[2][name], expected[name])
    for each in told:
        for name in ("mean", "var", "batches"):
            torch.testing.assert_close(each[name], expected[name])


def test_a_stand_in_leaves_no_trace() -> None:
    norm = nn.BatchNorm2d(2)
    with SharedNorm(None, counts=False):
        norm(torch.randn(1, 2, 1, 1))
    assert norm.running_mean is not None and not norm.running_mean.any()
    norm.eval()
    with SharedNorm(None, counts=False):
        values = torch.randn(1, 2, 1, 1)
        torch.testing.assert_close(norm(values), values, rtol=1e-4, atol=1e-5)


def test_without_synchronising_statistics_are_the_mean_of_the_ranks(tmp_path: Path, records: list[Record]) -> None:
    settings: dict[str, Any] = {"norm": True, "epochs": 1, "batch_size": 4, "accumulation": 1, "images_per_epoch": 4}
    told = trained_in_ranks(tmp_path / "ranks", records, augmented=False, **settings)
    assert_equal(told[0], told[1])
    plain = job(tmp_path, records, augmented=False, **settings)
    (batch,) = batches(plain.dataset, epoch=0, batch_size=4, images_per_epoch=4)
    means = []
    for rank in range(2):
        network = tiny_network(dropout=0.0).train()
        network(plain.segmenter.normalise(batch.images[rank::2]))
        means.append(network[1].running_mean)
    torch.testing.assert_close(told[0]["1.running_mean"], (means[0] + means[1]) / 2)
    assert told[0]["1.num_batches_tracked"] == 1


def test_synchronised_norms_are_not_compiled(tmp_path: Path, records: list[Record]) -> None:
    with pytest.raises(UserError, match=r"training\.compile: expected false"):
        train(job(tmp_path, records, compile=True, sync_batch_norm=True))


# Stopped and taken up again


def test_what_ranks_saved_is_continued_by_any_number(tmp_path: Path, records: list[Record]) -> None:
    settings: dict[str, Any] = {"epochs": 3, "norm": True, "sync_batch_norm": True, "dropout": 0.0}

    def stopping(name: str) -> Any:
        heard: list[TrainingProgress] = []

        def stop(progress: TrainingProgress) -> None:
            heard.append(progress)
            if progress.epoch == 1 and progress.score is not None:
                raise KeyboardInterrupt

        def work(team: Team) -> None:
            train(job(tmp_path / name, records, **settings), team=team, on_progress=stop if team.leads else None)

        return in_ranks(tmp_path / f"told {name}", work)

    trained_in_ranks(tmp_path / "undisturbed", records, **settings)
    for name in ("again", "alone"):
        told = stopping(name)
        assert "KeyboardInterrupt" in told[0]
        position = read_position(tmp_path / name / "checkpoint.safetensors")
        assert position is not None and position.epoch == 1 and not position.finished
    trained_in_ranks(tmp_path / "again", records, **settings)
    for bundle in ("best.safetensors", "last.safetensors"):
        assert checksum(tmp_path / "again" / bundle) == checksum(tmp_path / "undisturbed" / bundle)
    trained_alone(tmp_path / "alone", records, **settings)
    assert_alike(
        load_file(tmp_path / "alone" / "last.safetensors"), load_file(tmp_path / "undisturbed" / "last.safetensors")
    )
    events = (tmp_path / "alone" / "log.jsonl").read_text()
    assert events.count('"processes": 2') == 1 and events.count('"resume"') == 1


def test_pieces_are_found_together_and_anew_by_another_number(
    tmp_path: Path, records: list[Record], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"batch_size": "auto", "auto_batch_size": 6, "epochs": 2, "accumulation": 1}

    def stop(progress: TrainingProgress) -> None:
        raise KeyboardInterrupt

    def work(team: Team) -> None:
        free = 2**40 if team.rank == 0 else 2**15  # which holds less than one image
        monkeypatch.setattr("maskloom.training.memory.free_memory", lambda: free)
        train(job(tmp_path / "job", records, **settings), team=team, on_progress=stop if team.leads else None)

    in_ranks(tmp_path / "told", work)
    found = read_position(tmp_path / "job" / "checkpoint.safetensors")
    assert found is not None and (found.batch_size, found.pieces, found.finished) == (6, 3, False)
    trained_alone(tmp_path / "job", records, **settings)
    continued = read_position(tmp_path / "job" / "checkpoint.safetensors")
    assert continued is not None and (continued.pieces, continued.finished) == (1, True)
