from __future__ import annotations

import cv2
import numpy as np
import pytest

from maskloom.data import duplicates
from maskloom.data.duplicates import SimilarPair, similar_pairs
from maskloom.data.fingerprints import pixel_digest, thumbnail


def texture(seed: int, cells: int = 16, size: tuple[int, int] = (240, 320)) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3)).astype(np.float32)
    return np.clip(cv2.resize(values, size[::-1], interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def studio(seed: int) -> np.ndarray:
    """One backdrop, another object in front of it: a patch of a third of the picture."""
    image = texture(10_000).copy()
    image[70:190, 80:240] = texture(seed)[70:190, 80:240]
    return image


def recompressed(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    brighter = np.clip(small * 0.85 + 10, 0, 255).astype(np.uint8)
    return cv2.imdecode(cv2.imencode(".jpg", brighter, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)


def pairs_of(images: list[np.ndarray], groups: list[str] | None = None) -> set[tuple[str, str]]:
    ids = [str(index) for index in range(len(images))]
    found = similar_pairs(ids, np.stack([thumbnail(image) for image in images]), groups)
    return {(pair.first, pair.second) for pair in found}


def test_altered_copies_are_found() -> None:
    images = [texture(seed) for seed in range(8)]
    assert pairs_of([*images, recompressed(images[2]), recompressed(images[5])]) == {("2", "8"), ("5", "9")}


def test_same_backdrop_with_another_object_is_no_duplicate() -> None:
    images = [studio(seed) for seed in range(8)]
    assert pairs_of(images) == set()
    assert pairs_of([*images, recompressed(images[3])]) == {("3", "8")}


def test_pairs_of_one_group_are_left_out() -> None:
    images = [texture(seed) for seed in range(6)]
    images += [recompressed(images[0]), recompressed(images[1])]
    assert pairs_of(images, ["a", "b", "c", "d", "e", "f", "a", "z"]) == {("1", "7")}


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_images(count: int) -> None:
    thumbnails = np.stack([thumbnail(texture(seed)) for seed in range(3)])[:count]
    assert similar_pairs([str(index) for index in range(count)], thumbnails) == []
    if count == 2:
        image = texture(0)
        assert pairs_of([image, recompressed(image)]) == {("0", "1")}


def test_flat_images_are_not_compared() -> None:
    black, white = np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)
    assert pairs_of([black, white, texture(1), texture(2)]) == set()


def test_hashes_choose_the_same_pairs_as_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [studio(seed) for seed in range(60)] + [texture(seed) for seed in range(60)]
    images += [recompressed(images[index]) for index in range(0, 120, 10)]
    expected = pairs_of(images)
    assert len(expected) == 12
    monkeypatch.setattr(duplicates, "_ALL_PAIRS", 10)
    monkeypatch.setattr(duplicates, "_BLOCK", (32, 50))
    assert pairs_of(images) == expected


def test_too_many_pairs_keep_what_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MAX_PAIRS", 5)
    rng = np.random.default_rng(0)
    base = texture(3).astype(np.float32)
    copies = [np.clip(base + rng.normal(0, 3, base.shape), 0, 255).astype(np.uint8) for _ in range(6)]
    found = pairs_of([*copies, *(texture(seed) for seed in range(20, 60))])
    assert len(found) == 5
    reached = {"0"}
    for _ in range(5):
        reached |= {other for pair in found if set(pair) & reached for other in pair}
    assert reached == {"0", "1", "2", "3", "4", "5"}


def test_pair_json_round_trip() -> None:
    pair = SimilarPair(first="a", second="b", similarity=0.95)
    assert SimilarPair.from_json(pair.to_json()) == pair


def test_digest_sees_shape_type_and_pixels() -> None:
    image = texture(0)
    other = image.copy()
    other[3, 4, 1] ^= 1
    same = np.asfortranarray(image)
    assert pixel_digest(image) == pixel_digest(same)
    assert len({pixel_digest(each) for each in (image, other, image.reshape(320, 240, 3), image.view(np.int8))}) == 4


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint16", 3), ("float32", 8), ("uint16", 20)])
def test_thumbnail_of_any_image(dtype: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 200, (50, 41, channels)).astype(dtype)
    small = thumbnail(image)
    assert (small.shape, small.dtype, small.min(), small.max()) == ((32, 32), np.uint8, 0, 255)
