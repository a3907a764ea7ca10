"""The loss of maps that are decided each for itself (binary and multilabel tasks): the terms over one batch.

The one place that knows which function a term's kind stands for. What several terms need of a batch (probabilities,
weight maps) is computed once. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from maskloom.losses import bootstrap, boundary, distance, focal, lovasz, pixel, region
from maskloom.records import IGNORE

if TYPE_CHECKING:
    from maskloom.losses.terms import LossTerm, PlainLoss

WeightMap = tuple[Callable[[Tensor, int], Tensor], int]
"""A function of labels and window from ``boundary``, and its window in pixels."""


class MapBatch:
    """Logits and labels of one batch, and what terms share of them; all N×K×H×W, the labels uint8, else float32."""

    def __init__(self, logits: Tensor, labels: Tensor, auxiliary: Tensor) -> None:
        self.logits = logits
        self.labels = labels
        self.auxiliary = auxiliary
        """The network's maps after the task's own, N×A×H×W."""
        self._probabilities: Tensor | None = None
        self._weights: dict[WeightMap, Tensor] = {}

    @property
    def probabilities(self) -> Tensor:
        """The sigmoid of the logits."""
        if self._probabilities is None:
            self._probabilities = self.logits.sigmoid()
        return self._probabilities

    def weights(self, chosen: WeightMap) -> Tensor:
        """Returns this weight map of the labels."""
        if chosen not in self._weights:
            compute, window = chosen
            self._weights[chosen] = compute(self.labels, window)
        return self._weights[chosen]


def map_loss(
    terms: Sequence[LossTerm], *, num_maps: int, num_auxiliary_maps: int, image_height: int, background: bool
) -> PlainLoss:
    """Returns the weighted sum of the terms as a function of logits and labels; see ``terms.build_loss``.

    With ``background`` the labels 0 and 1 change places and all logits their sign, those of signed distances too.
    """
    weighted = [(term.weight, _evaluator(term, image_height if term.scale_pixels else None)) for term in terms]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        labels = labels[:, None] if labels.ndim == 3 else labels
        expected = (labels.shape[0], num_maps + num_auxiliary_maps, *labels.shape[2:])
        if labels.shape[1] != num_maps or logits.shape != expected:
            raise ValueError(
                f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} differ in shape: expected {num_maps} "
                f"maps in both and {num_auxiliary_maps} auxiliary ones after them in the logits"
            )
        if background:
            logits, labels = -logits, (1 - labels).where(labels != IGNORE, labels)
        batch = MapBatch(logits[:, :num_maps], labels, logits[:, num_maps:])
        total = logits.new_zeros(())
        for weight, evaluate in weighted:
            total = total + weight * evaluate(batch)
        return total

    return loss


def _evaluator(term: LossTerm, image_height: int | None) -> Callable[[MapBatch], Tensor]:
    """Returns the term, without its factor, as a function of a batch; None as height scales no pixel constant."""
    height = boundary.PUBLISHED_HEIGHT if image_height is None else image_height
    pixel_size = boundary.PUBLISHED_HEIGHT / height
    weights = term.class_numbers
    match term.kind:
        case "bce":
            return lambda batch: pixel.bce(batch.logits, batch.labels, label_smoothing=term.label_smoothing)
        case "boundary_bce" | "border_bce":
            chosen = _weight_map(term, height)
            return lambda batch: pixel.bce(batch.logits, batch.labels, weights=batch.weights(chosen))
        case "dice":
            return lambda batch: _dice(term, batch, None)
        case "jaccard":
            return lambda batch: region.soft_jaccard(
                batch.probabilities,
                batch.labels,
                smooth=term.smooth,
                per_image=bool(term.per_image),
                log=term.log,
            )
        case "tversky":
            return lambda batch: region.tversky(
                batch.probabilities,
                batch.labels,
                false_positives=term.false_positives,
                false_negatives=term.false_negatives,
                power=term.power,
                smooth=term.smooth,
                per_image=bool(term.per_image),
            )
        case "lovasz":
            return lambda batch: lovasz.lovasz_hinge(batch.logits, batch.labels, per_image=term.per_image is not False)
        case "focal":
            return lambda batch: focal.focal(batch.logits, batch.labels, gamma=term.gamma, class_weights=weights)
        case "boundary_dice":
            chosen = _weight_map(term, height)
            return lambda batch: _dice(term, batch, batch.weights(chosen).square())
        case "border_dice":
            chosen = _weight_map(term, height)
            return lambda batch: _dice(term, batch, batch.weights(chosen))
        case "bootstrapped_bce":
            return lambda batch: bootstrap.bootstrapped_bce(
                batch.logits, batch.labels, alpha=term.alpha, mixture=term.mixture
            )
        case "online_bootstrapping":
            hardest = max(1, round(term.hardest / pixel_size**2))
            return lambda batch: bootstrap.online_bootstrapping(
                batch.logits, batch.labels, hardest=hardest, threshold=term.threshold
            )
        case "signed_distance":
            return lambda batch: distance.signed_distance(batch.auxiliary, batch.labels, pixel_size=pixel_size)
        case "cross_entropy" | "ohem":
            raise ValueError(f"{term.kind} is for exclusive labels")


def _dice(term: LossTerm, batch: MapBatch, weights: Tensor | None) -> Tensor:
    per_image = term.kind != "dice" if term.per_image is None else term.per_image
    return region.soft_dice(
        batch.probabilities, batch.labels, smooth=term.smooth, weights=weights, per_image=per_image, log=term.log
    )


def _weight_map(term: LossTerm, height: int) -> WeightMap:
    """Returns how a boundary or border term weights pixels of an image of ``height`` rows."""
    if term.kind in ("border_bce", "border_dice"):
        return boundary.border_mask, boundary.scaled_window(term.window or boundary.BORDER_WINDOW, height)
    if term.weighting == "hill":
        return boundary.hill_weights, boundary.scaled_window(term.window or boundary.HILL_WINDOW, height)
    window = boundary.band_window(height) if term.window is None else boundary.scaled_window(term.window, height)
    return boundary.band_weights, window
