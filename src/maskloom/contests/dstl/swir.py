"""Dstl's eight short-wave infrared bands alone: U-Nets, boosted trees and an index classifier over all ten classes.

No published system: the contest's teams left these bands out, since a pixel of theirs is 7.5 m wide. Images are as
small as scenes are few, so networks are small and see many changed windows. Scores are out of fold, by scene, or by
image where ``data.group`` says so.
"""

from __future__ import annotations

from itertools import combinations

from maskloom.contests.dstl.truth import CLASSES
from maskloom.data.augment import AugmentSettings
from maskloom.data.band_math import BandSettings
from maskloom.data.folds import FoldSettings
from maskloom.data.input_policy import InputPolicy
from maskloom.data.polygon_alignment import AlignmentSettings
from maskloom.data.sources.base import DataSource
from maskloom.errors import UserError
from maskloom.inference.predictor import InferenceSettings
from maskloom.losses.terms import LossSettings, LossTerm
from maskloom.members import MemberSettings
from maskloom.models.encoders import NetworkSettings
from maskloom.models.tree_settings import TreeSettings
from maskloom.rasters.indices import IndexRule, IndexSettings, band_names
from maskloom.recipe import EnsembleSettings, Recipe, Scale
from maskloom.recipes.smoke import smoked
from maskloom.records import usual_size
from maskloom.training.engine import TrainingSettings
from maskloom.training.optimisers import OptimiserSettings
from maskloom.training.schedules import ScheduleSettings

BANDS = band_names("worldview3_swir")
FULL_SCALE = 16383
"""14 bits."""
NUM_FOLDS = 5

CANDIDATES = (
    "5 * swir1",
    "5 * swir4",
    "5 * swir8",
    "(swir1 + swir2 + swir3 + swir4) / 4 * 5",
    "(swir5 + swir6 + swir7 + swir8) / 4 * 5",
    "5 * (swir1 - swir8)",
    "(swir1 - swir4) / (swir1 + swir4)",
    "(swir2 - swir3) / (swir2 + swir3)",
    "(swir3 - swir6) / (swir3 + swir6)",
    "(swir4 - swir8) / (swir4 + swir8)",
)
"""Indices of which each class takes the best: water is dark, plants hold water. Five times, as thresholds are 0.01
apart and most values lie below a fifth of the scale."""

LOGARITHMS = BandSettings(
    names="worldview3_swir", full_scale=FULL_SCALE, indices=tuple(f"log(4 * {name} + 0.05)" for name in BANDS)
)
"""The bands and their logarithms, in which a ratio is a difference and dark ground has room; around 0, as 4 times a
usual value is near 1."""

TREES = TreeSettings(
    sigmas=(0, 1, 2, 4), num_trees=200, learning_rate=0.05, num_leaves=15, min_samples_leaf=50, l2=1, share=1 / 8
)
"""As in benchmarks/swir_baseline.py, whose trees another library grows."""
TEXTURE = (1.5, 3.0)
"""Gaussians of the second trees, in pixels, below which bands vary much among houses and little in fields."""

CONTRAST = TREES.model_copy(update={"contrasts": (32.0,), "values_per_tree": 0.3, "pixels_per_tree": 0.5})
"""Surroundings are most of an image, which is 134 pixels wide: what is bright in it, whatever the haze."""
RATIOS = BandSettings(
    names="worldview3_swir",
    full_scale=FULL_SCALE,
    indices=tuple(f"({one} - {other}) / ({one} + {other})" for one, other in combinations(BANDS, 2)),
)
"""The bands and the normalised difference of every two, which light and shade do not change."""

LOSS = LossSettings(terms=(LossTerm(kind="bce"), LossTerm(kind="jaccard")))

AUGMENT = AugmentSettings(
    horizontal_flip=0.5, vertical_flip=0.5, transpose=0.5, geometric=0.5, shift=0.05, scale=(0.8, 1.25), rotate=45,
    brightness=0.1,
)  # fmt: skip
"""The eight symmetries, objects of somewhat other sizes, and a little of a gain common to all bands. No contrast: it
moves all bands towards one mean, which changes their ratios, by which the ground is known."""


