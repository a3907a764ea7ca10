"""Training windows of scenes: where one is drawn, and reading that one alone.

Scenes are records whose truth lies in polygons or in a mask raster; the whole is neither read nor rasterised. Knows
nothing about networks and augmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np

from maskloom.data.image_headers import read_header
from maskloom.data.input_policy import InputPolicy, Placement, cut_image, cut_labels, place
from maskloom.data.mask_coding import MaskCoding
from maskloom.data.record_images import Stamp, read_pixels, stamp_of
from maskloom.data.scene_truth import MaskTruth, PolygonTruth
from maskloom.data.truth import hide_unknown
from maskloom.data.window_drawing import MAX_DRAWS, bounds_of, draw_window, has_room, is_allowed, window_around
from maskloom.errors import BadFile
from maskloom.rasters.reading import open_raster
from maskloom.records import IGNORE, BadSize, MaskFile, Record, Shapes, Size, Task
from maskloom.storage.ranges import open_part
from maskloom.windows import Window

SCENE_PIXELS = 2**24
"""From so many pixels on (4096×4096) windows are read by themselves also of a single file, or with a mask raster.

Smaller images are read whole, which gives the same windows of what lies in plain files."""

_KEPT = 64  # scenes whose polygons stay indexed and whose classes stay counted, in each process
_GREY, _COLOUR, _PALETTE, _YCBCR = 1, 2, 3, 6  # photometric interpretations of a TIFF


def is_scene(record: Record, policy: InputPolicy, coding: MaskCoding) -> bool:
    """Returns whether windows of the record are read by themselves.

    They can be where it is neither resized nor equalised as a whole, and its files can be read by window. They are
    where there are further bands and polygons, or ``SCENE_PIXELS``.
    """
    if policy_problem(policy):
        return False
    if record.bands and isinstance(record.truth, Shapes):
        return True
    return record.size[0] * record.size[1] >= SCENE_PIXELS and not files_problem(record, coding)


def policy_problem(policy: InputPolicy) -> str:
    """Returns why a policy needs more of an image than a window, with what to do; "" where it does not."""
    if policy.mode != "window":
        return f"expected windows (input.mode=window, input.size=[256, 256]), found mode {policy.mode}"
    if policy.scale != 1:
        return f"expected windows of the image as it is (input.scale=1), found scale {policy.scale:g}"
    if policy.clahe:
        return "expected windows of the image as it is, found contrasts that are equalised as a whole (input.clahe)"
    if policy.prefer_mask_mean is not None:
        return "expected windows that prefer classes (input.prefer_class), found input.prefer_mask_mean"
    return ""


def files_problem(record: Record, coding: MaskCoding) -> str:
    """Returns which file of a labelled record cannot be read by window, with what to do; "" where all can be."""
    files = [] if record.bands else [(record.image, False)]
    if isinstance(record.truth, MaskFile) and record.truth.coded == "source":
        files.append((record.truth.path, coding.kind != "colours"))
    elif not isinstance(record.truth, Shapes):
        return f"{record.image}: expected a mask raster or polygons as truth; rasterise it (maskloom convert)"
    for path, may_have_palette in files:
        if not _is_plain(path, stamp_of(path), may_have_palette=may_have_palette):
            return (
                f"{path}: expected a plain TIFF of one page (grey, bands or RGB, 8 bits or more), of which windows are "
                "read; convert it (gdal_translate)"
            )
    return ""


@lru_cache(maxsize=4096)
def _is_plain(path: Path, stamp: Stamp, *, may_have_palette: bool) -> bool:
    """Returns whether a window that GDAL reads holds the same numbers as the file read by ``image_io``."""
    import tifffile

    try:
        header = read_header(path)
        if header.format != "tiff" or header.orientation != 1:
            return False
        with open_part(path) as stream, tifffile.TiffFile(stream) as tiff:
            pages = tiff.series[0].pages
            page = pages[0].aspage()  # type: ignore[union-attr]
            photometric = int(page.photometric)
            is_known = photometric in (_GREY, _COLOUR, _YCBCR) or (photometric == _PALETTE and may_have_palette)
            return len(pages) == 1 and page.imagedepth == 1 and page.bitspersample >= 8 and is_known
    except (BadFile, tifffile.TiffFileError, ValueError, IndexError, OSError):
        return False


def drawn_window(
    record: Record,
    policy: InputPolicy,
    task: Task,
    rng: np.random.Generator,
    *,
    coding: MaskCoding,
    part: Task | None = None,
    forbidden: Sequence[Window] = (),
) -> Window:
    """Returns a random window in pixels of the record's image, of the policy's size; it may reach beyond the border.

    Every place in the image with the policy's padding that touches nothing ``forbidden`` is as likely; with probability
    ``policy.prefer_class`` the window lies around a pixel of a class that is there, of the ``task`` or of a ``part`` of
    its classes, where one of ``MAX_DRAWS`` such windows may. Raises ``UserError`` where there is no room.
    """
    assert policy.size is not None, "the policy sees to that"
    placement = place(record.size, policy)
    areas = _shifted(forbidden, placement)
    drawn = None
    if rng.random() < policy.prefer_class:
        with _truth_of(record, task, coding, counted=True) as truth:
            wanted = (part or task).classes
            present = [label for label in truth.classes_present(task) if task.classes[label] in wanted]
            if present:
                label = present[int(rng.integers(len(present)))]
                pixels = (truth.pixel_of(label, task, rng) for _ in range(MAX_DRAWS))
                drawn = _around_one(pixels, placement, policy.size, areas)
    if drawn is None:
        drawn = draw_window(placement.padded, policy.size, rng, forbidden=areas)
    return Window(drawn.top - placement.padding.top, drawn.left - placement.padding.left, drawn.height, drawn.width)


def _around_one(
    pixels: Iterable[tuple[int, int]], placement: Placement, window: Size, forbidden: Sequence[Window]
) -> Window | None:
    """Returns the first window around one of the pixels (row, column) that touches nothing forbidden, if any does.

    Windows and what is forbidden are in pixels of the padded image, the pixels in those of the image.
    """
    bounds = bounds_of(forbidden)
    for row, column in pixels:
        middle = row + placement.padding.top, column + placement.padding.left
        around = window_around(middle, window, placement.padded)
        if is_allowed(around, bounds):
            return around
    return None


def has_place(record: Record, policy: InputPolicy, forbidden: Sequence[Window]) -> bool:
    """Returns whether a record has room for a window of the policy's size that touches nothing forbidden."""
    assert policy.size is not None, "see policy_problem"
    placement = place(record.size, policy)
    return has_room(placement.padded, policy.size, _shifted(forbidden, placement))


