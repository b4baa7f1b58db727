"""What tests/comparison/test_processes.py starts under torchrun.

    torchrun --nproc_per_node=2 tests/comparison/two_comparers.py OPTIONS

Runs `progdistill compare OPTIONS` twice, and notes in written-RANK.txt what this process writes in the first run, in
measured-RANK.txt how many measurements it takes part in in the second.
"""

from __future__ import annotations

import sys

import torch

from progdistill.cli import compare as command
from progdistill.core import files
from progdistill.core.processes import end_process, join_processes, process_rank
from progdistill.evaluation import QualityMeter


def note(name: str, line: object) -> None:
    """Adds a line to this process's file."""
    with open(f"{name}-{process_rank()}.txt", "a") as file:
        print(line, file=file)


def main(options: list[str]) -> None:
    """Twice the same."""
    replace, measure = files.os.replace, QualityMeter.measure_all

    def noted_replace(source, target):
        note("written", target)
        replace(source, target)

    def noted_measure(*arguments, **settings):
        note("measured", 1)
        return measure(*arguments, **settings)

    files.os.replace = noted_replace
    command.run(options)
    files.os.replace = replace
    QualityMeter.measure_all = noted_measure
    command.run(options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    join_processes()
    main(sys.argv[1:])
    end_process(0)
