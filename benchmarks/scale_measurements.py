"""Measures what ``scale_model.py`` and ``scale_simulation.py`` need, with the program's own code, into one JSON file.

    python benchmarks/scale_measurements.py [--data FOLDER] [--out benchmarks/scale_costs.json]

Without a folder of photos, photos of 1918×1280 are drawn. Of each photo: decoding, preparing for the inputs of
``carvana_1st``, and what follows its networks; the median of several repetitions is kept, photo by photo, so that a
simulation can draw from them. Maps are soft masks of drawn photos, since hull and run lengths need an outline. Of the
networks, one of each architecture at its published width with random weights: operations (counted, nothing is
computed), one pass on a core of this CPU, bytes, and loading. Of real chunks, predicted by a worker process of the
local executor with a small network: their seconds, and those of its passes, for how much times scatter. Of the driver:
empty tasks that carry a chunk's records, and finding photos and writing the table of many.

Everything is timed in one thread by its processor time, which other work on the machine lengthens little; whole
chunks by the clock. Nothing here needs a GPU: ``python benchmarks/published_way.py
--device cuda`` measures the 49 networks on one ("computing", seconds per photo), ``python benchmarks/on_ray.py --only
tasks`` the tasks of a Ray cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import studio
from torch.utils.flop_counter import FlopCounterMode
from whole_ensemble import SIZE, TASK, Case, networks_of, photos_of, published_recipe

from maskloom.contests.carvana import open_carvana
from maskloom.data.image_io import read_image, read_mask_values
from maskloom.data.input_policy import InputPolicy, place, prepare_image
from maskloom.data.sources.base import DataSettings
from maskloom.executors.sites import Work, open_site
from maskloom.executors.tasks import Call, Executor, Here
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.decoders import build_network
from maskloom.models.encoders import NetworkSettings
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.outputs.tables import SubmissionFormat, SubmissionWriter
from maskloom.progress import Silent
from maskloom.recipe import Recipe
from maskloom.records import Record
from maskloom.runtime import autocast, fast_precision, hardware, keep_freed_memory
from maskloom.stages.image_versions import version_of
from maskloom.stages.images import find_images
from maskloom.stages.rows import CHUNK, chunks_in, read_rows, rows_of, write_chunk

DRAWN = 16
"""Photos that are drawn."""
MANY = 2_048
"""Small files for what the driver does with every photo."""
EMPTY_TASKS = 500
CHUNKS = 5
SMALL = (160, 240)
"""Input of the small network of real chunks."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, help="a folder of photos of 1918×1280")
    options.add_argument("--photos", type=int, help="the first so many of them")
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path(__file__).with_name("scale_costs.json"))
    arguments = options.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn = studio(folder / "drawn", size=SIZE, objects=1, views=DRAWN, seed=8)
        photos = photos_of(arguments.data or drawn / "train")[: arguments.photos]
        recipe = published(folder)
        maps = soft_masks(drawn, recipe)
        measured = {
            "measured_on": {"processor": hardware(torch.device("cpu"))["processor"], "torch": torch.__version__},
            "photos": f"{len(photos)} {'given' if arguments.data else 'drawn'}",
            "repeats": arguments.repeats,
            "image": of_images(photos, maps, recipe, arguments.repeats),
            "networks": of_networks(recipe, folder, arguments.repeats),
            "shard": of_shards(photos, folder),
            "single": {"image_bytes": statistics.fmean(record.image.stat().st_size for record in photos)}
            | of_driver(photos, maps, folder, arguments.repeats)
            | of_workers(photos, folder, arguments.repeats),
        }
    lines = [f"{json.dumps(name)}: {json.dumps(rounded(value))}" for name, value in measured.items()]
    arguments.out.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(lines[-1])


def published(folder: Path) -> Recipe:
    """Returns the recipe with random first weights; that the photos are small changes nothing in it."""
    source = open_carvana(studio(folder / "any", size=(64, 96), objects=7, views=2), DataSettings())
    return published_recipe(source, width=1.0, light=False, device="cpu")


def seconds_of(action: Callable[[], object], repeats: int) -> float:
    """Returns the median processor seconds of an action that was done once before."""
    action()
    found = []
    for _ in range(repeats):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return statistics.median(found)


