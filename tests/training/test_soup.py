"""The soup of good epochs: which they are, what it holds, and what lies in the folder meanwhile."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_job import bce, tiny_job, tiny_network
from torch import Tensor, nn

from maskloom.config import parse
from maskloom.data.loader import batches
from maskloom.errors import UserError
from maskloom.files import checksum
from maskloom.models.bundle import read_extra
from maskloom.records import Record
from maskloom.training.engine import TrainingSettings, train
from maskloom.training.soup import mean_weights, measure_statistics, needed_epochs


def scores_in_turn(scores: list[float]) -> Any:
    remaining = iter(scores)
    return lambda segmenter: next(remaining)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.5, 0.3, 0.4], (2, 4)),
        ([0.1, 0.5, 0.5, 0.5], (2, 3)),
        ([None, 0.2, None, 0.1], (2, 4)),
        ([None, None, 0.2], (3,)),
        ([0.3], (1,)),
    ],
)
def test_the_best_epochs_are_taken(
    tmp_path: Path, records: list[Record], scores: list[float | None], expected: tuple[int, ...]
) -> None:
    assert needed_epochs(tiny_job(tmp_path, records, soup=2), list(enumerate(scores, start=1))) == expected
    assert needed_epochs(tiny_job(tmp_path, records), list(enumerate(scores, start=1))) == ()


def test_without_validation_the_last_epochs_are_taken(tmp_path: Path, records: list[Record]) -> None:
    job = tiny_job(tmp_path, records, soup=2, validate=None)
    assert needed_epochs(job, [(1, None), (2, None), (3, None)]) == (2, 3)


def test_the_soup_is_the_mean_of_the_best_epochs(tmp_path: Path, records: list[Record]) -> None:
    scores = [0.1, 0.6, 0.3, 0.5, 0.45]
    kept = train(tiny_job(tmp_path / "all", records, epochs=4, keep_epochs=True, validate=scores_in_turn(scores[:4])))
    result = train(tiny_job(tmp_path / "a", records, epochs=4, soup=2, validate=scores_in_turn(scores)))
    assert result.soup is not None and kept.soup is None
    assert read_extra(result.soup) == {"epochs": [2, 4], "score": 0.45}
    assert result.best_score == 0.6 and checksum(result.last) == checksum(kept.last)
    soup = load_file(result.soup)
    epochs = [load_file(tmp_path / "all" / "epochs" / f"{number:04d}.safetensors") for number in (2, 4)]
    for name, value in soup.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(value, (epochs[0][name] + epochs[1][name]) / 2)
    assert not list((tmp_path / "a" / "epochs").iterdir())
    assert train(tiny_job(tmp_path / "a", records, epochs=4, soup=2)) == result


def test_only_what_may_become_part_of_it_is_kept(tmp_path: Path, records: list[Record]) -> None:
    found: list[list[str]] = []
    remaining = iter([0.5, 0.1, 0.4, 0.3, 0.9])

    def validate(segmenter: Any) -> float:
        found.append([path.stem for path in job.epoch_bundles()])
        return next(remaining)

    job = tiny_job(tmp_path, records, epochs=4, soup=2, validate=validate)
    train(job)
    assert found == [[], ["0001"], ["0001", "0002"], ["0001", "0003"], ["0001", "0003"]]


def test_statistics_are_measured_on_training_images(tmp_path: Path, records: list[Record]) -> None:
    """Without augmentation every image is seen once: mean and variance of the first layer follow from the weights."""
    settings: dict[str, Any] = {"epochs": 3, "soup": 2, "augmented": False, "precision": "float32", "batch_size": 12}
    job = tiny_job(tmp_path, records, accumulation=1, ema_decay=None, validate=None, **settings)
    result = train(job)
    assert result.soup is not None
    soup = load_file(result.soup)
    network = tiny_network()
    network.load_state_dict(soup)
    images = next(batches(job.dataset, epoch=0, batch_size=12)).images
    values = network.get_submodule("0")(job.segmenter.normalise(images))
    torch.testing.assert_close(soup["1.running_mean"], values.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(soup["1.running_var"], values.var(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    assert soup["1.num_batches_tracked"] == 1


def test_frozen_batch_norms_keep_their_statistics(tmp_path: Path, records: list[Record]) -> None:
    segmenter = tiny_job(tmp_path, records).segmenter
    before = segmenter.network.get_buffer("1.running_mean").clone()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    measure_statistics(segmenter, [images], frozen=("1.",))
    assert torch.equal(segmenter.network.get_buffer("1.running_mean"), before)
    measure_statistics(segmenter, [images, images], frozen=())
    assert not torch.equal(segmenter.network.get_buffer("1.running_mean"), before)
    norm = segmenter.network.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.momentum == 0.1
    assert not any(module.training for module in segmenter.network.modules())


def test_an_interrupted_training_makes_the_same_soup(tmp_path: Path, records: list[Record]) -> None:
    undisturbed = train(tiny_job(tmp_path / "a", records, epochs=4, soup=2))
    calls = 0

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 17:  # in the third epoch
            os.kill(os.getpid(), signal.SIGINT)
        return bce(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        train(tiny_job(tmp_path / "b", records, epochs=4, soup=2, loss=loss))
    continued = train(tiny_job(tmp_path / "b", records, epochs=4, soup=2))
    assert undisturbed.soup is not None and continued.soup is not None
    assert checksum(continued.soup) == checksum(undisturbed.soup)


def test_another_job_leaves_no_soup_behind(tmp_path: Path, records: list[Record]) -> None:
    job = tiny_job(tmp_path, records, epochs=2, soup=2)
    train(job)
    assert job.soup.is_file()
    train(tiny_job(tmp_path, records, epochs=1, fingerprint="b"))
    assert not job.soup.is_file()


def test_a_lost_soup_is_made_again(tmp_path: Path, records: list[Record]) -> None:
    first = train(tiny_job(tmp_path, records, epochs=2, soup=2))
    assert first.soup is not None
    before = checksum(first.soup)
    first.soup.unlink()
    assert train(tiny_job(tmp_path, records, epochs=2, soup=2)).soup == first.soup
    assert checksum(first.soup) == before


def test_nothing_has_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one bundle"):
        mean_weights([])
    with pytest.raises(UserError, match="soup"):
        parse(TrainingSettings, {"soup": 1})
