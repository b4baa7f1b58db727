"""What tests/cli/test_sample_processes.py starts under torchrun.

    torchrun --nproc_per_node=2 tests/cli/two_samplers.py CASE OUTPUT ... -- OPTIONS

Runs `progdistill sample OPTIONS --output OUTPUT` for each output, and notes in made-RANK.txt which parts this process
makes. CASE "stopped": the second process, and it alone, gets SIGTERM in the middle of the first output, which is then
begun again. CASE "full-disk": the second process fails to write its second part.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from progdistill.cli import main
from progdistill.cli import sample as command
from progdistill.core.processes import end_process, join_processes, process_rank
from progdistill.data import output_formats
from progdistill.training.stopping import RunInterrupted


def note_parts() -> None:
    """Adds a line for each part."""
    make = command.sample_parts

    def noted_parts(*arguments, **options):
        for part, pixels in make(*arguments, **options):
            with open(f"made-{process_rank()}.txt", "a") as file:
                print(part.start, part.stop, file=file)
            yield part, pixels

    command.sample_parts = noted_parts


def stop_the_second(output: str, options: list[str]) -> None:
    """Both processes must stop after the same part, with status 0."""
    make = command.sample_parts

    def sample_parts(*arguments, **options):
        for k, made in enumerate(make(*arguments, **options)):
            if process_rank() == 1 and k == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield made

    command.sample_parts = sample_parts
    try:
        command.run([*options, "--output", output])
    except RunInterrupted as end:
        assert end.code == 0
    else:
        raise RuntimeError("was not stopped")
    command.sample_parts = make


def fill_the_disk() -> None:
    """In the second process, after its first part."""
    write, calls = output_formats.NpzFormat.write_part, iter(range(100))

    def write_part(self, part, pixels):
        if process_rank() == 1 and next(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, part, pixels)

    output_formats.NpzFormat.write_part = write_part


if __name__ == "__main__":
    place = sys.argv.index("--", 1)
    case, outputs, options = sys.argv[1], sys.argv[2:place], sys.argv[place + 1 :]
    note_parts()
    if case == "full-disk":
        fill_the_disk()
        main(["sample", *options, "--output", outputs[0]])
    join_processes()
    stop_the_second(outputs[0], options)
    for output in outputs:
        command.run([*options, "--output", output])
    end_process(0)
