"""What each part of a system brings on a few dozen cars, with an honest interval: one table, and JSON.

    python benchmarks/ablation.py --data DIR [--out runs/ablation] [--size 256 256] [--epochs 6] [--unlabelled 16]

DIR is in the Carvana layout. Some cars are held back: their photos count as unlabelled, their masks serve two rows
of the table and nothing else. All others are dealt into folds. One maskloom run, in OUT/run, trains five members on
the same folds, all with equally many steps:

- ``unet``: U-Net over EfficientNet-Lite0, half the decoder's width; ``linknet``: LinkNet over EfficientNet-Lite1;
- ``unet_pseudo``, ``linknet_pseudo``: the same anew, on true labels and on the surest pseudo-labels of the cars held
  back, which the first two made (for fold k, their networks of fold k);
- ``second``: a U-Net that is given the photo and the out-of-fold maps of the former two.

Rows are mean Dice of out-of-fold masks at the photos' own size: each photo is predicted by the networks of its own
fold, which never saw its car. Each row adds one step to the row above it, whether that one helped or not, and is
compared with it photo by photo. Masks are cut at one half, so that nothing is fitted; what post-processing chooses
(a threshold, too) is chosen on the other folds: it is cross-fitted. The second layer learns, as is usual, from maps of
networks that learnt from the cars it is later judged on, though never from maps of those cars by such networks.

Out of fold, one network per member sees a photo; what averaging the folds brings only shows on cars that no fold saw.
So the row "folds" compares, on the cars held back, the mean of the networks' scores with the score of their mean map.
The last row does the same for the whole system, which has seen the photos of these cars (as pseudo-labels of its own)
and not their masks.

Intervals are of the paired bootstrap over cars: photos of one car are hard or easy together. They say how sure a gain
is for other cars, not for other seeds of training. The smallest effect is (1.96 + 0.84) standard errors of the
bootstrap: a true gain of that size would be found significant at 5 % (two-sided) in 80 % of such experiments; smaller
ones mostly stay hidden. A run that was stopped continues; other settings repeat what depends on them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from ablation_parts import DETECTABLE
from ablation_rows import Scored, markdown, mean, rows
from common import ended

from maskloom import api
from maskloom.console import Terminal
from maskloom.contests.carvana import open_carvana
from maskloom.data.augment import PRESETS
from maskloom.data.folds import FoldSettings
from maskloom.data.image_io import write_png
from maskloom.data.input_policy import InputPolicy
from maskloom.data.sources.base import DataSettings, DataSource
from maskloom.data.truth import read_truth
from maskloom.ensembling.postprocess import (
    FarStep,
    HolesStep,
    HullStep,
    PostprocessSettings,
    SmallStep,
    ThinStep,
    ThresholdStep,
)
from maskloom.ensembling.pseudo_labels import PseudoLabelSettings
from maskloom.errors import UserError
from maskloom.files import write_json, write_text
from maskloom.inference.guidance import GuidanceSettings
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.recipe import DeliverySettings, EnsembleSettings, Recipe
from maskloom.run_directory import RunDirectory
from maskloom.runtime import choose_device, generator, hardware
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

UNET = NetworkSettings(architecture="unet", encoder="tf_efficientnet_lite0", width=0.5)
LINKNET = NetworkSettings(architecture="linknet", encoder="tf_efficientnet_lite1")
FIRST, PUPILS, STACKED = ("unet", "linknet"), ("unet_pseudo", "linknet_pseudo"), "second"
SUREST = 0.75
"""This share of the unlabelled photos gives pseudo-labels."""


def main() -> None:
    arguments = parsed()
    source = open_carvana(arguments.data, DataSettings())
    held_back, labelled = divided(source, arguments)
    data = arguments.out / "data"
    lay_out(source, held_back, labelled, data)
    recipe = settings(arguments, sum(record.group in labelled for record in source.records))
    training = recipe.members[0].training
    num_trainings = len(recipe.members) * arguments.folds
    num_images = num_trainings * training.epochs * (training.images_per_epoch or 0)
    print(f"{len(labelled)} cars in {arguments.folds} folds, {len(held_back)} held back", flush=True)
    print(f"{num_trainings} trainings, {num_images} images of {'×'.join(map(str, arguments.size))} in all", flush=True)
    with Terminal() as progress:
        api.fit(recipe, data, run=arguments.out / "run", device=arguments.device, progress=progress)
        progress.stage("scores", cached=False)
        scored = Scored(RunDirectory(arguments.out / "run"), recipe, open_carvana(data, DataSettings()))
        unseen = [record for record in source.records if record.group in held_back]
        device = choose_device(arguments.device)
        found = rows(scored, unseen, source, device, progress.advance, first=FIRST, pupils=PUPILS, stacked=STACKED)
    result: dict[str, Any] = {
        "benchmark": "ablation",
        "cars": {"labelled": sorted(labelled), "held_back": sorted(held_back)},
        "size": arguments.size,
        "folds": arguments.folds,
        "epochs": training.epochs,
        "images_per_epoch": training.images_per_epoch,
        "pseudo_labels_of_folds": scored.num_pseudo_labels(),
        "rows": [row.to_json() for row in found],
        "members_alone": {name: round(mean(scored.of_mean(name)), 6) for name in recipe.names},
        "postprocess": scored.chosen_steps(),
        "smallest_effect": f"{DETECTABLE:.2f} standard errors of the paired bootstrap over cars",
        "seconds": round(scored.seconds()),
        "hardware": hardware(device),
    }
    table = markdown(found, result)
    write_text(arguments.out / "ablation.md", table)
    write_json(arguments.out / "ablation.json", result)
    print(table)
    print(json.dumps(result, ensure_ascii=False))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder in the Carvana layout")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="the run, its data and the results")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--epochs", type=int, default=6, help="of each network: the budget; time is in proportion")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--cars", type=int, help="the first so many cars of the data (all)")
    parser.add_argument("--unlabelled", type=int, default=16, help="of these, cars that are held back")
    parser.add_argument("--seed", type=int, default=0, help="of which cars are held back, and of training")
    parser.add_argument("--device", help="cpu or cuda; CUDA where there is one")
    return parser.parse_args()


def divided(source: DataSource, arguments: argparse.Namespace) -> tuple[set[str], set[str]]:
    """Returns the cars that are held back, drawn by the seed, and the labelled ones."""
    cars = sorted({record.group for record in source.records})[: arguments.cars]
    order = generator(arguments.seed, "held back").permutation(len(cars))
    held_back = {cars[index] for index in order[: max(arguments.unlabelled, 0)]}
    labelled = set(cars) - held_back
    if not held_back or len(labelled) < arguments.folds:
        raise UserError(
            f"--unlabelled: expected at least 1 car to hold back and {arguments.folds} to learn from, found "
            f"{len(held_back)} and {len(labelled)}; change --unlabelled, --folds or --cars"
        )
    return held_back, labelled


def lay_out(source: DataSource, held_back: set[str], labelled: set[str], folder: Path) -> None:
    """Writes the photos, and the masks of the labelled cars alone: those of the others are nowhere in the folder."""
    wanted = {record.id: record for record in source.records if record.group in held_back | labelled}
    with_mask = {name: record for name, record in wanted.items() if record.group in labelled}
    for part, names in (("train", set(wanted)), ("train_masks", {f"{name}_mask" for name in with_mask})):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for file in (folder / part).iterdir():
            if file.stem not in names:  # of another division
                file.unlink()
    for record in wanted.values():
        photo = folder / "train" / f"{record.id}{record.image.suffix}"
        if not photo.is_file() or photo.stat().st_size != record.image.stat().st_size:
            shutil.copyfile(record.image, photo)
    for record in with_mask.values():
        mask = folder / "train_masks" / f"{record.id}_mask.png"
        if not mask.is_file():
            write_png(mask, read_truth(record, source.task, source.coding))


def settings(arguments: argparse.Namespace, num_labelled: int) -> Recipe:
    """Returns the recipe of all members; its tree is that of the last step."""
    training = TrainingSettings(
        epochs=arguments.epochs,
        # Not the number of photos: with pseudo-labels there are more of them, but no more steps.
        images_per_epoch=num_labelled * (arguments.folds - 1) // arguments.folds,
        batch_size=8,
        ema_decay=0.99,
        clip_norm=1.0,
        validate_every=arguments.epochs,
    )

    def member(name: str, network: NetworkSettings, **others: Any) -> MemberSettings:
        return MemberSettings(
            name=name,
            network=network,
            input=InputPolicy(mode="resize", size=tuple(arguments.size)),
            loss=LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="dice"))),
            optimiser=OptimiserSettings(kind="adamw", lr=1e-3),
            schedule=ScheduleSettings(kind="one_cycle"),
            augment=PRESETS["light"],
            training=training,
            validation_images=16,
            **others,
        )

    return Recipe(
        name="ablation",
        seed=arguments.seed,
        metric="dice",
        folds=FoldSettings(kind="kfold", count=arguments.folds, stratify="area_dealt"),
        members=(
            member(FIRST[0], UNET, in_ensemble=False),
            member(FIRST[1], LINKNET, in_ensemble=False),
            member(PUPILS[0], UNET),
            member(PUPILS[1], LINKNET),
            member(STACKED, UNET, guidance=GuidanceSettings(maps=PUPILS)),
        ),
        pseudo=(PseudoLabelSettings(members=PUPILS, teachers=FIRST, share=SUREST, minimum_confidence=0),),
        inference=InferenceSettings(views="flip"),
        ensemble=EnsembleSettings(thresholds=0.5),
        postprocess=PostprocessSettings(
            steps=(ThresholdStep(), HullStep(), HolesStep(), SmallStep(), FarStep(), ThinStep())
        ),
        delivery=DeliverySettings(submission=False),
    )


if __name__ == "__main__":
    ended(main)
