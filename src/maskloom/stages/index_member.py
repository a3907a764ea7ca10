"""Stage ``train/<member>/fold<k>`` of an index classifier: thresholds are searched for, nothing is trained.

Each image outside the fold is read once; memory holds one of them.
"""

from __future__ import annotations

from pathlib import Path

from maskloom.data.band_math import with_indices
from maskloom.data.record_images import read_record_image
from maskloom.data.truth import read_truth
from maskloom.errors import UserError
from maskloom.members import MemberSettings
from maskloom.models.bundle import save_bundle
from maskloom.models.segmenter import Normalisation, build_segmenter
from maskloom.rasters.indices import IndexSettings
from maskloom.records import Record
from maskloom.stages.context import Context
from maskloom.stages.data import load_survey
from maskloom.stages.scoring import of_classes
from maskloom.training.index_search import IndexSearch


def search_fold(context: Context, member: MemberSettings, fold: int, records: list[Record]) -> list[Path]:
    """Returns the bundles of one fold, the best and the last, which are the same.

    Every class takes the best of all expressions that the member's rules name, with the threshold and direction of the
    highest Jaccard index on these records' pixels; a class that is never there is found nowhere.
    """
    settings, bands, whole = member.network.index, member.input.bands, context.source.task
    if settings is None or bands is None or settings.bands != bands.bands:
        raise UserError(
            f"{member.name}: expected input.bands that name the bands of network.index.bands, with their full scale; "
            "state both alike"
        )
    part = member.task_of(whole)
    expressions = tuple(dict.fromkeys(rule.expression for rule in settings.rules if rule is not None))
    search = IndexSearch(part, expressions, bands.bands)
    for done, record in enumerate(records, start=1):
        pixels = with_indices(read_record_image(record), bands)
        truth = read_truth(record, whole, context.source.coding)
        search.add(pixels, of_classes(truth, part, whole))
        context.progress.advance(done, len(records))
    found = search.best()
    rules = tuple(each.rule if each is not None else None for each in found)
    segmenter = build_segmenter(
        member.network.model_copy(update={"index": IndexSettings(**settings.model_dump() | {"rules": rules})}),
        task=part,
        policy=member.input,
        normalisation=Normalisation.as_stored(member.network.channels, load_survey(context).dtype),
    )
    folder = context.run.fold(member.name, fold)
    bundles = [folder / "best.safetensors", folder / "last.safetensors"]
    jaccard = {name: round(each.jaccard, 6) for name, each in zip(part.classes, found, strict=True) if each is not None}
    for bundle in bundles:
        save_bundle(bundle, segmenter, {"jaccard_in_training": jaccard})
    return bundles
