"""What ``published_way.py`` compares: the 1st place's ensemble as bundles on disk, and photos to ask it about.

Knows nothing about how it is asked.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import studio
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from maskloom.contests.carvana.first import carvana_1st
from maskloom.data.augment import PRESETS
from maskloom.data.dataset import SegmentationDataset
from maskloom.data.image_io import image_size, read_image
from maskloom.data.input_policy import InputPolicy, place, prepare_image
from maskloom.data.sources.base import DataSource
from maskloom.data.sources.folder import image_files
from maskloom.ensembling.postprocess import Postprocessor, single_class_steps
from maskloom.ensembling.thresholds import HALF, decide
from maskloom.errors import UserError
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm, build_loss
from maskloom.members import MemberSettings
from maskloom.models.bundle import load_bundle, save_bundle
from maskloom.models.encoders import encoder_normalisation
from maskloom.models.segmenter import Normalisation, Segmenter, build_segmenter
from maskloom.recipe import Recipe
from maskloom.records import Record, Task
from maskloom.run_directory import RunDirectory
from maskloom.runtime import derive_seed
from maskloom.stages.fold_tables import leaf_name, leaf_parts
from maskloom.training.engine import TrainingJob, TrainingSettings, train
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

TASK = Task(kind="binary", classes=("car",))
SIZE = (1280, 1918)
"""Of the contest's photos."""
LIGHT_WIDTH = 1 / 4
"""Of the light ensemble: a quarter of the filters of every layer."""
LIGHT_SIZE = (128, 192)
"""Its input: photos shrunk to a tenth of their sides."""
WINDOW = (128, 128)
"""What networks of full size learn on: windows of photos as large as they will see them."""
NOISE = 0.01
"""Of each network's own, in standard deviations of each of its tensors."""


