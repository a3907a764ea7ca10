"""Dstl's eight SWIR bands: networks, an index classifier and both together against boosted trees on smoothed bands.

    python benchmarks/swir.py --data DIR [--out runs/swir] [--smoke] [--set KEY=VALUE ...] [--classes NAME ...]

DIR is in the contest's layout (``sixteen_band/<id>_A.tif``, polygons, grid sizes). The recipe ``dstl_swir`` is fitted
in OUT/run, which continues where it stopped. scikit-learn's HistGradientBoostingClassifier, one per class and fold, is
fitted on the same folds, hence on the same scenes: every pixel is a sample, its features are the eight bands as they
are and smoothed by Gaussians of several widths, its settings are the library's own. Its maps are kept in OUT/boosting.

Judged is the Jaccard index of pixels summed over all images, each predicted by what never saw its scene, at the
sensor's resolution and with the polygons as they lie. ``water`` is both kinds together: the sum of the two maps of a
recipe, a class of its own to the trees. For every system thresholds (and of "both" the weights of the members) are
fitted on the maps of the other folds. Differences are paired by scene; intervals are of the bootstrap over scenes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common import ended

from maskloom import api
from maskloom.config import load_yaml, parse
from maskloom.console import Terminal
from maskloom.contests.dstl import open_dstl
from maskloom.contests.dstl.swir import dstl_swir
from maskloom.data.record_images import read_record_image
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.encodings.probability_maps import read_map, write_map
from maskloom.ensembling.bootstrap import compare_tallies, tally
from maskloom.ensembling.crossfit import crossfit
from maskloom.ensembling.thresholds import decide, fit_thresholds, histograms
from maskloom.errors import UserError
from maskloom.files import checksum, fingerprint, read_json, write_json, write_text
from maskloom.inference.merging import RESULT, Merge
from maskloom.metrics import Counts, from_labels, iou, per_class, total
from maskloom.progress import Progress, Silent
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.runtime import choose_device, hardware
from maskloom.stages.context import Context
from maskloom.stages.ensemble import Fitting, ensemble_tree, out_of_fold_maps
from maskloom.stages.fold_tables import FoldTables

LARGE = ("buildings", "trees", "crops", "water")
PARTS = {"water": ("fast_water", "slow_water")}
"""Classes that are judged together."""
SIGMAS = (0.0, 1.0, 2.0, 4.0)
"""Of the Gaussians, in pixels; 0 is the band as it is."""
BOOSTING, INDEX, NETWORK, BOTH = "boosting", "index", "network", "both"
PAIRS = ((NETWORK, BOOSTING), (BOTH, BOOSTING), (NETWORK, INDEX), (BOTH, NETWORK))
"""The first is compared with the second."""

Maps = Callable[[Record], np.ndarray]
"""Gives the out-of-fold maps of a record's judged classes, uint8 C×H×W."""


