"""One self-contained HTML page: skeleton, style, and the pieces it is put together from.

A page needs no network and no script, is readable on a phone, and follows the reader's light or dark setting. Every
piece returns ``Markup``; plain strings given to a piece are escaped. Knows nothing about runs and data.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from maskloom.outputs.charts import CHART_CSS
from maskloom.outputs.overlays import to_jpeg

if TYPE_CHECKING:
    from jinja2 import Template

Cell = str | int | float | Markup | None
Part = str | Markup

_TURNING = dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}")
"""Embeddings, overrides and isolates of the bidirectional algorithm."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with what stands below it; plain strings become paragraphs."""

    title: str
    parts: tuple[Part, ...]

    @property
    def anchor(self) -> str:
        """The name by which links reach the section."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def section(title: str, *parts: Part) -> Section:
    """Returns a section of the given parts, empty ones left out."""
    return Section(title, tuple(part for part in parts if part))


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "", footer: str = "") -> str:
    """Returns the complete page as HTML text, with links to its sections at the top.

    What turns the direction of writing is replaced: an id with it would have the score beside it read backwards.
    """
    paragraphs = [[_paragraph(part) for part in each.parts] for each in sections]
    text = _template().render(
        title=title,
        subtitle=subtitle,
        footer=footer,
        css=Markup(_stylesheet() + CHART_CSS),
        sections=list(zip(sections, paragraphs, strict=True)),
    )
    return text.translate(_TURNING)


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, caption: str = "") -> Markup:
    """Returns a table that scrolls sideways on a narrow screen; columns of numbers are aligned to the right.

    Whole numbers get separators, other numbers four significant digits; None becomes a dash.
    """
    numeric = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(headers))]
    marks = [Markup(' class="number"') if flag else Markup("") for flag in numeric]
    head = Markup("").join(
        Markup("<th{}>{}</th>").format(mark, name) for mark, name in zip(marks, headers, strict=True)
    )
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(
                Markup("<td{}>{}</td>").format(mark, _cell(cell)) for mark, cell in zip(marks, row, strict=True)
            )
        )
        for row in rows
    )
    name = Markup("<caption>{}</caption>").format(caption) if caption else Markup("")
    return Markup(
        '<div class="scroll"><table>{}<thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(name, head, body)  # fmt: skip


def facts(pairs: Sequence[tuple[str, Cell]]) -> Markup:
    """Returns a row of large values, each with its name beneath."""
    cards = Markup("").join(
        Markup("<div><dd{}>{}</dd><dt>{}</dt></div>").format(_smaller(value), _cell(value), name)
        for name, value in pairs
    )
    return Markup('<dl class="facts">{}</dl>').format(cards)


def _smaller(value: Cell) -> Markup:
    return Markup(' class="words"') if isinstance(value, str) and len(value) > 8 else Markup("")


def figure(picture: np.ndarray | bytes, caption: Part = "", *, alt: str = "") -> Markup:
    """Returns a picture (uint8 H×W×3, or the content of a JPEG file) embedded in the page, with its caption."""
    content = picture if isinstance(picture, bytes) else to_jpeg(picture)
    name = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
    return Markup('<figure><img src="data:image/jpeg;base64,{}" alt="{}" loading="lazy">{}</figure>').format(
        base64.b64encode(content).decode(), alt or re.sub(r"<[^>]*>", "", str(caption)), name
    )


def gallery(figures: Sequence[Markup], *, min_width: int = 150) -> Markup:
    """Returns the figures side by side, as many in a row as fit with ``min_width`` pixels each.

    On a phone there are two in a row, or one where ``min_width`` is 280 or more.
    """
    if not figures:
        return Markup("")
    width = Markup("min({}px, {}%)").format(int(min_width), 100 if min_width >= 280 else 46)
    return Markup('<div class="gallery" style="--width: {}">{}</div>').format(width, Markup("").join(figures))


def side_by_side(parts: Sequence[Markup]) -> Markup:
    """Returns parts (charts, tables) next to each other where the screen is wide enough."""
    return Markup('<div class="columns">{}</div>').format(Markup("").join(parts))


def group(title: Part, *parts: Part) -> Markup:
    """Returns parts below a small heading."""
    inside = Markup("").join(_paragraph(part) for part in parts if part)
    return Markup('<div class="group"><h3>{}</h3>{}</div>').format(title, inside)


def notes(items: Sequence[Part], *, kind: str = "note") -> Markup:
    """Returns a list of remarks in a coloured box; ``kind`` is "note", "good" or "warning"."""
    if kind not in ("note", "good", "warning"):
        raise ValueError(f"kind must be note, good or warning, got {kind!r}")
    if not items:
        return Markup("")
    entries = Markup("").join(Markup("<li>{}</li>").format(item) for item in items)
    return Markup('<ul class="notes {}">{}</ul>').format(kind, entries)


def folded(summary: str, *parts: Part) -> Markup:
    """Returns parts that open at a click on their summary."""
    inside = Markup("").join(_paragraph(part) for part in parts if part)
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, inside)


def code(text: str) -> Markup:
    """Returns preformatted text."""
    return Markup("<pre>{}</pre>").format(text)


def colour_legend(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> Markup:
    """Returns the names, each behind a patch of its colour (red, green, blue)."""
    items = Markup("").join(
        Markup('<li><i style="background: rgb({}, {}, {})"></i>{}</li>').format(*map(int, colour), name)
        for name, colour in zip(names, colours, strict=True)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def number(value: float, digits: int = 4) -> str:
    """Returns a number as readers write it: 12,345 for whole numbers, else with that many significant digits."""
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def _is_number(cell: Cell) -> bool:
    return cell is None or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _cell(cell: Cell) -> str | Markup:
    if cell is None:
        return "–"
    if isinstance(cell, int | float):
        return number(cell) if np.isfinite(cell) else "–"
    return cell


def _paragraph(part: Part) -> Markup:
    return part if isinstance(part, Markup) else Markup("<p>{}</p>").format(part)


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    text = files("maskloom.outputs").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(text)


@cache
def _stylesheet() -> str:
    return files("maskloom.outputs").joinpath("page.css").read_text(encoding="utf-8")
