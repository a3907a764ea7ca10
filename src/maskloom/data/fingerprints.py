"""Small descriptions of an image by which copies are found: a digest of its pixels, and a thumbnail."""

from __future__ import annotations

import hashlib

import cv2
import numpy as np

THUMBNAIL_SIDE = 32
"""Pixels of a thumbnail's side."""


def pixel_digest(image: np.ndarray) -> str:
    """Returns 32 hexadecimal digits that are equal exactly for images of equal shape, type and pixels."""
    digest = hashlib.blake2b(f"{image.dtype}{image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Returns the grey 32×32 thumbnail (uint8) of an H×W×C image, stretched to the range 0…255; flat images are 0.

    Grey is the plain mean of the channels, of at most four evenly spread ones.
    """
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    channels = image.shape[2]
    if channels > 4:
        image = np.ascontiguousarray(image[:, :, np.linspace(0, channels - 1, 4).round().astype(int)])
    small = cv2.resize(image, side, interpolation=cv2.INTER_AREA).astype(np.float32)
    grey = small if small.ndim == 2 else small.mean(axis=2)
    low, high = float(grey.min()), float(grey.max())
    if high - low <= 1e-3 * max(abs(low), abs(high)):
        return np.zeros(side, np.uint8)
    stretched: np.ndarray = np.rint((grey - low) * (255 / (high - low))).astype(np.uint8)
    return stretched
