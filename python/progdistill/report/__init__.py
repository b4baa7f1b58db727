"""Turns numbers and images into files to look at: picture grids, charts, pages."""

from __future__ import annotations

from progdistill.report.chart import Series, line_chart
from progdistill.report.grid import image_grid, labelled_rows, save_png
from progdistill.report.page import Png, Preformatted, Section, Svg, Table, html_page

__all__ = [
    "Png",
    "Preformatted",
    "Section",
    "Series",
    "Svg",
    "Table",
    "html_page",
    "image_grid",
    "labelled_rows",
    "line_chart",
    "save_png",
]
