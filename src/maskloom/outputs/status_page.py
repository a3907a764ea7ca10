"""The status of a run as one page that refreshes itself: stages, processes, expected ends.

The page is one file without scripts; every text in it is escaped. Knows nothing about run directories.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from maskloom.files import write_text
from maskloom.outputs import page as html
from maskloom.outputs.convert_target import on_this_machine
from maskloom.outputs.status_rows import (
    PROCESS_HEADERS,
    STAGE_HEADERS,
    Row,
    RunStatus,
    clock,
    footnote,
    headline,
    plain,
    prediction_rows,
    remarks,
    stage_rows,
    stamp,
)
from maskloom.progress import duration

REFRESH_SECONDS = 5
"""The browser reads the page again after so long, until the run is finished."""
_CHARSET = '<meta charset="utf-8">\n'


def write_status_page(path: Path, status: RunStatus) -> None:
    """Writes the page to ``path``, of this machine, atomically."""
    write_text(on_this_machine(path), status_page(status))


def status_page(status: RunStatus) -> str:
    """Returns the page as HTML text."""
    sections = [_result(status), _stages(status), _predictions(status)]
    refreshes = status.state != "finished" or any(worker.state == "working" for worker in status.workers)
    again = f", read again every {REFRESH_SECONDS} s" if refreshes else ""
    text = html.render_page(
        f"Status of {plain(status.name)}",
        [each for each in sections if each.parts],
        subtitle=f"as of {stamp(status.at)}{again}",
    )
    if refreshes:
        refresh = f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">\n'
        text = text.replace(_CHARSET, _CHARSET + refresh, 1)
    return text


def _result(status: RunStatus) -> html.Section:
    finished = sum(stage.state == "finished" for stage in status.stages)
    spent = sum(stage.seconds or 0.0 for stage in status.stages)
    cards: list[tuple[str, html.Cell]] = [
        ("state", "not finished" if status.state == "stopped" else status.state),
        ("stages finished", f"{finished} of {len(status.stages)}"),
        ("in finished stages", duration(spent)),
    ]
    if status.state == "running" and status.left is not None:
        name = "not before" if status.unknown else "expected end"
        cards.append((name, clock(status.at + status.left, status.at)))
    kind = {"finished": "good", "running": "note", "stopped": "warning"}[status.state]
    sentence = headline(status)
    return html.section(
        "Run",
        _style() + html.facts(cards),
        html.notes([sentence[0].upper() + sentence[1:] + "."], kind=kind),
        html.notes(remarks(status), kind="warning"),
    )


def _stages(status: RunStatus) -> html.Section:
    rows = stage_rows(status)
    return html.section("Stages", _board(STAGE_HEADERS, rows), footnote(status)) if rows else html.section("Stages")


def _predictions(status: RunStatus) -> html.Section:
    rows = prediction_rows(status)
    return html.section("Predictions", _board(PROCESS_HEADERS, rows)) if rows else html.section("Predictions")


def _board(headers: Sequence[str], rows: Sequence[Row]) -> Markup:
    """Returns a table whose second column is a state, and whose fifth says how much is done."""
    cells: list[list[html.Cell]] = []
    for row in rows:
        line: list[html.Cell] = list(row.cells)
        line[0] = Markup("{}<small>{}</small>").format(row.cells[0], row.detail) if row.detail else row.cells[0]
        line[1] = Markup('<span class="state {}">{}</span>').format(row.state, row.cells[1])
        if row.share is not None:
            bar = Markup('<span class="bar"><i style="width: {:.1f}%"></i></span>').format(100 * row.share)
            line[4] = Markup("{}{}").format(row.cells[4], bar)
        cells.append(line)
    return Markup('<div class="board">{}</div>').format(html.table(headers, cells))


@cache
def _style() -> Markup:
    text = files("maskloom.outputs").joinpath("status.css").read_text(encoding="utf-8")
    return Markup("<style>{}</style>").format(Markup(text))
