"""Bar charts as text and as an image."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

_TEXT_BAR = 40
_WIDTH, _HEIGHT, _MARGIN, _BAR = 420, 280, 44, 44
_COLOURS = {"train": "#4878a8", "query": "#c97b3a", "gallery": "#5a9a5a"}
_GREY = "#404040"


class Chart(NamedTuple):
    """One bar chart: ``counts`` maps the label of each bar to its height, in the order of the bars."""

    split: str
    title: str
    counts: Mapping[str, int]


def chart_text(chart: Chart) -> str:
    """Format a chart as one line per bar: label, count and a bar in proportion; no line break at the end."""
    largest = max(chart.counts.values(), default=0)
    label_width = max((len(label) for label in chart.counts), default=0)
    lines = [f"{chart.split}: {chart.title}"]
    for label, count in chart.counts.items():
        bar = "#" * -(-count * _TEXT_BAR // largest) if count else ""
        lines.append(f"  {label:>{label_width}} {count:>8} {bar}".rstrip())
    return "\n".join(lines)


def draw_charts(rows: Sequence[Sequence[Chart]]) -> Image.Image:
    """Draw all charts into one RGB image, laid out in these rows."""
    columns = max(len(row) for row in rows)
    image = Image.new("RGB", (columns * _WIDTH, len(rows) * _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for i, row in enumerate(rows):
        for j, chart in enumerate(row):
            _draw_chart(draw, chart, j * _WIDTH, i * _HEIGHT)
    return image


def _draw_chart(draw: ImageDraw.ImageDraw, chart: Chart, left: int, top: int) -> None:
    draw.text((left + _MARGIN, top + 14), f"{chart.split}: {chart.title}", fill=_GREY)
    floor, ceiling = top + _HEIGHT - _MARGIN, top + _MARGIN + 12
    right = left + _WIDTH - _MARGIN // 2
    draw.line((left + _MARGIN, floor, right, floor), fill=_GREY)
    largest = max(chart.counts.values(), default=0)
    if not largest:
        return
    step = min(_BAR, (right - left - _MARGIN) / len(chart.counts))
    shown = max(1, -(-_BAR // max(1, int(step))))  # labels that would run into each other are left out
    for number, (label, count) in enumerate(chart.counts.items()):
        x = left + _MARGIN + number * step
        height = count / largest * (floor - ceiling)
        if count:
            draw.rectangle((x + 1, floor - max(1, height), x + max(2, step - 2), floor), fill=_COLOURS[chart.split])
        if number % shown == 0:
            middle = x + step / 2
            draw.text((middle - draw.textlength(label) / 2, floor + 6), label, fill=_GREY)
            draw.text((middle - draw.textlength(str(count)) / 2, floor - height - 13), str(count), fill=_GREY)
