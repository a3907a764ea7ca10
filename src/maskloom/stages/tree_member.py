"""Stage ``train/<member>/fold<k>`` of boosted trees: pixels are drawn outside the fold, and trees are grown from them.

Each image is read once, large rasters by window; memory holds a part of one image, and the pixels that were drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from maskloom.data.input_policy import content_size
from maskloom.data.pixel_drawing import PixelDrawing
from maskloom.errors import BadFile, UnfitImage
from maskloom.members import MemberSettings
from maskloom.models.bundle import save_bundle
from maskloom.models.segmenter import Normalisation, build_segmenter
from maskloom.models.smoothing import features
from maskloom.models.tree_settings import TreeSettings
from maskloom.records import Record
from maskloom.run_directory import RunDirectory
from maskloom.runtime import derive_seed
from maskloom.stages.context import Context
from maskloom.stages.data import load_survey
from maskloom.stages.fold_tables import leaf_name
from maskloom.stages.scoring import of_classes
from maskloom.training.tree_growing import grow, library
from maskloom.windows import Window


def check_library(run: RunDirectory, member: MemberSettings, marks: Iterable[str]) -> None:
    """Raises ``UserError`` where the library is missing and trees are to be grown, by what each fold comes from."""
    for fold, mark in enumerate(marks):
        grown = run.finished(f"train/{leaf_name(member.name, fold)}")
        if member.network.trees is not None and (grown is None or grown["fingerprint"] != mark):
            library()


def grow_fold(
    context: Context,
    member: MemberSettings,
    fold: int,
    records: Sequence[Record],
    forbidden: Mapping[str, Sequence[Window]] | None = None,
) -> list[Path]:
    """Returns the bundles of one fold, the best and the last, which are the same.

    Learnt from are pixels of ``records``; by id, windows of which no pixel may be seen. Raises ``UserError`` without
    LightGBM, and where no labelled pixel is drawn.
    """
    settings, whole = member.network.trees, context.source.task
    assert settings is not None, "the architecture has them"
    library()
    part = member.task_of(whole)
    seed = derive_seed(context.recipe.seed, member.name, "pixels")
    samples, labels = _drawn(context, member, settings, records, forbidden, seed)
    state = grow(
        samples,
        of_classes(labels, part, whole),
        part,
        settings,
        seed=seed,
        on_progress=lambda done, total: context.progress.advance(done, total, "trees"),
    )
    segmenter = build_segmenter(
        member.network,
        task=part,
        policy=member.input,
        normalisation=Normalisation.as_stored(member.network.channels, load_survey(context).dtype),
    )
    segmenter.network.load_state_dict(state)
    folder = context.run.fold(member.name, fold)
    bundles = [folder / "best.safetensors", folder / "last.safetensors"]
    for bundle in bundles:
        save_bundle(bundle, segmenter, {"pixels_learnt_from": len(samples)})
    return bundles


def _drawn(
    context: Context,
    member: MemberSettings,
    settings: TreeSettings,
    records: Sequence[Record],
    forbidden: Mapping[str, Sequence[Window]] | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what trees look at of every pixel that was drawn, float32 P×F, and its labels, uint8 P or maps×P."""
    pixels = sum(height * width for height, width in (content_size(each.size, member.input) for each in records))
    drawing = PixelDrawing(
        task=context.source.task,
        coding=context.source.coding,
        policy=member.input,
        channels=member.image_channels,
        share=min(settings.share, settings.max_pixels / max(pixels, 1)),
        reach=settings.reach,
        seed=seed,
    )
    maps = (context.source.task.num_maps,) if context.source.task.kind == "multilabel" else ()
    samples = [np.zeros((0, member.network.channels * settings.num_planes), np.float32)]
    labels = [np.zeros((*maps, 0), np.uint8)]
    for done, record in enumerate(records, start=1):
        own = None if forbidden is None else forbidden.get(record.id, ())
        try:
            for square, drawn, known in drawing.squares(record, own):
                samples.append(_seen(square, settings)[drawn])
                labels.append(known)
        except UnfitImage as error:
            raise BadFile(record.image, str(error)) from None
        context.progress.advance(done, len(records), "pixels")
    return np.concatenate(samples), np.concatenate(labels, axis=-1)


def _seen(square: np.ndarray, settings: TreeSettings) -> np.ndarray:
    """Returns what trees look at, float32 h×w×F, of pixels (h + 2 · reach)×(w + 2 · reach)×C."""
    images = torch.from_numpy(square.astype(np.float32)).permute(2, 0, 1)[None].contiguous()
    images = images.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)  # as the network takes them
    found: np.ndarray = features(images, settings)[0].permute(1, 2, 0).numpy()
    return found
