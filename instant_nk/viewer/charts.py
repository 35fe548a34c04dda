"""Charts as SVG and bars as HTML, without any library, so that the report opens from disk anywhere."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PALETTE = ("#1f6f8b", "#d9623b", "#5b9a4b", "#8b62b0", "#b08a24", "#54656f")
WIDTH, HEIGHT = 440, 236
LEFT, RIGHT, TOP, BOTTOM = 54, 10, 12, 34
MOST_DOTS = 40  # on one line


def number(value: float | None, digits: int = 3) -> str:
    """A number as people read it: `digits` significant digits, no exponent unless it is needed, a dash for None."""
    if value is None:
        return "–"
    if value == 0 or float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `wanted` of them."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10 ** math.floor(math.log10(span / wanted))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= wanted)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_labels(levels: Sequence[float]) -> list[str]:
    """The levels with as many decimals as tell neighbours apart."""
    step = min((b - a for a, b in zip(levels, levels[1:])), default=abs(levels[0]) or 1.0)
    if not 1e-4 <= max(map(abs, levels), default=1.0) < 1e6:
        return [number(level, 2) for level in levels]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{level:.{decimals}f}" for level in levels]


@dataclass(frozen=True)
class _Axes:
    """From values to positions in the drawing.

    Attributes:
        x_low, x_high: ends of the horizontal axis.
        low, high: ends of the vertical axis; their exponents of ten where it is logarithmic.
    """

    x_low: float
    x_high: float
    low: float
    high: float
    logarithmic: bool

    @staticmethod
    def around(x: Sequence[float], values: Sequence[float], from_zero: bool, logarithmic: bool) -> _Axes:
        """Axes that hold everything, with a little room."""
        scaled = [math.log10(v) for v in values] if logarithmic else list(values)
        low, high = min(scaled), max(scaled)
        if from_zero and not logarithmic:
            low, high = min(low, 0.0), max(high, 0.0)
        if high - low < 1e-12:
            low, high = low - abs(low) * 0.05, high + (abs(high) * 0.05 or 1.0)
        margin = 0.05 * (high - low)
        return _Axes(min(x), max(x), low if from_zero and low == 0 else low - margin, high + margin, logarithmic)

    def px(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return LEFT + (WIDTH - LEFT - RIGHT) * share

    def py(self, value: float) -> float:
        scaled = math.log10(value) if self.logarithmic else value
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (scaled - self.low) / (self.high - self.low))

    def levels(self) -> tuple[list[float], list[str]]:
        """Where grid lines lie, and their labels."""
        if self.logarithmic:
            decades = [10.0**e for e in range(math.ceil(self.low), math.floor(self.high) + 1)]
            values = decades if len(decades) > 1 else [10**t for t in ticks(self.low, self.high)]
            return values, [number(v, 2) if v not in decades else f"{v:g}" for v in values]
        values = ticks(self.low, self.high)
        return values, tick_labels(values)


def line_chart(
    title: str,
    unit: str,
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    x_name: str = "frame",
    marked: Sequence[float] = (),
    from_zero: bool = True,
    logarithmic: bool = False,
) -> str:
    """A `<figure>` with one line per series; None leaves a gap.

    Args:
        title: shown above, with `unit`.
        x: positions, ascending.
        series: by name, each as long as `x`.
        marked: positions shaded as doubtful.
        from_zero: the vertical axis starts at zero.
        logarithmic: decades on the vertical axis; values of zero or less are left out.
    """
    series = {name: [v if v is not None and (v > 0 or not logarithmic) else None for v in line] for name, line in series.items()}
    values = [v for line in series.values() for v in line if v is not None]
    caption = f"<figcaption>{html.escape(title)} <span class='unit'>[{html.escape(unit)}]</span></figcaption>"
    if not values:
        return f"<figure class='chart'>{caption}<p class='none'>no values</p></figure>"
    axes = _Axes.around(x, values, from_zero, logarithmic)
    colours = dict(zip(series, itertools.cycle(PALETTE)))
    lines = "".join(_line(axes, f"{name} {{}}: {{}} {unit}", x, line, colours[name]) for name, line in series.items())
    drawing = f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html.escape(title, quote=True)}'>{_doubt(axes, x, marked)}{_grid(axes, x, x_name)}{lines}</svg>"
    return f"<figure class='chart'>{caption}{drawing}{_legend(colours, bool(len(marked)))}</figure>"


def _doubt(axes: _Axes, x: Sequence[float], marked: Sequence[float]) -> str:
    """Shaded columns behind the doubtful positions."""
    half, result = 0.5 * min((b - a for a, b in zip(x, x[1:])), default=1.0), []
    for position in marked:
        left, right = max(axes.px(position - half), LEFT), min(axes.px(position + half), WIDTH - RIGHT)
        result.append(
            f"<rect class='doubt' x='{left:.1f}' y='{TOP}' width='{max(right - left, 4):.1f}' height='{HEIGHT - TOP - BOTTOM}'><title>doubtful</title></rect>"
        )
    return "".join(result)


def _grid(axes: _Axes, x: Sequence[float], x_name: str) -> str:
    """Grid lines with labels, and the horizontal axis: whole numbers only where all positions are whole."""
    result = []
    for level, label in zip(*axes.levels()):
        y = axes.py(level)
        result.append(
            f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/><text x='{LEFT - 6}' y='{y + 4:.1f}' text-anchor='end'>{label}</text>"
        )
    whole = all(float(position).is_integer() for position in x)
    for tick in ticks(axes.x_low, axes.x_high):
        if not whole or float(tick).is_integer():
            result.append(f"<text x='{axes.px(tick):.1f}' y='{HEIGHT - BOTTOM + 16}' text-anchor='middle'>{number(tick)}</text>")
    return "".join(result) + f"<text x='{WIDTH - RIGHT}' y='{HEIGHT - 3}' text-anchor='end' class='axis'>{html.escape(x_name)}</text>"


def _line(axes: _Axes, label: str, x: Sequence[float], line: Sequence[float | None], colour: str) -> str:
    """One series as a path that breaks at gaps, and dots that tell their values where there are few; `label` has places for position and value."""
    path, dots, pen = [], [], "M"
    for position, value in zip(x, line):
        if value is None:
            pen = "M"
            continue
        px, py = axes.px(position), axes.py(value)
        path.append(f"{pen}{px:.1f} {py:.1f}")
        dots.append(
            f"<circle cx='{px:.1f}' cy='{py:.1f}' r='3' fill='{colour}'><title>{html.escape(label.format(number(position), number(value, 4)))}</title></circle>"
        )
        pen = "L"
    return f"<path d='{' '.join(path)}' fill='none' stroke='{colour}' stroke-width='2' stroke-linejoin='round'/>" + (
        "".join(dots) if len(dots) <= MOST_DOTS else ""
    )


def _legend(colours: Mapping[str, str], doubt: bool) -> str:
    if len(colours) < 2 and not doubt:
        return ""
    keys = "".join(f"<span><i style='background:{colour}'></i>{html.escape(name)}</span>" for name, colour in colours.items())
    return f"<div class='legend'>{keys}{'<span><i class=doubt-key></i>doubtful frame</span>' if doubt else ''}</div>"


def bars(title: str, unit: str, items: Sequence[tuple[str, float, str]]) -> str:
    """A `<figure>` of horizontal bars: label, value, and a note behind the number."""
    top = max((value for _, value, _ in items), default=0.0) or 1.0
    rows = "".join(
        f"<div class='bar'><span>{html.escape(label)}</span><div><i style='width:{100 * value / top:.2f}%'></i></div><b>{number(value)}</b><em>{html.escape(note)}</em></div>"
        for label, value, note in items
    )
    return f"<figure class='chart'><figcaption>{html.escape(title)} <span class='unit'>[{html.escape(unit)}]</span></figcaption>{rows}</figure>"
