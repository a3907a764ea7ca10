from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from markupsafe import Markup

from maskloom.outputs import page as html

EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "link", "img", "br"}


class Checker(HTMLParser):
    """Follows the tags and notes every one that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def check(text: str) -> Checker:
    checker = Checker()
    checker.feed(text)
    assert not checker.wrong
    assert not checker.open
    return checker


def test_page_is_whole_self_contained_and_escaped() -> None:
    picture = np.full((10, 20, 3), 200, np.uint8)
    sections = [
        html.section(EVIL, EVIL, html.table([EVIL], [[EVIL]], caption=EVIL), html.facts([(EVIL, EVIL)])),
        html.section("Two", html.notes([EVIL]), html.folded(EVIL, EVIL), html.code(EVIL), html.group(EVIL, EVIL)),
        html.section("Three", html.gallery([html.figure(picture, EVIL)]), html.colour_legend([EVIL], [(1, 2, 3)])),
    ]
    text = html.render_page(EVIL, sections, subtitle=EVIL, footer=EVIL)
    assert check(text).images == 1
    assert "<img src=x" not in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert "<script" not in text
    assert 'name="viewport"' in text
    assert 'href="#two"' in text and 'id="two"' in text


def test_names_do_not_turn_what_stands_beside_them() -> None:
    """After a right-to-left override a browser shows the score 0.1175 as 5711.0."""
    turning = "\u202egnp.a \u2066b"
    text = html.render_page(turning, [html.section("One", html.table([turning], [[turning]]))], subtitle="\u05d0\u200f")
    assert not set(text) & set("\u202e\u2066") and "\N{REPLACEMENT CHARACTER}gnp.a" in text
    assert "\u05d0\u200f" in text, "letters of other scripts stay as they are"


def test_empty_parts_are_left_out() -> None:
    assert html.section("a", "", Markup(""), html.gallery([]), html.notes([])).parts == ()


def test_table_aligns_numbers() -> None:
    text = html.table(["name", "value", "share"], [["a", 12345, 0.123456], ["b", None, float("nan")]])
    assert text.count('class="number"') == 6
    assert [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?</td>", text)] == [
        "a",
        "12,345",
        "0.1235",
        "b",
        "–",
        "–",
    ]


def test_notes_of_unknown_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        html.notes(["x"], kind="danger")


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.0, "12,345"), (0.98765, "0.9877"), (123.456, "123.5"), (98765.4, "98,765"), (-0.5, "-0.5")],
)
def test_number(value: float, text: str) -> None:
    assert html.number(value) == text


def test_picture_is_a_jpeg() -> None:
    assert "data:image/jpeg;base64,/9j/" in html.figure(np.zeros((4, 4, 3), np.uint8))
