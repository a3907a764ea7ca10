"""The 1st place's whole ensemble in one pass over each photo, against the published way: a pass for each network.

    python benchmarks/published_way.py [--photos 2] [--device cuda]    49 networks at published widths and sizes
    python benchmarks/published_way.py --light --data FOLDER           49 small networks, all photos of a folder

Networks, inputs, views, tree, hull and threshold are those of the recipe ``carvana_1st``. One network of each of its
four architectures learns for a few steps, and its last layer is scaled until its logits spread as a trained one's do;
every network is such a one with noise of its own, so that no two are alike. The share of decided pixels (probability
below 0.1 or above 0.9) is reported. The light ensemble has a quarter of the filters and looks at 128×192, so that files
weigh most.

The published way takes the networks one after the other: each decodes and prepares every photo, predicts it in float32
under ``inference_mode``, brings its probabilities to the photo's size and stores them as an 8-bit PNG; then the PNGs
are read again, averaged within each member and over the members, 8 bits each time. Preparing (resizing, padding,
CLAHE), hull and threshold are the same functions on both sides, and both leave a PNG mask per photo.

Each side runs in fresh processes, in turns. Loading networks is timed on neither side. "parts" are seconds per photo:
one pass decodes and writes (with hull and threshold) in threads beside the computing, so that its parts may add up to
more than its seconds; the published way does one thing after the other, and with a worker its decoding is what the loop
waits for. Memory is the largest resident size of the process, networks included: one pass holds all of them, the
published way one. The extrapolation multiplies the seconds per photo, on one such machine and on 20.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import in_fresh_process, report, studio
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from whole_ensemble import (
    LIGHT_WIDTH,
    SIZE,
    TASK,
    Case,
    generated_photos,
    in_precision,
    make_networks,
    networks_of,
    photos_of,
    published_recipe,
)

from maskloom.contests.carvana import open_carvana
from maskloom.data.image_io import read_image
from maskloom.data.input_policy import InputPolicy, Placement, prepare_image
from maskloom.data.sources.base import DataSettings
from maskloom.files import fingerprint
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.streaming import predict_records
from maskloom.models.bundle import load_bundle
from maskloom.models.segmenter import Normalisation
from maskloom.outputs.maps import write_mask
from maskloom.records import ClassMap, Record
from maskloom.run_directory import RunDirectory
from maskloom.runtime import choose_device, fast_precision, hardware
from maskloom.stages.ensemble import Ensemble, open_predictor

CONTEST_PHOTOS = 100_064
MACHINES = 20
"""The team had so many GPUs."""
GENERATED = 48
"""Photos of the light ensemble unless a folder is given."""
TRIED = 8
"""Photos in a trial of how the published way decodes."""


def main() -> None:
    arguments = parsed()
    with work_folder(arguments.work) as folder:
        case, facts = prepared(folder, arguments)
        theirs = replace(case, photos=case.photos[: arguments.peer_photos])
        workers = 0  # where a network computes for seconds, a worker brings nothing
        if case.warm_up:
            few = replace(theirs, photos=theirs.photos[:TRIED], leaves=dict([next(iter(case.leaves.items()))]))
            trials = [in_fresh_process(network_by_network, few, folder / "trial", workers=w) for w in (0, 1)]
            workers = int(trials[1].seconds < trials[0].seconds)
        ours, peers = [], []
        for _ in range(arguments.repeats):
            peers.append(in_fresh_process(published_way, theirs, folder / "peer", workers=workers))
            ours.append(in_fresh_process(one_pass, case, folder / "ours"))
        facts |= agreement(folder / "ours", folder / "peer", theirs.photos)
        precision = fast_precision(torch.device(case.device))
        if precision != "float32":  # the difference without rounding to fewer bits
            exact = replace(theirs, recipe=in_precision(case.recipe, "float32"), warm_up=False)
            in_fresh_process(one_pass, exact, folder / "float32")
            facts["in_float32"] = agreement(folder / "float32", folder / "peer", theirs.photos)
    report(
        "light_ensemble" if arguments.light else "full_ensemble",
        [side.seconds for side in ours],
        [side.seconds for side in peers],
        "seconds_per_photo",
        **facts,
        photos=len(case.photos),
        peer_photos=len(theirs.photos),
        maskloom=ours[-1].facts(),
        peer=peers[-1].facts() | {"workers": workers},
        precision=precision,
        hours_for_contest={
            name: {
                f"{count} machine(s)": round(min(side.seconds for side in sides) * CONTEST_PHOTOS / 3600 / count, 2)
                for count in (1, MACHINES)
            }
            for name, sides in (("maskloom", ours), ("peer", peers))
        },
        hardware=hardware(torch.device(case.device)),
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--light", action="store_true", help="small networks, where files weigh most")
    parser.add_argument("--data", type=Path, help="a folder of photos; generated when left out")
    parser.add_argument("--photos", type=int, help=f"the first so many (2; light: all, of generated ones {GENERATED})")
    parser.add_argument("--peer-photos", type=int, help="of these, for the published way (all; in full on a CPU 1)")
    parser.add_argument("--repeats", type=int, default=1, help="of both sides, in turns")
    parser.add_argument("--networks", type=int, help="at most so many folds of each member, for trials")
    parser.add_argument("--width", type=float, help=f"of all layers (1 as published; light: {LIGHT_WIDTH})")
    parser.add_argument("--steps", type=int, default=20, help="of training, for each architecture")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--work", type=Path, help="keep networks and maps here (in full 7 GB); else they are removed")
    arguments = parser.parse_args()
    choose_device(arguments.device)
    light, on_cpu = arguments.light, arguments.device == "cpu"
    if arguments.photos is None and not light:
        arguments.photos = 2
    if arguments.peer_photos is None and not light and on_cpu:
        arguments.peer_photos = 1
    arguments.width = arguments.width or (LIGHT_WIDTH if light else 1.0)
    return arguments


@contextmanager
def work_folder(stated: Path | None) -> Iterator[Path]:
    """Yields the stated folder, else one that is removed afterwards."""
    with nullcontext(stated) if stated else tempfile.TemporaryDirectory() as name:
        yield Path(name)


def prepared(folder: Path, arguments: argparse.Namespace) -> tuple[Case, dict[str, Any]]:
    """Returns the ensemble, its networks written and its photos there, and facts about it."""
    source = open_carvana(studio(folder / "train", size=SIZE, objects=7, views=2), DataSettings())
    recipe = published_recipe(source, width=arguments.width, light=arguments.light, device=arguments.device)
    photos = photos_of(arguments.data or generated_photos(folder / "photos", arguments.photos or GENERATED))
    mark = fingerprint(recipe.model_dump(mode="json"), arguments.steps)
    case = Case(
        recipe=recipe,
        run=folder / f"run-{mark[:8]}",
        leaves=networks_of(recipe, arguments.networks),
        photos=photos[: arguments.photos],
        device=arguments.device,
        warm_up=arguments.light or arguments.device != "cpu",
    )
    return case, in_fresh_process(make_networks, case, source, arguments.steps)


# What a side is judged by


@dataclass(kw_only=True)
class Side:
    """What one run of one side took."""

    seconds: float
    """Per photo, from loaded networks to the mask."""
    parts: dict[str, float]
    """Of these, by what was done."""
    loading: float
    """Seconds for all networks, timed apart."""
    peak_mib: int
    device_peak_mib: int | None

    def facts(self) -> dict[str, Any]:
        known = {
            "parts": {name: round(value, 4) for name, value in self.parts.items()},
            "loading_seconds": round(self.loading, 1),
            "peak_mib": self.peak_mib,
        }
        return known if self.device_peak_mib is None else known | {"device_peak_mib": self.device_peak_mib}


@dataclass
class Clock:
    """Adds up the seconds of each part, from any thread."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        passed = time.perf_counter() - began
        with self._lock:
            self.seconds[part] += passed

    def side(self, seconds: float, num_photos: int, device: torch.device, loading: float) -> Side:
        on_device = torch.cuda.max_memory_allocated() // 2**20 if device.type == "cuda" else None
        return Side(
            seconds=seconds / num_photos,
            parts={name: value / num_photos for name, value in self.seconds.items()},
            loading=loading,
            peak_mib=peak_mib(),
            device_peak_mib=on_device,
        )


