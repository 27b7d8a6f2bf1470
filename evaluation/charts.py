"""Line charts as inline SVG, whose colours follow the page that holds them."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

_WIDTH, _HEIGHT = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 24, 44  # margins, for ticks and labels

STYLE = """
:root { --first: #1f5fae; --second: #b04a00; }
@media (prefers-color-scheme: dark) { :root { --first: #79b0ff; --second: #ffa657; } }
svg.chart { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart text { fill: var(--text); stroke: var(--card); stroke-width: 3px; paint-order: stroke; }
.chart .grid { stroke: var(--line); }
.chart path { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .first { stroke: var(--first); }
.chart .second { stroke: var(--second); stroke-dasharray: 6 3; }
.chart path.area { stroke: none; opacity: .18; }
.chart .first.area { fill: var(--first); }
.chart .second.area { fill: var(--second); }
.chart .limit { stroke: var(--faint); stroke-dasharray: 2 3; }
"""


@dataclass(frozen=True)
class Line:
    """Points that are joined.

    Example:
        >>> Line("mAP", [0, 1], [0.5, 1.0]).name
        'mAP'
    """

    name: str  # for the legend; "" for none
    x: Sequence[float]
    y: Sequence[float]
    is_filled: bool = False  # down to the axis


@dataclass(frozen=True)
class Axes:
    """Names and ranges of the two axes, and vertical lines at named places.

    Example:
        >>> Axes("rank", "share of queries", (1, 50), (0, 1)).limits
        ()
    """

    x_name: str
    y_name: str
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    percent: tuple[bool, bool] = (False, True)
    limits: Sequence[tuple[float, str]] = field(default=())


def chart(lines: Sequence[Line], axes: Axes, summary: str) -> str:
    """Draw one or two lines, the second dashed.

    Args:
        lines: what is drawn; points lie in the ranges of the axes.
        axes: the frame.
        summary: what a reader who cannot see it is told, in plain text.

    Returns:
        One ``svg`` element; the page needs :data:`STYLE`.

    Example:
        >>> chart([Line("", [0, 1], [0.5, 1.0])], Axes("x", "y", (0, 1), (0, 1)), "a line").count('class="first"')
        1
    """
    parts = [*_grid(axes), *_limits(axes)]
    for line, kind in zip(lines, ("first", "second"), strict=False):
        points = [f"{_across(axes, x):.1f} {_down(axes, y):.1f}" for x, y in zip(line.x, line.y, strict=True)]
        path = f"M{'L'.join(points)}"
        if line.is_filled:
            floor, first, last = _down(axes, axes.y_range[0]), points[0].split()[0], points[-1].split()[0]
            parts.append(f'<path class="{kind} area" d="{path}L{last} {floor:.1f}L{first} {floor:.1f}Z"/>')
        parts.append(f'<path class="{kind}" d="{path}"/>')
    parts += _legend(lines)
    label = html.escape(summary)
    return f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _across(axes: Axes, x: float) -> float:
    low, high = axes.x_range
    return _LEFT + (x - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)


def _down(axes: Axes, y: float) -> float:
    low, high = axes.y_range
    return _HEIGHT - _BOTTOM - (y - low) / ((high - low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(axes: Axes) -> list[str]:
    parts = []
    floor = _HEIGHT - _BOTTOM
    for x in _ticks(*axes.x_range):
        place = _across(axes, x)
        text = _number(x, axes.percent[0])
        parts.append(f'<path class="grid" stroke-width="1" d="M{place:.1f} {floor}v5"/>')
        parts.append(f'<text x="{place:.1f}" y="{floor + 18}" text-anchor="middle">{text}</text>')
    for y in _ticks(*axes.y_range):
        place = _down(axes, y)
        text = _number(y, axes.percent[1])
        parts.append(f'<path class="grid" stroke-width="1" d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{html.escape(axes.x_name)}</text>')
    parts.append(f'<text x="4" y="12">{html.escape(axes.y_name)}</text>')
    return parts


def _limits(axes: Axes) -> list[str]:
    """Vertical lines, whose names stand one below the other so that near ones can be read."""
    parts = []
    for i, (x, name) in enumerate(axes.limits):
        place, y = _across(axes, x), _TOP + 12 + 15 * i
        is_left = place < _WIDTH * 0.6
        anchor, offset = ("start", 4) if is_left else ("end", -4)
        parts.append(f'<path class="limit" d="M{place:.1f} {y - 9}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{place + offset:.1f}" y="{y}" text-anchor="{anchor}">{html.escape(name)}</text>')
    return parts


def _legend(lines: Sequence[Line]) -> list[str]:
    parts, right = [], _WIDTH - _RIGHT
    for line, kind in reversed(list(zip(lines, ("first", "second"), strict=False))):
        if line.name:
            width = 7 * len(line.name)
            parts.append(f'<text x="{right}" y="12" text-anchor="end">{html.escape(line.name)}</text>')
            parts.append(f'<path class="{kind}" d="M{right - width - 30} 8h24"/>')
            right -= width + 44
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about six."""
    rough = (high - low) / 6 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [(first + i) * step for i in range(count)]


def _number(value: float, is_percent: bool) -> str:
    return f"{100 * value:.4g}%" if is_percent else f"{value:.4g}"
