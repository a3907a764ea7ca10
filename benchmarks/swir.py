"""Dstl's eight SWIR bands: the members of a recipe, apart and together, against boosted trees on smoothed bands.

    python benchmarks/swir.py --data DIR [--apart images|scenes] [--out DIR] [--smoke] [--set KEY=VALUE ...]
                              [--classes NAME ...]

DIR is in the contest's layout (``sixteen_band/<id>_A.tif``, polygons, grid sizes). The recipe ``dstl_swir`` is fitted
in OUT/run, which continues where it stopped. The trees of ``swir_baseline`` are fitted on the same folds, hence on the
same images, one classifier per class and fold; their maps are kept in OUT/boosting.

What folds keep apart makes the task. ``images`` (the usual): an image is judged by what never saw it, but may have seen
others of its scene, the 5×5 images that were taken together; so the contest asked, whose unknown images are mostly of
scenes that it gives others of. ``scenes``: by what saw nothing of the scene, its soil, season and haze, either.

Judged is the Jaccard index of pixels summed over all images, each predicted out of fold, at the sensor's resolution and
with the polygons as they lie. ``water`` is both kinds together: the sum of the two maps of a recipe, a class of its own
to the trees. For every system thresholds (and of "both" the weights of the members) are fitted on the maps of the other
folds. Differences are paired: by image in the tables, by scene in the intervals, those of the bootstrap over scenes.
Seconds are those of fitting and predicting out of fold, whatever else the machine was doing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import ended
from swir_baseline import BOOSTING, SHARE, SIGMAS, TREES, boosted, classifier, stored

from maskloom import api
from maskloom.config import load_yaml, parse
from maskloom.console import Terminal
from maskloom.contests.dstl import open_dstl
from maskloom.contests.dstl.swir import dstl_swir
from maskloom.data.record_images import read_record_image
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.ensembling.bootstrap import compare_tallies, tally
from maskloom.ensembling.crossfit import crossfit
from maskloom.ensembling.thresholds import decide, fit_thresholds, histograms
from maskloom.errors import UserError
from maskloom.files import checksum, read_json, write_json, write_text
from maskloom.inference.merging import RESULT, Merge
from maskloom.metrics import Counts, from_labels, iou, per_class
from maskloom.progress import Silent
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
Apart = Literal["images", "scenes"]
GROUPS: dict[Apart, str | None] = {"images": "(.+)", "scenes": None}
"""What is one group of the data, as ``data.group`` has it; None: as the layout has it."""
INDEX, GROWN, NETWORK, BOTH = "index", "grown", "network", "both"
SYSTEMS = (BOOSTING, INDEX, GROWN, NETWORK, BOTH)
PAIRS = ((NETWORK, BOOSTING), (GROWN, BOOSTING), (BOTH, BOOSTING), (NETWORK, INDEX), (BOTH, NETWORK))
"""The first is compared with the second."""

Maps = Callable[[Record], np.ndarray]
"""Gives the out-of-fold maps of a record's judged classes, uint8 C×H×W."""