def peak_mib() -> int:
    """Returns the largest resident memory of this process.

    Linux counts into ``getrusage`` what the process held that started this one; its status file does not.
    """
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


def leave(case: Case, record: Record, maps: dict[str, np.ndarray], out: Path) -> None:
    """Writes a photo's mask, and its map for the comparison (uncompressed, which costs both sides 1 or 2 ms)."""
    write_mask(out, ClassMap(id=record.id, labels=case.decided(maps)), TASK)
    np.save(out / f"{record.id}.npy", maps[RESULT])


def agreement(ours: Path, theirs: Path, photos: list[Record]) -> dict[str, Any]:
    """Returns how far the maps of both sides (8-bit values) and their masks differ."""
    largest, total, decided, other, count = 0, 0.0, 0, 0, 0
    for record in photos:
        first, second = (np.load(folder / f"{record.id}.npy").astype(np.int16) for folder in (ours, theirs))
        masks = [cv2.imread(str(folder / f"{record.id}.png"), cv2.IMREAD_GRAYSCALE) for folder in (ours, theirs)]
        difference = np.abs(first - second)
        largest, total = max(largest, int(difference.max())), total + float(difference.sum())
        decided += int(((first < 26) | (first > 229)).sum())
        other += int((masks[0] != masks[1]).sum())
        count += first.size
    return {
        "largest_difference_255ths": largest,
        "mean_difference_255ths": round(total / count, 4),
        "pixels_decided_otherwise_per_million": round(1e6 * other / count, 2),
        "share_decided": round(decided / count, 3),
    }


# One pass


