"""`progdistill distill`."""

from __future__ import annotations

from pathlib import Path

from progdistill.cli.arguments import parse
from progdistill.core.processes import is_main_process
from progdistill.interop import diffusers_verdict
from progdistill.training import DistillConfig, distill


def run(arguments: list[str]) -> None:
    """Parses and runs."""
    config = parse(DistillConfig, arguments, "distill")
    distill(config=config)
    if is_main_process():
        print(_summary(config))


def _summary(config: DistillConfig) -> str:
    folder = Path(config.output_dir)
    kept = ", ".join(str(steps) for steps in config.student_steps)
    return (
        f"the {config.end_steps}-step student is in {folder / 'model'}, every student ({kept} steps) in "
        f"{folder / 'students'}; report: {folder / 'report.html'}\n{diffusers_verdict(folder / 'model')}"
    )
