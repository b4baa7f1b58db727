"""`progdistill convert`."""

from __future__ import annotations

from pathlib import Path

from progdistill.cli.arguments import parse
from progdistill.core.processes import is_main_process
from progdistill.interop import diffusers_verdict
from progdistill.training import ConvertConfig, convert


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(ConvertConfig, arguments, "convert")
    convert(config=config)
    if is_main_process():
        folder = Path(config.output_dir)
        print(
            f"the converted model is in {folder / 'model'}; report: {folder / 'report.html'}\n"
            f"{diffusers_verdict(folder / 'model')}"
        )
