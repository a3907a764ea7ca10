"""A complete training of a few seconds, and a program that kills it: shared by the tests of the engine.

Run as a program, it trains once undisturbed and twice while being killed, at random times and around renames;
it prints one line of JSON per training: the checksums of its bundles, how often it was killed, and at which steps it
was taken up again.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from maskloom.config import parse
from maskloom.data.augment import AugmentSettings
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.input_policy import InputPolicy
from maskloom.data.mask_coding import MaskCoding
from maskloom.files import checksum
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter
from maskloom.records import MaskFile, Record, Task
from maskloom.training.engine import TrainingJob, TrainingSettings, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.phases import Phase
from maskloom.training.schedules import ScheduleSettings

SIDE = 32
STUCK_SECONDS = 240
"""A child that takes longer says where each of its threads stands, and fails."""
TASK = Task(kind="binary", classes=("thing",))


def tiny_network(*, with_norm: bool = True, dropout: float = 0.1) -> nn.Module:
    """Returns a fully convolutional network of about 700 weights, always the same one."""
    torch.manual_seed(5)
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1, bias=not with_norm)]
    layers += [nn.BatchNorm2d(8)] if with_norm else []
    layers += [nn.ReLU(), nn.Dropout2d(dropout), nn.Conv2d(8, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)]
    return nn.Sequential(*layers)


def write_images(folder: Path, *, count: int = 12) -> list[Record]:
    """Returns records of bright squares on noise, written below ``folder``."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        image = rng.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        top, left = rng.integers(0, SIDE - 12, 2)
        mask[top : top + 12, left : left + 12] = 255
        image[mask > 0] += 120
        paths = folder / f"{number}.png", folder / f"{number}_mask.png"
        for path, array in zip(paths, (image, mask), strict=True):
            cv2.imwrite(str(path), array)
        record = Record(id=str(number), image=paths[0], size=(SIDE, SIDE), truth=MaskFile(path=paths[1]))
        records.append(record)
    return records


def bce(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())


def score_of_weights(segmenter: Segmenter) -> float:
    """Returns a number that depends on every weight; it consumes torch's randomness, as a validation might."""
    assert not segmenter.network.training
    noise = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 255
    torch.rand(3)
    with torch.inference_mode():
        return float(segmenter.logits(noise).mean())


def tiny_job(
    folder: Path, records: list[Record], *, network: nn.Module | None = None, augmented: bool = True, **changes: Any
) -> TrainingJob:
    """Returns a job of 3 epochs with 3 steps of 2 batches each; ``changes`` replace fields of job or settings."""
    policy = InputPolicy(mode="full")
    settings = {"epochs": 3, "batch_size": 2, "accumulation": 2, "ema_decay": 0.9, "clip_norm": 1.0}
    settings |= {name: changes.pop(name) for name in list(changes) if name in TrainingSettings.model_fields}
    augment = AugmentSettings(horizontal_flip=0.5, rotate=20, brightness=0.2) if augmented else AugmentSettings()
    values: dict[str, Any] = {
        "segmenter": Segmenter(
            network=network or tiny_network(),
            normalisation=Normalisation(mean=(0.2,) * 3, std=(0.2,) * 3),
            policy=policy,
            task=TASK,
            network_settings=NetworkSettings(weights="none"),
        ),
        "dataset": SegmentationDataset(
            records=records, task=TASK, coding=MaskCoding(), policy=policy, augment=augment, seed=3
        ),
        "loss": bce,
        "optimiser": OptimiserSettings(lr=0.02),
        "schedule": ScheduleSettings(kind="one_cycle"),
        "training": parse(TrainingSettings, settings),
        "validate": score_of_weights,
        "folder": folder,
        "seed": 7,
        "device": torch.device("cpu"),
        "fingerprint": "a",
    }
    return TrainingJob(**(values | changes))


def many_phases(**changes: Any) -> dict[str, Any]:
    """Returns settings of 5 epochs in which everything changes: optimiser, schedule, augmentation, what is frozen."""
    phases = (
        Phase(epochs=2, fresh_optimiser="epoch"),
        Phase(
            epochs=2,
            optimiser=OptimiserSettings(kind="nadam", lr=0.01, frozen=("0.", "1.")),
            schedule=ScheduleSettings(kind="cycles"),
            augment=AugmentSettings(vertical_flip=0.5),
        ),
        Phase(epochs=1, optimiser=OptimiserSettings(kind="sgd", lr=0.02)),
    )
    return {"phases": phases, "epochs": 5, "hard_negative_every": 4, "keep_epochs": True, **changes}


def long_job(folder: Path, records: list[Record], *, checkpoint_seconds: float) -> TrainingJob:
    changes = many_phases(num_workers=2, images_per_epoch=44, soup=2, checkpoint_seconds=checkpoint_seconds)
    return tiny_job(folder, records, **changes)


def in_child(work: Any, *, kill_after: float | None = None) -> bool:
    """Returns whether ``work``, done in a forked process, ended by itself; it is killed after so many seconds.

    Loader processes of a killed one end by themselves, but not at once, and torch's not at all if they had only just
    begun; they would keep this program's output open.
    """
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        status = 1
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0, "the training failed"
    return True


def kill_at_rename(number: int) -> None:
    """Makes this process kill itself just before (even number) or after (odd) an atomic file comes to its name."""
    rename, count = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == number // 2 + 1 and number % 2 == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        result = rename(self, target)
        if count == number // 2 + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Path.replace = replace  # type: ignore[method-assign]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    records = write_images(folder / "images")
    train(tiny_job(folder / "warm", records, epochs=1))  # loads what torch loads late, once for all children

    def report(name: str, kills: int) -> None:
        bundles = [path for path in sorted((folder / name).rglob("*.safetensors")) if path.stem != "checkpoint"]
        found = {str(path.relative_to(folder / name)): checksum(path) for path in bundles}
        events = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
        resumed = [event["step"] for event in events if event["event"] == "resume"]
        print(json.dumps({"name": name, "kills": kills, "resumed": resumed, "bundles": found}), flush=True)

    started = time.monotonic()
    in_child(lambda: train(long_job(folder / "undisturbed", records, checkpoint_seconds=60)))
    duration = time.monotonic() - started
    report("undisturbed", 0)
    dice = random.Random(4)
    kills = 0
    for _ in range(4):  # at a random time, with checkpoints now and then
        ended = in_child(
            lambda: train(long_job(folder / "times", records, checkpoint_seconds=0.05)),
            kill_after=dice.uniform(0.2, 0.7) * duration,
        )
        kills += not ended
    in_child(lambda: train(long_job(folder / "times", records, checkpoint_seconds=0.05)))
    report("times", kills)

    def train_until_rename(number: int) -> None:
        kill_at_rename(number)
        train(long_job(folder / "renames", records, checkpoint_seconds=0.0))

    kills = 0
    for _ in range(5):  # around the moments at which a checkpoint, a bundle or the log comes to its name
        number = dice.randrange(4, 40)
        kills += not in_child(lambda number=number: train_until_rename(number))  # type: ignore[misc]
    in_child(lambda: train(long_job(folder / "renames", records, checkpoint_seconds=0.0)))
    report("renames", kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