def main(words: Sequence[str] | None = None) -> None:
    arguments = parsed(words)
    out = arguments.out or Path("runs") / f"swir_{arguments.apart}"
    settings = DataSettings(images="sixteen_band", group=GROUPS[arguments.apart])
    source = open_dstl(arguments.data, settings)
    device = choose_device(arguments.device)
    recipe = dstl_swir(source, device=device.type, scale="smoke" if arguments.smoke else "full")
    recipe = recipe.model_copy(update={"data": settings})
    classifier()  # what is missing is said now, not after the networks
    with Terminal() as progress:
        run = out / "run"
        api.fit(
            recipe, arguments.data, run=run, settings=arguments.set, device=arguments.device, workers=arguments.workers,
            progress=progress,
        )  # fmt: skip
        folder = RunDirectory(run)
        complete = parse(Recipe, load_yaml(folder.recipe), origin=str(folder.recipe))
        context = Context(run=folder, recipe=complete, source=source, device=device, progress=Silent(), workers=0)
        judged = Judged(context, tuple(arguments.classes))
        seconds = judged.seconds()
        seconds[BOOSTING] = boosted(
            out / BOOSTING,
            {record.id: read_record_image(record) for record in source.records},
            judged.truths,
            judged.folds(),
            progress,
            origin=f"{source.root.resolve()} {checksum(folder.folds)} {judged.classes}",
        )
    result: dict[str, Any] = {
        "benchmark": "swir",
        "apart": arguments.apart,
        "images": len(source.records),
        "scenes": sorted({scene_of(record) for record in source.records}),
        "folds": judged.folds(),
        "members": complete.names,
        "trees": {"sigmas": SIGMAS, "share": SHARE, **TREES},
        **judged.found(out / BOOSTING),
        "seconds": {name: round(value) for name, value in seconds.items()},
        "hardware": hardware(device),
    }
    table = markdown(result)
    write_text(out / "swir.md", table)
    write_json(out / "swir.json", result)
    print(table)
    print(json.dumps(result, ensure_ascii=False))


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the contest's layout")
    parser.add_argument("--apart", choices=list(GROUPS), default="images", help="what folds keep apart")
    parser.add_argument("--out", type=Path, help="the run, the trees' maps and the results; runs/swir_<apart>")
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
        fitting = Fitting(self.context, self.source.records, self.fold_of)

        def both(outside: list[Record]) -> Maps:
            weights, _ = fitting.fit(outside)
            return self._of_tree(ensemble_tree(self.context, self.tables, weights))

        return {
            BOOSTING: lambda _: lambda record: stored(boosting, record.id),
            INDEX: lambda _: self._of_members(self._members(INDEX)),
            GROWN: lambda _: self._of_members(self._members(GROWN)),
            NETWORK: lambda _: self._of_members(self._members(NETWORK)),
            BOTH: both,
        }

    def _members(self, kind: str) -> list[str]:
        """Returns the members that are index classifiers, trees, or networks that minimise a loss."""
        kinds = {"index": INDEX, "trees": GROWN}
        return [
            member.name for member in self.recipe.members if kinds.get(member.network.architecture, NETWORK) == kind
        ]

    def seconds(self) -> dict[str, float]:
        """Returns the seconds that the run spent on each kind of members, and on all of its stages."""

        def spent(*names: str) -> float:
            return sum(
                float(read_json(path)["seconds"])
                for name in names
                for path in (self.context.run.root / "stages").glob(name)
            )

        kinds = {kind: self._members(kind) for kind in (INDEX, GROWN, NETWORK)}
        return {
            kind: spent(*(f"train/{name}/*.json" for name in names), *(f"oof/{name}.json" for name in names))
            for kind, names in kinds.items()
        } | {BOTH: spent("**/*.json")}

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
            "by_image": self._by_image(counts),
            "true_pixels": self._true_pixels(),
            "ensemble_weights": self._weights(),
        }

    def _weights(self) -> dict[str, dict[str, float]]:
        """Returns, by class of the data, the weight of every member in the final ensemble."""
        weights = read_json(self.context.run.ensemble)["weights"]
        return {
            name: {member: each[name] if isinstance(each, dict) else each for member, each in weights.items()}
            for name in self.source.task.classes
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
        groups = [scene_of(record) for record in records]
        return {
            name: compare_tallies(first[..., [number]], [second[..., [number]]], groups, "iou")[0].to_json()
            for number, name in enumerate(self.classes)
        }

    def _by_image(self, counts: Mapping[str, Mapping[str, Counts]]) -> dict[str, dict[str, dict[str, float]]]:
        """Returns, by class and image that holds it, the Jaccard index of every system."""
        scores = {
            record.id: {system: iou(found[record.id]) for system, found in counts.items()}
            for record in self.source.records
        }
        pixels = self._true_pixels()
        return {
            name: {
                image: {system: round(float(each[number]), 4) for system, each in found.items()}
                for image, found in scores.items()
                if image in pixels[name]
            }
            for number, name in enumerate(self.classes)
        }

    def _true_pixels(self) -> dict[str, dict[str, int]]:
        """Returns, by class and image that holds it, how many pixels are truly of the class; most first."""
        found: dict[str, dict[str, int]] = {}
        for number, name in enumerate(self.classes):
            sums = {image: int((truth[number] == 1).sum()) for image, truth in self.truths.items()}
            found[name] = {image: sums[image] for image in sorted(sums, key=lambda one: -sums[one]) if sums[image]}
        return found


def scene_of(record: Record) -> str:
    return record.id.partition("_")[0]


def rounded(score: float) -> float | None:
    return None if np.isnan(score) else round(float(score), 4)


# The table -----------------------------------------------------------------------------------------------------------


def markdown(result: Mapping[str, Any]) -> str:
    """Returns the tables, and what one must know to read them."""
    seconds = ", ".join(f"{name} {value} s" for name, value in result["seconds"].items())
    return "\n".join(
        [
            *_of_classes(result["jaccard"]),
            "",
            *_of_differences(result),
            "",
            *_of_images(result),
            "",
            *_of_weights(result["ensemble_weights"]),
            "",
            f"Jaccard index of pixels summed over {result['images']} images of {len(result['scenes'])} scenes, out of "
            f"fold in {len(result['folds'])} folds that keep {result['apart']} apart; thresholds fitted on the other "
            f"folds, intervals over scenes; weights of the members are those of the final ensemble. Time: {seconds} "
            f"({BOTH}: all stages of the run).",
            "",
        ]
    )


def _of_classes(jaccard: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    rows = [f"| class | {' | '.join(SYSTEMS)} |", "|---" * (len(SYSTEMS) + 1) + "|"]
    for name, scores in jaccard.items():
        cells = ["absent" if (score := scores[system]) is None else f"{score:.3f}" for system in SYSTEMS]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return rows


def _of_differences(result: Mapping[str, Any]) -> list[str]:
    rows = [
        "| class | difference | mean | 95 % interval | P(> 0) | images better, worse |",
        "|---|---|---|---|---|---|",
    ]
    for name in result["jaccard"]:
        found = result["by_image"][name].values()
        for pair, gains in result["differences"].items():
            gain = gains[name]
            after, before = pair.split(" - ")
            better = sum(scores[after] > scores[before] for scores in found)
            worse = sum(scores[after] < scores[before] for scores in found)
            rows.append(
                f"| {name} | {pair} | {gain['mean']:+.3f} | {gain['low']:+.3f} … {gain['high']:+.3f} | "
                f"{gain['probability']:.3f} | {better}, {worse} of {len(found)} |"
            )
    return rows


def _of_images(result: Mapping[str, Any]) -> list[str]:
    """Returns the scores on each image that holds a class, those with most of it first."""
    rows = [f"| class | image | true pixels | {' | '.join(SYSTEMS)} |", "|---" * (len(SYSTEMS) + 3) + "|"]
    for name, pixels in result["true_pixels"].items():
        for image, count in pixels.items():
            scores = result["by_image"][name][image]
            cells = " | ".join(f"{scores[system]:.3f}" for system in SYSTEMS)
            rows.append(f"| {name} | {image} | {count} | {cells} |")
    return rows


def _of_weights(weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the weights of the members in each class of the data."""
    members = next(iter(weights.values()))
    rows = [f"| class | {' | '.join(f'weight of {member}' for member in members)} |"]
    rows.append("|---" * (len(members) + 1) + "|")
    return rows + [
        f"| {name} | {' | '.join(f'{each:.2f}' for each in found.values())} |" for name, found in weights.items()
    ]


if __name__ == "__main__":
    ended(main)
