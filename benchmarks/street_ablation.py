"""What each part of the recipe ``modern`` brings on a drive through a town, with intervals: two tables, and JSON.

    python benchmarks/street_ablation.py --data DIR [--out runs/street] [--seeds 3] [--minutes-per-run 15] [--rows …]
    python benchmarks/street_ablation.py --data DIR --encoder tf_efficientnet_lite2 --weights installed  # no connection
    python benchmarks/street_ablation.py --smoke --out runs/street_smoke       # drawn streets, to see that all runs

DIR has train and val folders of images and masks whose names end in the number of a frame, with the drive before it
(``0016E5_07959``). Every row is the recipe at full size from the first epoch on, with one change, trained equally long
by an estimate: a stated number of minutes times ``--pixels-per-second`` (that of two cores of 2.5 GHz without bf16;
state your own). Every drive of the train folder is cut into as many consecutive parts as there are folds, and seed k
learns from all but the k-th parts. It is judged twice:

- on these parts. They touch: the frame before the first one of a part was learnt from, so scores are higher than on a
  new drive; rows share that;
- on the val folder. Such a folder may be one short clip: see the other one, too.

With ``--judge val`` networks of the whole train folder are judged on the val folder instead.

A row's score is the mean IoU of counts summed over its seeds; its gain, over the recipe unchanged, has an interval of
the paired bootstrap over segments, some seconds of a drive each, drawn with all seeds that saw them. How the gain of
the single seeds spreads is told beside it: the interval is about other streets, not about other seeds. Judged is
without test-time views. Views, and the mean of the networks of all folds (on the val folder), need no training of their
own.

The encoder is the recipe's for the device, whose weights come from the hub where that is CUDA; ``--encoder`` and
``--weights`` take another for all rows, as ``network.encoder`` and ``network.weights`` do.

A run that was stopped continues. Rows that are not asked for are left alone, and can be added later.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from common import ended
from street_ablation_rows import Judge, Trained, markdown, rows

from maskloom import api
from maskloom.config import parse
from maskloom.console import Terminal
from maskloom.contests.signate.stand_in import write_stand_in
from maskloom.data.augment import PRESETS
from maskloom.data.folds import ALWAYS_TRAINING, FoldRow, FoldSettings, FoldTable
from maskloom.data.image_io import write_png
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.errors import UserError, closest
from maskloom.files import write_json, write_text
from maskloom.losses.terms import LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.progress import Progress
from maskloom.recipe import Recipe
from maskloom.recipes.modern import BUDGETS, modern, street_loss, street_portions, window_side
from maskloom.recipes.planning import EARLY_STAGES, Budget, kind_of, released, training_settings
from maskloom.records import IGNORE, Record, Size, usual_size
from maskloom.registry import open_source
from maskloom.runtime import choose_device, hardware
from maskloom.training.phases import PIXEL_POWER

PIXELS_PER_SECOND = 540_000
"""That a training step of the recipe's network sees on two cores of 2.5 GHz without bf16."""
UNFROZEN = 1.5
"""A step takes so much longer where the encoder's early stages learn, too (on a CPU without bf16)."""
NAME = re.compile(r"(.*?)_?[a-z]?(\d+)")
"""The drive and the frame at the end of an id."""
BASE = "modern"
PROGRESSIVE = 0.4
LOVASZ = 2.0
"""A step with Lovász, which sorts all pixels of every class, takes so much longer on two cores."""
SMOKE_CLASSES = ["car", "pedestrian", "lane", "signal"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How long and on what a network of a row learns."""

    minutes: float
    pixels_per_second: float
    num_training: int
    sizes: tuple[Size, ...]
    """(height, width) of all images."""
    budget: Budget
    """Of the recipe; how much is seen is replaced."""
    is_smoke: bool

    @property
    def size(self) -> Size:
        """(height, width) of most images."""
        return usual_size(self.sizes)

    def training(self, member: MemberSettings, *, progressive: float = 0.0, cost: float = 1.0) -> MemberSettings:
        """Returns the member trained about so many minutes; in a smoke it stays as it is.

        ``cost`` is the time of a step beside that of the recipe's.
        """
        if self.is_smoke:
            return member
        # A step at half the sides takes more than a quarter of the time.
        seconds_share = 1 - progressive + progressive * 0.25**PIXEL_POWER
        pixels = 60 * self.minutes * self.pixels_per_second * (1 - 0.75 * progressive) / (seconds_share * cost)
        whole = replace(self.budget.whole, total_pixels=pixels, progressive=progressive)
        windows = replace(self.budget.windows, total_pixels=pixels)
        budget = replace(self.budget, whole=whole, windows=windows, max_epochs=1000)
        learning = street_portions(member.input, self.sizes, budget, num_folds=1, num_training=self.num_training)
        return member.model_copy(update={"training": training_settings(learning)})


Change = Callable[[MemberSettings, Trial], MemberSettings]


def _changed(**update: Any) -> Change:
    return lambda member, trial: member.model_copy(update=update)


def _part(name: str, *, cost: float = 1.0, **update: Any) -> Change:
    """Returns the change of a part of the member; ``cost`` as for ``Trial.training``."""

    def change(member: MemberSettings, trial: Trial) -> MemberSettings:
        changed = member.model_copy(update={name: getattr(member, name).model_copy(update=update)})
        return changed if cost == 1 else trial.training(changed, cost=cost)

    return change


def _loss(*terms: LossTerm, cost: float = 1.0) -> Change:
    return _part("loss", terms=terms, cost=cost)


def _frozen(stages: tuple[str, ...], cost: float) -> Change:
    """Returns the change to other frozen stages; nothing changes where the recipe's network learns as a whole."""

    def change(member: MemberSettings, trial: Trial) -> MemberSettings:
        return _part("optimiser", frozen=stages, cost=cost)(member, trial) if member.optimiser.frozen else member

    return change


def _random_encoder(member: MemberSettings, trial: Trial) -> MemberSettings:
    """Returns the member whose encoder knows nothing, and therefore learns as a whole."""
    return _frozen((), UNFROZEN)(_part("network", weights="none")(member, trial), trial)


def _usual_rate(member: MemberSettings, trial: Trial) -> MemberSettings:
    """Returns the member with the rate of long trainings."""
    slower = _part("optimiser", lr=1e-3, encoder_lr_factor=1.0)(member, trial)
    return _part("schedule", peak=0.3)(slower, trial)


def _other_input(member: MemberSettings, trial: Trial) -> MemberSettings:
    """Returns the member that sees whole images where the recipe has windows, and windows where it has whole images."""
    height, width = (round(side * member.input.scale) for side in trial.size)
    if member.input.mode == "window":
        policy = InputPolicy(mode="resize", size=(height, width))
    else:
        side = max(32, min(window_side([(height, width)]), trial.budget.windows.side))
        policy = InputPolicy(mode="window", size=(side, side), prefer_class=0.5)
    return trial.training(member.model_copy(update={"input": policy}))


WEIGHTED, DICE = street_loss("multiclass").terms
CHANGES: dict[str, tuple[str, Change]] = {
    "random encoder": ("its encoder starts from random weights, all of which learn", _random_encoder),
    "other input": ("whole images where the recipe has windows, and windows where it has whole images", _other_input),
    "lovasz": ("Lovász instead of Dice", _loss(WEIGHTED, LossTerm(kind="lovasz"), cost=LOVASZ)),
    "no weights": ("no class weights", _loss(LossTerm(kind="cross_entropy"), DICE)),
    "no average": ("the last weights instead of their moving average", _part("training", ema_decay=None)),
    "balanced": (
        "class weights by the median frequency, up to 10",
        _loss(LossTerm(kind="cross_entropy", class_weights="median_frequency"), DICE),
    ),
    "capped": (
        "no class weight more than 3 times the smallest",
        _loss(LossTerm(kind="cross_entropy", class_weights="root_frequency", weight_limit=3), DICE),
    ),
    "cross-entropy": ("cross-entropy alone, weighted", _loss(WEIGHTED)),
    "mirror": ("mirror images alone, no change of scale or colour", _changed(augment=PRESETS["mirror"])),
    "half first": (
        f"{PROGRESSIVE:.0%} of the epochs, the first ones, at half the sides, in the same time",
        lambda member, trial: trial.training(member, progressive=PROGRESSIVE),
    ),
    "all learns": ("no stage of the encoder keeps its values, in the same time", _frozen((), UNFROZEN)),
    "two stages": ("one stage fewer of the encoder keeps its values", _frozen(EARLY_STAGES[:-1], 1.15)),
    "usual rate": ("a rate of 0.001 for all, its peak after 30 % of the steps", _usual_rate),
    "wide decoder": (
        "a decoder of two to three times the filters at the finer sizes",
        _part("network", decoder_channels=(128, 64, 48, 32, 16), cost=1.25),
    ),
    "float32": ("computed in float32", _part("training", precision="float32")),
    "bf16": ("computed in bf16, for as many steps as the recipe", _part("training", precision="bf16")),
    "fp16": ("computed in fp16 with loss scaling, for as many steps", _part("training", precision="fp16")),
}
"""Every row that is trained: what it is, and the change to the recipe's member."""
USUAL = ("random encoder", "other input", "lovasz", "no weights", "no average")


def main(words: Sequence[str] | None = None) -> None:
    arguments = parsed(words)
    device = choose_device(arguments.device)
    data = draw_streets(arguments.out / "streets") if arguments.smoke else arguments.data
    if data is None:
        raise UserError("--data: expected a folder with train and val folders, found none; give one, or --smoke")
    source = open_source(data, DataSettings())
    check(source, data)
    judges = divided(source, arguments)
    with Terminal() as progress:
        trained = [
            Trained(row=name, seed=seed, run=fit(name, judges[0], seed, arguments, progress))
            for seed in range(arguments.seeds)
            for name in (BASE, *arguments.rows)
        ]
        progress.stage("scores", cached=False)
        found = rows(
            trained,
            judges,
            {name: what for name, (what, _) in CHANGES.items()},
            base=BASE,
            inference=recipe_of(BASE, judges[0], 0, arguments).inference,
            device=device,
            scores=arguments.out / "scores",
            on_progress=progress.advance,
        )
    judged = {
        judge.name: {record.id for seed in range(arguments.seeds) for record in judge.validated(seed)}
        for judge in judges
    }
    result: dict[str, Any] = {
        "benchmark": "street_ablation",
        "classes": list(source.task.classes),
        "segments": {judge.name: len({judge.segments[name] for name in judged[judge.name]}) for judge in judges},
        "images": {judge.name: len(judged[judge.name]) for judge in judges},
        "seeds": arguments.seeds,
        "folds": arguments.folds,
        "minutes_per_run": arguments.minutes_per_run,
        "encoder": arguments.encoder,
        "weights": arguments.weights,
        "rows": [row.to_json(source.task.classes) for row in found],
        "hardware": hardware(device),
    }
    table = markdown(found, result)
    write_text(arguments.out / "street_ablation.md", table)
    write_json(arguments.out / "street_ablation.json", result)
    print(table)
    print(json.dumps(result, ensure_ascii=False))


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with train and val folders of images and masks")
    parser.add_argument("--out", type=Path, default=Path("runs/street"), help="the runs and the results")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row")
    parser.add_argument("--folds", type=int, default=3, help="parts of every drive; seed k judges fold k")
    parser.add_argument("--minutes-per-run", type=float, default=15.0, help="of one training, about")
    parser.add_argument("--pixels-per-second", type=float, default=PIXELS_PER_SECOND, help="that a training sees")
    parser.add_argument("--segment", type=int, default=12, help="frames that are drawn together, at most")
    parser.add_argument(
        "--judge", choices=["segments", "val"], default="segments", help="what networks learn to be judged on"
    )
    parser.add_argument("--encoder", help="of all rows, by timm's name; the recipe's unless stated")
    parser.add_argument("--weights", help="of the encoder: auto, installed, hub, none or a file")
    parser.add_argument("--rows", nargs="*", default=list(USUAL), metavar="ROW", help=f"of {', '.join(CHANGES)}")
    parser.add_argument("--smoke", action="store_true", help="drawn streets and tiny networks, to see that all runs")
    parser.add_argument("--workers", type=int, help="processes that read samples")
    parser.add_argument("--device", help="cpu or cuda; CUDA where there is one")
    arguments = parser.parse_args(words)
    for name in arguments.rows:
        if name not in CHANGES:
            raise UserError(f"--rows: no row is called {name!r}; {closest(name, CHANGES)}")
    if min(arguments.seeds, arguments.folds - 1, arguments.segment) < 1:
        raise UserError(
            "expected at least 1 seed, 2 folds and 1 frame in a segment, found "
            f"{arguments.seeds}, {arguments.folds} and {arguments.segment}"
        )
    return arguments


# Data ----------------------------------------------------------------------------------------------------------------


def check(source: DataSource, data: Path) -> None:
    """Raises ``UserError`` unless there are exclusive classes, and images in both a train and a val folder."""
    splits = {record.split for record in source.records}
    if source.task.kind != "multiclass" or splits != {"train", "val"}:
        raise UserError(
            f"{data}: expected images of several classes with masks in train and val folders, found a "
            f"{source.task.kind} task{'' if splits == {'train', 'val'} else ' without these folders'}"
        )


def divided(source: DataSource, arguments: argparse.Namespace) -> list[Judge]:
    """Returns what rows are judged on: first that for which networks learn, with its data on disk."""
    out, length = arguments.out, arguments.segment
    train, val = ([each for each in source.records if each.split == part] for part in ("train", "val"))
    places = segments([record.id for record in val], num_folds=1, length=length)
    judges = [
        Judge(
            name="val",
            source=source,
            data=source.root,
            segments={name: segment for name, (_, segment) in places.items()},
            tables=None,
        )
    ]
    if arguments.judge == "segments":
        names = {each.id.removeprefix("train/").replace("/", "_"): each for each in train}
        if len(names) < len(train):
            raise UserError(f"{source.root}: expected frames of different names below train, found some twice")
        lay_out(names, source, out / "data" / "train")
        own = open_source(out / "data" / "train", DataSettings())
        places = segments([record.id for record in own.records], num_folds=arguments.folds, length=length)
        judges.insert(
            0,
            Judge(
                name="segments",
                source=own,
                data=own.root,
                segments={name: segment for name, (_, segment) in places.items()},
                tables=fold_tables(own.records, {name: fold for name, (fold, _) in places.items()}, out / "data"),
            ),
        )
    return judges


def segments(ids: Sequence[str], *, num_folds: int, length: int) -> dict[str, tuple[int, str]]:
    """Returns the fold and the segment of every id: consecutive frames of one drive.

    A drive is cut into ``num_folds`` parts, as equal as they can be, and each part into segments of at most ``length``
    frames. Raises ``UserError`` for an id that does not end in a number.
    """
    drives: dict[str, list[tuple[int, str]]] = {}
    for name in ids:
        match = NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{name}: expected a name that ends in the number of a frame, such as 0016E5_07959")
        drives.setdefault(match[1], []).append((int(match[2]), name))
    found = {}
    for drive, frames in drives.items():
        parts = num_folds * max(1, -(-len(frames) // (num_folds * length)))
        for place, (_, name) in enumerate(sorted(frames)):
            part = place * parts // len(frames)
            found[name] = (part * num_folds // parts, f"{drive}#{part}")
    return found


def fold_tables(records: Sequence[Record], fold_of: Mapping[str, int], folder: Path) -> list[Path]:
    """Returns a table per fold, whose own records validate and whose others always train."""
    paths = []
    for fold in range(max(fold_of.values()) + 1):
        lines = [FoldRow(each.id, each.group, 0 if fold_of[each.id] == fold else ALWAYS_TRAINING) for each in records]
        paths.append(folder / f"fold{fold}.csv")
        FoldTable(tuple(lines)).to_csv(paths[-1])
    return paths


def lay_out(records: Mapping[str, Record], source: DataSource, folder: Path) -> None:
    """Writes the records by their new names: images as they are, masks with a label per pixel, and the classes."""
    for name, record in records.items():
        image = folder / "images" / f"{name}{record.image.suffix}"
        mask = folder / "masks" / f"{name}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        if not image.is_file() or image.stat().st_size != record.image.stat().st_size:
            shutil.copyfile(record.image, image)
        write_png(mask, read_truth(record, source.task, source.coding))  # the same bytes unless the truth changed
    classes = {"classes": list(source.task.classes), "ignore": IGNORE}
    write_text(folder / "classes.yaml", yaml.safe_dump(classes, sort_keys=False))


def draw_streets(folder: Path) -> Path:
    """Returns a folder of drawn street scenes with train and val folders, as of three drives."""
    write_stand_in(folder / "drawn", images=14, test_images=0, size=(96, 152))
    drawn = open_source(folder / "drawn", DataSettings(classes=SMOKE_CLASSES))
    names = {}
    for number, record in enumerate(drawn.records):
        split = "val" if number >= 10 else "train"
        names[f"{split}/{record.attributes['route']}_{number:04d}"] = record
    lay_out(names, drawn, folder / "data")
    return folder / "data"


# Runs ----------------------------------------------------------------------------------------------------------------


def fit(name: str, judge: Judge, seed: int, arguments: argparse.Namespace, progress: Progress) -> Path:
    """Returns the folder of a finished run; what is finished already is found so."""
    run: Path = arguments.out / "runs" / judge.name / name.replace(" ", "_") / f"seed{seed}"
    progress.note(f"{name} on {judge.name}, seed {seed}")
    recipe = recipe_of(name, judge, seed, arguments)
    api.fit(recipe, judge.data, run=run, device=arguments.device, workers=arguments.workers, progress=progress)
    return run


def recipe_of(name: str, judge: Judge, seed: int, arguments: argparse.Namespace) -> Recipe:
    """Returns the recipe of a row: the base, trained so long, with the row's change."""
    device = choose_device(arguments.device).type
    base = modern(judge.source, device=device, scale="smoke" if arguments.smoke else "full")
    num_training = len(judge.source.records) - len(judge.validated(seed))
    trial = Trial(
        minutes=arguments.minutes_per_run,
        pixels_per_second=arguments.pixels_per_second,
        num_training=num_training,
        sizes=tuple(record.size for record in judge.source.records),
        budget=BUDGETS[kind_of(device)],
        is_smoke=arguments.smoke,
    )
    stated = {name: value for name in ("encoder", "weights") if (value := getattr(arguments, name)) is not None}
    if stated:
        first = base.members[0]
        network = parse(NetworkSettings, first.network.model_dump() | stated, origin="--encoder, --weights")
        asked = base.model_copy(update={"members": (first.model_copy(update={"network": network}),)})
        base = released(base, asked)  # what the recipe freezes is a part of its own encoder
    member = trial.training(base.members[0])
    if name != BASE:
        member = CHANGES[name][1](member, trial)
    asked = {"views": "none"} | ({"whole_pixels": None} if member.input.whole() is None else {})
    folds = base.folds if judge.tables is None else FoldSettings(kind="table", table=judge.table(seed))
    return base.model_copy(
        update={
            "seed": seed,
            "members": (member,),
            "folds": folds,
            "inference": base.inference.model_copy(update=asked),
        }
    )


if __name__ == "__main__":
    ended(main)
