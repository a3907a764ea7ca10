"""Small charts as inline SVG: lines, bars, histograms. Colours are CSS variables, so light and dark come by themselves.

The drawing is 440 units wide, with text of 12, so that it stays readable when a phone shrinks it to 340 pixels. All
text is escaped. Knows nothing about what is charted; ``CHART_CSS`` belongs on every page that shows a chart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

NUM_COLOURS = 8
"""Series beyond so many take the colours again, dashed."""

CHART_CSS = """
:root { --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b2529a; --c4: #b07d00; --c5: #3d9bd1; --c6: #6b4fbb;
  --c7: #7a7a7a; --axis: #8a8f98; --grid: #e3e6ea; }
@media (prefers-color-scheme: dark) { :root { --c0: #56b4e9; --c1: #ff8f4a; --c2: #2fc596; --c3: #e08cc0;
  --c4: #f0c541; --c5: #8fd0f5; --c6: #a996f0; --c7: #b0b0b0; --axis: #7f8792; --grid: #2c323b; } }
.chart { margin: 0; max-width: 600px; }
.chart > figcaption { font-weight: 600; margin-bottom: .2rem; }
.chart svg { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart svg text { fill: currentColor; }
.chart .legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: .2rem 0 0; padding: 0; list-style: none;
  font-size: .85rem; }
.chart .legend svg { display: inline-block; width: 22px; height: 10px; margin-right: .35rem; vertical-align: middle; }
"""

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 42
_MAX_POINTS = 600
"""Longer series are thinned to so many points; more cannot be seen and would only make the page heavy."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points in the order of ``xs``; a value of ``ys`` that is not finite leaves a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.xs) != len(self.ys):
            raise ValueError(f"series {self.name!r}: got {len(self.xs)} x and {len(self.ys)} y values")


Range = tuple[float, float]


def line_chart(
    series: Sequence[Series],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    x_range: Range | None = None,
    y_range: Range | None = None,
    marks: Sequence[tuple[float, str]] = (),
    whole_x: bool = False,
) -> Markup:
    """Returns a figure with one line per series and a legend where there are several.

    ``whole_x`` labels whole numbers alone, for what is counted. ``marks`` are dashed vertical lines at x with a label.
    Ranges default to those of the finite values.
    """
    xs = [x for line in series for x in line.xs] + [x for x, _ in marks]
    ys = [y for line in series for y in line.ys]
    frame = _Frame.around(x_range or _finite_range(xs), y_range or _padded(_finite_range(ys)))
    parts = [frame.axes(x_label, y_label, whole_x=whole_x)]
    parts += [frame.vertical_line(x, label) for x, label in marks]
    parts += [frame.line(line, index) for index, line in enumerate(series)]
    legend = [(line.name, _stroke(index)) for index, line in enumerate(series)] if len(series) > 1 else []
    return _figure(title, _svg(Markup("").join(parts), _HEIGHT, title), legend)


def histogram(
    values: Sequence[float],
    *,
    bins: int = 30,
    title: str = "",
    x_label: str = "",
    y_label: str = "images",
    x_range: Range | None = None,
) -> Markup:
    """Returns a figure of how often values occur; values that are not finite are left out."""
    finite = np.asarray([value for value in values if math.isfinite(value)], np.float64)
    low, high = x_range or _finite_range(finite.tolist())
    counts, edges = np.histogram(finite, bins=bins, range=(low, high))
    frame = _Frame.around((low, high), (0.0, float(max(counts.max(initial=0), 1)) * 1.05))
    bars = [
        frame.bar(float(edges[i]), float(edges[i + 1]), int(count), f"{edges[i]:.4g} to {edges[i + 1]:.4g}: {count}")
        for i, count in enumerate(counts)
        if count
    ]
    body = Markup("").join([frame.axes(x_label, y_label, whole_y=True), *bars])
    return _figure(title, _svg(body, _HEIGHT, title), [])


def bar_chart(
    bars: Sequence[tuple[str, float]],
    *,
    title: str = "",
    show: Callable[[float], str] = lambda value: f"{value:.4g}",
    colours: Sequence[str] = (),
    maximum: float | None = None,
) -> Markup:
    """Returns a figure of horizontal bars, each with its name and its value as ``show`` writes it.

    ``colours`` are CSS colours, one per bar. Bars begin at 0; negative values are drawn as 0.
    """
    finite = [value for _, value in bars if math.isfinite(value)]
    longest = maximum or max([*finite, 0.0]) or 1.0
    name_width = min(max((len(name) for name, _ in bars), default=0) * 7 + 8, 150)
    row, room = 22, _WIDTH - name_width - 70
    parts = []
    for index, (name, value) in enumerate(bars):
        length = room * min(max(value, 0.0) / longest, 1.0) if math.isfinite(value) else 0.0
        colour = colours[index] if index < len(colours) else "var(--c0)"
        short = name if len(name) <= 20 else name[:19] + "…"
        parts.append(
            Markup(
                '<g><title>{}: {}</title><text x="{}" y="{}" text-anchor="end">{}</text>'
                '<rect x="{}" y="{}" width="{:.1f}" height="{}" rx="2" fill="{}"/><text x="{:.1f}" y="{}">{}</text></g>'
            ).format(
                name, show(value), name_width - 6, index * row + 15, short,
                name_width, index * row + 4, max(length, 1.0), row - 7, colour,
                name_width + length + 6, index * row + 15, show(value),
            )
        )  # fmt: skip
    return _figure(title, _svg(Markup("").join(parts), len(bars) * row + 4, title), [])


@dataclass(frozen=True, slots=True)
class _Frame:
    """Data coordinates to drawing coordinates."""

    x: Range
    y: Range

    @classmethod
    def around(cls, x: Range, y: Range) -> _Frame:
        """Returns the frame of these ranges; one without extent is widened."""
        return cls(_widened(x), _widened(y))

    def across(self, value: float) -> float:
        """Returns the horizontal place of a value."""
        return _LEFT + (value - self.x[0]) / (self.x[1] - self.x[0]) * (_WIDTH - _LEFT - _RIGHT)

    def down(self, value: float) -> float:
        """Returns the vertical place of a value."""
        return _HEIGHT - _BOTTOM - (value - self.y[0]) / (self.y[1] - self.y[0]) * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str, *, whole_x: bool = False, whole_y: bool = False) -> Markup:
        """Returns grid, ticks and labels of both axes."""
        bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
        parts = []
        for tick in ticks(*self.y, whole=whole_y):
            height = self.down(tick)
            parts.append(
                Markup(
                    '<path d="M{} {:.1f}H{}" stroke="var(--grid)"/><text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
                ).format(_LEFT, height, right, _LEFT - 6, height + 4, tick_text(tick))
            )
        for tick in ticks(*self.x, whole=whole_x):
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    self.across(tick), bottom + 16, tick_text(tick)
                )
            )
        parts.append(Markup('<path d="M{} {}H{}" stroke="var(--axis)"/>').format(_LEFT, bottom, right))
        middle = (_LEFT + right) / 2
        parts.append(Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(middle, _HEIGHT - 7, x_label))
        turned = Markup('<text transform="translate(11 {}) rotate(-90)" text-anchor="middle">{}</text>')
        parts.append(turned.format((_TOP + bottom) / 2, y_label))
        return Markup("").join(parts)

    def line(self, series: Series, index: int) -> Markup:
        """Returns a series as a line, with dots where its points are few; broken where it is not finite."""
        points = list(zip(series.xs, series.ys, strict=True))
        step = max(-(-len(points) // _MAX_POINTS), 1)
        path, pen_down = [], False
        for x, y in points[::step] + ([points[-1]] if (len(points) - 1) % step else []):
            if not (math.isfinite(x) and math.isfinite(y)):
                pen_down = False
                continue
            held = min(max(y, self.y[0]), self.y[1])  # a value outside a stated range runs along the edge
            path.append(f"{'L' if pen_down else 'M'}{self.across(x):.1f} {self.down(held):.1f}")
            pen_down = True
        finite = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
        dots = Markup("")
        if len(finite) <= 24:
            dots = Markup("").join(self._dot(series.name, point, index) for point in finite)
        line = Markup('<path d="{}" fill="none" stroke-width="2" stroke-linejoin="round" {}><title>{}</title></path>')
        return line.format("".join(path), _stroke(index), series.name) + dots

    def _dot(self, name: str, point: tuple[float, float], index: int) -> Markup:
        held = min(max(point[1], self.y[0]), self.y[1])
        text = f"{name + ': ' if name else ''}{point[0]:g}, {point[1]:.5g}"
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5" fill="var(--c{})"><title>{}</title></circle>').format(
            self.across(point[0]), self.down(held), index % NUM_COLOURS, text
        )

    def vertical_line(self, x: float, label: str) -> Markup:
        """Returns a dashed line across the whole height, with its label."""
        across = self.across(x)
        late = across > _WIDTH * 0.6
        return Markup(
            '<path d="M{:.1f} {}V{}" stroke="var(--axis)" stroke-dasharray="4 3"/>'
            '<text x="{:.1f}" y="{}" text-anchor="{}">{}</text>'
        ).format(
            across, _TOP, _HEIGHT - _BOTTOM, across + (-5 if late else 5), _TOP + 11, "end" if late else "start", label
        )

    def bar(self, low: float, high: float, count: float, text: str) -> Markup:
        """Returns a bar from the bottom up to a count, with a text that is shown under the pointer."""
        left, right, top = self.across(low), self.across(high), self.down(count)
        return Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="var(--c0)"><title>{}</title></rect>'
        ).format(left + 0.5, top, max(right - left - 1, 0.5), _HEIGHT - _BOTTOM - top, text)


