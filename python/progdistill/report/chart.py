"""Line charts as self-contained SVG."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from progdistill.report.axis import Axis, drawable, make_axis
from progdistill.report.text import printable

SVG_NAMESPACE = "http://www.w3.org/2000/svg"
# The palette of Okabe and Ito (2008), which colour-blind readers tell apart, without its yellow: too pale on
# white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
# Outlines around the origin, for a marker of radius 1.
_MARKERS = (
    "M-1,0 A1,1 0 1 0 1,0 A1,1 0 1 0 -1,0 Z",
    "M-.9,-.9 H.9 V.9 H-.9 Z",
    "M0,-1.2 L1.1,.8 H-1.1 Z",
    "M0,-1.3 L1.3,0 L0,1.3 L-1.3,0 Z",
    "M0,1.2 L1.1,-.8 H-1.1 Z",
    "M-.4,-1.2 H.4 V-.4 H1.2 V.4 H.4 V1.2 H-.4 V.4 H-1.2 V-.4 H-.4 Z",
    "M-1.2,-.5 H1.2 V.5 H-1.2 Z",
)
_INK, _GRID, _FONT = "#1f2937", "#e5e7eb", "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"
_TEXT, _TITLE, _MARKER = 12, 16, 4.0
_MOST_MARKERS = 40
# Where a title and a legend of one line each end.
_ONE_LINE_TOP = 60


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend and its points, joined in the given order.

    `x`, `y` have equal lengths; `error` is None or as long, the half length of a vertical bar (a standard
    error, say) in the unit of y. None, NaN and infinity mean "no value": such a point is left out and
    interrupts the line, such an error draws no bar. ValueError for different lengths or a negative error.
    """

    name: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    error: Sequence[float | None] | None = None

    def __post_init__(self) -> None:
        lengths = [len(self.x), len(self.y)] + ([] if self.error is None else [len(self.error)])
        if len(set(lengths)) > 1:
            raise ValueError(f"x, y and error of the series {self.name!r} have different lengths: {lengths}")
        if self.error is not None and any(error is not None and error < 0 for error in self.error):
            raise ValueError(f"the series {self.name!r} has a negative error: it is half the length of a bar")


@dataclass(frozen=True)
class _Point:
    x: float
    y: float
    error: float


_Runs = list[list[_Point]]


