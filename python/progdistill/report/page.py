"""Self-contained HTML pages: text, tables, charts and pictures in one file without scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from xml.etree import ElementTree

from PIL import Image

from progdistill.report.text import printable

# The page may use the style and the pictures inside it and nothing else, whatever text slips into it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; max-width: 76rem; margin: 2rem
auto;
  padding: 0 1rem; color: #1f2937; background: #ffffff; }
h1 { font-size: 1.7rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; }
h1, h2, p, figcaption { overflow-wrap: anywhere; }
p { max-width: 48rem; }
.wide { overflow-x: auto; margin: .5rem 0; } .wide svg, .wide img { display: block; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid #d1d5db; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #6b7280; } .number { text-align: right; white-space: nowrap; }
pre { padding: .8rem 1rem; background: #f3f4f6; overflow-x: auto; font-size: .88rem; border-radius: 6px; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; border-radius: 6px; }
figcaption { font-size: .88rem; color: #6b7280; }
@media (prefers-color-scheme: dark) {
  body { color: #e5e7eb; background: #111827; } pre { background: #1f2937; }
  th, td { border-color: #4b5563; } figcaption { color: #9ca3af; }
}
"""


@dataclass(frozen=True)
class Table:
    """A table. `rows` are dicts, whose columns stand in the order in which keys first appear and whose
    missing cells stay empty, or, with `header` given, sequences as long as it.

    Floats are shown with four significant digits, None as an empty cell, and columns of numbers aligned
    right.
    """

    rows: Sequence[Mapping[str, object]] | Sequence[Sequence[object]]
    header: Sequence[str] | None = None
    caption: str = ""


@dataclass(frozen=True)
class Svg:
    """An SVG document, as `line_chart` makes them, put into the page as it is: no scripts, no outside
    references."""

    markup: str
    caption: str = ""


@dataclass(frozen=True)
class Png:
    """A picture, embedded as PNG. `alt` says in words what it shows."""

    image: Image.Image
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Preformatted:
    """Text in a fixed-width font with its line breaks kept: a configuration, a command."""

    text: str


Block = str | Table | Svg | Png | Preformatted


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; a plain string is a paragraph."""

    heading: str
    blocks: Sequence[Block]


def html_page(title: str, sections: Sequence[Section], *, refresh_seconds: int | None = None) -> str:
    """One HTML5 document that needs no other file: style inline, charts as inline SVG, pictures as base64
    PNG.

    All text is escaped. It is readable on light and dark screens and follows the system's choice. Write it
    with `progdistill.core.files.write_text_atomic`. With `refresh_seconds` a browser loads it again by itself.

    Raises ValueError for a table whose rows do not fit its header and for SVG that is malformed, holds
    scripts or event handlers, or refers to anything outside; TypeError for a block of another type.
    """
    body = "".join(
        f"<section><h2>{_escaped(section.heading)}</h2>\n{''.join(map(_block, section.blocks))}</section>\n"
        for section in sections
    )
    refresh = "" if refresh_seconds is None else f'<meta http-equiv="refresh" content="{refresh_seconds}">\n'
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{refresh}"
        f"<title>{_escaped(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><h1>{_escaped(title)}</h1>\n{body}</body></html>\n"
    )


def _escaped(text: str) -> str:
    return escape(printable(text))


def _block(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_escaped(block)}</p>\n"
    if isinstance(block, Preformatted):
        return f"<pre>{_escaped(block.text)}</pre>\n"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Svg):
        _require_harmless(block.markup)
        return _figure(block.markup, block.caption)
    if isinstance(block, Png):
        return _figure(_image_tag(block), block.caption)
    raise TypeError(f"a block must be str, Table, Svg, Png or Preformatted, got {type(block).__name__}")


def _figure(content: str, caption: str) -> str:
    below = f"<figcaption>{_escaped(caption)}</figcaption>" if caption else ""
    return f'<figure><div class="wide">{content}</div>{below}</figure>\n'


def _image_tag(block: Png) -> str:
    buffer = io.BytesIO()
    block.image.save(buffer, format="PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{block.image.width}" height="{block.image.height}"'
    return f'<img {size} alt="{_escaped(block.alt)}" src="data:image/png;base64,{data}">'


def _table(table: Table) -> str:
    header, rows = _cells(table)
    numeric = [_all_numbers([row[column] for row in rows]) for column in range(len(header))]
    body = "".join(_row("td", map(_cell_text, row), numeric) for row in rows)
    head = _row("th", header, numeric)
    return _figure(f"<table><thead>{head}</thead><tbody>{body}</tbody></table>", table.caption)


def _row(tag: str, texts: Iterable[str], numeric: Sequence[bool]) -> str:
    opened = [f'<{tag} class="number">' if right else f"<{tag}>" for right in numeric]
    cells = (f"{start}{_escaped(text)}</{tag}>" for start, text in zip(opened, texts, strict=True))
    return f"<tr>{''.join(cells)}</tr>\n"


def _cells(table: Table) -> tuple[list[str], list[list[object]]]:
    if table.header is None:
        if not all(isinstance(row, Mapping) for row in table.rows):
            raise ValueError("a table of plain rows needs a header: give Table(rows, header=[...]), or rows as dicts")
        header = list(dict.fromkeys(key for row in table.rows for key in row))
        return header, [[row.get(key) for key in header] for row in table.rows]
    header = list(table.header)
    for index, row in enumerate(table.rows):
        if isinstance(row, Mapping) or len(row) != len(header):
            raise ValueError(f"row {index} does not fit the {len(header)} columns {header}: {row!r}")
    return header, [list(row) for row in table.rows]


def _all_numbers(values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in present)


def _cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _require_harmless(markup: str) -> None:
    if "<!" in markup or "<?" in markup:
        raise ValueError("the SVG must be a plain element without declarations, comments or processing instructions")
    try:
        root = ElementTree.fromstring(markup)
    except ElementTree.ParseError as error:
        raise ValueError(f"the SVG is not well-formed XML: {error}") from error
    if root.tag != "{http://www.w3.org/2000/svg}svg":
        raise ValueError(f"expected an <svg> element in the SVG namespace, got {root.tag}")
    for element in root.iter():
        tag = element.tag.rpartition("}")[2].lower()
        if tag in ("script", "foreignobject", "style", "image", "use", "a"):
            raise ValueError(f"the SVG holds <{tag}>: only shapes and text may stand in a report")
        for name, value in element.attrib.items():
            attribute = name.rpartition("}")[2].lower()
            if attribute.startswith("on") or attribute == "href" or "url(" in value.lower():
                raise ValueError(f"the SVG holds {attribute}={value!r}: only shapes and text may stand in a report")
