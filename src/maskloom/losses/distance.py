"""The signed log distance to the mask's boundary, as what an auxiliary map of the network learns.

Distances are Euclidean, exact, and computed by OpenCV on the CPU, which waits for the labels of a batch that lies on
another device. Knows nothing about tasks, settings and networks.

Shapes: maps and labels are N×K×H×W (N images, K maps, H×W pixels); labels are uint8 of 0, 1, IGNORE.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from maskloom.records import IGNORE

FARTHEST = 1280.0
"""Distance, in pixels of a photo of 1280 rows, beyond which all is equally far; there the target is 1 or -1."""


def signed_distance(maps: Tensor, labels: Tensor, *, pixel_size: float = 1.0) -> Tensor:
    """Returns the mean of |map - signed log distance| over the labels that count, a scalar.

    ``maps`` are what the network says, without a sigmoid. The absolute difference keeps the gradient of wild first
    guesses as small as that of good ones.
    """
    valid = (labels != IGNORE).to(torch.float32)
    differences = (maps.float() - signed_log_distance(labels, pixel_size=pixel_size)).abs()
    return (differences * valid).sum() / valid.sum().clamp(min=1)


def signed_log_distance(labels: Tensor, *, pixel_size: float = 1.0) -> Tensor:
    """Returns sign·log(1 + min(d, 1280)) / log(1 + 1280), float32 in [-1, 1], on the labels' device.

    d is the distance, in pixels times ``pixel_size``, from the pixel's centre to the centre of the nearest pixel of
    the other class (so at least one pixel); the sign is + in the foreground, - in the background. Only pixels of the
    image at hand are seen, and ``IGNORE`` is no class: without a pixel of the other class the target is 1 or -1, and
    on ``IGNORE`` it is 0. Source: the log distance of the Carvana 1st place's trainer, which does not divide.
    """
    height, width = labels.shape[2:]
    flat = labels.cpu().numpy().reshape(-1, height, width)
    distances = np.stack([_signed_distance(image) for image in flat]).reshape(labels.shape)
    scaled = np.minimum(np.abs(distances) * pixel_size, FARTHEST)
    target = np.sign(distances) * np.log1p(scaled) / math.log1p(FARTHEST)
    return torch.from_numpy(target.astype(np.float32)).to(labels.device)


def _signed_distance(labels: np.ndarray) -> np.ndarray:
    """Returns the distance to the nearest background pixel in the foreground, minus that to it elsewhere, float32."""
    foreground, background = labels == 1, labels == 0
    inside, outside = _distance_to(background), _distance_to(foreground)
    signed: np.ndarray = np.where(foreground, inside, np.where(background, -outside, 0))
    return signed


def _distance_to(mask: np.ndarray) -> np.ndarray:
    """Returns the distance to the nearest true pixel, huge where there is none."""
    distance: np.ndarray = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return distance
