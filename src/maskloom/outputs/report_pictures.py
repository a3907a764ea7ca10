"""The pictures of a report: best and worst images, masks before and after, pseudo-labels, look-alikes.

The galleries of a page share what they may weigh, so that a page stays near 2 MB however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from maskloom.outputs import page as html
from maskloom.outputs.overlays import (
    BOTH,
    EXTRA,
    MISSED,
    UNJUDGED,
    UNSURE,
    WRONG,
    Colour,
    class_colours,
    densest_window,
    displayed,
    error_overlay,
    mask_overlay,
    pseudo_overlay,
    shrunk,
    to_jpeg,
    wrong_pixels,
)
from maskloom.outputs.report_input import ChangedMask, ClassExample, Example, LookAlikes, PseudoLabelled, ReportInput
from maskloom.outputs.report_words import plural
from maskloom.records import IGNORE

_GALLERY_BYTES, _PICTURE_BYTES = 1_440_000, 36_000
"""Of all JPEGs in the galleries together, and of one at most; a page holds a third more, as text."""
_LEAST_SIDE = 160
"""Pixels of the longer side below which no picture is made smaller to weigh less."""
_PANELS = 5
"""Pictures of an image in the galleries."""
_PAIR_SIDE, _PAIR_BYTES = 200, 8_000
"""Of a picture of a pair of look-alikes."""
_CLASS_SIDE, _CLASS_BYTES, _CLASS_GALLERY_BYTES = 300, 12_000, 480_000
"""Of a picture of one class's errors, and of all of them together, which the other galleries do without."""


def best_and_worst(page: ReportInput) -> list[html.Section]:
    """Returns the worst and the best images; where none could be read, one section that says so."""
    if not page.examples:
        missing = "No image could be read when this page was written, so there is nothing to show: has the data moved?"
        return [html.section("Best and worst images", missing)]
    titles = {
        "worst": (
            "Worst images",
            "Where the score is lost. Often a mask is at fault, or something the data hardly shows.",
        ),
        "best": ("Best images", "What already works."),
    }
    sections = []
    before = "The masks are those before post-processing." if "postprocess" in page.evaluation else ""
    gone = f"{plural(page.num_unread, 'image')} could not be read: has the data moved?" if page.num_unread else ""
    for kind, (title, explained) in titles.items():
        chosen = [_example(page, example) for example in page.examples if example.kind == kind]
        if chosen:
            sections.append(html.section(title, explained, before, gone, error_legend(page), *chosen))
    return sections


def error_legend(page: ReportInput) -> Markup:
    """Returns the colours of classes and errors with their names."""
    entries = list(zip(page.classes, class_colours(page.classes, page.task_kind), strict=True))
    if page.task_kind == "multiclass":
        entries.append(("errors: given to another class", WRONG))
    else:
        entries += [("errors: missed (false negative)", MISSED), ("errors: too much (false positive)", EXTRA)]
    if page.task_kind == "multilabel":
        entries.append(("errors: one class missed, another too much", BOTH))
    truths = [example.truth for example in page.examples] + [changed.truth for changed in page.changed_masks]
    if any((truth == IGNORE).any() for truth in truths):
        entries.append(("hatched: not judged", UNJUDGED))
    return _legend(entries)


