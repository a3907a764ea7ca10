"""Boosted trees grown by LightGBM from sampled pixels, and handed over as the tensors of a ``TreeNetwork``.

LightGBM's own forms of a model are neither stored nor read again: trees are taken from its public dump. The same
samples, settings and seed give the same trees with any number of threads. Knows nothing about images and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskloom.errors import UserError
from maskloom.models.index_network import LIMIT
from maskloom.models.tree_settings import TreeSettings
from maskloom.records import IGNORE, Task
from maskloom.runtime import num_cores

VALUES_PER_THREAD = 2**21
"""So many numbers keep a thread busy; more threads for fewer only wait for each other."""

Node = Mapping[str, Any]
"""A node of LightGBM's dump, with all below it."""


def library() -> Any:
    """Returns LightGBM; raises ``UserError`` where it, or what it needs, is missing."""
    try:
        import lightgbm
    except (ImportError, OSError) as error:  # OSError: the system has no libgomp
        raise UserError(
            f"network.architecture=trees: expected LightGBM, which grows trees, found none ({error!s:.100}); install "
            "it: pip install maskloom[trees]"
        ) from None
    return lightgbm


def grow(
    samples: np.ndarray,
    labels: np.ndarray,
    task: Task,
    settings: TreeSettings,
    *,
    seed: int,
    on_progress: Callable[[int, int], object],
    threads: int | None = None,
) -> dict[str, Tensor]:
    """Returns the state of a ``TreeNetwork`` that has learnt the task from pixels.

    ``samples`` is float32 P×F; ``labels`` uint8 P (binary, multiclass) or maps×P (multilabel: one booster per class),
    of which those that are ``IGNORE`` are left out. A class that none of the samples is of is found nowhere. After
    every tree (multiclass: one of each class) ``on_progress(done, total)`` is called, and an interrupt is heard.
    ``threads``: None for what suits the work. Raises ``UserError`` without LightGBM, and without a sample.
    """
    parts = list(labels) if task.kind == "multilabel" else [labels]
    if not any((part != IGNORE).any() for part in parts):
        raise UserError(
            "network.trees: expected labelled pixels to learn from, drew none; raise network.trees.share, or label "
            "more (in folds of blocks, ground that the Gaussians do not share with what is validated)"
        )
    total = len(parts) * settings.num_trees
    grown: list[Node] = []
    for number, part in enumerate(parts):

        def told(done: int, before: int = number * settings.num_trees) -> None:
            on_progress(before + done, total)

        grown += _of_booster(samples, part, task, settings, seed, threads, told)
    return _state(grown, settings)


def _of_booster(
    samples: np.ndarray,
    labels: np.ndarray,
    task: Task,
    settings: TreeSettings,
    seed: int,
    threads: int | None,
    told: Callable[[int], object],
) -> list[Node]:
    """Returns the roots of one booster's trees, those of the first map first, as many of each map."""
    lightgbm = library()
    is_known = labels != IGNORE
    if not is_known.all():
        samples, labels = samples[is_known], labels[is_known]
    num_maps = task.num_maps if task.kind == "multiclass" else 1
    told(0)
    if num_maps == 1 and not labels.any():
        told(settings.num_trees)
        return [{"leaf_value": -LIMIT}, *[{"leaf_value": 0.0}] * (settings.num_trees - 1)]
    booster = _fresh(lightgbm, samples, labels, settings, seed, threads, num_maps)
    for done in range(1, settings.num_trees + 1):
        is_done = booster.update()  # also where no split would help any more
        told(done)
        if is_done:
            break
    told(settings.num_trees)
    roots = [tree["tree_structure"] for tree in booster.dump_model()["tree_info"]]
    found: list[Node] = []
    for number in range(num_maps):
        own = roots[number::num_maps]
        found += own + [{"leaf_value": 0.0}] * (settings.num_trees - len(own))
    return found


def _fresh(
    lightgbm: Any,
    samples: np.ndarray,
    labels: np.ndarray,
    settings: TreeSettings,
    seed: int,
    threads: int | None,
    num_maps: int,
) -> Any:
    """Returns a booster without trees."""
    usual = min(num_cores(), max(samples.size // VALUES_PER_THREAD, 1))
    parameters = {
        "objective": "binary" if num_maps == 1 else "multiclass",
        **({} if num_maps == 1 else {"num_class": num_maps}),
        "learning_rate": settings.learning_rate,
        "num_leaves": settings.num_leaves,
        "min_data_in_leaf": settings.min_samples_leaf,
        "lambda_l2": settings.l2,
        "feature_fraction": settings.values_per_tree,
        "bagging_fraction": settings.pixels_per_tree,
        "bagging_freq": int(settings.pixels_per_tree < 1),
        "use_missing": False,
        "seed": seed % 2**31,
        "num_threads": threads or usual,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(samples, labels.astype(np.float32), params=parameters)
    return lightgbm.Booster(parameters, data)


def _state(roots: Sequence[Node], settings: TreeSettings) -> dict[str, Tensor]:
    """Returns the tensors of trees, whose unused nodes and leaves are never reached."""
    trees, nodes = len(roots), settings.num_leaves - 1
    features = np.zeros((trees, nodes), np.int32)
    thresholds = np.zeros((trees, nodes), np.float32)
    branches = np.full((trees, nodes, 2), -1, np.int32)
    values = np.zeros((trees, settings.num_leaves), np.float32)
    for number, root in enumerate(roots):
        for node in _below(root):
            if "split_index" in node:
                at = number, node["split_index"]
                assert node["decision_type"] == "<=", "there are neither categories nor missing values"
                features[at], thresholds[at] = node["split_feature"], rounded_down(node["threshold"])
                branches[at] = [_place(node[side]) for side in ("left_child", "right_child")]
            else:
                values[number, node.get("leaf_index", 0)] = node["leaf_value"]
    arrays = {"features": features, "thresholds": thresholds, "branches": branches, "values": values}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _below(root: Node) -> Iterator[Node]:
    """Yields a node and all below it."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [node[side] for side in ("left_child", "right_child") if side in node]


def _place(node: Node) -> int:
    """Returns how a parent names a node: its number, or -1 - the number of a leaf."""
    return int(node["split_index"]) if "split_index" in node else -1 - int(node["leaf_index"])


def rounded_down(threshold: float) -> np.float32:
    """Returns the largest finite float32 that is not above a threshold: both divide float32 values in the same way."""
    largest = float(np.finfo(np.float32).max)
    near = np.float32(min(max(threshold, -largest), largest))
    return np.nextafter(near, np.float32(-np.inf)) if threshold < float(near) and threshold > -largest else near
