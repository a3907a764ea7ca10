"""A stand-in of Signate's AI Edge data in the published layout and at the published size: drawn street scenes.

Photos are JPEG, annotations PNG in the contest's colours with a JSON of attributes beside each. The truth of test
photos, which the contest kept to itself, lies in a folder of its own. Knows nothing about how any of it is read.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from maskloom.contests.signate.colours import CATEGORIES, COLOURS
from maskloom.contests.signate.layout import ANNOTATIONS, PHOTOS, TEST
from maskloom.contests.signate.street import ROUTES, TIMES, Scene, draw_street
from maskloom.data.image_io import write_png
from maskloom.errors import UserError
from maskloom.files import fingerprint, read_json, write_bytes, write_json
from maskloom.records import Size

TEST_ANNOTATIONS = "seg_test_annotations"
"""Where the truth of the test photos lies."""
MARKER = ".stand_in.json"
"""Says which settings the files of a folder came from; written last."""
VERSION = 1
"""Goes up whenever the same settings give other pictures."""
SIZE: Size = (1216, 1936)
"""(height, width) of the contest's photos."""
SMALLEST: Size = (96, 152)
"""Of smaller scenes, signals and signs would be single pixels."""
JPEG_QUALITY = 92

_ATTEMPTS = 200  # at a scene in which nothing hides the last pixel of a category
_FEWEST_PIXELS = 4


def write_stand_in(
    folder: Path,
    *,
    images: int = 14,
    test_images: int = 2,
    size: Size = SIZE,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> None:
    """Returns nothing; ``folder`` then holds ``images`` training photos and ``test_images`` others.

    Written are ``seg_train_images/train_0000.jpg`` …, ``seg_train_annotations/train_0000.png`` and ``.json`` …,
    ``seg_test_images/test_000.jpg`` … and their truth, ``seg_test_annotations/test_000.png`` … The first scene of each
    kind shows all 20 categories, the others what happens to be there; routes and times of day come in turn. The same
    settings give the same files; a folder that is complete is left alone. ``on_image`` hears (done, of) after each
    photo. Raises ``UserError`` for settings that cannot be met, and for a folder that holds something else.
    """
    _check(images, test_images, size)
    settings = {"images": images, "test_images": test_images, "size": list(size), "seed": seed, "version": VERSION}
    marked = {**settings, "fingerprint": fingerprint(settings)}
    if _is_complete(folder, marked):
        return
    for index in range(images + test_images):
        _write_scene(folder, index, images, size, seed)
        if on_image:
            on_image(index + 1, images + test_images)
    write_json(folder / MARKER, marked)


def _check(images: int, test_images: int, size: Size) -> None:
    if images < 1 or test_images < 0:
        raise UserError(f"expected at least 1 photo to learn from and 0 to test, found {images} and {test_images}")
    if not all(least <= found <= most for least, found, most in zip(SMALLEST, size, SIZE, strict=True)):
        raise UserError(
            f"expected a size from {SMALLEST[1]}×{SMALLEST[0]} to {SIZE[1]}×{SIZE[0]} (width×height), found "
            f"{size[1]}×{size[0]}"
        )


def _is_complete(folder: Path, settings: Mapping[str, object]) -> bool:
    """Returns whether the folder holds just this; raises ``UserError`` when it holds something else."""
    marker = folder / MARKER
    if marker.is_file() and read_json(marker) == settings:
        return True
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: expected an empty folder or this very stand-in, found something else; give another")
    return False


def _write_scene(folder: Path, index: int, images: int, size: Size, seed: int) -> None:
    """Writes the files of one photo; from number ``images`` on they are test photos."""
    is_test = index >= images
    name = f"test_{index - images:03d}" if is_test else f"train_{index:04d}"
    route, time = ROUTES[index % len(ROUTES)], TIMES[index // len(ROUTES) % len(TIMES)]

    def draw(attempt: int, *, complete: bool) -> Scene:
        return draw_street(
            np.random.default_rng([seed, index, attempt]), size, route=route, time=time, complete=complete
        )

    scene = _complete(draw) if index in (0, images) else draw(0, complete=False)
    _write_jpeg(folder / (TEST if is_test else PHOTOS) / f"{name}.jpg", scene.photo)
    annotations = folder / (TEST_ANNOTATIONS if is_test else ANNOTATIONS)
    write_png(annotations / f"{name}.png", np.array(list(COLOURS.values()), np.uint8)[scene.labels])
    if not is_test:
        write_json(annotations / f"{name}.json", {"attributes": {"route": route, "timeofday": time}})


def _complete(draw: Callable[..., Scene]) -> Scene:
    """Returns the first attempt at a scene that shows some pixels of every category."""
    for attempt in range(_ATTEMPTS):
        scene = draw(attempt, complete=True)
        if np.bincount(scene.labels.ravel(), minlength=len(CATEGORIES)).min() >= _FEWEST_PIXELS:
            return scene
    raise UserError(f"expected a scene with all {len(CATEGORIES)} categories, found none; choose another seed or size")


def _write_jpeg(path: Path, photo: np.ndarray) -> None:
    bgr = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)
    done, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert done, "three channels of 8 bits are a JPEG"
    write_bytes(path, content.tobytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """The door: ``python -m maskloom.contests.signate.stand_in --out DIR --images N --size WIDTHxHEIGHT``."""
    parser = argparse.ArgumentParser(description="Draws a stand-in of Signate's street scenes in the published layout.")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill; new or empty")
    parser.add_argument("--images", type=int, default=14, help="how many photos to learn from")
    parser.add_argument("--test-images", type=int, default=2, help="how many photos to predict")
    parser.add_argument("--size", default=f"{SIZE[1]}x{SIZE[0]}", help="WIDTHxHEIGHT in pixels")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        write_stand_in(
            given.out, images=given.images, test_images=given.test_images, size=_size(given.size), seed=given.seed,
            on_image=lambda done, total: print(f"{done} of {total} photos"),
        )  # fmt: skip
    except UserError as error:
        parser.exit(2, f"{error}\n")


def _size(text: str) -> Size:
    width, _, height = text.partition("x")
    if not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise UserError(f"--size: expected WIDTHxHEIGHT such as 484x304, found {text!r}")
    return int(height), int(width)


if __name__ == "__main__":
    main()
