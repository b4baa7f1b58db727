"""The commands of a page of the docs, and how they are run: with a tiny network and as few updates as there can be."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from progdistill.cli.main import main

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
    "--nproc_per_node": "2",
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
    words = shlex.split(line)
    if words[0] == "torchrun":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = words.index("progdistill")
        torchrun, arguments = small(words[1:place], None), small(words[place + 2 :], words[place + 1])
        command = [sys.executable, "-m", "torch.distributed.run", f"--master_port={port}", *torchrun]
        command += ["progdistill", words[place + 1], *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    else:
        assert words[0] == "progdistill", f"neither progdistill nor torchrun: {line}"
        assert main([words[1], *small(words[2:], words[1])]) == 0, line
