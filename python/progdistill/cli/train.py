"""`progdistill train`."""

from __future__ import annotations

from progdistill.cli.arguments import parse
from progdistill.training import TrainConfig, train


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(TrainConfig, arguments, "train")
    train(config=config)
    print(f"the teacher is in {config.output_dir}/model; report: {config.output_dir}/report.html")