def main(words: Sequence[str] | None = None) -> None:
    arguments = parsed(words)
    settings = DataSettings(images="sixteen_band")
    source = open_dstl(arguments.data, settings)
    device = choose_device(arguments.device)
    recipe = dstl_swir(source, device=device.type, scale="smoke" if arguments.smoke else "full")
    recipe = recipe.model_copy(update={"data": settings})
    classifier()  # what is missing is said now, not after the networks
    with Terminal() as progress:
        run = arguments.out / "run"
        api.fit(
            recipe, arguments.data, run=run, settings=arguments.set, device=arguments.device, workers=arguments.workers,
            progress=progress,
        )  # fmt: skip
        folder = RunDirectory(run)
        complete = parse(Recipe, load_yaml(folder.recipe), origin=str(folder.recipe))
        context = Context(run=folder, recipe=complete, source=source, device=device, progress=Silent(), workers=0)
        judged = Judged(context, tuple(arguments.classes))
        boosted(judged, arguments.out / BOOSTING, progress)
    result: dict[str, Any] = {
        "benchmark": "swir",
        "images": len(source.records),
        "scenes": sorted({record.group for record in source.records}),
        "folds": judged.folds(),
        "members": complete.names,
        "sigmas": SIGMAS,
        **judged.found(arguments.out / BOOSTING),
        "seconds": round(sum(float(read_json(path)["seconds"]) for path in (run / "stages").rglob("*.json"))),
        "hardware": hardware(device),
    }
    table = markdown(result)
    write_text(arguments.out / "swir.md", table)
    write_json(arguments.out / "swir.json", result)
    print(table)
    print(json.dumps(result, ensure_ascii=False))


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the contest's layout")
    parser.add_argument("--out", type=Path, default=Path("runs/swir"), help="the run, the trees' maps and the results")
    parser.add_argument("--smoke", action="store_true", help="the recipe at smoke scale, to see that all runs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change to the recipe")
    parser.add_argument("--classes", nargs="+", default=list(LARGE), metavar="NAME", help="the classes that are judged")
    parser.add_argument("--workers", type=int, help="processes that read samples")
    parser.add_argument("--device", help="cpu or cuda; CUDA where there is one")
    return parser.parse_args(words)


