"""Contrast-limited adaptive histogram equalisation of images, as preprocessing or as augmentation.

One function over OpenCV; knows nothing of policies, samples or tensors.
"""

from __future__ import annotations

import cv2
import numpy as np

from maskloom.errors import UnfitImage


def clahe(image: np.ndarray, *, channels: int | None = None) -> np.ndarray:
    """Returns the H×W×C image after contrast-limited adaptive histogram equalisation (clip 2, 8×8 tiles).

    The first ``channels`` are the image's (all when None), what follows are guides and stays as it is. Three
    channels: of the luma (YUV), colours kept; other counts: of each channel. Never modifies ``image``. Raises
    ``UnfitImage`` for float images, which have no histogram. Source: Carvana, 1st place (linknet members).
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise UnfitImage(
            f"CLAHE expects 8- or 16-bit images, found {image.dtype}; set input.clahe=false and augment.clahe=0, "
            "or convert the images"
        )
    own = image if channels is None else image[..., :channels]
    equaliser = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8))
    if own.shape[2] == 3:
        luma = cv2.cvtColor(np.ascontiguousarray(own), cv2.COLOR_RGB2YUV)
        luma[:, :, 0] = equaliser.apply(np.ascontiguousarray(luma[:, :, 0]))
        equalised = np.asarray(cv2.cvtColor(luma, cv2.COLOR_YUV2RGB))
    else:
        planes = [equaliser.apply(np.ascontiguousarray(plane)) for plane in np.moveaxis(own, 2, 0)]
        equalised = np.stack(planes, axis=2)
    if own.shape[2] == image.shape[2]:
        return equalised
    return np.concatenate([equalised, image[..., own.shape[2] :]], axis=2)
