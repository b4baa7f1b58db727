"""`progdistill convert`."""

from __future__ import annotations

from progdistill.cli.arguments import parse
from progdistill.training import ConvertConfig, convert


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(ConvertConfig, arguments, "convert")
    convert(config=config)
    print(f"the converted teacher is in {config.output_dir}/model; report: {config.output_dir}/report.html")
