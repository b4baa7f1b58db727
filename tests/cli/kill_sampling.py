"""Kills `progdistill sample` at random moments and goes on; the end must equal an undisturbed run, byte for byte.

    python tests/cli/kill_sampling.py --kills 100 --seed 1

Each attempt is a process of its own, killed at a random moment after some more parts are there, or while the parts are
being put together. No part that was there at a kill may be made again. Prints a line for each kill.
"""

from __future__ import annotations

import glob
import hashlib
import os
import random
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from progdistill.cli import main as progdistill
from progdistill.cli import sample as command
from progdistill.core import files
from progdistill.data import output_formats, parted_output
from progdistill.interop import load

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from sampling_runs import save_model

from killed_processes import ended, fork, kill, kill_and_compare

WRITING, JOINING, QUIET = "while a part is written", "while the parts are put together", "while nothing is written"
OUTPUTS = ("images.npz", "images.zip", "images")
COUNT, PART = 60, 4
SLOW = 0.002  # seconds a flush or an image; widens the time in which a file is half written
MADE = "made.txt"


def sample(folder: Path, output: str) -> None:
    """The command that is killed; notes in MADE which parts it makes."""
    os.chdir(folder)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    flush, make, encode = files.flush_file, command.sample_parts, output_formats._png

    def slow_flush(path, factor=1):
        time.sleep(SLOW * factor)
        flush(path)

    def slow_encode(pixels):
        time.sleep(SLOW)
        return encode(pixels)

    def noted_parts(model, steps, parts, **options):
        for part, pixels in make(model, steps, parts, **options):
            with open(MADE, "a") as file:
                print(part.start, file=file)
            yield part, pixels

    files.flush_file = output_formats.flush_file = slow_flush
    parted_output.flush_file = partial(slow_flush, factor=10)
    output_formats._png = slow_encode
    command.sample_parts = noted_parts
    options = f"--model ../model --steps 2 --num-images {COUNT} --max-batch-size {PART} --device cpu --output {output}"
    if progdistill(["sample", *options.split()]):
        raise SystemExit(1)


def going_on(folder: Path, output: str) -> str:
    """What the command is doing, by the files that are there."""
    work = f"{folder}/{output}.parts"
    if os.path.exists(f"{work}/whole") or os.path.exists(f"{work}/images/sampling.json"):
        return JOINING
    return WRITING if glob.glob(f"{work}/.progdistill-*.tmp") or glob.glob(f"{work}/images/.*.tmp") else QUIET


def parts_there(folder: Path, output: str) -> set[int]:
    """The first image of each part that is whole."""
    return {int(Path(path).name.split("-")[1]) for path in glob.glob(f"{folder}/{output}.parts/part-*")}


def made(folder: Path) -> list[int]:
    """The first image of each part that was ever made, in order."""
    path = folder / MADE
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def start_and_kill(folder: Path, output: str, chance: random.Random) -> str | None:
    """Starts the command and kills it; returns what it was doing then, or None if it had come to its end."""
    joining = chance.random() < 0.2
    goal = COUNT // PART if joining else len(parts_there(folder, output)) + chance.randint(0, 5)
    process = fork(sample, folder, output)
    while not ended(process):
        if len(parts_there(folder, output)) < goal or not Path(folder, f"{output}.parts").exists():
            continue
        if joining and going_on(folder, output) != JOINING:
            continue
        time.sleep(0 if joining else chance.uniform(0, 8 * SLOW))
        found = going_on(folder, output)
        kill(process)
        return found
    return None


def digests(path: Path) -> dict[str, str]:
    """SHA-256 by name of a file, or of all files of a folder."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in found}


def undisturbed_run(root: Path) -> dict[str, dict[str, str]]:
    """The digests of each output."""
    save_model(root / "model")
    load(root / "model")  # imports what loading needs, once for all attempts
    (root / "whole").mkdir()
    for output in OUTPUTS:
        ended(fork(sample, root / "whole", output), wait=True)
    return {output: digests(root / "whole" / output) for output in OUTPUTS}


def disturbed_run(whole: dict[str, dict[str, str]], folder: Path, most: int, chance: random.Random):
    """Kills one output up to `most` times and lets it end; returns what the kills met, and whether all was well."""
    output = OUTPUTS[int(folder.name.split("-")[1]) % len(OUTPUTS)]
    tally: Counter[str] = Counter()
    repeated: set[int] = set()
    found: str | None = QUIET
    while found:
        before, there = len(made(folder)), parts_there(folder, output)
        if tally.total() < most:
            found = start_and_kill(folder, output, chance)
        else:
            found = None
            ended(fork(sample, folder, output), wait=True)
        repeated |= there & set(made(folder)[before:])
        if found:
            tally[found] += 1
            print(f"{output}: killed {found}, {len(parts_there(folder, output))} of {COUNT // PART} parts there")
    equal = digests(folder / output) == whole[output]
    clean = sorted(os.listdir(folder)) == sorted([output, MADE])
    print(f"{output}: {'equal' if equal else 'DIFFERENT'}, {len(repeated)} parts made twice, clean: {clean}")
    return tally, equal and clean and not repeated


if __name__ == "__main__":
    sys.exit(kill_and_compare(__doc__, 16, undisturbed_run, disturbed_run))