def ticks(low: float, high: float, *, whole: bool = False, wanted: int = 5) -> list[float]:
    """Returns about ``wanted`` round numbers (1, 2 or 5 times a power of ten) within [low, high]."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Returns a short text of a round number: 0.95, 1500, 20k, 3M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:g}"


def _finite_range(values: Sequence[float]) -> Range:
    finite = [value for value in values if math.isfinite(value)]
    return (float(min(finite)), float(max(finite))) if finite else (0.0, 1.0)


def _padded(limits: Range) -> Range:
    extra = 0.04 * (limits[1] - limits[0])
    return limits[0] - extra, limits[1] + extra


def _widened(limits: Range) -> Range:
    low, high = limits
    if high - low > 1e-9 * max(abs(low), abs(high)) and high > low:
        return limits
    half = 0.5 * abs(low) or 0.5
    return low - half, high + half


def _stroke(index: int) -> Markup:
    dashes = Markup(' stroke-dasharray="5 3"') if index >= NUM_COLOURS else Markup("")
    return Markup('stroke="var(--c{})"{}').format(index % NUM_COLOURS, dashes)


def _svg(body: Markup, height: int, title: str) -> Markup:
    label = Markup(' role="img" aria-label="{}"').format(title) if title else Markup("")
    return Markup('<svg viewBox="0 0 {} {}"{} xmlns="http://www.w3.org/2000/svg">{}</svg>').format(
        _WIDTH, height, label, body
    )


def _figure(title: str, drawing: Markup, legend: Sequence[tuple[str, Markup]]) -> Markup:
    caption = Markup("<figcaption>{}</figcaption>").format(title) if title else Markup("")
    key = Markup('<svg viewBox="0 0 22 10"><path d="M1 5H21" stroke-width="3" {}/></svg>')
    items = Markup("").join(Markup("<li>{}{}</li>").format(key.format(stroke), name) for name, stroke in legend)
    names = Markup('<ul class="legend">{}</ul>').format(items) if legend else Markup("")
    return Markup('<figure class="chart">{}{}{}</figure>').format(caption, drawing, names)
