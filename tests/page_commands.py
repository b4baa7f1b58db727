"""The commands of a page of the docs, and how they are run: with a tiny network and as few updates as there can be."""

import re
import shlex
from pathlib import Path

from torch.distributed.run import get_args_parser

from progdistill.cli.main import main
from torchrun import run_forked

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# What makes a command small. A flag that is not there is added if its command always takes it.
SMALL = {
    "--network": "tiny.json",
    "--max-train-steps": "2",
    "--train-batch-size": "4",
    "--updates-per-round": "1",
    "--updates": "1",
    "--iterations": "4",
    "--guidance-updates": "1",
    "--validation-images": "2",
    "--num-images": "8",
    "--sfd-iterations": "1",
    "--pd-updates-per-round": "1",
}
ALWAYS = {
    "train": ("--network", "--max-train-steps", "--train-batch-size"),
    "convert": ("--train-batch-size", "--updates", "--validation-images"),
    "distill": ("--train-batch-size", "--updates-per-round", "--validation-images"),
    "sfd": ("--train-batch-size", "--iterations", "--validation-images"),
    "compare": ("--train-batch-size", "--num-images", "--sfd-iterations", "--pd-updates-per-round"),
}
MOST_ROUNDS = 2


def commands(text):
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def small(arguments, command):
    """The command line with the values of SMALL."""
    arguments = [a if "=" not in a or not a.startswith("--") else a.split("=", 1)[0] + "=" for a in arguments]
    for i, argument in enumerate(arguments):
        if argument.rstrip("=") in SMALL:
            flag = argument.rstrip("=")
            if argument.endswith("="):
                arguments[i] = f"{flag}={SMALL[flag]}"
            else:
                arguments[i + 1] = SMALL[flag]
        elif argument == "--rounds":
            arguments[i + 1] = str(min(MOST_ROUNDS, int(arguments[i + 1])))
        elif argument == "--config":
            arguments[i + 1] = str(ROOT / arguments[i + 1])
    for flag in ALWAYS.get(command, ()):
        if flag not in arguments:
            arguments += [flag, SMALL[flag]]
    if command == "distill" and "--rounds" not in arguments:
        arguments += ["--rounds", str(MOST_ROUNDS)]
        if "--config" in arguments:  # the paper's recipes have longer last rounds
            arguments += ["--updates-at.2", "1", "--updates-at.1", "1"]
    return arguments


def run(line):
    """Runs a command; of torchrun's processes, two at most."""
    words = shlex.split(line)
    if words[0] == "torchrun":
        given = get_args_parser().parse_args(words[1:])
        assert given.module and given.training_script == "progdistill", line
        command, *arguments = given.training_script_args
        run_forked(min(2, int(given.nproc_per_node)), main, [command, *small(arguments, command)])
    else:
        assert words[0] == "progdistill", f"neither progdistill nor torchrun: {line}"
        assert main([words[1], *small(words[2:], words[1])]) == 0, line
