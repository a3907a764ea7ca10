"""The page of ``maskloom inspect``: what is in the data, with pictures.

Everything on it was found by the survey; files are read again only for the pictures that are shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from maskloom.data.record_images import read_record_image
from maskloom.data.sources.base import DataSource
from maskloom.data.statistics import Survey
from maskloom.data.truth import read_sample
from maskloom.errors import BadFile, UserError
from maskloom.files import write_text
from maskloom.outputs import page as html
from maskloom.outputs.charts import bar_chart, histogram
from maskloom.outputs.convert_target import check_writable, on_this_machine
from maskloom.outputs.findings import (
    Findings,
    area_shares,
    channels_text,
    class_frequencies,
    find,
    groups_text,
    inspection_table,
    kinds_note,
    size_text,
    sizes_text,
)
from maskloom.outputs.overlays import class_colours, displayed, mask_overlay, shrunk, to_jpeg
from maskloom.records import Record

__all__ = ["check_page", "inspection_page", "inspection_table", "write_inspection"]

NUM_EXAMPLES = 12
NUM_SUSPICIOUS = 24
NUM_PAIRS = 12
"""Pairs of near-duplicates and sets of exact ones that are shown with pictures, each."""
NUM_LISTED = 200
"""Lines of any list; the rest is counted."""
PICTURE_SIDE = 320
MAX_PICTURE_BYTES = 18_000


def check_page(path: Path) -> None:
    """Raises ``UserError`` where the page cannot be written, before the data are looked at."""
    path = on_this_machine(path)
    if path.is_dir():
        raise UserError(f"{path}: expected the name of a page, found a folder; give {path / 'inspection.html'}, say")
    check_writable(path)


def write_inspection(path: Path, source: DataSource, found: Survey, findings: Findings | None = None) -> Findings:
    """Returns the findings, after writing the page about them to ``path``, atomically."""
    seen = findings if findings is not None else find(source, found)
    write_text(on_this_machine(path), inspection_page(source, found, seen))
    return seen


def inspection_page(source: DataSource, found: Survey, seen: Findings) -> str:
    """Returns the page as HTML text."""
    pictures = _Pictures(source)
    sections = [
        _overview(source, found, seen),
        _examples(found, pictures),
        _problems(source, seen),
        _suspicious(seen, pictures),
        _duplicates(source, seen, pictures),
        _classes(source, found),
        _images(found),
        _groups(source),
    ]
    return html.render_page(
        f"Inspection of {source.root.resolve().name}",
        [each for each in sections if each.parts],
        subtitle=f"{source.root} · {_layout_text(source)} · {source.task.kind}",
    )


def _layout_text(source: DataSource) -> str:
    return {"coco": "COCO JSON", "carvana": "Carvana layout"}.get(source.layout, source.layout)


class _Pictures:
    """Reads records for the page and keeps what it drew; a file gone since the survey gives no picture."""

    def __init__(self, source: DataSource) -> None:
        self._source = source
        self._records = {record.id: record for record in source.unlabelled + source.records}
        self._colours = class_colours(source.task.classes, source.task.kind)
        self._plain: dict[str, Markup] = {}

    def legend(self) -> Markup:
        """Returns the names of the classes beside their colours."""
        return html.colour_legend(self._source.task.classes, self._colours)

    def plain(self, record_id: str, caption: str = "") -> Markup:
        """Returns the image alone."""
        try:
            image = read_record_image(self._records[record_id])
        except BadFile:
            return Markup("")
        return self._figure(shrunk(displayed(image), max_side=PICTURE_SIDE), caption or record_id, record_id)

    def overlaid(self, record_id: str, caption: str = "") -> Markup:
        """Returns the image with its mask in colour."""
        try:
            sample = read_sample(self._records[record_id], self._source.task, self._source.coding)
        except UserError:
            return Markup("")
        if sample.labels is None:
            return self.plain(record_id, caption)
        kind = self._source.task.kind
        picture = mask_overlay(sample.image, sample.labels, self._colours, kind, max_side=PICTURE_SIDE)
        return self._figure(picture, caption or record_id, record_id)

    def _figure(self, picture: np.ndarray, caption: str, alt: str) -> Markup:
        return html.figure(to_jpeg(picture, max_bytes=MAX_PICTURE_BYTES), caption, alt=alt)


def _overview(source: DataSource, found: Survey, seen: Findings) -> html.Section:
    groups = len({record.group for record in source.records})
    splits = Counter(record.split for record in source.records if record.split)
    findings = {
        "damaged or mismatched file": len(seen.problems),
        "suspicious mask": len(seen.suspicious),
        "set of exact duplicates": len(seen.exact),
        "pair of near-duplicates": len(seen.near),
    }
    cards: list[tuple[str, html.Cell]] = [("images with masks", len(source.records))]
    cards += [("images without masks", len(source.unlabelled))] if source.unlabelled else []
    cards += [("classes" if len(source.task.classes) > 1 else "class", _classes_text(source.task.classes))]
    cards += [("groups", groups)] if groups != len(source.records) else []
    cards += [(f"in {name}", count) for name, count in splits.items()]
    cards += [("width×height", sizes_text(found.sizes)), ("pixels", channels_text(found))]
    warnings = [_plural(count, name) for name, count in findings.items() if count]
    verdict = (
        html.notes(["Worth a look: " + ", ".join(warnings) + "."], kind="warning")
        if warnings
        else html.notes(["No damaged file, no suspicious mask, no duplicate was found."], kind="good")
    )
    return html.section(
        "Overview", html.facts(cards), verdict, html.notes([*source.notes, *filter(None, [kinds_note(found)])])
    )


def _classes_text(classes: Sequence[str]) -> str:
    return classes[0] if len(classes) == 1 else str(len(classes))


def _examples(found: Survey, pictures: _Pictures) -> html.Section:
    ids = [facts.id for facts in found.records if facts.class_pixels]
    chosen = (
        [ids[index] for index in np.unique(np.linspace(0, len(ids) - 1, NUM_EXAMPLES).round().astype(int))]
        if ids
        else []
    )
    figures = [pictures.overlaid(record_id) for record_id in chosen]
    return (
        html.section("Examples", pictures.legend(), html.gallery(figures, min_width=200))
        if figures
        else html.section("Examples")
    )


def _problems(source: DataSource, seen: Findings) -> html.Section:
    rows: list[list[html.Cell]] = []
    for problem in seen.problems[:NUM_LISTED]:
        if isinstance(problem, BadFile):
            inside = problem.path.is_relative_to(source.root)
            name = problem.path.relative_to(source.root).as_posix() if inside else str(problem.path)
            rows.append([name, problem.reason])
        else:
            rows.append(["", str(problem)])
    if not rows:
        return html.section("Damaged or mismatched files")
    advice = "They cannot be used. Mend or remove them, or leave their records out with --skip-bad."
    more = _more(len(seen.problems), NUM_LISTED)
    return html.section("Damaged or mismatched files", advice, html.table(["file", "what is wrong"], rows), more)


def _suspicious(seen: Findings, pictures: _Pictures) -> html.Section:
    figures = [pictures.overlaid(name, f"{name}: {text}") for name, text in seen.suspicious[:NUM_SUSPICIOUS]]
    if not seen.suspicious:
        return html.section("Suspicious masks")
    rest = seen.suspicious[NUM_SUSPICIOUS:]
    listed = html.table(["id", "what is odd"], [list(row) for row in rest[:NUM_LISTED]]) if rest else Markup("")
    hidden = html.folded(f"{len(rest):,} more", listed, _more(len(rest), NUM_LISTED)) if rest else Markup("")
    explained = "Such masks can be right, and are used for training. Where one is not, mend or remove it."
    return html.section("Suspicious masks", explained, html.gallery(figures, min_width=160), hidden)


def _duplicates(source: DataSource, seen: Findings, pictures: _Pictures) -> html.Section:
    parts: list[html.Part] = []
    if seen.exact:
        parts.append(
            html.group(
                f"Exact duplicates: {_plural(len(seen.exact), 'set')}",
                "Equal pixel for pixel. Their groups are always kept in one fold; given folders and tables that "
                "separate them are refused.",
                html.notes(_across(seen.num_exact_across, "set"), kind="warning"),
                html.gallery([_copies(ids, pictures) for ids in seen.exact[:NUM_PAIRS]], min_width=160),
                _more(len(seen.exact), NUM_PAIRS),
            )
        )
    if seen.near:
        split_of = {record.id: record.split for record in source.records}
        in_both = [pair for pair in seen.near if pair.first in split_of and pair.second in split_of]
        across = [pair for pair in in_both if split_of[pair.first] != split_of[pair.second]]
        warning = [f"{_plural(len(across), 'pair')} with one image in train and the other in val"] if across else []
        ordered = across + [pair for pair in seen.near if pair not in set(across)]
        pairs = [
            Markup('<div class="pair">{}{}</div>').format(
                pictures.plain(pair.first), pictures.plain(pair.second, f"{pair.second} ({pair.similarity:.3f})")
            )
            for pair in ordered[:NUM_PAIRS]
        ]
        parts.append(
            html.group(
                f"Near-duplicates: {_plural(len(seen.near), 'pair')} across groups",
                "They look alike after what all images share (a backdrop) is taken away; the number is a "
                "correlation. If one of a pair is trained on and the other validated, scores flatter: "
                "--set folds.merge_near_duplicates=true keeps their groups in one fold (where there are train and val "
                "folders, with --set folds.kind=kfold).",
                html.notes([*warning, *_across(seen.num_near_across, "pair")], kind="warning"),
                _PAIR_STYLE + html.gallery(pairs, min_width=300),
                html.folded("All pairs", _pair_table(seen), _more(len(seen.near), NUM_LISTED))
                if len(seen.near) > NUM_PAIRS
                else "",
            )
        )
    return html.section("Duplicates", *parts)


def _across(count: int, noun: str) -> list[str]:
    """Returns the warning about duplicates of which only one is labelled, or nothing."""
    return [f"{_plural(count, noun)} with and without a mask: an image to predict is also learnt from"] * bool(count)


_PAIR_STYLE = Markup(
    "<style>.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }"
    " .pair figcaption { font-size: .75rem; }</style>"
)


def _copies(ids: Iterable[str], pictures: _Pictures) -> Markup:
    names = list(ids)
    shown = " = ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return pictures.plain(names[0], shown)


def _pair_table(seen: Findings) -> Markup:
    rows: list[list[html.Cell]] = [[pair.first, pair.second, pair.similarity] for pair in seen.near[:NUM_LISTED]]
    return html.table(["one image", "the other", "similarity"], rows)


def _classes(source: DataSource, found: Survey) -> html.Section:
    frequencies = class_frequencies(found)
    labelled = sum(bool(facts.class_pixels) for facts in found.records)
    if not labelled:
        return html.section("Classes")
    rows: list[list[html.Cell]] = [
        [each.name, each.pixels, Markup(f"{each.share:.3%}"), each.images, labelled] for each in frequencies
    ]
    parts = [html.table(["class", "pixels", "share", "images", "of"], rows)]
    colours = [f"rgb{colour}" for colour in class_colours(source.task.classes, source.task.kind)]
    if len(frequencies) > 1:
        shares = [(each.name, each.share) for each in frequencies]
        images = [(each.name, float(each.images)) for each in frequencies]
        percent = "{:.2%}".format
        parts = [
            bar_chart(shares, title="Share of all valid pixels", show=percent, colours=colours),
            bar_chart(images, title="Images with the class", show=html.number, colours=colours, maximum=labelled),
            *parts,
        ]
    areas = [100 * share for share in area_shares(found)]
    if areas:
        name = source.task.classes[0] if source.task.kind == "binary" else "all classes but background"
        parts.append(histogram(areas, title=f"Area per image: {name}", x_label="% of the image"))
    elif source.task.kind == "multiclass":
        labels = [facts.class_pixels for facts in found.records if facts.class_pixels]
        shown = [float(sum(count > 0 for count in counts)) for counts in labels]
        bins = len(source.task.classes)
        parts.append(
            histogram(shown, title="Classes per image", x_label="classes", bins=bins, x_range=(0.5, bins + 0.5))
        )
    ignored = sum(facts.ignored for facts in found.records)
    total = ignored + found.valid_pixels
    remark = f"{ignored / total:.2%} of the pixels are ignored: they count in no loss and no score." if ignored else ""
    return html.section("Classes", html.side_by_side(parts), remark)


def _images(found: Survey) -> html.Section:
    parts: list[html.Part] = []
    if found.channel_mean:
        rows: list[list[html.Cell]] = [
            [_channel_name(index, found.num_channels), mean, std]
            for index, (mean, std) in enumerate(zip(found.channel_mean, found.channel_std, strict=True))
        ]
        parts.append(
            html.table(["channel", "mean", "standard deviation"], rows, caption=f"Values as stored ({found.dtype})")
        )
    if len(found.sizes) > 1:
        common: list[list[html.Cell]] = [[size_text(size), count] for size, count in found.sizes.most_common(12)]
        title = "Sizes (width×height)" + (
            f", the 12 most frequent of {len(found.sizes)}" if len(found.sizes) > 12 else ""
        )
        parts.append(html.table(["size", "images"], common, caption=title))
    brightness = [float(np.mean(facts.mean)) for facts in found.records]
    charts = [histogram(brightness, title="Mean brightness per image", x_label=f"value as stored ({found.dtype})")]
    if len(found.sizes) > 1:
        megapixels = [facts.size[0] * facts.size[1] / 1e6 for facts in found.records]
        charts.append(histogram(megapixels, title="Pixels per image", x_label="megapixels"))
    return html.section("Images", html.side_by_side([*(p for p in parts if isinstance(p, Markup)), *charts]))


def _channel_name(index: int, count: int) -> str:
    return ("red", "green", "blue")[index] if count == 3 else f"{index + 1}"


def _groups(source: DataSource) -> html.Section:
    counts = Counter(record.group for record in source.records)
    parts: list[html.Part] = [groups_text(source.records)[:1].upper() + groups_text(source.records)[1:] + "."]
    if len(counts) == len(source.records):
        parts.append("If some images show the same thing, say how ids form groups: --set data.group=REGEX.")
    elif len(set(counts.values())) > 1:
        largest: list[list[html.Cell]] = [[name, count] for name, count in counts.most_common(8)]
        parts.append(html.table(["largest groups", "images"], largest))
    attributes = _attribute_rows(source.records)
    if attributes:
        parts.append(html.table(["attribute", "values", "most frequent"], attributes, caption="Attributes"))
    return html.section("Groups", *parts)


def _attribute_rows(records: Sequence[Record]) -> list[list[html.Cell]]:
    names = sorted({name for record in records for name in record.attributes})
    rows: list[list[html.Cell]] = []
    for name in names:
        values = Counter(record.attributes[name] for record in records if name in record.attributes)
        rows.append([name, len(values), ", ".join(f"{value} ({count})" for value, count in values.most_common(6))])
    return rows


def _plural(count: int, noun: str) -> str:
    first, space, rest = noun.partition(" of ")
    return f"{count:,} {first}{'s' * (count != 1)}{space}{rest}"


def _more(total: int, shown: int) -> str:
    return f"… and {total - shown:,} more." if total > shown else ""
