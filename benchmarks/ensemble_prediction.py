"""Prediction: 3 folds × 2 views on 1918×1280 photos, one pass against a pass and a PNG per network.

The peer predicts with segmentation-models-pytorch in float32 under ``inference_mode`` on all cores: for every network
every photo is decoded, padded, predicted with its mirror image, and stored as an 8-bit PNG; then the PNGs are averaged,
thresholded and written. Its views go one by one or as one batch, photos are decoded in the loop or in a worker,
whichever is fastest in a trial. Both write PNG masks; the Dice between the two sets is reported for our masks in
float32, which shows a difference of method, and in bf16, which shows rounding. Networks are trained first, on windows
of other photos of the same size, so that the masks are masks: an untrained network leaves most pixels near one half,
where any rounding decides.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import ENCODER, in_fresh_process, report, studio
from torch.utils.data import DataLoader, Dataset

from maskloom.contests.carvana import open_carvana
from maskloom.data.augment import PRESETS
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.image_io import read_image
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.inference.streaming import predict_records
from maskloom.losses.terms import LossSettings, build_loss
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.encoders import NetworkSettings, encoder_normalisation
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.outputs.maps import write_mask
from maskloom.records import ClassMap, Record
from maskloom.runtime import fast_precision
from maskloom.stages.scoring import decided
from maskloom.training.engine import TrainingJob, TrainingSettings, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings


def trained(source: DataSource, folder: Path, seed: int, steps: int) -> Path:
    """Returns a bundle trained on windows of the photos, to be used on whole ones."""
    network = NetworkSettings(encoder=ENCODER)
    mean, std = encoder_normalisation(network)
    policy = InputPolicy(mode="window", size=(320, 480), prefer_class=0.5)
    areas = "cross_entropy" if source.task.kind == "multiclass" else "bce"
    torch.manual_seed(seed)
    segmenter = build_segmenter(
        network, task=source.task, policy=policy, normalisation=Normalisation(mean=mean, std=std)
    )
    job = TrainingJob(
        segmenter=segmenter,
        dataset=SegmentationDataset(
            records=source.records, task=source.task, coding=source.coding, policy=policy,
            augment=PRESETS["light"], seed=seed, channels=3,
        ),
        loss=build_loss(LossSettings.model_validate({"terms": [{"kind": areas}, {"kind": "dice"}]}), source.task),
        optimiser=OptimiserSettings(kind="adamw", lr=1e-3),
        schedule=ScheduleSettings(kind="one_cycle"),
        training=TrainingSettings(epochs=1, images_per_epoch=8 * steps, batch_size=8),
        validate=None,
        folder=folder / f"training{seed}",
        seed=seed,
        device=torch.device("cpu"),
        fingerprint="benchmark",
    )  # fmt: skip
    loaded = load_bundle(train(job).last)
    loaded.policy = InputPolicy(mode="full")
    save_bundle(folder / f"fold{seed}.safetensors", loaded)
    return folder / f"fold{seed}.safetensors"


def one_pass(bundles: list[Path], records: list[Record], out: Path, views: str = "flip", **settings: Any) -> float:
    """Returns the seconds from loaded networks to written masks."""
    segmenters: dict[str, Segmenter] = {f"unet/fold{k}": load_bundle(path) for k, path in enumerate(bundles)}
    asked = InferenceSettings(views=views, **settings)
    predictor = Predictor(Merge(children=tuple(segmenters)), segmenters, asked, torch.device("cpu"))

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        write_mask(out, ClassMap(id=record.id, labels=decided(maps[RESULT], predictor.task)), predictor.task)

    began = time.perf_counter()
    predict_records(predictor, records, consume, read=lambda record: read_image(record.image))
    return time.perf_counter() - began


class PeerPhotos(Dataset):
    """What a user writes: decode, pad to a multiple of 32, normalise, to tensor."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str, tuple[int, int, int, int]]:
        record = self.records[index]
        image = cv2.cvtColor(cv2.imread(str(record.image)), cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        rows, columns = -height % 32, -width % 32
        top, left = rows // 2, columns // 2
        padded = cv2.copyMakeBorder(image, top, rows - top, left, columns - left, cv2.BORDER_REFLECT_101)
        tensor = torch.from_numpy((padded.astype(np.float32) / 255 - 0.5) / 0.5).permute(2, 0, 1)
        return tensor.contiguous(), record.id, (top, left, height, width)


def pass_per_network(bundles: list[Path], records: list[Record], out: Path, *, together: bool, workers: int) -> float:
    """Returns the seconds of the published way: one PNG per network and photo, then their mean."""
    networks = [load_bundle(path).network.eval() for path in bundles]
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    for number, network in enumerate(networks):
        for tensor, record_id, (top, left, height, width) in DataLoader(
            PeerPhotos(records), batch_size=None, num_workers=workers
        ):
            images = tensor[None]
            with torch.inference_mode():
                if together:
                    both = network(torch.cat([images, images.flip(3)])).sigmoid()
                    mean = (both[0] + both[1].flip(2)) / 2
                else:
                    mean = (network(images).sigmoid()[0] + network(images.flip(3)).sigmoid()[0].flip(2)) / 2
            values = (mean[0, top : top + height, left : left + width] * 255).round().to(torch.uint8).numpy()
            cv2.imwrite(str(out / f"{record_id}.network{number}.png"), values)
    for record in records:
        names = [str(out / f"{record.id}.network{k}.png") for k in range(len(networks))]
        mean = np.mean([cv2.imread(name, cv2.IMREAD_GRAYSCALE) for name in names], axis=0)
        cv2.imwrite(str(out / f"{record.id}.png"), (mean >= 127.5).astype(np.uint8) * 255)
    return time.perf_counter() - began


def dice_between(first: Path, second: Path, records: list[Record]) -> float:
    """Returns the mean Dice of two folders of masks."""
    scores = []
    for record in records:
        a, b = (cv2.imread(str(folder / f"{record.id}.png"), cv2.IMREAD_GRAYSCALE) > 0 for folder in (first, second))
        scores.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return float(np.mean(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = open_carvana(studio(folder / "train", size=(1280, 1918), objects=4, views=4), DataSettings())
        unseen = open_carvana(
            studio(folder / "test", size=(1280, 1918), objects=1, views=arguments.photos, seed=8), DataSettings()
        )
        records = list(unseen.records)
        bundles = [trained(photos, folder, seed, arguments.steps) for seed in range(3)]
        ways = [{"together": together, "workers": workers} for together in (False, True) for workers in (0, 1)]
        trials = [in_fresh_process(pass_per_network, bundles[:1], records[:2], folder / "trial", **way) for way in ways]
        best = ways[trials.index(min(trials))]
        ours, peers = [], []
        for _ in range(arguments.repeats):
            peer = in_fresh_process(pass_per_network, bundles, records, folder / "peer", **best)
            peers.append(peer / len(records))
            ours.append(in_fresh_process(one_pass, bundles, records, folder / "ours") / len(records))
        agreement = {}
        for precision in ("float32", "bf16"):
            one_pass(bundles, records, folder / precision, precision=precision)
            agreement[f"dice_{precision}"] = round(dice_between(folder / "peer", folder / precision, records), 6)
    report(
        "ensemble_prediction", ours, peers, "seconds_per_photo", precision=fast_precision(torch.device("cpu")),
        photos=arguments.photos, peer=best, **agreement,
    )  # fmt: skip


if __name__ == "__main__":
    main()