def class_panels(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, colour: Colour
) -> list[tuple[str, np.ndarray]]:
    """Returns small pictures of where one class goes wrong most: image, truth, prediction and errors.

    Labels are uint8 H×W of the class alone: 0, 1, and ``IGNORE`` in the truth.
    """
    window = densest_window(wrong_pixels(prediction, truth, "binary"), fraction=0.5, min_side=_CLASS_SIDE // 2)
    rows, columns = window or (slice(None), slice(None))
    image, truth, prediction = image[rows, columns], truth[rows, columns], prediction[rows, columns]
    return [
        ("image", shrunk(displayed(image), max_side=_CLASS_SIDE)),
        ("truth", mask_overlay(image, truth, [colour], "binary", max_side=_CLASS_SIDE)),
        ("prediction", mask_overlay(image, prediction, [colour], "binary", max_side=_CLASS_SIDE)),
        ("errors", error_overlay(image, prediction, truth, "binary", max_side=_CLASS_SIDE)),
    ]


def class_example(page: ReportInput, example: ClassExample) -> Markup:
    """Returns one of a class's worst images, cut to where its errors are."""
    limit = min(_CLASS_BYTES, _CLASS_GALLERY_BYTES // max(_num_class_pictures(page), 1))
    figures = [
        html.figure(_small(pixels, limit), caption, alt=f"{example.name} in {example.id}: {caption}")
        for caption, pixels in example.panels
    ]
    place = example.id if example.fold is None else f"{example.id}, fold {example.fold}"
    detail = f"{place}, {plural(example.wrong, 'wrong pixel')}"
    return Markup('<article class="example"><h3>{}<b>{}</b><span>{}</span></h3>{}</article>').format(
        example.name, page.score_text(example.score), detail, html.gallery(figures, min_width=230)
    )


def one_class_legend(page: ReportInput) -> Markup:
    """Returns the colours of the pictures of one class: its own, and those of its errors."""
    colours = dict(zip(page.classes, class_colours(page.classes, page.task_kind), strict=True))
    shown = dict.fromkeys(example.name for example in page.class_examples)
    entries = [(name, colours[name]) for name in shown]
    return _legend(
        [*entries, ("errors: missed (false negative)", MISSED), ("errors: too much (false positive)", EXTRA)]
    )


def _num_class_pictures(page: ReportInput) -> int:
    return sum(len(example.panels) for example in page.class_examples)


def pseudo_legend(page: ReportInput) -> Markup:
    """Returns the colours of classes and unsure pixels with their names."""
    colours = class_colours(page.classes, page.task_kind)
    return _legend([*zip(page.classes, colours, strict=True), ("unsure: counts in no loss", UNSURE)])


def _legend(entries: Sequence[tuple[str, Colour]]) -> Markup:
    return html.colour_legend([name for name, _ in entries], [colour for _, colour in entries])


def _example(page: ReportInput, example: Example) -> Markup:
    kind, colours = page.task_kind, class_colours(page.classes, page.task_kind)
    panels = [
        ("image", shrunk(displayed(example.image))),
        ("truth", mask_overlay(example.image, example.truth, colours, kind)),
        ("prediction", mask_overlay(example.image, example.prediction, colours, kind)),
        ("errors", error_overlay(example.image, example.prediction, example.truth, kind)),
    ]
    window = densest_window(wrong_pixels(example.prediction, example.truth, kind))
    if window is not None:
        image, prediction, truth = (
            example.image[window], example.prediction[(..., *window)], example.truth[(..., *window)]
        )  # fmt: skip
        panels.append(("errors, where they are densest", error_overlay(image, prediction, truth, kind)))
    fold = "" if example.fold is None else f"fold {example.fold}"
    return _article(page, example.id, page.score_text(example.score), fold, panels)


def changed_mask(page: ReportInput, changed: ChangedMask) -> Markup:
    """Returns an image's truth, its mask before and after the steps, and both masks' errors where they differ most."""
    kind, colours = page.task_kind, class_colours(page.classes, page.task_kind)
    masks = {"before": changed.before, "after": changed.after}
    panels = [("truth", mask_overlay(changed.image, changed.truth, colours, kind))]
    panels += [(name, mask_overlay(changed.image, mask, colours, kind)) for name, mask in masks.items()]
    different = changed.before != changed.after
    window = densest_window(different.any(axis=0) if kind == "multilabel" else different)
    rows, columns = window or (slice(None), slice(None))
    for name, mask in masks.items():
        picture = error_overlay(
            changed.image[rows, columns], mask[..., rows, columns], changed.truth[..., rows, columns], kind
        )
        panels.append((f"errors {name}" + (", where most changes" if window else ""), picture))
    scores = f"{page.score_text(changed.score_before)} → {page.score_text(changed.score_after)}"
    return _article(page, changed.id, scores, f"fold {changed.fold}", panels, style="example changed")


def _article(
    page: ReportInput,
    name: str,
    score: str,
    detail: str,
    panels: Sequence[tuple[str, np.ndarray]],
    *,
    style: str = "example",
) -> Markup:
    figures = [html.figure(_picture(page, pixels), caption, alt=f"{name}: {caption}") for caption, pixels in panels]
    return Markup('<article class="{}"><h3>{}<b>{}</b><span>{}</span></h3>{}</article>').format(
        style, name, score, detail, html.gallery(figures, min_width=190)
    )


def labelled_image(page: ReportInput, example: PseudoLabelled) -> Markup:
    """Returns an image with its pseudo-labels, and beneath it how sure they are."""
    colours = class_colours(page.classes, page.task_kind)
    picture = pseudo_overlay(example.image, example.labels, colours, page.task_kind)
    caption = Markup("<b>{}</b><br>fold {}, {}<br>confidence {:.3f}, agreement {:.3f}, {:.1%} unsure").format(
        example.id, example.fold, example.why, example.confidence, example.agreement, (example.labels == IGNORE).mean()
    )
    return html.figure(_picture(page, picture), caption, alt=f"{example.id}: pseudo-labels")


def _picture(page: ReportInput, pixels: np.ndarray) -> bytes:
    """Returns a picture of the galleries as a JPEG of its share of what they may weigh, made smaller where it must."""
    num_labelled = sum(len(each.examples) for each in page.pseudo_rounds)
    num_pictures = _PANELS * (len(page.examples) + len(page.changed_masks)) + num_labelled
    taken = min(_CLASS_GALLERY_BYTES, _CLASS_BYTES * _num_class_pictures(page))
    return _small(pixels, min(_PICTURE_BYTES, (_GALLERY_BYTES - taken) // max(num_pictures, 1)))


def _small(pixels: np.ndarray, limit: int) -> bytes:
    """Returns a picture as a JPEG of at most ``limit`` bytes, made smaller where it must; small ones may weigh more."""
    content = to_jpeg(pixels, max_bytes=limit)
    while len(content) > limit and max(pixels.shape) > _LEAST_SIDE:
        pixels = shrunk(pixels, max_side=round(0.7 * max(pixels.shape)))
        content = to_jpeg(pixels, max_bytes=limit)
    return content


def look_alike_pair(pair: LookAlikes) -> Markup:
    """Returns both pictures of a pair."""
    small = [shrunk(displayed(image), max_side=_PAIR_SIDE) for image in pair.images]
    figures = [
        html.figure(to_jpeg(picture, max_bytes=_PAIR_BYTES), name, alt=name)
        for name, picture in zip(pair.ids, small, strict=True)
    ]
    return Markup("").join(figures)
