from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from progdistill.report import Series, line_chart

SVG = "{http://www.w3.org/2000/svg}"
STEPS = [1, 2, 4, 8, 16, 32]


def chart(*series: Series, **options: object) -> ElementTree.Element:
    labels = {"title": "title", "x_label": "steps", "y_label": "distance"}
    return ElementTree.fromstring(line_chart(series, **{**labels, **options}))


def lines(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        for line in root.iter(f"{SVG}polyline")
    ]


def texts(root: ElementTree.Element) -> dict[str, tuple[float, float]]:
    return {text.text: (float(text.get("x")), float(text.get("y"))) for text in root.iter(f"{SVG}text")}


def markers(root: ElementTree.Element) -> list[ElementTree.Element]:
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class") == "series"]
    return [path for group in groups for path in group.iter(f"{SVG}path") if path.get("transform")]


@pytest.mark.parametrize("log_x", [False, True])
@pytest.mark.parametrize("log_y", [False, True])
def test_points_are_placed_in_the_order_of_their_values(log_x: bool, log_y: bool) -> None:
    (points,) = lines(chart(Series("a", STEPS, [0.01, 0.5, 3, 20, 21, 400]), log_x=log_x, log_y=log_y))
    across, down = zip(*points, strict=True)
    assert list(across) == sorted(set(across))
    assert list(down) == sorted(set(down), reverse=True)


def test_points_stand_where_the_ticks_say() -> None:
    root = chart(Series("a", STEPS, [0.1, 1, 10, 100, 1000, 0.1]), log_x=True, log_y=True)
    (points,) = lines(root)
    labels = texts(root)
    for (x, y), step, height in zip(points, STEPS, ["0.1", "1", "10", "100", "1000", "0.1"], strict=True):
        at_step = [place for text, place in labels.items() if text == str(step)]
        assert any(abs(place[0] - x) < 0.02 for place in at_step) or step == 1
        assert abs(labels[height][1] - 4 - y) < 0.02 or height == "1"
    gaps = [right[0] - left[0] for left, right in pairwise(points)]
    assert max(gaps) - min(gaps) < 0.03


def test_step_counts_get_powers_of_two_and_others_powers_of_ten() -> None:
    assert {"1", "2", "4", "8", "16", "32"} <= set(texts(chart(Series("a", STEPS, [0.5] * 6), log_x=True)))
    fourteen = texts(chart(Series("a", [2**n for n in range(14)], [0.3] * 14), log_x=True))
    assert {"1", "4", "16", "4096"} <= set(fourteen) and "2" not in fourteen
    assert {"10", "100", "1000", "10000"} <= set(texts(chart(Series("a", [10, 3e4], [0.5, 0.5]), log_x=True)))
    assert {"1e-5", "0.001", "0.1"} <= set(texts(chart(Series("a", [1, 2], [1e-5, 0.1]), log_y=True)))


def test_missing_values_interrupt_the_line_and_never_reach_the_file() -> None:
    values = [1.0, float("nan"), 3.0, 4.0, None, float("inf"), -float("inf"), 1e200]
    root = chart(Series("a", range(8), values, [0.1, 0.1, float("nan"), None, 0, 0, 0, 0]))
    assert [len(line) for line in lines(root)] == [1, 2]
    assert len(markers(root)) == 3
    text = ElementTree.tostring(root, encoding="unicode").lower()
    assert "nan" not in text.replace("finance", "") and not re.search(r"\binf\b", text)


def test_values_without_a_logarithm_are_left_out() -> None:
    root = chart(Series("a", [0, 1, 2, 4], [1, 0.0, -3, 5]), log_x=True, log_y=True)
    assert [len(line) for line in lines(root)] == [1]


def test_nothing_to_draw_says_so() -> None:
    for log in (False, True):
        root = chart(Series("a", [1], [None]), Series("b", [], []), log_x=log, log_y=log)
        assert "no finite values to draw" in texts(root)
        assert {"a", "b"} <= set(texts(root))


def bars(root: ElementTree.Element) -> list[tuple[float, float]]:
    """(bottom, top) of each error bar in pixels."""
    groups = [group for group in root.iter(f"{SVG}g") if group.get("class") == "series"]
    paths = [path.get("d") for group in groups for path in group.iter(f"{SVG}path")]
    found = [re.match(r"M\S+,(\S+) V(\S+) M", path) for path in paths]
    return [(float(match[1]), float(match[2])) for match in found if match]


