"""What both ablations share: counts of what networks and their mean predict, and how a gain stands in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from maskloom.data.sources.base import DataSource
from maskloom.data.truth import read_truth
from maskloom.ensembling.bootstrap import Gain
from maskloom.inference.merging import RESULT, Merge
from maskloom.inference.predictor import InferenceSettings, Predictor
from maskloom.inference.streaming import predict_records
from maskloom.metrics import Counts, from_labels
from maskloom.models.segmenter import Segmenter
from maskloom.records import Record
from maskloom.stages.scoring import decided, image_reader

DETECTABLE = 1.96 + 0.84
"""Quantiles of the normal distribution: 5 % two-sided, and 80 % power. A true gain of so many standard errors of the
bootstrap would be found significant in 80 % of such experiments."""


def counts_of_mean(
    segmenters: Mapping[str, Segmenter],
    settings: InferenceSettings,
    device: torch.device,
    records: Sequence[Record],
    source: DataSource,
    on_progress: Callable[[int, int], object],
) -> dict[str, dict[str, Counts]]:
    """Returns the counts of each network under its name, and of their mean under "result", by record id.

    Decided is at one half, or by the largest map of a multiclass task. Every record is predicted in one pass.
    """
    taps = {name.replace("/", "_"): name for name in segmenters}
    tree = Merge(children=tuple(Merge(name=tap, children=(leaf,)) for tap, leaf in taps.items()))
    predictor = Predictor(tree, segmenters, settings, device)
    found: dict[str, dict[str, Counts]] = {name: {} for name in (*segmenters, RESULT)}
    task, channels = source.task, len(next(iter(segmenters.values())).normalisation.mean)

    def consume(record: Record, maps: dict[str, np.ndarray]) -> None:
        truth = read_truth(record, task, source.coding)
        for stored, name in {**taps, RESULT: RESULT}.items():
            found[name][record.id] = from_labels(decided(maps[stored], task), truth, task)

    predict_records(predictor, records, consume, read=image_reader(channels), on_progress=on_progress)
    return found


def signed(value: float, unit: float) -> str:
    """Returns a difference in units (1e-4 for ten-thousandths), with its sign and one digit."""
    return f"{round(value / unit, 1) + 0.0:+.1f}"


def gain_cells(gain: Gain | None, unit: float) -> list[str]:
    """Returns the mean gain, its interval and its probability as cells; empty ones where nothing is compared."""
    if gain is None:
        return ["", "", ""]
    interval = f"{signed(gain.low, unit)} … {signed(gain.high, unit)}"
    return [signed(gain.mean, unit), interval, f"{gain.probability:.3f}"]
