"""Processes that are killed at some moment, and the command that does it again and again.

They are forked from this one, which has imported everything and started no threads, and ended by SIGKILL.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

PER_RUN = 5  # kills at most, so that runs are continued again and again and still come to their end


def fork(function, *arguments) -> int:
    """Starts a process that calls a function; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        function(*arguments)
        status = 0
    finally:
        os._exit(status)


def ended(process: int, wait: bool = False) -> bool:
    """Whether a process has ended by itself; an error if it failed."""
    done, status = os.waitpid(process, 0 if wait else os.WNOHANG)
    if done and os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the process failed with status {os.waitstatus_to_exitcode(status)}")
    return bool(done)


def kill(process: int) -> None:
    """Ends a process on the spot."""
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def kill_and_compare(description: str, kills: int, undisturbed_run, disturbed_run) -> int:
    """Kills runs until there were enough kills, says what they met, and returns 0 if no run was harmed.

    Args:
        description: the command's.
        kills: how many without --kills.
        undisturbed_run: called with a folder; returns what the other runs are compared with.
        disturbed_run: called with that, a folder of its own, how many kills at most and a random.Random; returns what
            the kills met, and whether all was well in the end.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=kills)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(arguments.seed)
    runs, wrong, tally = 0, 0, Counter()
    with tempfile.TemporaryDirectory() as root:
        whole = undisturbed_run(Path(root))
        while tally.total() < arguments.kills:
            folder = Path(root, f"run-{runs}")
            folder.mkdir()
            met, well = disturbed_run(whole, folder, min(PER_RUN, arguments.kills - tally.total()), chance)
            tally += met
            wrong += not well
            runs += 1
    for what, count in sorted(tally.items()):
        print(f"{count:4d} {what}")
    print(f"{tally.total()} kills, {runs} runs, {wrong} wrong")
    return int(wrong > 0)
