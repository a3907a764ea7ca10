"""Boosted trees on smoothed bands, as an analyst writes them in an hour: what benchmarks/swir.py compares with.

One classifier per class and fold; samples are pixels, their features the bands as they are and smoothed by Gaussians of
several widths. Pixels of an image say much the same, and there are a dozen images: an eighth of the pixels, drawn at
random, and trees that grow slowly carry over to other images better than all pixels and the library's own settings.
Maps out of fold are kept, and what is there already is not made again. Knows nothing about recipes, runs and scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np

from maskloom.encodings.probability_maps import read_map, write_map
from maskloom.errors import UserError
from maskloom.files import fingerprint, read_json, write_json
from maskloom.progress import Progress
from maskloom.runtime import generator

BOOSTING = "boosting"
SIGMAS = (0.0, 1.0, 2.0, 4.0)
"""Of the Gaussians, in pixels; 0 is the band as it is."""
SHARE = 1 / 8
"""Of the pixels of every image, which are learnt from."""
TREES = {"max_iter": 200, "learning_rate": 0.05, "max_leaf_nodes": 15, "min_samples_leaf": 50, "l2_regularization": 1.0}
"""How trees are grown."""


def classifier() -> Any:
    """Returns a fresh classifier; raises ``UserError`` where the library is missing."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
    except ImportError:
        raise UserError(
            "expected scikit-learn, which the comparison is with, found none; install it: pip install maskloom[bench]"
        ) from None
    return HistGradientBoostingClassifier(random_state=0, **TREES)


def boosted(
    folder: Path,
    images: Mapping[str, np.ndarray],
    truths: Mapping[str, np.ndarray],
    folds: Mapping[str, Sequence[str]],
    progress: Progress,
    *,
    origin: str,
) -> float:
    """Returns the seconds in which the trees were fitted and the out-of-fold map of every image was written.

    ``images`` are H×W×C as stored, ``truths`` uint8 classes×H×W of 0 and 1, both by id; ``folds`` names the images of
    each fold, which are predicted by what learnt the others. What an earlier call left is kept, with its seconds, where
    folds and ``origin``, which says what images and truths are, were the same.
    """
    mark = fingerprint(2, SIGMAS, SHARE, TREES, origin, folds)
    marker = folder / "marker.json"
    done = read_json(marker) if marker.is_file() else {}
    done = done if done.get("fingerprint") == mark else {"fingerprint": mark, "seconds": {}}
    missing = [fold for fold in folds if fold not in done["seconds"]]
    progress.stage(BOOSTING, cached=not missing)
    seen = {name: features(image) for name, image in images.items()} if missing else {}
    for number, fold in enumerate(missing):
        progress.advance(number, len(missing), f"fold {fold}")
        began = perf_counter()
        for name, found in _predicted(seen, truths, folds[fold]).items():
            write_map(_map_of(folder, name), found)
        done["seconds"][fold] = round(perf_counter() - began, 1)
        write_json(marker, done)
    return float(sum(done["seconds"].values()))


def stored(folder: Path, name: str) -> np.ndarray:
    """Returns an image's out-of-fold map, uint8 classes×H×W."""
    return read_map(_map_of(folder, name))


def _map_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.map"


def _predicted(
    seen: Mapping[str, np.ndarray], truths: Mapping[str, np.ndarray], inside: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns the maps uint8 classes×H×W of the images ``inside`` a fold, by classifiers that learnt all others."""
    drawn = {name: _drawn(name, seen[name].shape[:2]) for name in seen if name not in inside}
    samples = np.concatenate([seen[name][chosen] for name, chosen in drawn.items()])
    maps: dict[str, list[np.ndarray]] = {name: [] for name in inside}
    for truth in np.concatenate([truths[name][:, chosen] for name, chosen in drawn.items()], axis=1):
        model = classifier().fit(samples, truth) if truth.any() else None
        for name in inside:
            maps[name].append(_probabilities(model, seen[name]))
    return {name: np.stack(planes) for name, planes in maps.items()}


def _drawn(name: str, size: tuple[int, ...]) -> np.ndarray:
    """Returns bool H×W: the pixels of an image that are learnt from, the same at every call."""
    chosen: np.ndarray = generator(0, BOOSTING, name).random(size) < SHARE
    return chosen


def features(image: np.ndarray) -> np.ndarray:
    """Returns float32 H×W×(bands · widths): the bands H×W×C, smoothed."""
    bands = [np.ascontiguousarray(band) for band in image.astype(np.float32).transpose(2, 0, 1)]
    planes = [_smoothed(band, sigma) for sigma in SIGMAS for band in bands]
    return np.stack(planes, axis=2)


def _smoothed(band: np.ndarray, sigma: float) -> np.ndarray:
    return band if sigma == 0 else np.asarray(cv2.GaussianBlur(band, (0, 0), sigma))


def _probabilities(model: Any, image: np.ndarray) -> np.ndarray:
    """Returns a class's map as it is stored, uint8 H×W; 0 where there was nothing to learn from."""
    height, width, channels = image.shape
    if model is None:
        return np.zeros((height, width), np.uint8)
    found: np.ndarray = model.predict_proba(image.reshape(-1, channels))[:, 1]
    return np.round(255 * found).astype(np.uint8).reshape(height, width)