def rounded(values: Any) -> Any:
    """Returns the same values with four digits that count."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if isinstance(values, float) else values


# Images --------------------------------------------------------------------------------------------------------------


def of_images(
    photos: Sequence[Record], soft: Sequence[dict[str, np.ndarray]], recipe: Recipe, repeats: int
) -> dict[str, list[float]]:
    """Returns the seconds of each photo: decoding, preparing for all distinct inputs; and of each map: finishing."""
    policies = list({json.dumps(member.input.model_dump()): member.input for member in recipe.members}.values())
    decode, prepare = [], []
    for record in photos:
        decode.append(seconds_of(lambda: read_image(record.image), repeats))  # noqa: B023
        image = read_image(record.image)
        prepare.append(seconds_of(lambda: [ready(image, policy) for policy in policies], repeats))  # noqa: B023
    case = Case(recipe=recipe, run=Path(), leaves={}, photos=[], device="cpu", warm_up=False)
    finish = []
    for maps in soft:
        finish.append(seconds_of(lambda: rows_of("photo", case.decided(maps), TASK), repeats))  # noqa: B023
    return {"decode": decode, "prepare": prepare, "finish": finish}


def ready(image: np.ndarray, policy: InputPolicy) -> torch.Tensor:
    """Returns what a network is given, as the predictor makes it."""
    return torch.from_numpy(np.ascontiguousarray(prepare_image(image, policy)[0])).permute(2, 0, 1)


def soft_masks(drawn: Path, recipe: Recipe) -> list[dict[str, np.ndarray]]:
    """Returns 8-bit maps of drawn photos, under the names of the result and of the taps: unsure along outlines."""
    tree = recipe.ensemble.tree
    assert tree is not None
    taps = [child.name for child in tree.children if isinstance(child, Merge) and child.name is not None]
    found = []
    for path in sorted((drawn / "train_masks").iterdir()):
        mask = (read_mask_values(path) > 0).astype(np.uint8)
        soft = cv2.GaussianBlur(255 * mask, (0, 0), 1.5)[None]
        found.append(dict.fromkeys((RESULT, *taps), soft))
    return found


# Networks ------------------------------------------------------------------------------------------------------------


def of_networks(recipe: Recipe, folder: Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Returns what is known of each architecture of the ensemble, and how many networks and passes it has."""
    leaves = networks_of(recipe, None)
    found: dict[str, dict[str, Any]] = {}
    for member in recipe.members:
        name, count = member.network.architecture, len(leaves[member.name])
        views = 2 if member.views_of(recipe.inference).views == "flip" else 1
        if name not in found:
            padded = place(SIZE, member.input).padded
            found[name] = {"count": 0, "passes": 0, "input": list(padded)}
            found[name] |= of_network(member.network, member.input, folder / f"{name}.safetensors", repeats)
        found[name]["count"] += count
        found[name]["passes"] += views * count
    return found