@dataclass(frozen=True)
class _Plot:
    """Maps data to the pixels of the plotting area."""

    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis

    def across(self, value: float) -> float:
        return self.left + self.x.fraction(value) * (self.right - self.left)

    def down(self, value: float) -> float:
        return self.bottom - self.y.fraction(value) * (self.bottom - self.top)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    width: int = 720,
    height: int = 440,
) -> str:
    """A line chart as an SVG document without scripts or outside references, to be put into a page or a file.

    It stands on a white panel of its own. Series differ by colour and marker; a marker's tooltip tells its
    values. A logarithmic axis has ticks at powers of two if all its values are such (step counts), else at
    powers of ten, and leaves out values that are not positive; a bar that reaches below them ends at the
    axis. If there is nothing to draw the chart says so. `width` and `height` are CSS pixels, at least 320 x
    240; a title or legend of several lines adds to the height.

    Raises ValueError for no series, two of one name, or a smaller size.
    """
    if not series:
        raise ValueError("a chart needs at least one series, got none")
    names = [one.name for one in series]
    if len(set(names)) < len(names):
        raise ValueError(f"every series needs a name of its own, got {names}")
    if width < 320 or height < 240:
        raise ValueError(f"a chart needs at least 320 x 240 pixels, got {width} x {height}")

    runs = [_runs(one, log_x, log_y) for one in series]
    points = [point for lines in runs for line in lines for point in line]
    x_axis = make_axis([point.x for point in points], log=log_x, max_ticks=max(width // 75, 3))
    y_axis = make_axis(_shown_heights(points, log_y), log=log_y, max_ticks=max(height // 60, 3))

    root = ElementTree.Element("svg", xmlns=SVG_NAMESPACE, role="img")
    _add(root, "title").text = printable(title)
    panel = _add(root, "rect", x=0, y=0, rx=6, fill="#ffffff", stroke=_GRID)
    top = _draw_legend(root, names, _draw_title(root, title, width), width)
    height += max(int(top) - _ONE_LINE_TOP, 0)
    left = 24 + max(_text_width(label) for _, label in y_axis.ticks)
    # Labels of the horizontal axis are centred on their ticks, and the last tick may be the panel's end.
    right = width - max(28, 4 + max(_text_width(label) for _, label in x_axis.ticks) / 2)
    plot = _Plot(max(left, width - right), top + 32, right, height - 54, x_axis, y_axis)
    for element in (root, panel):
        element.set("width", str(width))
        element.set("height", str(height))
    root.set("viewBox", f"0 0 {width} {height}")
    root.set("style", "max-width: 100%; height: auto")

    _draw_axes(root, plot, x_label, y_label)
    for index, (name, lines) in enumerate(zip(names, runs, strict=True)):
        _draw_series(root, plot, index, name, lines)
    if not points:
        middle = (plot.left + plot.right) / 2
        _text(root, "no finite values to draw", middle, (plot.top + plot.bottom) / 2, anchor="middle")
    return ElementTree.tostring(root, encoding="unicode")


def _runs(series: Series, log_x: bool, log_y: bool) -> _Runs:
    """The series' drawable points, cut wherever one is not."""
    runs: _Runs = [[]]
    errors = [None] * len(series.x) if series.error is None else series.error
    for x, y, error in zip(series.x, series.y, errors, strict=True):
        if drawable(x, log=log_x) and drawable(y, log=log_y):
            runs[-1].append(_Point(float(x), float(y), float(error) if drawable(error, log=False) else 0.0))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _shown_heights(points: Sequence[_Point], log: bool) -> list[float]:
    ends = [end for point in points for end in (point.y - point.error, point.y, point.y + point.error)]
    return [end for end in ends if drawable(end, log=log)]


def _draw_title(root: ElementTree.Element, title: str, width: int) -> float:
    """Returns where it ends."""
    lines = textwrap.wrap(title, max(int((width - 32) / (0.6 * _TITLE)), 1))
    for number, line in enumerate(lines):
        _text(root, line, 16, 28 + 20 * number, size=_TITLE, weight="600")
    return 16 + 20.0 * len(lines)


def _draw_legend(root: ElementTree.Element, names: Sequence[str], top: float, width: int) -> float:
    """Returns where it ends."""
    x, y = 16.0, top + 16
    for index, name in enumerate(names):
        shown = _shortened(name, width - 32 - 36)
        needed = 36 + _text_width(shown) + 20
        if x > 16 and x + needed - 20 > width - 16:
            x, y = 16.0, y + 20
        group = _add(root, "g", **{"class": "legend"})
        _add(group, "title").text = printable(name)
        _add(group, "line", x1=x, y1=y - 4, x2=x + 28, y2=y - 4, stroke=_colour(index), stroke_width=2)
        _draw_marker(group, index, x + 14, y - 4)
        _text(group, shown, x + 36, y)
        x += needed
    return y + 8


def _draw_axes(root: ElementTree.Element, plot: _Plot, x_label: str, y_label: str) -> None:
    for value, label in plot.y.ticks:
        y = plot.down(value)
        _add(root, "line", x1=plot.left, y1=y, x2=plot.right, y2=y, stroke=_GRID)
        _text(root, label, plot.left - 8, y + 4, anchor="end")
    for value, label in plot.x.ticks:
        x = plot.across(value)
        _add(root, "line", x1=x, y1=plot.top, x2=x, y2=plot.bottom, stroke=_GRID)
        _text(root, label, x, plot.bottom + 18, anchor="middle")
    outline = f"M{_number(plot.left)},{_number(plot.top)} V{_number(plot.bottom)} H{_number(plot.right)}"
    _add(root, "path", d=outline, fill="none", stroke=_INK)
    _text(root, _shortened(y_label, plot.right - 16), 16, plot.top - 14)
    below = _shortened(x_label, plot.right - plot.left)
    _text(root, below, (plot.left + plot.right) / 2, plot.bottom + 40, anchor="middle")


def _draw_series(root: ElementTree.Element, plot: _Plot, index: int, name: str, runs: _Runs) -> None:
    group = _add(root, "g", **{"class": "series"})
    pen = {"stroke": _colour(index), "fill": "none"}
    stride = max(math.ceil(sum(map(len, runs)) / _MOST_MARKERS), 1)
    for run in runs:
        places = [(plot.across(point.x), plot.down(point.y)) for point in run]
        line = " ".join(f"{_number(x)},{_number(y)}" for x, y in places)
        _add(group, "polyline", points=line, stroke_width=2, stroke_linejoin="round", **pen)
        for point, (x, _) in zip(run, places, strict=True):
            if point.error:
                _add(group, "path", d=_bar(plot, x, point), **pen)
        for point, (x, y) in list(zip(run, places, strict=True))[::stride]:
            error = f" ± {point.error:.3g}" if point.error else ""
            marker = _draw_marker(group, index, x, y)
            _add(marker, "title").text = printable(f"{name}: {point.x:.6g}, {point.y:.6g}{error}")


def _bar(plot: _Plot, x: float, point: _Point) -> str:
    high, low = (_number(plot.down(end)) for end in (point.y + point.error, point.y - point.error))
    left = _number(x - 4)
    return f"M{_number(x)},{low} V{high} M{left},{high} h8 M{left},{low} h8"


def _draw_marker(parent: ElementTree.Element, index: int, x: float, y: float) -> ElementTree.Element:
    # Colours and markers fall out of step after each round of colours, so that 49 series differ.
    marker = _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]
    place = f"translate({_number(x)} {_number(y)}) scale({_number(_MARKER)})"
    element = _add(parent, "path", d=marker, transform=place, fill=_colour(index))
    element.set("stroke", "#ffffff")
    element.set("stroke-width", "0.25")
    return element


def _colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def _text(
    parent: ElementTree.Element,
    text: str,
    x: float,
    y: float,
    *,
    size: int = _TEXT,
    anchor: str = "start",
    weight: str = "400",
) -> ElementTree.Element:
    element = _add(
        parent,
        "text",
        x=x,
        y=y,
        fill=_INK,
        font_family=_FONT,
        font_size=size,
        font_weight=weight,
        text_anchor=anchor,
    )
    element.text = printable(text)
    return element


def _add(parent: ElementTree.Element, tag: str, **attributes: str | float) -> ElementTree.Element:
    """A child element; underscores in attribute names stand for hyphens."""
    element = ElementTree.SubElement(parent, tag)
    for name, value in attributes.items():
        element.set(name.replace("_", "-"), value if isinstance(value, str) else _number(value))
    return element


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text_width(text: str) -> float:
    """Generous: what a browser's fonts measure is not known here."""
    return 0.6 * _TEXT * len(text)


def _shortened(text: str, width: float) -> str:
    longest = int(width / _text_width("x"))
    return text if len(text) <= longest else text[: longest - 1] + "…"
