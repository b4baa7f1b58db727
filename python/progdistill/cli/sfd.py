"""`progdistill sfd`."""

from __future__ import annotations

from progdistill.cli.arguments import parse
from progdistill.training import TrajectoryConfig, finetune_trajectory


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(TrajectoryConfig, arguments, "sfd")
    finetune_trajectory(config=config)
    folder = config.output_dir
    steps = ", ".join(map(str, config.steps))
    print(f"the student for {steps} steps is in {folder}/model; report: {folder}/report.html")