def of_network(network: NetworkSettings, policy: InputPolicy, path: Path, repeats: int) -> dict[str, float]:
    """Returns the operations of a pass over one photo, its seconds on this CPU, the bundle's bytes, and loading."""
    side = place(SIZE, policy).padded
    with torch.device("meta"):
        hollow = build_network(network, 1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hollow(torch.empty(1, 3, *side, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_bundle(path, small_segmenter(network, policy))

    def loaded() -> Predictor:
        return Predictor(Merge(children=("one",)), {"one": load_bundle(path)}, InferenceSettings(), torch.device("cpu"))

    load = seconds_of(loaded, min(repeats, 2))
    segmenter = loaded()._segmenters["one"]
    image = torch.zeros(1, 3, *side, dtype=torch.uint8)

    def computed() -> None:
        with torch.inference_mode(), autocast(torch.device("cpu"), fast_precision(torch.device("cpu"))):
            segmenter.logits(image)

    return {
        "tflop_per_pass": counter.get_total_flops() / 1e12,
        "cpu_seconds_per_pass": seconds_of(computed, min(repeats, 2)),
        "bytes": path.stat().st_size,
        "load": load,
    }


def small_segmenter(network: NetworkSettings, policy: InputPolicy) -> Segmenter:
    """Returns a segmenter with random weights, always the same."""
    torch.manual_seed(0)
    normalisation = Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3)
    return build_segmenter(network, task=TASK, policy=policy, normalisation=normalisation)


# Real chunks, by a worker of the local executor ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """What the tasks of real chunks share."""

    bundle: Path


def predict_chunk(here: Here, asked: Asked, chunk: tuple[Record, ...], path: Path) -> list[float]:
    """A chunk as ``predict --to rle`` has a worker predict it; returns the seconds of its passes."""

    def opened() -> Predictor:
        segmenters = {"small": load_bundle(asked.bundle)}
        return Predictor(Merge(children=("small",)), segmenters, InferenceSettings(views="none"), torch.device("cpu"))

    predictor, seconds = here.keeper.get("predictor", opened), []

    def predict(image: np.ndarray) -> dict[str, np.ndarray]:
        began = time.thread_time()
        maps = predictor(image)
        seconds.append(time.thread_time() - began)
        return maps

    write_chunk(
        predict,
        chunk,
        path,
        TASK,
        decide=lambda maps: (maps[RESULT] >= 128).astype(np.uint8)[0],
        read=lambda record: read_image(record.image),
        on_progress=here.progress.advance,
    )
    return seconds


def of_shards(photos: Sequence[Record], folder: Path) -> dict[str, list[float]]:
    """Returns the seconds of real chunks of one worker (the first one loads), and of the passes in them."""
    bundle = folder / "small.safetensors"
    network = NetworkSettings(architecture="unet", encoder="tf_efficientnet_lite0", weights="none")
    save_bundle(bundle, small_segmenter(network, InputPolicy(mode="resize", size=SMALL)))
    with open_site("local", device="cpu", processes=1) as site, site.workers(work(folder), Silent()) as executor:
        shared = executor.share(Asked(bundle))
        tickets = [
            executor.submit(
                Call(
                    name="predict",
                    function=predict_chunk,
                    shared=shared,
                    arguments=(chunk_from(photos, number), folder / f"{number:06d}.csv"),
                )
            )
            for number in range(CHUNKS + 1)
        ]
        passes = [seconds for ticket in tickets for seconds in executor.collect(ticket)][CHUNK:]
    return {"seconds": [ticket.seconds for ticket in tickets][1:], "passes": passes}


def chunk_from(photos: Sequence[Record], number: int) -> tuple[Record, ...]:
    """Returns a chunk of records; photos come again and again."""
    return tuple(photos[(number * CHUNK + place) % len(photos)] for place in range(CHUNK))


def work(folder: Path) -> Work:
    """Returns what workers are wanted for."""
    return Work(run=folder, command="predict", loaders=0)


# The driver ----------------------------------------------------------------------------------------------------------


def nothing(here: Here, shared: object, *arguments: object) -> None:
    """A task of no work."""


def of_driver(
    photos: Sequence[Record], soft: Sequence[dict[str, np.ndarray]], folder: Path, repeats: int
) -> dict[str, float]:
    """Returns what the driver has with a photo: seconds before and after the tasks, memory; and its row's bytes."""
    images, rows = folder / "many", folder / "rows"
    images.mkdir()
    rows.mkdir()
    for number in range(MANY):
        photo = images / f"photo{number:06d}.jpg"
        if number < len(photos):
            shutil.copyfile(photos[number].image, photo)
        else:
            os.link(images / f"photo{number % len(photos):06d}.jpg", photo)
    tracemalloc.start()
    records = find_images(images, out=folder / "out", bad=None)
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    before = seconds_of(lambda: version_of(find_images(images, out=folder / "out", bad=None)), repeats)
    masks = [(maps[RESULT] >= 128).astype(np.uint8)[0] for maps in soft]
    for number in range(MANY // CHUNK):
        write_masks(masks, records[number * CHUNK : (number + 1) * CHUNK], rows / f"{number:06d}.csv")
    written = MANY // CHUNK * CHUNK
    after = seconds_of(lambda: write_table(rows, folder / "table.csv.gz"), repeats)
    return {
        "row_bytes": sum(path.stat().st_size for path in chunks_in(rows)) / written,
        "drive_before": before / MANY,
        "drive_after": after / written,
        "record_memory": memory / MANY,
    }


def write_masks(masks: Sequence[np.ndarray], chunk: Sequence[Record], path: Path) -> None:
    """Writes a chunk's rows as a worker does, with masks instead of networks."""
    write_chunk(
        lambda number: {RESULT: masks[number]},
        chunk,
        path,
        TASK,
        decide=lambda maps: maps[RESULT],
        read=lambda record: int(record.id[-6:]) % len(masks),
    )


def write_table(rows: Path, table: Path) -> None:
    """Writes the table of all rows, as ``predict --to rle`` does."""
    written = set()
    with SubmissionWriter(table, SubmissionFormat(columns=("id", "rle"))) as lines:
        for row in read_rows(chunks_in(rows)):
            lines.write(row.record_id, row.runs)
            written.add(row.record_id)


def of_workers(photos: Sequence[Record], folder: Path, repeats: int) -> dict[str, float]:
    """Returns the seconds of a worker's start, of a task without work from one to the next, and of the driver in it."""
    few, many = 1, 1 + EMPTY_TASKS
    trials = [[of_empty_tasks(chunk_from(photos, 0), folder, count) for count in (few, many)] for _ in range(repeats)]
    start = statistics.median(worker for (worker, _), _ in trials)
    by_worker, by_driver = (
        statistics.median((long[side] - short[side]) / EMPTY_TASKS for short, long in trials) for side in (0, 1)
    )
    return {"start": start, "task": by_worker + by_driver, "drive_task": by_driver}


def of_empty_tasks(chunk: tuple[Record, ...], folder: Path, count: int) -> tuple[float, float]:
    """Returns the processor seconds of a worker, from its start to its end, and of the driver with so many tasks."""
    before, driven = os.times(), time.process_time()
    with open_site("local", device="cpu", processes=1) as site, site.workers(work(folder), Silent()) as executor:
        run_empty(executor, chunk, count)
    after = os.times()
    worker = after.children_user + after.children_system - before.children_user - before.children_system
    return worker, time.process_time() - driven


def run_empty(executor: Executor, chunk: tuple[Record, ...], count: int) -> None:
    """Has so many empty tasks done."""
    call = Call(name="predict", function=nothing, shared=executor.share(Silent), arguments=(chunk, Path("rows")))
    tickets = [executor.submit(call) for _ in range(count)]
    for ticket in tickets:
        executor.collect(ticket)


if __name__ == "__main__":
    sys.modules["scale_measurements"] = sys.modules["__main__"]  # by which workers find the tasks
    nothing.__module__ = predict_chunk.__module__ = Asked.__module__ = "scale_measurements"
    main()
