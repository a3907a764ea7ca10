"""Images that occur twice: exact copies by a digest of their pixels, near copies by a perceptual hash and a thumbnail.

Two photos before the same backdrop share most of their pixels and are still different photos. So what all images have
in common is taken away first: each image is reduced to the fine detail of a 32×32 thumbnail, and a pair is compared
after subtracting the mean detail of all *other* images. Photos of different cars in one studio then agree up to 0.85,
of two generated chairs of one shape up to 0.92; recompressed, resized, brightened or noisy copies of a photo agree to
at least 0.97.

Crops beyond about 1 % and mirrored copies are not recognised. Knows nothing about files and folds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from maskloom.data.fingerprints import THUMBNAIL_SIDE
from maskloom.data.statistics import Survey
from maskloom.data.union_find import UnionFind

MIN_SIMILARITY = 0.95
"""Correlation from which two images count as near-duplicates."""

_DETAIL_SIGMA = 1.5
"""Thumbnail pixels; structure coarser than this (objects' rough shape, lighting) does not count."""
_ALL_PAIRS = 400
"""Up to so many images every pair is compared; beyond, the hashes choose the pairs."""
_HASH_BITS = 128
_MAX_DISTANCE = 40
"""Bits in which near-duplicates may differ: at a correlation of 0.95, 13 ± 4 are expected; of unrelated images 64."""
_BLOCK = (1024, 4096)
_MAX_PAIRS = 20_000
"""Beyond so many pairs only those are kept that still connect the same images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimilarPair:
    """Two ids (in the order of the data) whose images look alike; ``similarity`` is a correlation of at most 1."""

    first: str
    second: str
    similarity: float

    def to_json(self) -> dict[str, str | float]:
        """Returns plain JSON values."""
        return {"first": self.first, "second": self.second, "similarity": self.similarity}

    @classmethod
    def from_json(cls, values: dict[str, str | float]) -> SimilarPair:
        """Returns the pair that ``to_json`` described."""
        return cls(first=str(values["first"]), second=str(values["second"]), similarity=float(values["similarity"]))


def exact_duplicates(found: Survey) -> list[tuple[str, ...]]:
    """Returns the sets of two or more ids whose images are equal pixel for pixel, in the order of the data."""
    ids: dict[str, list[str]] = {}
    for facts in found.records:
        ids.setdefault(facts.digest, []).append(facts.id)
    return [tuple(members) for members in ids.values() if len(members) > 1]


def near_duplicates(found: Survey, *, min_similarity: float = MIN_SIMILARITY) -> list[SimilarPair]:
    """Returns the pairs of images that look alike and are of different groups, the most similar first.

    Of exact copies only the first takes part; ``exact_duplicates`` tells the others.
    """
    distinct = list({facts.digest: facts for facts in reversed(found.records)}.values())[::-1]
    if not distinct:
        return []
    return similar_pairs(
        [facts.id for facts in distinct],
        np.stack([facts.thumbnail for facts in distinct]),
        [facts.group for facts in distinct],
        min_similarity=min_similarity,
    )


def similar_pairs(
    ids: Sequence[str],
    thumbnails: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    min_similarity: float = MIN_SIMILARITY,
) -> list[SimilarPair]:
    """Returns the pairs of images that look alike, the most similar first.

    ``thumbnails`` is uint8 N×32×32, without exact copies (they would become the backdrop). Pairs of one group are
    left out where ``groups`` are given. Above 20,000 pairs, only those that connect the same images are returned.
    """
    details = _details(thumbnails)
    compared = np.flatnonzero(details.any(axis=1))
    details = details[compared]
    codes = np.unique(np.asarray(groups), return_inverse=True)[1][compared] if groups is not None else None
    found: list[tuple[int, int, float]] = []
    for first, second in _candidates(details):
        if codes is not None:
            apart = codes[first] != codes[second]
            first, second = first[apart], second[apart]
        similarity = _similarity(details, first, second)
        alike = similarity >= min_similarity
        found += zip(first[alike].tolist(), second[alike].tolist(), similarity[alike].tolist(), strict=True)
        if len(found) > 2 * _MAX_PAIRS:
            found = _spanning(found, len(details))
    if len(found) > _MAX_PAIRS:
        found = _spanning(found, len(details))
    found.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
    return [
        SimilarPair(first=ids[compared[a]], second=ids[compared[b]], similarity=round(min(value, 1.0), 4))
        for a, b, value in found
    ]


def _details(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the fine structure of each thumbnail as a float32 row of length 1 (0 for flat images)."""
    rows = np.empty((len(thumbnails), THUMBNAIL_SIDE * THUMBNAIL_SIDE), np.float32)
    for row, image in zip(rows, thumbnails, strict=True):
        values = image.astype(np.float32)
        row[:] = (values - cv2.GaussianBlur(values, (0, 0), _DETAIL_SIGMA)).ravel()
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(lengths, 1e-3)
    return rows


def _candidates(details: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields index arrays (first < second) of the pairs worth comparing, in bounded portions."""
    count = len(details)
    if count <= _ALL_PAIRS:
        for index in range(count - 1):
            second = np.arange(index + 1, count)
            yield np.full_like(second, index), second
        return
    hashes = _hashes(details)
    for top in range(0, count, _BLOCK[0]):
        for left in range(top, count, _BLOCK[1]):
            # Of two rows of ±1 the product is the bits that agree less those that differ: Hamming distance by BLAS.
            product = hashes[top : top + _BLOCK[0]] @ hashes[left : left + _BLOCK[1]].T
            first, second = np.divmod(np.flatnonzero(product >= _HASH_BITS - 2 * _MAX_DISTANCE), product.shape[1])
            first, second = first + top, second + left
            ordered = first < second
            yield first[ordered], second[ordered]


def _hashes(details: np.ndarray) -> np.ndarray:
    """Returns perceptual hashes as float32 N×128 of ±1: the signs of fixed random projections, backdrop removed.

    The expected share of differing bits is the angle between two rows over π (Charikar, STOC 2002).
    """
    projections = np.random.Generator(np.random.PCG64(0)).standard_normal((details.shape[1], _HASH_BITS))
    projected = details @ projections.astype(np.float32)
    return np.where(projected > projected.mean(axis=0), np.float32(1), np.float32(-1))


def _similarity(details: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the correlation of each pair's details after subtracting the mean detail of the other images."""
    total, others = details.sum(axis=0, dtype=np.float64).astype(np.float32), max(len(details) - 2, 1)
    result = np.empty(len(first), np.float32)
    for start in range(0, len(first), 4096):
        a, b = details[first[start : start + 4096]], details[second[start : start + 4096]]
        backdrop = (total - a - b) / others
        a, b = a - backdrop, b - backdrop
        lengths = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
        result[start : start + 4096] = np.einsum("ij,ij->i", a, b) / np.maximum(lengths, 1e-12)
    return result


def _spanning(pairs: list[tuple[int, int, float]], count: int) -> list[tuple[int, int, float]]:
    """Returns the most similar pairs that connect the same images: a maximum spanning forest."""
    forest = UnionFind(range(count))
    return [pair for pair in sorted(pairs, key=lambda pair: -pair[2]) if forest.join(pair[0], pair[1])]
