"""Files of the studio: photos, masks and tables in the Carvana layout, and a contact sheet to look at."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from maskloom.data.studio.photo import LARGEST, check_size, render
from maskloom.data.studio.shapes import StudioObject, draw_object
from maskloom.encodings.rle import encode_runs
from maskloom.errors import UserError
from maskloom.files import fingerprint, read_json, write_bytes, write_json, write_text
from maskloom.records import Size

MARKER = ".studio.json"
"""Says which settings the files of a folder came from; written last."""
VERSION = 1
"""Goes up whenever the same settings give other pictures."""
JPEG_QUALITY = 92
LOW_CONTRAST = ("studio grey", "fog", "silver", "white")
SHEET: tuple[tuple[int, int], ...] = ((0, 10), (1, 3), (2, 1), (3, 12), (4, 1), (12, 4), (6, 10), (7, 4))
"""Object and view of the pictures of the contact sheet."""


def write_studio(
    folder: Path,
    *,
    objects: int = 6,
    views: int = 16,
    size: Size = LARGEST,
    seed: int = 0,
    test_objects: int = 0,
    workers: int = 1,
    on_photo: Callable[[int, int], None] | None = None,
) -> None:
    """Returns nothing; ``folder`` then holds a generated data set in the layout of the Carvana contest.

    ``train/<id>_<view>.jpg``, ``train_masks/<id>_<view>_mask.gif`` (palette, 0 and 1), ``train_masks.csv`` (img,
    rle_mask; rows first, counted from one), ``metadata.csv`` (id, year, make, model, trim1, trim2 = kind, style,
    colour, contrast) and, with ``test_objects``, ``test/`` without masks and ``sample_submission.csv``. The same
    settings give the same bytes whatever the number of ``workers`` (threads). A folder that is already complete is
    left alone. ``on_photo`` hears (done, of) after each photo.

    Raises:
        UserError: a setting is out of range, or the folder holds something else.
    """
    _check(objects, views, test_objects, size)
    settings = {"objects": objects, "views": views, "size": list(size), "seed": seed, "test_objects": test_objects}
    settings["fingerprint"] = fingerprint(VERSION, settings)
    train = [draw_object(seed, index) for index in range(objects)]
    test = [draw_object(seed, index) for index in range(objects, objects + test_objects)]
    if _is_complete(folder, settings, train, test, views):
        return
    jobs = [(model, view, model in test) for model in train + test for view in range(1, views + 1)]

    def take(job: tuple[StudioObject, int, bool]) -> tuple[str, str] | None:
        model, view, hidden = job
        return _write_photo(folder, model, view, size, views, seed, hidden=hidden)

    rows: list[tuple[str, str]] = []
    with ThreadPoolExecutor(workers) as pool:
        for done, row in enumerate(pool.map(take, jobs), start=1):
            rows += [row] if row else []
            if on_photo:
                on_photo(done, len(jobs))
    _write_tables(folder, train, test, rows, views)
    write_json(folder / MARKER, settings)


def _check(objects: int, views: int, test_objects: int, size: Size) -> None:
    check_size(size)
    if objects < 1 or test_objects < 0:
        raise UserError(
            f"studio: expected at least 1 object and no negative number, found {objects} and {test_objects}"
        )
    if not 1 <= views <= 99:
        raise UserError(f"studio: expected 1 to 99 views of every object, found {views}; choose fewer or more")


def _is_complete(
    folder: Path, settings: dict[str, object], train: Sequence[StudioObject], test: Sequence[StudioObject], views: int
) -> bool:
    """Returns whether these very settings were written before; refuses a folder with photos from elsewhere."""
    wanted = {name for model in [*train, *test] for name in _names(model, views)}
    found = {
        path.name for part in ("train", "test") if (folder / part).is_dir() for path in (folder / part).glob("*.jpg")
    }
    marked = read_json(folder / MARKER) if (folder / MARKER).is_file() else None
    if marked == settings and found == wanted:
        return True
    if found - wanted or (marked is not None and marked != settings):
        raise UserError(
            f"{folder}: expected an empty folder for the studio's photos, found other photos or other settings; choose "
            "another folder or empty this one"
        )
    return False


def _names(model: StudioObject, views: int) -> list[str]:
    return [f"{model.id}_{view:02d}.jpg" for view in range(1, views + 1)]


def _write_photo(
    folder: Path, model: StudioObject, view: int, size: Size, views: int, seed: int, *, hidden: bool
) -> tuple[str, str] | None:
    """Writes one photo and, unless its mask is hidden, the mask; returns its row of ``train_masks.csv``."""
    image, mask = render(model, view, size, views=views, seed=seed)
    name = f"{model.id}_{view:02d}"
    write_bytes(folder / ("test" if hidden else "train") / f"{name}.jpg", encode_jpeg(image, JPEG_QUALITY))
    if hidden:
        return None
    write_bytes(folder / "train_masks" / f"{name}_mask.gif", encode_mask(mask))
    return f"{name}.jpg", encode_runs(mask, order="row", base=1)


def encode_jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """Returns an RGB image H×W×3 as the bytes of a JPEG file."""
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return content.tobytes()


def encode_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Returns a mask H×W as the bytes of a palette GIF with the values 0 (black) and 1 (white)."""
    from PIL import Image

    picture = Image.fromarray(mask.view(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    stream = io.BytesIO()
    picture.save(stream, format="GIF", optimize=False)
    return stream.getvalue()


def _write_tables(
    folder: Path,
    train: Sequence[StudioObject],
    test: Sequence[StudioObject],
    rows: Sequence[tuple[str, str]],
    views: int,
) -> None:
    _write_csv(folder / "train_masks.csv", ("img", "rle_mask"), sorted(rows))
    about = [
        (
            model.id,
            str(model.year),
            model.kind,
            model.style,
            model.colour,
            "low" if model.colour in LOW_CONTRAST else "normal",
        )
        for model in [*train, *test]
    ]
    _write_csv(folder / "metadata.csv", ("id", "year", "make", "model", "trim1", "trim2"), sorted(about))
    if test:
        names = sorted(name for model in test for name in _names(model, views))
        _write_csv(folder / "sample_submission.csv", ("img", "rle_mask"), [(name, "1 1") for name in names])


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, stream.getvalue())


def contact_sheet(path: Path, *, seed: int = 0, pictures: Sequence[tuple[int, int]] = SHEET, columns: int = 4) -> None:
    """Returns nothing; writes a JPEG of (object, view) photos in rows, each row above the same photos with masks."""
    rows = []
    for start in range(0, len(pictures), columns):
        pairs = [
            render(draw_object(seed, index), view, (640, 960), seed=seed)
            for index, view in pictures[start : start + columns]
        ]
        for tiles in ([photo for photo, _ in pairs], [overlay(photo, mask) for photo, mask in pairs]):
            small = [cv2.resize(tile, (400, 267), interpolation=cv2.INTER_AREA) for tile in tiles]
            row = np.hstack(small)
            rows.append(np.pad(row, ((0, 0), (0, 400 * columns - row.shape[1]), (0, 0))))
    write_bytes(path, encode_jpeg(np.vstack(rows), 82))


def overlay(photo: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Returns the photo with all but the mask in dark grey and a bright line around the mask."""
    grey = np.repeat(photo.mean(axis=2, keepdims=True) * 0.4, 3, axis=2)
    result = np.where(mask[..., None], photo * 0.7 + np.array((4, 64, 54)), grey)
    thick = max(photo.shape[0] // 320, 1) * 2 + 1
    solid = mask.view(np.uint8)
    edge = cv2.dilate(solid, np.ones((thick, thick), np.uint8)) != solid
    result[edge] = (90, 255, 214)
    return np.clip(result, 0, 255).astype(np.uint8)