def dstl_swir(source: DataSource, *, device: str, scale: Scale = "full") -> Recipe:
    """Returns a recipe for the SWIR files of a Dstl folder, over folds of scenes.

    The device changes nothing. Raises ``UserError`` for data that is not the contest's SWIR files alone.
    """
    if source.layout != "dstl" or source.records[0].bands:
        is_rgb = source.layout == "dstl"
        found = "RGB files; state --set data.images=sixteen_band" if is_rgb else f"{source.layout}; choose default"
        raise UserError(f"{source.root}: expected the SWIR files of the Dstl layout for dstl_swir, found {found}")
    num_scenes = len({record.group for record in source.records})
    recipe = Recipe(
        name="dstl_swir",
        metric="iou",
        alignment=AlignmentSettings(),
        folds=FoldSettings(kind="kfold", count=min(max(num_scenes, 2), NUM_FOLDS)),
        members=(
            _index(),
            _trees("trees", TREES, aligned=False),
            _trees("trees_texture", TREES.model_copy(update={"deviations": TEXTURE})),
            _trees("trees_contrast", CONTRAST, aligned=False),
            _trees("trees_ratios", TREES.model_copy(update={"values_per_tree": 0.3, "pixels_per_tree": 0.5}), RATIOS),
            _unet_elu("unet_elu"),
            _unet_elu("unet_log", LOGARITHMS),
        ),
        inference=InferenceSettings(views="symmetry"),
        ensemble=EnsembleSettings(weights="fitted_per_class"),
    )
    if scale == "full":
        return recipe
    return smoked(recipe, usual_size(record.size for record in source.records))


def _unet_elu(name: str, bands: BandSettings | None = None) -> MemberSettings:
    """Returns the published network of the contest, half as wide, on the bands as stored or as ``bands`` says."""
    return MemberSettings(
        name=name,
        network=NetworkSettings(
            architecture="unet_elu",
            weights="none",
            channels=_channels(bands),
            width=0.5,
        ),
        input=InputPolicy(mode="window", size=(64, 64), multiple=16, overlap=0.5, prefer_class=0.5, bands=bands),
        loss=LOSS,
        optimiser=OptimiserSettings(kind="adamw", lr=1e-2, weight_decay=5e-2),
        schedule=ScheduleSettings(kind="one_cycle"),
        augment=AUGMENT,
        training=_training(epochs=10, images_per_epoch=640),
    )


def _training(*, epochs: int, images_per_epoch: int) -> TrainingSettings:
    """Returns many steps of small batches: most classes are rare, and until a network has learnt that, which takes
    hundreds of steps, its maps are worse than a constant."""
    return TrainingSettings(
        epochs=epochs,
        images_per_epoch=images_per_epoch,
        batch_size=4,
        ema_decay=0.99,
        clip_norm=1.0,
        validate_every=epochs,
    )


def _index() -> MemberSettings:
    """Returns the index classifier: of each class the best index, direction and threshold on the training scenes."""
    rules = tuple(IndexRule(expression=text) for text in CANDIDATES)
    assert len(rules) == len(CLASSES), "a rule per class; each class takes the best of all"
    return MemberSettings(
        name="index",
        network=NetworkSettings(
            architecture="index", channels=len(BANDS), index=IndexSettings(bands=BANDS, rules=rules)
        ),
        input=InputPolicy(mode="full", multiple=1, bands=BandSettings(names="worldview3_swir", full_scale=FULL_SCALE)),
        views="none",
    )


def _trees(
    name: str, settings: TreeSettings, bands: BandSettings | None = None, *, aligned: bool = True
) -> MemberSettings:
    """Returns boosted trees on the bands as stored or as ``bands`` says.

    ``aligned``: they learn from polygons moved onto the image.
    """
    return MemberSettings(
        name=name,
        network=NetworkSettings(architecture="trees", channels=_channels(bands), trees=settings),
        input=InputPolicy(mode="full", multiple=1, bands=bands),
        views="none",
        aligned=aligned,
    )


def _channels(bands: BandSettings | None) -> int:
    return len(BANDS) + (len(bands.indices) if bands else 0)
