"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch


def parser_of(description: str | None, *, quick: str = "seconds instead of minutes") -> argparse.ArgumentParser:
    """--device, --threads, --quick and --output; `quick` says what that leaves out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, help="write everything to this JSON file, again as it comes in")
    return parser


def add_contenders(parser: argparse.ArgumentParser) -> None:
    """--contenders and --no-compile."""
    parser.add_argument("--contenders", nargs="+", default=[], help="contenders whose name contains one of these")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes minutes)")


def parsed(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program if the device is not there."""
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no GPU here; use --device cpu")
    return arguments


def check_contenders(parser: argparse.ArgumentParser, wanted: list[str], names: Sequence[str]) -> None:
    """Ends the program if what is wanted is in no name."""
    unknown = [part for part in wanted if not any(part in name for name in names)]
    if unknown:
        parser.error(f"no contender has {unknown[0]!r} in its name; there are: {'; '.join(names)}")


def positive(text: str) -> int:
    """A positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def writer(path: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes what was found so far to --output, if there is one."""

    def save(found: dict[str, Any]) -> None:
        if path is not None:
            path.write_text(json.dumps(found, indent=1) + "\n")

    return save