def test_error_bars_reach_as_far_as_the_error() -> None:
    root = chart(Series("a", [1, 2, 3], [10, 20, 30], [5, 0, 10]), Series("b", [1, 3], [15, 40]))
    (a, b) = lines(root)
    first, last = bars(root)
    assert first[1] == pytest.approx(b[0][1], abs=0.02)  # 10 + 5 is where b starts
    assert last[1] == pytest.approx(b[1][1], abs=0.02)  # 30 + 10 is where b ends
    assert first[0] - a[0][1] == pytest.approx(a[0][1] - first[1], abs=0.03)


def test_error_bar_below_zero_ends_at_the_logarithmic_axis() -> None:
    root = chart(Series("a", [1, 2], [1.0, 100.0], [2.0, 1.0]), log_y=True)
    axis_bottom = max(float(line.get("y2")) for line in root.iter(f"{SVG}line"))
    assert bars(root)[0][0] == pytest.approx(axis_bottom, abs=0.02)


def test_series_differ_by_colour_and_by_marker() -> None:
    root = chart(*(Series(f"s{n}", [1, 2], [n, n + 1]) for n in range(14)))
    looks = [(marker.get("fill"), marker.get("d")) for marker in markers(root)[::2]]
    assert len(set(looks)) == 14
    assert len({fill for fill, _ in looks[:7]}) == len({shape for _, shape in looks[:7]}) == 7
    legend = [group for group in root.iter(f"{SVG}g") if group.get("class") == "legend"]
    keys = [next((path.get("fill"), path.get("d")) for path in group.iter(f"{SVG}path")) for group in legend]
    assert keys == looks


def test_long_series_get_few_markers_but_all_points() -> None:
    root = chart(Series("loss", range(5000), [math.sin(n / 300) for n in range(5000)]))
    assert len(lines(root)[0]) == 5000
    assert 10 < len(markers(root)) <= 41


def test_texts_are_escaped_and_nothing_is_loaded_or_run() -> None:
    evil = "<script>alert('x')</script> & \"quotes\" \x00\x1b \ud800"
    markup = line_chart([Series(evil, [1, 2], [3, 4])], title=evil, x_label=evil, y_label=evil)
    root = ElementTree.fromstring(markup)
    shown = evil.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\ud800", "\ufffd")
    assert shown in texts(root)
    assert "<script" not in markup
    assert not re.search(r"https?://", markup.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "rect", "text", "g", "line", "path", "polyline"
    }  # fmt: skip
    markup.encode("utf-8")


def test_panel_is_white_and_covers_the_chart() -> None:
    root = chart(Series("a", [1], [1]), width=500, height=300)
    panel = next(root.iter(f"{SVG}rect"))
    assert panel.get("fill") == "#ffffff"
    assert (panel.get("width"), panel.get("height")) == (root.get("width"), root.get("height")) == ("500", "300")
    assert root.get("viewBox") == "0 0 500 300"


FINITE = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(FINITE, FINITE, FINITE.map(abs)), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(720, 440), (320, 240)]),
    st.text(max_size=500),
)
def test_any_values_and_any_texts_stay_inside_the_panel(
    points: list[tuple[float, float, float]], log_x: bool, log_y: bool, size: tuple[int, int], name: str
) -> None:
    x, y, error = zip(*points, strict=True)
    options = {"log_x": log_x, "log_y": log_y, "width": size[0], "height": size[1]}
    root = chart(Series(name, x, y, error), title=name, x_label=name, y_label=name, **options)
    width, height = float(root.get("width")), float(root.get("height"))
    for line in lines(root):
        assert all(0 < across < width and 0 < down < height for across, down in line)
    ticks = [line for line in root.iter(f"{SVG}line") if line.get("stroke") == "#e5e7eb"]
    upright = [line for line in ticks if line.get("x1") == line.get("x2")]
    assert 2 <= len(upright) <= 20 and 2 <= len(ticks) - len(upright) <= 20
    assert all(float(line.get("y2")) - float(line.get("y1")) > 80 for line in upright)
    for text in root.iter(f"{SVG}text"):
        wide = 0.6 * float(text.get("font-size")) * len(text.text or "")
        left = float(text.get("x")) - wide * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        assert left >= 0 and left + wide <= width + 1, text.text
        assert 0 < float(text.get("y")) < height


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        ([], {}, "at least one"),
        ([Series("a", [1], [1]), Series("a", [1], [1])], {}, "name of its own"),
        ([Series("a", [1], [1])], {"width": 100}, "100 x 440"),
    ],
)
def test_bad_charts_are_refused(series: list[Series], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chart(*series, **options)


def test_bad_series_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' have different lengths: \[2, 1\]"):
        Series("a", [1, 2], [1])
    with pytest.raises(ValueError, match="negative error"):
        Series("a", [1, 2], [1, 2], [0.1, -0.1])