def count_classes(record: Record, task: Task, coding: MaskCoding) -> None:
    """Counts the classes of a mask raster, so that processes forked later need not read it for that."""
    with _truth_of(record, task, coding, counted=True) as truth:
        truth.classes_present(task)


def read_window(
    record: Record, window: Window, policy: InputPolicy, task: Task, coding: MaskCoding
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels H×W×C as stored and the labels of a window, which may reach beyond the record's image.

    There pixels are filled as the policy says and labels are ``IGNORE``, which they also are where the files know no
    pixel. Raises ``BadFile`` for a damaged file.
    """
    inside = window.clipped(record.size)
    pixels, labels = read_inside(record, inside, task, coding)
    own = Window(window.top - inside.top, window.left - inside.left, window.height, window.width)
    return cut_image(pixels, own, padding=policy.padding), cut_labels(labels, own)


def read_inside(record: Record, window: Window, task: Task, coding: MaskCoding) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels H×W×C as stored and the labels of a window inside the record's image.

    Where the files know no pixel, it is 0 and its label is ``IGNORE``. Raises ``BadFile`` for a damaged file, and
    ``BadSize`` for a mask of another size.
    """
    pixels, is_valid = read_pixels(record, window)
    with _truth_of(record, task, coding) as truth:
        labels = truth.labels(window, task)
    if isinstance(record.truth, Shapes):
        hide_unknown(labels, record.truth, window)
    if not is_valid.all():
        pixels[~is_valid] = 0
        labels[..., ~is_valid] = IGNORE
    return pixels, labels


def _shifted(areas: Sequence[Window], placement: Placement) -> list[Window]:
    """Returns areas in pixels of the padded image."""
    down, across = placement.padding.top, placement.padding.left
    return [Window(area.top + down, area.left + across, area.height, area.width) for area in areas]


@contextmanager
def _truth_of(
    record: Record, task: Task, coding: MaskCoding, *, counted: bool = False
) -> Iterator[PolygonTruth | MaskTruth]:
    """Yields a record's truth by window; ``counted``: with the number of pixels of each class."""
    if isinstance(record.truth, Shapes):
        yield _indexed(record.size, record.truth)
        return
    assert isinstance(record.truth, MaskFile), "see files_problem"
    path = record.truth.path
    with open_raster(path) as raster:  # anew each time: an opened file is not to be shared by processes and threads
        if raster.size != record.size:
            raise BadSize(record.id, record.size, raster.size)
        yield MaskTruth(raster, coding, counts={task: _counts(path, stamp_of(path), task, coding)} if counted else None)


@lru_cache(maxsize=_KEPT)
def _indexed(size: Size, shapes: Shapes) -> PolygonTruth:
    return PolygonTruth(size, shapes.wkt)


@lru_cache(maxsize=_KEPT)
def _counts(path: Path, stamp: Stamp, task: Task, coding: MaskCoding) -> np.ndarray:
    with open_raster(path) as raster:
        return MaskTruth(raster, coding).counts(task)
