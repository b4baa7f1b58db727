"""A square matrix over time as coloured cells: self-contained SVG, as `progdistill.report.line_chart` makes it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from xml.etree import ElementTree

# Dark blue to pale yellow, ever lighter, so that it can be read in grey and by colour-blind readers.
RAMP = ((13, 27, 82), (33, 84, 140), (34, 139, 141), (104, 187, 115), (203, 219, 118), (255, 250, 200))
LEVELS = 20
_SIDE, _LEFT, _TOP, _BAR = 360, 60, 56, 16
_WIDTH, _HEIGHT = _LEFT + _SIDE + 100, _TOP + _SIDE + 56


def colour(share: float) -> str:
    """The ramp's colour at 0 (lowest) to 1."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    first = min(int(place), len(RAMP) - 2)
    mixed = (round(a + (place - first) * (b - a)) for a, b in zip(RAMP[first], RAMP[first + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def heat_map(values: Sequence[Sequence[float]], times: Sequence[float], *, title: str, label: str) -> str:
    """An SVG document: rows downwards and columns to the right in the order of `times`.

    Colours have LEVELS steps from the lowest to the highest value, which the bar at the right tells. ValueError for a
    matrix that is not square or does not fit `times`.
    """
    if any(len(row) != len(times) for row in values) or len(values) != len(times):
        raise ValueError(f"{len(times)} times need as many rows and columns, got {[len(row) for row in values]}")
    low, high = min(map(min, values)), max(map(max, values))
    span = max(high - low, 1e-9)
    root = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    root.attrib |= {"width": str(_WIDTH), "height": str(_HEIGHT), "viewBox": f"0 0 {_WIDTH} {_HEIGHT}"}
    ElementTree.SubElement(root, "title").text = title
    _box(root, 0, 0, _WIDTH, _HEIGHT, "#ffffff")
    _text(root, title, 16, 28, size=16, weight="600")
    cell = _SIDE / len(times)
    for number, row in enumerate(values):
        levels = [min(int((value - low) / span * LEVELS), LEVELS - 1) for value in row]
        column = 0
        for level, run in itertools.groupby(levels):
            width = len(list(run))
            place = _LEFT + column * cell, _TOP + number * cell
            _box(root, *place, width * cell, cell + 0.3, colour(level / (LEVELS - 1)))
            column += width
    _axes(root, times, label)
    _bar(root, low, high)
    return ElementTree.tostring(root, encoding="unicode")


def _axes(root: ElementTree.Element, times: Sequence[float], label: str) -> None:
    chosen = {round(k * (len(times) - 1) / 5) for k in range(6)}
    for number in sorted(chosen):
        middle = (number + 0.5) * _SIDE / len(times)
        _text(root, f"{times[number]:.2f}", _LEFT + middle, _TOP + _SIDE + 18, anchor="middle")
        _text(root, f"{times[number]:.2f}", _LEFT - 8, _TOP + middle + 4, anchor="end")
    _text(root, label, _LEFT + _SIDE / 2, _TOP + _SIDE + 40, anchor="middle")


def _bar(root: ElementTree.Element, low: float, high: float) -> None:
    left, step = _LEFT + _SIDE + 20, _SIDE / LEVELS
    for level in range(LEVELS):
        _box(root, left, _TOP + _SIDE - (level + 1) * step, _BAR, step + 0.3, colour(level / (LEVELS - 1)))
    for share in (0.0, 0.5, 1.0):
        _text(root, f"{low + share * (high - low):.3g}", left + _BAR + 6, _TOP + (1 - share) * _SIDE + 4)


def _box(root: ElementTree.Element, x: float, y: float, width: float, height: float, fill: str) -> None:
    sizes = {"x": x, "y": y, "width": width, "height": height}
    ElementTree.SubElement(root, "rect", {name: f"{size:.2f}" for name, size in sizes.items()}, fill=fill)


def _text(
    root: ElementTree.Element, text: str, x: float, y: float, *, anchor: str = "start", size: int = 12, weight="400"
) -> None:
    family = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
    given = {"font-size": str(size), "font-family": family, "font-weight": weight, "text-anchor": anchor}
    element = ElementTree.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "fill": "#1f2937", **given})
    element.text = text