# What is judged ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A finished run and the classes to be judged, of which some may be unions of the data's classes."""

    context: Context
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        known = (*self.context.source.task.classes, *PARTS)
        for name in self.classes:
            if name not in known:
                raise UserError(f"--classes: expected some of {', '.join(known)}, found {name!r}")

    @property
    def task(self) -> Task:
        """The judged classes as a task."""
        return Task(kind="multilabel", classes=self.classes)

    @property
    def recipe(self) -> Recipe:
        """That of the run."""
        return self.context.recipe

    @property
    def source(self) -> DataSource:
        """The data."""
        return self.context.source

    @cached_property
    def tables(self) -> FoldTables:
        """Who validates what."""
        return self.context.fold_tables()

    @cached_property
    def fold_of(self) -> dict[str, int]:
        """The fold of each record."""
        return self.tables.shared.fold_of()

    @cached_property
    def truths(self) -> dict[str, np.ndarray]:
        """The labels of the judged classes by record, uint8 C×H×W."""
        source = self.source
        return {
            record.id: self.joined(read_truth(record, source.task, source.coding), largest=1)
            for record in source.records
        }

    def folds(self) -> dict[str, list[str]]:
        """Returns the images of each fold."""
        return {
            str(fold): [name for name, own in self.fold_of.items() if own == fold]
            for fold in sorted(set(self.fold_of.values()))
        }

    def joined(self, maps: np.ndarray, *, largest: int = 255) -> np.ndarray:
        """Returns the maps of the judged classes, uint8 C×H×W, from those of the data's: parts are added."""
        names = self.source.task.classes
        planes = [
            np.sum([maps[names.index(part)] for part in PARTS.get(name, (name,))], axis=0, dtype=np.int64)
            for name in self.classes
        ]
        return np.stack(planes).clip(0, largest).astype(np.uint8)

    def systems(self, boosting: Path) -> dict[str, Callable[[list[Record]], Maps]]:
        """Returns the systems: given the records of the other folds, each says how maps are made."""
        indices = [member.name for member in self.recipe.members if member.network.index is not None]
        networks = [member.name for member in self.recipe.members if member.network.index is None]
        fitting = Fitting(self.context, self.source.records, self.fold_of)

        def both(outside: list[Record]) -> Maps:
            weights, _ = fitting.fit(outside)
            return self._of_tree(ensemble_tree(self.context, self.tables, weights))

        return {
            BOOSTING: lambda _: lambda record: read_map(boosting / f"{record.id}.map"),
            INDEX: lambda _: self._of_members(indices),
            NETWORK: lambda _: self._of_members(networks),
            BOTH: both,
        }

    def _of_members(self, names: list[str]) -> Maps:
        return self._of_tree(self.tables.expanded(Merge(children=tuple(names)), self.recipe.names))

    def _of_tree(self, tree: Merge) -> Maps:
        def maps(record: Record) -> np.ndarray:
            found = out_of_fold_maps(self.context.run, tree, record, self.tables, self.source.task)
            return self.joined(found[RESULT])

        return maps

    def counts(self, system: Callable[[list[Record]], Maps]) -> dict[str, Counts]:
        """Returns the counts of each record; what the system fits, and thresholds, are fitted on the other folds."""

        def fit(outside: list[Record]) -> tuple[Maps, list[int]]:
            maps = system(outside)
            found = [histograms(maps(record), self.truths[record.id], self.task) for record in outside]
            return maps, fit_thresholds(found, "iou", self.task)

        def apply(fitted: tuple[Maps, list[int]], inside: list[Record]) -> dict[str, Counts]:
            maps, thresholds = fitted
            return {
                record.id: from_labels(decide(maps(record), thresholds, self.task), self.truths[record.id], self.task)
                for record in inside
            }

        records = list(self.source.records)
        parts = crossfit(records, [self.fold_of[record.id] for record in records], fit=fit, apply=apply)
        return {name: counts for part in parts.values() for name, counts in part.items()}

    def found(self, boosting: Path) -> dict[str, Any]:
        """Returns scores by class and system, and differences between systems, as JSON."""
        counts = {name: self.counts(system) for name, system in self.systems(boosting).items()}
        return {
            "jaccard": self._jaccard(counts),
            "differences": {f"{after} - {before}": self._differences(counts, before, after) for after, before in PAIRS},
            "by_scene": self._by_scene(counts),
            "ensemble_weights": read_json(self.context.run.ensemble)["weights"],
        }

    def _jaccard(self, counts: Mapping[str, Mapping[str, Counts]]) -> dict[str, dict[str, float | None]]:
        scores = {system: per_class(list(found.values()), "iou") for system, found in counts.items()}
        return {
            name: {system: rounded(values[number]) for system, values in scores.items()}
            for number, name in enumerate(self.classes)
        }

    def _differences(
        self, counts: Mapping[str, Mapping[str, Counts]], before: str, after: str
    ) -> dict[str, dict[str, float | int]]:
        records = self.source.records
        first, second = (tally([counts[system][record.id] for record in records]) for system in (before, after))
        groups = [record.group for record in records]
        return {
            name: compare_tallies(first[..., [number]], [second[..., [number]]], groups, "iou")[0].to_json()
            for number, name in enumerate(self.classes)
        }

    def _by_scene(self, counts: Mapping[str, Mapping[str, Counts]]) -> dict[str, dict[str, dict[str, float]]]:
        """Returns, by class and scene that holds it, the Jaccard index of every system."""
        scenes: dict[str, list[str]] = {}
        for record in self.source.records:
            scenes.setdefault(record.group, []).append(record.id)
        sums = {
            scene: {system: total([found[name] for name in names]) for system, found in counts.items()}
            for scene, names in scenes.items()
        }
        return {
            name: {
                scene: {system: round(float(iou(each)[number]), 4) for system, each in found.items()}
                for scene, found in sums.items()
                if (found[BOTH].tp + found[BOTH].fn)[number] > 0
            }
            for number, name in enumerate(self.classes)
        }


def rounded(score: float) -> float | None:
    return None if np.isnan(score) else round(float(score), 4)


# Boosted trees -------------------------------------------------------------------------------------------------------


