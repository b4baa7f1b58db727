"""`progdistill quickstart`."""

from __future__ import annotations

from progdistill.cli.arguments import parse
from progdistill.quickstart import QuickstartConfig, quickstart


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    quickstart(parse(QuickstartConfig, arguments, "quickstart"))
