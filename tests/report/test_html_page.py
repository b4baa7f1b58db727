from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from progdistill.report import Png, Preformatted, Section, Series, Svg, Table, html_page, line_chart

EVIL = "<script>alert('x')</script> & \"q\" </pre></style> \x00"
VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Collects elements and texts, and checks that every element is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag: str) -> list[str]:
        return [text for place, text in self.texts if place == tag]


def whole_page() -> str:
    chart = line_chart([Series(EVIL, [1, 2], [3, 4])], title=EVIL, x_label="x", y_label="y")
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    return html_page(
        EVIL,
        [
            Section(EVIL, [EVIL, Table([{EVIL: EVIL, "steps": 4}], caption=EVIL)]),
            Section("second", [Svg(chart, caption=EVIL), Png(picture, alt=EVIL, caption=EVIL)]),
            Section("third", [Preformatted("a:\n  b <c>\n"), Preformatted(EVIL)]),
        ],
    )


def test_page_is_well_formed_and_holds_everything_in_order() -> None:
    reader = Reader(whole_page())
    shown = EVIL.replace("\x00", "\ufffd")
    assert reader.of("h1") == [shown]
    assert reader.of("h2") == [shown, "second", "third"]
    assert reader.of("p") == [shown]
    assert reader.of("th") == [shown, "steps"] and reader.of("td") == [shown, "4"]
    assert reader.of("figcaption") == [shown] * 3
    assert reader.of("pre") == ["a:\n  b <c>\n", shown]
    assert [tag for tag, _ in reader.elements if tag == "polyline"] == ["polyline"]


def test_nothing_is_run_or_loaded_from_outside() -> None:
    page = whole_page()
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.elements}
    for _, attributes in reader.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    page.encode("utf-8")


def test_picture_is_embedded_without_loss() -> None:
    (image,) = [attributes for tag, attributes in Reader(whole_page()).elements if tag == "img"]
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as read:
        np.testing.assert_array_equal(np.asarray(read).ravel(), np.arange(48))
    assert (image["width"], image["height"], image["alt"]) == ("4", "4", EVIL.replace("\x00", "\ufffd"))


def cells(table: Table) -> list[str]:
    return re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", html_page("t", [Section("s", [table])]))


def test_table_of_dicts_has_a_column_for_every_key() -> None:
    rows = [{"steps": 8, "loss": 0.123456}, {"steps": 4, "kept": True, "loss": None}, {"note": "x"}]
    found = cells(Table(rows))
    assert found[:4] == ["steps", "loss", "kept", "note"]
    assert found[4:] == ["8", "0.1235", "", "", "4", "", "yes", "", "", "", "", "x"]


def test_table_with_header_and_number_columns() -> None:
    page = html_page("t", [Section("s", [Table([[1, "a", 1e-7], [2, "b", None]], header=["n", "name", "v"])])])
    assert re.findall(r'<td( class="number")?>(.*?)</td>', page) == [
        (' class="number"', "1"), ("", "a"), (' class="number"', "1e-07"),
        (' class="number"', "2"), ("", "b"), (' class="number"', ""),
    ]  # fmt: skip


def test_empty_table_and_empty_section() -> None:
    Reader(html_page("t", [Section("s", []), Section("u", [Table([]), Table([], header=["a"])])]))


@pytest.mark.parametrize(
    ("block", "error", "message"),
    [
        (Table([[1, 2]]), ValueError, "needs a header"),
        (Table([[1, 2], [3]], header=["a", "b"]), ValueError, r"row 1 .*\[3\]"),
        (Table([{"a": 1}], header=["a"]), ValueError, "row 0"),
        (Svg("<svg"), ValueError, "well-formed"),
        (Svg("<svg/>"), ValueError, "namespace"),
        (42, TypeError, "int"),
    ],
)
def test_bad_blocks_are_named(block: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        html_page("t", [Section("s", [block])])


@pytest.mark.parametrize(
    "inside",
    [
        "<script>x</script>",
        '<rect onclick="x"/>',
        '<image href="https://example.org/a.png"/>',
        '<rect fill="URL(https://example.org/a)"/>',
        "<style>@import 'x'</style>",
        "<foreignObject/>",
        "<!-- x -->",
    ],
)
def test_svg_that_runs_or_loads_something_is_refused(inside: str) -> None:
    with pytest.raises(ValueError, match="SVG"):
        html_page("t", [Section("s", [Svg(f'<svg xmlns="http://www.w3.org/2000/svg">{inside}</svg>')])])
