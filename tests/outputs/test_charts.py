from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.outputs.charts import Series, bar_chart, histogram, line_chart, tick_text, ticks

EVIL = "<script>alert('x')</script> & \"co\""


def parsed(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup)


def numbers_in(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def curve(markup: str) -> list[tuple[float, float]]:
    return numbers_in(next(each for each in re.findall(r'd="([^"]*)" fill="none"', markup)))


def test_line_goes_from_corner_to_corner() -> None:
    points = curve(line_chart([Series("a", [0, 1, 2], [0, 0.5, 1])], y_range=(0, 1)))
    assert points == [(50.0, 218.0), (239.0, 114.0), (428.0, 10.0)]


def test_values_that_are_not_finite_leave_a_gap() -> None:
    markup = line_chart([Series("a", [0, 1, 2, 3], [0, math.nan, 1, 2])])
    path = re.search(r'd="([^"]*)" fill="none"', markup)
    assert path is not None
    assert path.group(1).count("M") == 2


def test_everything_written_is_escaped() -> None:
    charts = [
        line_chart(
            [Series(EVIL, [0], [1]), Series("b", [1], [2])], title=EVIL, x_label=EVIL, y_label=EVIL, marks=[(0.5, EVIL)]
        ),
        bar_chart([(EVIL, 1.0)], title=EVIL),
        histogram([1.0, 2.0], title=EVIL, x_label=EVIL),
    ]
    for chart in charts:
        assert "<script" not in chart
        parsed(chart)


@pytest.mark.parametrize("values", [[], [math.nan], [0.5], [0.5, 0.5], [1e-9, 2e-9], [-3, 1e12], [0.0, math.inf]])
def test_odd_values_still_draw(values: list[float]) -> None:
    for chart in (
        line_chart([Series("a", list(range(len(values))), values)]),
        histogram(values),
        bar_chart([("x", value) for value in values]),
    ):
        assert "nan" not in re.sub(r"<title>.*?</title>|<text.*?</text>", "", chart)
        parsed(chart)


def test_histogram_counts() -> None:
    markup = histogram([0.1, 0.1, 0.9], bins=2, x_range=(0, 1))
    assert re.findall(r"<title>(.*?)</title>", markup) == ["0 to 0.5: 2", "0.5 to 1: 1"]


def test_what_is_counted_has_no_labels_between() -> None:
    def labels(**options: bool) -> list[str]:
        chart = str(line_chart([Series("", [1, 2], [0.1, 0.2])], **options))
        return re.findall(r'y="\d+" text-anchor="middle">([\d.]+)<', chart)

    assert labels(whole_x=True) == ["1", "2"]
    assert "1.2" in labels()


def test_bars_are_proportional() -> None:
    widths = [float(width) for width in re.findall(r'width="([\d.]+)" height="15"', bar_chart([("a", 2), ("b", 1)]))]
    assert widths[0] == pytest.approx(2 * widths[1])


def test_long_series_are_thinned_but_keep_their_end() -> None:
    points = curve(
        line_chart([Series("a", list(range(10_001)), [float(v) for v in range(10_001)])], y_range=(0, 10_000))
    )
    assert len(points) < 700
    assert points[-1] == (428.0, 10.0)


def test_legend_only_where_there_is_a_choice() -> None:
    one, two = Series("one", [0, 1], [0, 1]), Series("two", [0, 1], [1, 0])
    assert "legend" not in line_chart([one])
    assert line_chart([one, two]).count("<li>") == 2


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 x and 1 y"):
        Series("a", [0, 1], [0])


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * width - 1e-9 <= tick <= low + width * (1 + 1e-6) + 1e-9 for tick in found)


@pytest.mark.parametrize(
    ("value", "text"), [(0.95, "0.95"), (1500, "1500"), (20_000, "20k"), (3e6, "3M"), (0.0, "0"), (2.5e9, "2.5G")]
)
def test_tick_text(value: float, text: str) -> None:
    assert tick_text(value) == text
