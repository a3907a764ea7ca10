"""Rasters larger than memory: peak memory at two sizes, and speed against rasterio and segmentation-models-pytorch.

The raster is synthetic: 16-bit bands, of which squares of 1024 pixels, scattered, hold data; the rest is nodata and not
even stored. A small U-Net, trained for a moment, looks at it in one view. Memory is that of whole processes. After that
the smaller raster is predicted twice more: killed half-way and continued in another order, which must give the same
bytes.

The peer reads a window, leaves it if it holds no data, normalises, predicts in float32 with all cores, keeps the
window's middle and writes it: the same network, tiles and overlap, window by window. Both begin with their network
loaded and end with a written raster of labels; they take turns, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from common import ENCODER, in_fresh_process, report
from memory import LAUNCHER
from rasterio.transform import from_origin
from rasterio.windows import Window
from torch.nn import functional

from maskloom.config import parse, to_yaml
from maskloom.data.input_policy import InputPolicy
from maskloom.files import write_json, write_text
from maskloom.inference.blocks import block_grid
from maskloom.inference.merging import Merge
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import Task
from maskloom.run_directory import RunDirectory
from maskloom.runtime import fast_precision
from maskloom.stages.images import open_for_prediction
from maskloom.stages.scenes import predict_scenes

SQUARE = 1024
"""Data lie in squares of so many pixels."""
OVERLAP = 0.25
TASK = Task(kind="binary", classes=("field",))


# What is predicted, and with what ------------------------------------------------------------------------------------


def fields(side: int, bands: int, seed: int) -> np.ndarray:
    """Returns uint16 C×side×side in 1…60000: fields of a few dozen pixels, each with its own values."""
    random = np.random.default_rng(seed)
    coarse = random.integers(1, 60_000, (bands, side // 32 + 1, side // 32 + 1), np.uint16)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)[:, :side, :side]


def write_raster(path: Path, side: int, bands: int, share: float) -> int:
    """Returns how many pixels of the raster hold data; the other tiles are not stored."""
    squares = [(top, left) for top in range(0, side, SQUARE) for left in range(0, side, SQUARE)]
    random = np.random.default_rng(0)
    chosen = sorted(random.permutation(len(squares))[: -(-int(share * 1000) * len(squares) // 1000)])
    contents = [fields(SQUARE, bands, seed) for seed in range(4)]
    num_filled = 0
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=bands, dtype="uint16", nodata=0, tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", zlevel=1, sparse_ok=True, bigtiff="if_safer",
        crs="EPSG:32633", transform=from_origin(500_000, 5_000_000, 0.5, 0.5),
    ) as dataset:  # fmt: skip
        for number, place in enumerate(chosen):
            top, left = squares[place]
            height, width = min(SQUARE, side - top), min(SQUARE, side - left)
            dataset.write(contents[number % 4][:, :height, :width], window=Window(left, top, width, height))
            num_filled += height * width
    return num_filled


def trained(bands: int, tile: int, steps: int) -> Segmenter:
    """Returns a small U-Net that has begun to find fields that are bright in the first band."""
    torch.manual_seed(0)
    segmenter = build_segmenter(
        NetworkSettings(encoder=ENCODER, weights="none", channels=bands, width=0.5),
        task=TASK,
        policy=InputPolicy(mode="window", size=(tile, tile), overlap=OVERLAP),
        normalisation=Normalisation(mean=(0.46,) * bands, std=(0.27,) * bands, dtype="uint16", scale=65535.0),
    )
    network = segmenter.network.train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for step in range(steps):
        drawn = np.stack([fields(128, bands, 100 + 4 * step + number) for number in range(4)])
        images = torch.from_numpy(drawn.astype(np.float32))
        loss = functional.binary_cross_entropy_with_logits(segmenter.logits(images), (images[:, :1] > 30_000).float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval()
    return segmenter


def member(bands: int, tile: int) -> dict[str, object]:
    return {
        "name": "unet",
        "network": {"encoder": ENCODER, "weights": "none", "channels": bands, "width": 0.5},
        "input": {"mode": "window", "size": [tile, tile], "overlap": OVERLAP},
        "loss": {"terms": [{"kind": "bce"}]},
        "training": {"epochs": 1},
    }


def recipe(bands: int, tile: int) -> Recipe:
    values = {"name": "benchmark", "metric": "iou", "members": [member(bands, tile)], "inference": {"views": "none"}}
    return parse(Recipe, values)


def write_run(folder: Path, bands: int, tile: int, steps: int) -> RunDirectory:
    """Returns a finished run of one network in one fold, as far as prediction looks at it."""
    run = RunDirectory(folder)
    write_text(run.recipe, to_yaml(recipe(bands, tile)))
    save_bundle(run.bundle("unet", 0, "last"), trained(bands, tile, steps))
    write_json(
        run.ensemble,
        {
            "metric": "iou",
            "tree": Merge(children=("unet/fold0",)).model_dump(mode="json"),
            "guiding": {},
            "thresholds": [128],
            "scores": {},
            "curve": [],
            "weights": {"unet": 1.0},
            "task": {"kind": TASK.kind, "classes": list(TASK.classes)},
        },
    )
    run.decide("benchmark")
    return run


# The two sides -------------------------------------------------------------------------------------------------------


def by_blocks(run: Path, raster: Path, out: Path, shuffle: int | None = None) -> float:
    """Returns the seconds from the loaded network to the written raster."""
    opened = open_for_prediction(RunDirectory(run), "cpu")
    began = time.perf_counter()
    predict_scenes(
        RunDirectory(run), raster, out=out, to="geotiff", opened=lambda: opened, shuffle=shuffle, progress=Silent()
    )
    return time.perf_counter() - began


def plainly(run: Path, raster: Path, out: Path, *, everywhere: bool) -> float:
    """Returns the seconds of what a user writes; ``everywhere``: windows without data are predicted as well."""
    segmenter = load_bundle(RunDirectory(run).bundle("unet", 0, "last"))
    network, normalisation = segmenter.network.eval(), segmenter.normalisation
    mean, std = (torch.tensor(values)[:, None, None] for values in (normalisation.mean, normalisation.std))
    assert segmenter.policy.size is not None
    tile = segmenter.policy.size[0]
    margin = int(OVERLAP * tile) // 2
    out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with rasterio.open(raster) as source:
        profile = source.profile | {"count": 1, "dtype": "uint8", "nodata": 255, "sparse_ok": False}
        with rasterio.open(out / f"{raster.stem}.tif", "w", **profile) as target:
            for top in range(0, source.height, tile - 2 * margin):
                for left in range(0, source.width, tile - 2 * margin):
                    pixels = mirrored(source, top - margin, left - margin, tile)
                    height, width = (min(tile - 2 * margin, end) for end in (source.height - top, source.width - left))
                    kept = (slice(margin, margin + height), slice(margin, margin + width))
                    is_valid = (pixels != 0).any(axis=0)[kept]
                    labels = np.full((height, width), 255, np.uint8)
                    if everywhere or is_valid.any():
                        images = (torch.from_numpy(pixels.astype(np.float32)) / normalisation.scale - mean) / std
                        with torch.inference_mode():
                            found = network(images[None]).sigmoid()[0, 0].numpy()[kept] >= 0.5
                        labels[is_valid] = found[is_valid]
                    target.write(labels, 1, window=Window(left, top, width, height))
    return time.perf_counter() - began


def mirrored(source: Any, top: int, left: int, tile: int) -> np.ndarray:
    """Returns a square of the raster, C×tile×tile; what lies beyond its borders is reflected."""
    first_row, first_column = max(top, 0), max(left, 0)
    rows, columns = min(top + tile, source.height) - first_row, min(left + tile, source.width) - first_column
    pixels = source.read(window=Window(first_column, first_row, columns, rows))
    before = (first_row - top, first_column - left)
    after = (tile - rows - before[0], tile - columns - before[1])
    return np.pad(pixels, ((0, 0), (before[0], after[0]), (before[1], after[1])), mode="reflect")


# What is measured ----------------------------------------------------------------------------------------------------


def command(run: Path, raster: Path, out: Path, shuffle: int | None = None) -> list[str]:
    only = [str(path) for path in (run, raster, out)] + ([str(shuffle)] if shuffle is not None else [])
    return [sys.executable, str(Path(__file__)), "--only", *only]


def peak_mib(run: Path, raster: Path, out: Path) -> float:
    """Returns the largest resident memory of a process that predicts the raster, in MiB."""
    launched = [sys.executable, "-c", LAUNCHER, *command(run, raster, out)]
    return float(subprocess.run(launched, check=True, capture_output=True, text=True).stdout)


def killed_and_continued(run: Path, raster: Path, out: Path) -> int:
    """Returns how many blocks were there when the prediction was killed; it is then finished in another order."""
    wanted, stored = num_blocks(run, raster) // 2, 0
    process = subprocess.Popen(command(run, raster, out), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        stored = len(list((out / ".blocks").rglob("*.map")))
        if stored >= wanted:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    process.wait()
    subprocess.run(command(run, raster, out, shuffle=1), check=True, stdout=subprocess.DEVNULL)
    return stored


def num_blocks(run: Path, raster: Path) -> int:
    settings = load_bundle(RunDirectory(run).bundle("unet", 0, "last"))
    with rasterio.open(raster) as dataset:
        size = (dataset.height, dataset.width)
    return len(block_grid(size, [(settings.policy, None)], channels=len(settings.normalisation.mean)).blocks())


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def agreement(one: Path, other: Path) -> float:
    """Returns the share of valid pixels in which two rasters of labels agree, row of tiles by row of tiles."""
    equal = total = 0
    with rasterio.open(one) as first, rasterio.open(other) as second:
        for top in range(0, first.height, 512):
            window = Window(0, top, first.width, min(512, first.height - top))
            a, b = first.read(1, window=window), second.read(1, window=window)
            equal += int(((a == b) & (a != 255)).sum())
            total += int((a != 255).sum())
    return equal / max(total, 1)


def measure_memory(folder: Path, run: Path, arguments: argparse.Namespace) -> None:
    peaks, shares = {}, {}
    for side in (arguments.small, arguments.large):
        raster = folder / f"{side}.tif"
        filled = write_raster(raster, side, arguments.bands, arguments.share)
        shares[side] = round(filled / side**2, 3)
        peaks[side] = round(peak_mib(run, raster, folder / f"out{side}"), 1)
    small = folder / f"{arguments.small}.tif"
    stored = killed_and_continued(run, small, folder / "again")
    same = digest(folder / "again" / small.name) == digest(folder / f"out{arguments.small}" / small.name)
    line = {
        "benchmark": "raster_prediction_memory",
        "peak_mib": peaks,
        "ratio": round(peaks[arguments.large] / peaks[arguments.small], 4),
        "share_with_data": shares,
        "killed_after_blocks": f"{stored} of {num_blocks(run, small)}",
        "same_bytes_after_kill_in_another_order": same,
    }
    print(json.dumps(line), flush=True)


def measure_speed(folder: Path, run: Path, arguments: argparse.Namespace) -> None:
    raster = folder / "speed.tif"
    filled = write_raster(raster, arguments.speed, arguments.bands, arguments.share)
    pixels = arguments.speed**2 / 1e6
    ours, peers = [], []
    for number in range(arguments.repeats):
        theirs, mine = folder / f"peer{number}", folder / f"ours{number}"
        peers.append(in_fresh_process(plainly, run, raster, theirs, everywhere=arguments.everywhere))
        ours.append(in_fresh_process(by_blocks, run, raster, mine))
    report(
        "raster_prediction", ours, peers, "seconds",
        maskloom_megapixels_per_second=[round(pixels / seconds, 3) for seconds in ours],
        peer_megapixels_per_second=[round(pixels / seconds, 3) for seconds in peers],
        side=arguments.speed, share_with_data=round(filled / arguments.speed**2, 3),
        peer_predicts_empty_windows=arguments.everywhere, precision=fast_precision(torch.device("cpu")),
        labels_agree=round(agreement(folder / "ours0" / raster.name, folder / "peer0" / raster.name), 6),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=30_000, help="side of the large raster in pixels; 0: no memory")
    parser.add_argument("--small", type=int, default=10_000, help="side of the raster that it is compared with")
    parser.add_argument("--speed", type=int, default=8_000, help="side of the raster for speed; 0: no speed")
    parser.add_argument("--bands", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.32, help="share of the squares that hold data")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="of the training")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--everywhere", action="store_true", help="let the peer predict windows without data, too")
    parser.add_argument("--only", nargs="+", metavar="PATH", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run, raster, out = map(Path, arguments.only[:3])
        by_blocks(run, raster, out, int(arguments.only[3]) if len(arguments.only) > 3 else None)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = write_run(folder / "run", arguments.bands, arguments.tile, arguments.steps).root
        if arguments.large:
            measure_memory(folder, run, arguments)
        if arguments.speed:
            measure_speed(folder, run, arguments)


if __name__ == "__main__":
    main()