def classifier() -> Any:
    """Returns a fresh classifier with the library's settings; raises ``UserError`` where the library is missing."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError:
        raise UserError(
            "expected scikit-learn, which the comparison is with, found none; install it: pip install maskloom[bench]"
        ) from None
    return HistGradientBoostingClassifier(random_state=0)


def boosted(judged: Judged, folder: Path, progress: Progress) -> None:
    """Writes the out-of-fold maps of the trees, uint8 C×H×W by record; what is there already is kept."""
    mark = fingerprint(1, judged.classes, SIGMAS, checksum(judged.context.run.folds), str(judged.source.root.resolve()))
    marker, folds = folder / "marker.json", judged.folds()
    done = read_json(marker) if marker.is_file() else {}
    done = done if done.get("fingerprint") == mark else {"fingerprint": mark, "folds": []}
    progress.stage(BOOSTING, cached=len(done["folds"]) == len(folds))
    if len(done["folds"]) == len(folds):
        return
    seen = {record.id: features(read_record_image(record)) for record in judged.source.records}
    for number, (fold, inside) in enumerate(folds.items()):
        if fold in done["folds"]:
            continue
        outside = [name for name in seen if name not in inside]
        samples = np.concatenate([seen[name].reshape(-1, seen[name].shape[2]) for name in outside])
        maps: dict[str, list[np.ndarray]] = {name: [] for name in inside}
        for place in range(len(judged.classes)):
            progress.advance(number * len(judged.classes) + place, len(folds) * len(judged.classes), f"fold {fold}")
            truth = np.concatenate([judged.truths[name][place].ravel() for name in outside])
            model = classifier().fit(samples, truth) if truth.any() else None
            for name in inside:
                maps[name].append(probabilities(model, seen[name]))
        for name in inside:
            write_map(folder / f"{name}.map", np.stack(maps[name]))
        done["folds"].append(fold)
        write_json(marker, done)


def features(image: np.ndarray) -> np.ndarray:
    """Returns float32 H×W×(bands · widths): the bands H×W×C, smoothed."""
    bands = [np.ascontiguousarray(band) for band in image.astype(np.float32).transpose(2, 0, 1)]
    planes = [smoothed(band, sigma) for sigma in SIGMAS for band in bands]
    return np.stack(planes, axis=2)


def smoothed(band: np.ndarray, sigma: float) -> np.ndarray:
    return band if sigma == 0 else np.asarray(cv2.GaussianBlur(band, (0, 0), sigma))


def probabilities(model: Any, image: np.ndarray) -> np.ndarray:
    """Returns a class's map as it is stored, uint8 H×W; 0 where there was nothing to learn from."""
    height, width, channels = image.shape
    if model is None:
        return np.zeros((height, width), np.uint8)
    found = model.predict_proba(image.reshape(-1, channels))[:, 1]
    return np.round(255 * found).astype(np.uint8).reshape(height, width)


# The table -----------------------------------------------------------------------------------------------------------


def markdown(result: Mapping[str, Any]) -> str:
    """Returns the tables, and what one must know to read them."""
    systems = (BOOSTING, INDEX, NETWORK, BOTH)
    lines = [f"| class | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    for name, scores in result["jaccard"].items():
        cells = ["absent" if scores[system] is None else f"{scores[system]:.3f}" for system in systems]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| class | difference | mean | 95 % interval | P(> 0) | scenes better |", "|---|---|---|---|---|---|"]
    for name in result["jaccard"]:
        for pair, gains in result["differences"].items():
            gain = gains[name]
            after, before = pair.split(" - ")
            found = result["by_scene"][name].values()
            better = sum(scores[after] > scores[before] for scores in found)
            lines.append(
                f"| {name} | {pair} | {gain['mean']:+.3f} | {gain['low']:+.3f} … {gain['high']:+.3f} | "
                f"{gain['probability']:.3f} | {better} of {len(found)} |"
            )
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in result["ensemble_weights"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Jaccard index of pixels summed over {result['images']} images of {len(result['scenes'])} scenes, out of "
            f"fold in {len(result['folds'])} folds; thresholds fitted on the other folds. Weights of the members in "
            f"the final ensemble: {weights}. The recipe took {result['seconds']} s.",
            "",
        ]
    )


if __name__ == "__main__":
    ended(main)
