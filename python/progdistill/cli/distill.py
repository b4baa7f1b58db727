"""`progdistill distill`."""

from __future__ import annotations

from progdistill.cli.arguments import parse
from progdistill.training import DistillConfig, distill


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(DistillConfig, arguments, "distill")
    distill(config=config)
    print(
        f"the {config.end_steps}-step student is in {config.output_dir}/model, every student in "
        f"{config.output_dir}/students; report: {config.output_dir}/report.html"
    )
