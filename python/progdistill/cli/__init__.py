"""The command line: `progdistill COMMAND --help`."""

from progdistill.cli.main import main

__all__ = ["main"]
