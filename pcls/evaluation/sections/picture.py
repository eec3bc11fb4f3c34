"""Charts as one PNG, drawn by Pillow from what the page draws them from: for slides and notes, where no page can go."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pcls.evaluation.charts import Chart, Line

# In the units of a chart's view box: a chart with its heading, and the pixels that a unit takes.
WIDTH, HEIGHT, HEADING = 500, 290, 34
COLUMNS, SCALE = 2, 2
# Drawn larger and shrunk, which smooths the lines.
OVERSIZE = 2
TEXT, SOFT, RULE, PAPER = "#1b1e22", "#5a626b", "#dde1e5", "#ffffff"
# As the page's style has them in light.
TRAIN, EVAL = "#0072b2", "#c25400"
RUNS = ("#0072b2", "#c25400", "#00805f", "#a34d7e", "#7a6a00", "#3d4650")


def charts_png(charts: Sequence[Chart]) -> bytes:
    """The charts in two columns; those without lines are left out.

    Raises:
      ValueError: none has a line.
    """
    drawn = [chart for chart in charts if chart.lines]
    if not drawn:
        raise ValueError("no chart has a line to draw")
    unit = SCALE * OVERSIZE
    columns = min(COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    picture = Image.new("RGB", (columns * WIDTH * unit, rows * HEIGHT * unit), PAPER)
    pen = ImageDraw.Draw(picture)
    for number, chart in enumerate(drawn):
        row, column = divmod(number, columns)
        _draw(pen, chart, column * WIDTH, row * HEIGHT + HEADING, unit)
    buffer = io.BytesIO()
    small = (picture.width // OVERSIZE, picture.height // OVERSIZE)
    picture.resize(small, Image.Resampling.LANCZOS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _draw(pen: ImageDraw.ImageDraw, chart: Chart, left: float, top: float, unit: int) -> None:
    """A chart whose view box begins at (left, top)."""
    font = ImageFont.load_default(12 * unit)

    def at(x: float, y: float) -> tuple[float, float]:
        return (left + x) * unit, (top + y) * unit

    pen.text(at(8, -24), chart.title, TEXT, ImageFont.load_default(15 * unit))
    for y, text in chart.y_ticks:
        pen.line([at(52, y), at(458, y)], RULE, unit)
        pen.text(at(44, y), text.replace("\u00a0", " "), SOFT, font, anchor="rm")
    pen.line([at(52, 212), at(458, 212)], SOFT, unit)
    for x, text in chart.x_ticks:
        pen.line([at(x, 212), at(x, 217)], SOFT, unit)
        pen.text(at(x, 226), text, SOFT, font, anchor="mm")
    pen.text(at(255, 243), chart.x_label, SOFT, font, anchor="mm")
    place = 478.0
    for line in reversed(chart.lines):
        colour = _colour(line)
        for points in polylines(line.path):
            placed = [at(*point) for point in points]
            pen.line(placed, colour, round((1.8 if line.name == "eval" else 1.3) * unit), joint="curve")
            if line.name == "eval" or len(placed) == 1:
                for x, y in placed:
                    pen.ellipse([x - 2.5 * unit, y - 2.5 * unit, x + 2.5 * unit, y + 2.5 * unit], colour)
        if len(chart.lines) > 1:
            name = line.title if len(line.title) <= 24 else f"{line.title[:23]}…"
            pen.text(at(place, -15), name, colour, font, anchor="rm")
            place -= pen.textlength(name, font) / unit + 14


def _colour(line: Line) -> str:
    if line.run is not None:
        return RUNS[line.run % len(RUNS)]
    return EVAL if line.name == "eval" else TRAIN


def polylines(path: str) -> list[list[tuple[float, float]]]:
    """The points of a chart's SVG path, one list each time the pen is put down."""
    lines: list[list[tuple[float, float]]] = []
    for command, x, y in re.findall(r"([ML])([-\d.e]+),([-\d.e]+)", path):
        if command == "M":
            lines.append([])
        lines[-1].append((float(x), float(y)))
    return lines