SPREAD = 6.0
"""Standard deviation of a network's logits over a photo, at least; so few steps leave some near one half."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An ensemble on disk and the photos that it is asked about."""

    recipe: Recipe
    run: Path
    leaves: dict[str, tuple[str, ...]]
    """The networks of each member."""
    photos: list[Record]
    device: str
    warm_up: bool
    """Whether a photo is predicted before anything is timed."""

    @property
    def networks(self) -> list[str]:
        """All networks, member by member."""
        return [leaf for leaves in self.leaves.values() for leaf in leaves]

    @property
    def tree(self) -> Merge:
        """The recipe's tree over networks."""
        assert self.recipe.ensemble.tree is not None
        return expanded(self.recipe.ensemble.tree, self.leaves)

    def member(self, leaf: str) -> MemberSettings:
        """Returns the member that a network belongs to."""
        return self.recipe.member(leaf_parts(leaf)[0])

    def bundle(self, leaf: str) -> Path:
        """Returns where a network's bundle lies, as in any run."""
        name, fold = leaf_parts(leaf)
        assert fold is not None
        return RunDirectory(self.run).bundle(name, fold, self.recipe.member(name).keep)

    def is_flipped(self, leaf: str) -> bool:
        """Returns whether a network is also asked about the mirror image; logits are then averaged."""
        stated = self.member(leaf).views_of(self.recipe.inference)
        if stated.views != "none" and (stated.views, stated.view_merge) != ("flip", "logit_mean"):
            raise UserError(f"{leaf}: expected no views, or logits averaged over a flip, found {stated}")
        return stated.views == "flip"

    def decided(self, maps: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the labels of a photo from its merged map and the taps."""
        steps = tuple(single_class_steps(self.recipe.postprocess, TASK))
        return Postprocessor(steps, TASK)(decide(maps[RESULT], [HALF], TASK), maps)


def expanded(node: Merge, leaves: dict[str, tuple[str, ...]]) -> Merge:
    """Returns the tree with each member's name replaced by the mean of its networks."""
    children = [
        expanded(child, leaves) if isinstance(child, Merge) else Merge(children=leaves[child])
        for child in node.children
    ]
    return node.model_copy(update={"children": tuple(children)})


def published_recipe(source: DataSource, *, width: float, light: bool, device: str) -> Recipe:
    """Returns the recipe with random first weights, so many filters and, when light, small inputs."""
    recipe = carvana_1st(source, device=device)

    def changed(member: MemberSettings) -> MemberSettings:
        network = member.network.model_copy(update={"weights": "none", "width": width})
        policy = member.input
        if light:
            policy = InputPolicy(mode="resize", size=LIGHT_SIZE, multiple=policy.multiple, clahe=policy.clahe)
        return member.model_copy(update={"network": network, "input": policy})

    return recipe.model_copy(update={"members": tuple(changed(member) for member in recipe.members)})


def in_precision(recipe: Recipe, precision: str) -> Recipe:
    """Returns the recipe whose networks compute in this precision."""
    asked = InferenceSettings.model_validate(recipe.inference.model_dump() | {"precision": precision})
    return recipe.model_copy(update={"inference": asked})


def networks_of(recipe: Recipe, most: int | None) -> dict[str, tuple[str, ...]]:
    """Returns the networks of each member, one per fold, at most so many."""
    counts = {member.name: (member.folds or recipe.folds).count for member in recipe.members}
    return {
        name: tuple(leaf_name(name, fold) for fold in range(min(most or count, count)))
        for name, count in counts.items()
    }


def photos_of(folder: Path) -> list[Record]:
    """Returns a record for each photo of a folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: expected a folder of photos, found no such folder")
    records = [Record(id=file.stem, image=file, size=image_size(file)) for file in image_files(folder)]
    if not records:
        raise UserError(f"{folder}: expected photos, found none")
    return records


def generated_photos(folder: Path, count: int) -> Path:
    """Returns a folder of so many or a few more generated photos, of other cars than networks learn from."""
    views = min(count, 16)
    return studio(folder, size=SIZE, objects=-(-count // views), views=views, seed=8) / "train"


def make_networks(case: Case, source: DataSource, steps: int) -> dict[str, float]:
    """Writes every network that is not there yet: a briefly trained one of its architecture with noise of its own.

    Returns facts about them: their number, parameters and size in memory, and what one photo costs.
    """
    trained: dict[str, Segmenter] = {}
    parameters, operations, passes = 0, 0.0, 0
    cost: dict[str, tuple[int, float]] = {}
    for leaf in case.networks:
        member = case.member(leaf)
        kind = member.network.architecture
        if kind not in trained:
            trained[kind] = briefly_trained(member, source, case.run / "training" / kind, steps, case.device)
            cost[kind] = cost_of(trained[kind], member.input)
        if not case.bundle(leaf).is_file():
            save_bundle(case.bundle(leaf), disturbed(replace(trained[kind], policy=member.input), leaf))
        views = 2 if case.is_flipped(leaf) else 1
        parameters, operations, passes = (
            parameters + cost[kind][0],
            operations + views * cost[kind][1],
            passes + views,
        )
    return {
        "networks": len(case.networks),
        "passes_per_photo": passes,
        "tflop_per_photo": round(operations / 1e12, 2),
        "parameters_million": round(parameters / 1e6, 1),
        "weights_mib": round(parameters * 4 / 2**20),
    }


def briefly_trained(member: MemberSettings, source: DataSource, folder: Path, steps: int, device: str) -> Segmenter:
    """Returns a network that learnt in so many steps, from four windows or four small photos each."""
    policy = member.input
    if policy.size != LIGHT_SIZE:
        height, width = policy.size or SIZE
        scale = (height * width / (SIZE[0] * SIZE[1])) ** 0.5
        policy = InputPolicy(mode="window", size=WINDOW, multiple=policy.multiple, prefer_class=0.5, scale=scale)
    mean, std = encoder_normalisation(member.network)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segmenter = build_segmenter(
            member.network, task=TASK, policy=policy, normalisation=Normalisation(mean=mean, std=std)
        )
    job = TrainingJob(
        segmenter=segmenter,
        dataset=SegmentationDataset(
            records=source.records, task=TASK, coding=source.coding, policy=policy, augment=PRESETS["flips"], seed=0
        ),
        loss=build_loss(LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="dice"))), TASK),
        optimiser=OptimiserSettings(kind="adamw", lr=1e-3),
        schedule=ScheduleSettings(kind="one_cycle"),
        training=TrainingSettings(epochs=1, images_per_epoch=4 * steps, batch_size=4, clip_norm=1.0),
        validate=None,
        folder=folder,
        seed=0,
        device=torch.device(device),
        fingerprint="benchmark",
    )
    return made_decided(load_bundle(train(job).last), read_image(source.records[0].image), member.input)


def made_decided(segmenter: Segmenter, photo: np.ndarray, policy: InputPolicy) -> Segmenter:
    """Returns the segmenter with its last layer scaled so that its logits of a photo spread around 0 at least."""
    prepared, _ = prepare_image(photo, policy)
    images = torch.from_numpy(np.ascontiguousarray(prepared)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = segmenter.logits(images)
    deviation, mean = torch.std_mean(logits)
    last = [module for module in segmenter.network.modules() if isinstance(module, nn.Conv2d)][-1]
    assert last.out_channels == 1 and last.bias is not None
    if deviation < SPREAD:
        with torch.no_grad():
            last.bias.sub_(mean).mul_(SPREAD / deviation)
            last.weight.mul_(SPREAD / deviation)
    return segmenter


def disturbed(segmenter: Segmenter, leaf: str) -> Segmenter:
    """Returns a copy whose weights differ a little, always the same for the same name."""
    network = copy.deepcopy(segmenter.network)
    random = torch.Generator().manual_seed(derive_seed("noise", leaf))
    with torch.no_grad():
        for tensor in network.parameters():
            if tensor.ndim > 1:
                tensor.add_(NOISE * tensor.std() * torch.randn(tensor.shape, generator=random))
    return segmenter.with_network(network)


def cost_of(segmenter: Segmenter, policy: InputPolicy) -> tuple[int, float]:
    """Returns a network's parameters, and the floating-point operations of one pass over one photo."""
    network = copy.deepcopy(segmenter.network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, *place(SIZE, policy).padded, device="meta"))
    return sum(tensor.numel() for tensor in network.parameters()), float(counter.get_total_flops())
