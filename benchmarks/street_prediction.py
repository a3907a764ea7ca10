"""Prediction: 20 classes on street scenes of 1936×1216, seven folds in one pass, against a plain loop.

    python benchmarks/street_prediction.py [--photos 3] [--repeats 2] [--steps 15]

The peer predicts with segmentation-models-pytorch in float32 under ``inference_mode`` on all cores, as its users write
it: photos come decoded and padded from a DataLoader (with or without a worker, whichever is faster in a trial), every
network's softmax is added up, the largest class is written as a PNG. Networks are the same, trained for some steps on
windows of other drawn scenes. Told are the share of pixels that get the same class, with our networks in float32, which
shows a difference of method, and in the precision of this machine; and our peak memory for the photos and for four
times as many. Maps are of 8 bits, in which the classes of networks that have hardly learnt are often level: state more
steps to see what agrees of networks that know something.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import cv2
import numpy as np
import torch
from common import ended, in_fresh_process, report
from ensemble_prediction import PeerPhotos, one_pass, trained
from torch.utils.data import DataLoader

from maskloom.contests.signate.layout import open_signate
from maskloom.contests.signate.stand_in import SIZE, write_stand_in
from maskloom.data.sources.base import DataSettings
from maskloom.models.bundle import load_bundle
from maskloom.records import Record
from maskloom.runtime import fast_precision

FOLDS = 7


def plain_loop(bundles: list[Path], records: list[Record], out: Path, *, workers: int) -> float:
    """Returns the seconds of the peer's loop, from loaded networks to written masks."""
    networks = [load_bundle(path).network.eval() for path in bundles]
    out.mkdir(parents=True, exist_ok=True)
    began = perf_counter()
    for tensor, record_id, (top, left, height, width) in DataLoader(
        PeerPhotos(records), batch_size=None, num_workers=workers
    ):
        with torch.inference_mode():
            mean = sum(network(tensor[None]).softmax(1) for network in networks)
        labels = mean[0, :, top : top + height, left : left + width].argmax(0).to(torch.uint8).numpy()
        cv2.imwrite(str(out / f"{record_id}.png"), labels)
    return perf_counter() - began


def one_pass_and_peak(bundles: list[Path], records: list[Record], out: Path) -> tuple[float, float]:
    """Returns the seconds of one pass over all networks, and the process's largest resident memory in MiB."""
    seconds = one_pass(bundles, records, out, "none")
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def equal_share(first: Path, second: Path, records: list[Record]) -> float:
    """Returns the share of pixels that have the same class in two folders of masks."""
    pairs = [
        [cv2.imread(str(folder / f"{record.id}.png"), cv2.IMREAD_UNCHANGED) for folder in (first, second)]
        for record in records
    ]
    return float(np.mean([(ours == theirs).mean() for ours, theirs in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15, help="of each network's training")
    parser.add_argument("--size", type=int, nargs=2, default=list(SIZE), metavar=("HEIGHT", "WIDTH"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stand_in(folder / "data", images=16, test_images=arguments.photos, size=tuple(arguments.size))
        source = open_signate(folder / "data", DataSettings())
        records = list(source.unlabelled)
        bundles = [
            in_fresh_process(
                trained, source, folder, seed, arguments.steps
            )  # a process started later counts our memory
            for seed in range(FOLDS)
        ]
        trials = [
            in_fresh_process(plain_loop, bundles[:1], records[:2], folder / "trial", workers=workers)
            for workers in (0, 1)
        ]
        workers = trials.index(min(trials))
        ours, peers = [], []
        for _ in range(arguments.repeats):
            peers.append(
                in_fresh_process(plain_loop, bundles, records, folder / "peer", workers=workers) / len(records)
            )
            seconds, peak = in_fresh_process(one_pass_and_peak, bundles, records, folder / "ours")
            ours.append(seconds / len(records))
        # The same photos four times under other names: memory must not grow with their number.
        many = [replace(record, id=f"{copy}_{record.id}") for copy in range(4) for record in records]
        _, peak_of_many = in_fresh_process(one_pass_and_peak, bundles, many, folder / "many")
        exact = in_fresh_process(one_pass, bundles, records, folder / "float32", "none", precision="float32")
        agreement = {
            "same_pixels": round(equal_share(folder / "peer", folder / "ours", records), 6),
            "same_pixels_float32": round(equal_share(folder / "peer", folder / "float32", records), 6),
        }
    report(
        "street_prediction", ours, peers, "seconds_per_photo", precision=fast_precision(torch.device("cpu")),
        photos=len(records), size=arguments.size, classes=source.task.num_maps, folds=FOLDS, peer_workers=workers,
        seconds_per_photo_float32=round(exact / len(records), 4),
        ratio_float32=round(float(np.median(peers)) * len(records) / exact, 3), peak_mib=round(peak),
        peak_mib_of_four_times=round(peak_of_many), **agreement,
    )  # fmt: skip


if __name__ == "__main__":
    ended(main)