def one_pass(case: Case, out: Path) -> Side:
    """Returns what it took to predict all photos by the project's own predictor, as ``maskloom predict`` does."""
    device, clock = torch.device(case.device), Clock()
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    ensemble = Ensemble(metric="dice", tree=case.tree, thresholds=[128], scores={}, curve=[], weights={})
    predictor = open_predictor(RunDirectory(case.run), ensemble, case.recipe, device)
    loading = time.perf_counter() - began
    if case.warm_up:
        predictor(read_image(case.photos[0].image))

    def read(record: Record) -> np.ndarray:
        with clock("decoding"):
            return read_image(record.image)

    def predict(image: np.ndarray) -> dict[str, np.ndarray]:
        with clock("computing"):
            return predictor(image)

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        with clock("writing"):
            leave(case, record, maps, out)

    began = time.perf_counter()
    predict_records(predict, case.photos, consume, read=read)
    return clock.side(time.perf_counter() - began, len(case.photos), device, loading)


# The published way


class PeerPhotos(Dataset):
    """What a user writes: decode, prepare, normalise, to tensor."""

    def __init__(self, records: list[Record], policy: InputPolicy, normalisation: Normalisation) -> None:
        self.records, self.policy = records, policy
        self.mean, self.std = (np.array(values, np.float32) for values in (normalisation.mean, normalisation.std))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Placement]:
        image = cv2.cvtColor(cv2.imread(str(self.records[index].image)), cv2.COLOR_BGR2RGB)
        prepared, placement = prepare_image(image, self.policy)
        values = (prepared.astype(np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()[None], placement


def published_way(case: Case, out: Path, *, workers: int) -> Side:
    """Returns what it took with a pass and a PNG for each network and photo, and the averaging of the PNGs."""
    clock = Clock()
    networks = network_by_network(case, out, workers=workers, clock=clock)
    for record in case.photos:
        with clock("averaging"):
            leave(case, record, averaged(case.tree, record, out), out)
    return clock.side(sum(clock.seconds.values()), len(case.photos), torch.device(case.device), networks.loading)


def network_by_network(case: Case, out: Path, *, workers: int, clock: Clock | None = None) -> Side:
    """Returns what it took to store the map of every network and photo; adds to the clock where one is given."""
    device, clock, loading = torch.device(case.device), clock or Clock(), 0.0
    torch.backends.cudnn.benchmark = True
    for leaf in case.networks:
        began = time.perf_counter()
        segmenter = load_bundle(case.bundle(leaf))
        network = segmenter.network.to(device)
        loading += time.perf_counter() - began
        photos = PeerPhotos(case.photos, segmenter.policy, segmenter.normalisation)
        path(out, case.photos[0], leaf).parent.mkdir(parents=True, exist_ok=True)
        if case.warm_up:
            probabilities(network, *photos[0], device=device, flipped=case.is_flipped(leaf))
        with clock("decoding"):
            stream = iter(DataLoader(photos, batch_size=None, num_workers=workers))
        for record in case.photos:
            with clock("decoding"):
                image, placement = next(stream)
            with clock("computing"):
                values = probabilities(network, image, placement, device=device, flipped=case.is_flipped(leaf))
            with clock("writing"):
                cv2.imwrite(str(path(out, record, leaf)), values)
    return clock.side(sum(clock.seconds.values()), len(case.photos), device, loading)


@torch.inference_mode()
def probabilities(
    network: nn.Module, image: Tensor, placement: Placement, *, device: torch.device, flipped: bool
) -> np.ndarray:
    """Returns the 8-bit map H×W of one network at the photo's size."""
    images = image.to(device)
    if not flipped:
        logits = network(images)
    elif device.type == "cuda":
        first, second = network(torch.cat([images, images.flip(3)])).split(1)
        logits = (first + second.flip(3)) / 2
    else:  # a CPU takes one by one sooner than both together
        logits = (network(images) + network(images.flip(3)).flip(3)) / 2
    rows, columns = placement.padding.interior(placement.padded).slices
    values = logits.sigmoid()[..., rows, columns]
    if placement.resized:
        values = functional.interpolate(values, placement.original, mode="bilinear", align_corners=False)
    return values[0, 0].mul(255).round().to(torch.uint8).cpu().numpy()


def averaged(node: Merge, record: Record, out: Path) -> dict[str, np.ndarray]:
    """Returns a photo's merged map and the taps, 1×H×W, from PNGs: each member's mean and the members' in 8 bits."""
    maps: dict[str, np.ndarray] = {}
    means = []
    for child in node.children:
        assert isinstance(child, Merge)
        names = [str(path(out, record, leaf)) for leaf in child.leaves()]
        mean = rounded([cv2.imread(name, cv2.IMREAD_GRAYSCALE) for name in names])
        means.append(mean)
        if child.name is not None:
            maps[child.name] = mean[None]
    return maps | {RESULT: rounded(means)[None]}


def rounded(maps: list[np.ndarray]) -> np.ndarray:
    """Returns the mean of 8-bit maps as 8 bits."""
    total = np.zeros(maps[0].shape, np.uint16)
    for values in maps:
        total += values
    return np.rint(total / len(maps)).astype(np.uint8)


def path(out: Path, record: Record, leaf: str) -> Path:
    """Returns where the map of one network and photo lies."""
    return out / leaf.replace("/", ".") / f"{record.id}.png"


if __name__ == "__main__":
    main()
