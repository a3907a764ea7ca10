"""Which images without truth show what a fold validates: views of the same group, copies, look-alikes.

Learning from such an image, whoever labelled it, would be learning from the validation data. Knows nothing about files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maskloom.data.duplicates import similar_pairs
from maskloom.data.statistics import RecordFacts
from maskloom.data.union_find import UnionFind
from maskloom.ensembling.pseudo_labels import Reason


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Unlabelled:
    """What is remembered of an image without truth: its group, the digest of its pixels, its thumbnail uint8 32×32."""

    id: str
    group: str
    digest: str
    thumbnail: np.ndarray


def kin(labelled: Sequence[RecordFacts], unlabelled: Sequence[Unlabelled]) -> dict[str, dict[str, str]]:
    """Returns, for each image without truth that has any, the labelled images it resembles and in which way.

    ``{id: {labelled id: words}}``. Copies have equal pixels. Look-alikes are near-duplicates, also at second hand:
    what resembles an image that resembles a third counts as resembling the third.
    """
    copies: dict[str, list[str]] = defaultdict(list)
    for facts in labelled:
        copies[facts.digest].append(facts.id)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for image in unlabelled:
        for other in copies.get(image.digest, ()):
            found[image.id][other] = f"it is a copy of {other}"
    for image_id, others in _look_alikes(labelled, unlabelled).items():
        for other, words in others.items():
            found[image_id].setdefault(other, words)
    return dict(found)


def _look_alikes(labelled: Sequence[RecordFacts], unlabelled: Sequence[Unlabelled]) -> dict[str, dict[str, str]]:
    # By digest, so that each image is there once: copies would become the backdrop that is taken away.
    thumbnails = {facts.digest: facts.thumbnail for facts in labelled}
    thumbnails |= {image.digest: image.thumbnail for image in unlabelled}
    if len(thumbnails) < 2:
        return {}
    with_truth = {facts.digest for facts in labelled}
    both = with_truth & {image.digest for image in unlabelled}
    digests = list(thumbnails)
    # Pairs of one side are not asked for; an image that is on both sides is compared with all.
    sides = ["labelled" if digest in with_truth else "unlabelled" for digest in digests]
    sides = [digest if digest in both else side for digest, side in zip(digests, sides, strict=True)]
    pairs = similar_pairs(digests, np.stack([thumbnails[digest] for digest in digests]), sides)
    sets = UnionFind(digests)
    similarity = {}
    for pair in pairs:
        sets.join(pair.first, pair.second)
        similarity[frozenset((pair.first, pair.second))] = pair.similarity
    members: dict[str, list[RecordFacts]] = defaultdict(list)
    paired = {digest for pair in pairs for digest in (pair.first, pair.second)}
    for facts in labelled:
        if facts.digest in paired:
            members[sets.find(facts.digest)].append(facts)

    def words(image: Unlabelled, facts: RecordFacts) -> str:
        value = similarity.get(frozenset((image.digest, facts.digest)))
        return f"it looks like {facts.id}" + (" at second hand" if value is None else f" ({value:.3f})")

    return {
        image.id: {facts.id: words(image, facts) for facts in members[sets.find(image.digest)]}
        for image in unlabelled
        if image.digest in paired
    }


def barred(
    image: Unlabelled, relatives: Mapping[str, str], *, validated: Collection[str], groups: Collection[str]
) -> tuple[Reason, str] | None:
    """Returns why a fold must not learn from an image, None where it may.

    ``relatives`` are those that ``kin`` found for it; ``validated`` and ``groups`` are ids and groups of the records
    that the fold validates.
    """
    if image.group in groups:
        return "validated", f"the fold validates its group {image.group}"
    for other, words in relatives.items():
        if other in validated:
            return "look-alike", f"{words}, which the fold validates"
    return None
