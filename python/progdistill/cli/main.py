"""Finds the command and runs it; errors that a user can mend are a line, not a traceback."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import NoReturn

import progdistill

COMMANDS = {
    "quickstart": "train a teacher on real digits, distil it to one step, write a report; needs nothing",
    "train": "train a teacher (Algorithm 1)",
    "distill": "distil a teacher round by round (Algorithm 2)",
    "convert": "make a v network of an epsilon teacher (distill does it by itself) or of a two-headed student",
    "sfd": "fine-tune a teacher for few steps along its own trajectory, without data (SFD)",
    "sample": "generate images with a teacher or student",
    "fit-solver": "fit a D-ODE solver to a teacher: better images in as few network calls, in minutes",
    "evaluate": "distances of a model's images, by step count, or of given images to a data set",
    "compare": "methods for few network calls against each other: solvers, d_ode, sfd, pd; a report",
    "export": "write a sampler as one ONNX or torch.export graph that runs without progdistill",
    "runs": "list the runs below a folder with their state",
    "bench": "list or run the benchmarks of a source checkout",
    "doctor": "what was built, what is used where, and how to mend what is missing",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs `progdistill COMMAND ...`; returns the exit status (2: the arguments or inputs are wrong)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(progdistill.__version__)
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"progdistill: unknown command {command!r}; use one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    from progdistill.core.processes import launched_by_torchrun

    if launched_by_torchrun():
        _run_as_one_of_several(command, rest)
    return _run(command, rest)


def _run(command: str, arguments: list[str]) -> int:
    try:
        importlib.import_module(f"progdistill.cli.{command.replace('-', '_')}").run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has had enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's own last flush fails as well
        return 141  # as of a program that SIGPIPE has ended
    except (ValueError, TypeError, KeyError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("PROGDISTILL_TRACEBACK"):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"progdistill {command}: {text}", file=sys.stderr)
        print("(set PROGDISTILL_TRACEBACK=1 to see where it was raised)", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nprogdistill {command}: interrupted; the same command resumes", file=sys.stderr)
        return 130
    return 0


def _run_as_one_of_several(command: str, arguments: list[str]) -> NoReturn:
    """Under torchrun: joins the other processes, and silences all but the first."""
    from progdistill.core.processes import end_process, is_main_process, join_processes

    join_processes()
    if not is_main_process():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
        warnings.simplefilter("ignore")
    try:
        status = _run(command, arguments)
    except SystemExit as end:  # wrong arguments (2), --help and runs stopped by SIGTERM (0)
        status = int(end.code or 0)
    end_process(status)


def usage() -> str:
    """The list of commands."""
    lines = ["usage: progdistill COMMAND [--options]", "", progdistill.__doc__.split("\n\n")[0], "", "commands:"]
    lines += [f"  {name:<12}{purpose}" for name, purpose in COMMANDS.items()]
    return "\n".join([*lines, "", "progdistill COMMAND --help lists a command's options."])
