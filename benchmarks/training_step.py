"""Training: images per second of this project's loop against a plain loop around segmentation-models-pytorch.

Same network, same photos, same batch, same augmentation ranges. The peer is float32 and NCHW with one DataLoader,
OpenCV augmentation in its workers, smp's Dice loss and torch's BCE, and the better of one and two workers. Both are
timed from the second step to the last, in turns, each time in a fresh process; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from common import ENCODER, in_fresh_process, peer_network, report, studio
from torch.utils.data import DataLoader, Dataset

from maskloom.contests.carvana import open_carvana
from maskloom.data.augment import PRESETS
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.losses.terms import LossSettings, build_loss
from maskloom.models.encoders import NetworkSettings, encoder_normalisation
from maskloom.models.segmenter import Normalisation, build_segmenter
from maskloom.runtime import make_deterministic
from maskloom.training.engine import TrainingJob, TrainingSettings, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

BATCH = 8


class PeerDataset(Dataset):
    """What a user writes: decode, resize, flip and warp with OpenCV, normalise, to tensor."""

    def __init__(self, source: DataSource, side: int, num_draws: int) -> None:
        self.records, self.side, self.num_draws = source.records, side, num_draws

    def __len__(self) -> int:
        return self.num_draws

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        from PIL import Image

        record = self.records[index % len(self.records)]
        image = cv2.cvtColor(cv2.imread(str(record.image)), cv2.COLOR_BGR2RGB)
        mask = np.array(Image.open(record.truth.path))
        image = cv2.resize(image, (self.side, self.side), interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, (self.side, self.side), interpolation=cv2.INTER_NEAREST)
        if np.random.rand() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        matrix = cv2.getRotationMatrix2D((self.side / 2,) * 2, np.random.uniform(-10, 10), np.random.uniform(0.9, 1.1))
        size = (self.side, self.side)
        image = cv2.warpAffine(np.ascontiguousarray(image), matrix, size, borderMode=cv2.BORDER_REFLECT_101)
        mask = cv2.warpAffine(np.ascontiguousarray(mask), matrix, size, flags=cv2.INTER_NEAREST)
        image = image.astype(np.float32) * np.random.uniform(0.9, 1.1) / 255
        tensor = torch.from_numpy((image - 0.5) / 0.5).permute(2, 0, 1).contiguous()
        return tensor, torch.from_numpy(mask.astype(np.float32))[None]


def peer_seconds(source: DataSource, side: int, steps: int, workers: int) -> float:
    """Returns the seconds of ``steps`` plain steps, after one that is not counted."""
    network = peer_network().train()
    import segmentation_models_pytorch as smp  # after the network, which makes torchvision importable

    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    dice, bce = smp.losses.DiceLoss("binary"), torch.nn.BCEWithLogitsLoss()
    loader = DataLoader(PeerDataset(source, side, BATCH * (steps + 1)), BATCH, shuffle=True, num_workers=workers)
    began = 0.0
    for number, (images, masks) in enumerate(loader):
        if number == 1:
            began = time.perf_counter()
        logits = network(images)
        loss = bce(logits, masks) + dice(logits, masks)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    return time.perf_counter() - began


def our_seconds(source: DataSource, side: int, steps: int, workers: int, folder: Path) -> float:
    """Returns the seconds of ``steps`` steps of the real loop, after one that is not counted."""
    make_deterministic()  # as every run does; the peer has torch's defaults
    network = NetworkSettings(encoder=ENCODER)
    policy = InputPolicy(mode="resize", size=(side, side))
    mean, std = encoder_normalisation(network)
    times: dict[int, float] = {}
    job = TrainingJob(
        segmenter=build_segmenter(
            network, task=source.task, policy=policy, normalisation=Normalisation(mean=mean, std=std)
        ),
        dataset=SegmentationDataset(
            records=source.records,
            task=source.task,
            coding=source.coding,
            policy=policy,
            augment=PRESETS["light"],
            seed=0,
            channels=3,
        ),
        loss=build_loss(LossSettings.model_validate({"terms": [{"kind": "bce"}, {"kind": "dice"}]}), source.task),
        optimiser=OptimiserSettings(kind="adamw", lr=1e-3),
        schedule=ScheduleSettings(kind="one_cycle"),
        training=TrainingSettings(
            epochs=1, images_per_epoch=BATCH * (steps + 1), batch_size=BATCH, ema_decay=0.99, clip_norm=1.0
        ),
        validate=None,
        folder=folder,
        seed=0,
        device=torch.device("cpu"),
        num_workers=workers,
        fingerprint="benchmark",
    )
    train(job, on_progress=lambda progress: times.setdefault(progress.step, time.perf_counter()))
    first, last = min(times), steps + 1
    return (times[last] - times[first]) * steps / (last - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = studio(Path(folder) / "data", size=(arguments.side, arguments.side), objects=3, views=16)
        source = open_carvana(data, DataSettings())
        trials = {count: in_fresh_process(peer_seconds, source, arguments.side, 2, count) for count in (1, 2)}
        best = min(trials, key=trials.__getitem__)
        ours, peers = [], []
        for number in range(arguments.repeats):
            peer = in_fresh_process(peer_seconds, source, arguments.side, arguments.steps, best)
            peers.append(peer / arguments.steps)
            run = Path(folder) / f"run{number}"
            our = in_fresh_process(our_seconds, source, arguments.side, arguments.steps, 1, run)
            ours.append(our / arguments.steps)
    report(
        "training_step", ours, peers, "seconds_per_step", side=arguments.side, batch=BATCH, peer_workers=best,
    )  # fmt: skip


if __name__ == "__main__":
    main()
