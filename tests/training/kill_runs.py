"""Kills real runs at random moments and resumes them; the end must equal that of an undisturbed run, bit for bit.

    python tests/training/kill_runs.py --kills 100 --seed 1

Each attempt is a process of its own, killed at a random time, as soon as a checkpoint is being written, or as soon as
a student has been kept (the boundary of two rounds). After the last kill the run is left to end. Prints a line for each
kill.
"""

from __future__ import annotations

import glob
import json
import os
import random
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
import torch._dynamo  # each run's first optimizer would, for longer than all its updates take
from safetensors.torch import load_file

import progdistill
from progdistill.training import checkpoint as checkpoint_module

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny
from killed_processes import ended, fork, kill, kill_and_compare

WHEN = ("at random", "while a checkpoint is written", "at the end of a round")
SLOW_FLUSH = 0.002  # seconds; widens the time in which a checkpoint is half written


def whole_run(folder: Path) -> None:
    """A teacher and three students: the run that is killed."""
    original = checkpoint_module.flush_file
    checkpoint_module.flush_file = lambda path: (time.sleep(SLOW_FLUSH), original(path))
    common = {"train_batch_size": 4, "progress": False, "device": "cpu", "logging_steps": 3, "checkpointing_steps": 3}
    common |= {"ema_decay": 0.9, "learning_rate": 1e-3}
    teacher = progdistill.train(
        tiny.IMAGES, str(folder / "teacher"), network=tiny.WITH_DROPOUT, max_train_steps=12, lr_warmup_steps=2, **common
    )
    progdistill.distill(
        teacher,
        rounds=3,
        data=tiny.IMAGES,
        output_dir=str(folder / "student"),
        updates_per_round=8,
        validation_images=2,
        **common,
    )


def result_of(folder: Path) -> dict:
    """Everything that must be equal: all weights, averaged and raw, and the log but for its seconds."""
    found: dict = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{name}": tensor for name, tensor in load_file(path).items()}
    for path in sorted(folder.rglob("metrics.jsonl")):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        found[str(path.relative_to(folder))] = [{k: v for k, v in r.items() if k != "seconds"} for r in records]
    return found


def differences(one: dict, other: dict) -> list[str]:
    """The names of what is not the same in both, bit for bit."""
    same = lambda a, b: torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b  # noqa: E731
    return sorted(k for k in one.keys() | other.keys() if k not in one or k not in other or not same(one[k], other[k]))


# pathlib's glob raises when a folder disappears under it, as checkpoints do; this one does not.
def half_written(folder: Path, since: float) -> bool:
    """Whether a checkpoint is being written or removed by a process of after that time; kills leave others lying."""
    for path in glob.glob(f"{folder}/*/checkpoints/.tmp-*"):
        with suppress(FileNotFoundError):
            if os.stat(path).st_mtime > since:
                return True
    return False


def kept_students(folder: Path) -> set[str]:
    """The students that are complete."""
    return set(glob.glob(f"{folder}/student/students/steps-*"))


def start_and_kill(folder: Path, when: str, longest: float, chance: random.Random) -> str | None:
    """Starts the run and kills it; returns what was there then, or None if it had ended before."""
    began = time.time()
    process = fork(whole_run, folder)
    patience = began + (0 if when == WHEN[2] else chance.uniform(0, longest))
    students = kept_students(folder)
    while not ended(process):
        reached = {WHEN[0]: True, WHEN[1]: half_written(folder, began), WHEN[2]: kept_students(folder) != students}[
            when
        ]
        if reached and time.time() > patience:
            kill(process)
            return f"{when}: " + ("a checkpoint half written" if half_written(folder, began) else "no write going on")
    return None


def undisturbed_run(root: Path) -> tuple[float, dict]:
    """How many seconds it takes, and its results."""
    started = time.monotonic()
    ended(fork(whole_run, root / "whole"), wait=True)
    seconds, whole = time.monotonic() - started, result_of(root / "whole")
    print(f"undisturbed: {seconds:.2f} s, {len(whole)} tensors and logs")
    return seconds, whole


def disturbed_run(undisturbed: tuple[float, dict], folder: Path, most: int, chance: random.Random):
    """Kills a run up to `most` times and lets it end; returns what the kills met, and whether it equals the other."""
    (seconds, whole), tally = undisturbed, Counter()
    while tally.total() < most:
        when = WHEN[chance.choices((0, 1, 2), (2, 2, 1))[0]]
        found = start_and_kill(folder, when, seconds / 3, chance)
        if found is None:
            break
        tally[found] += 1
        print(f"{folder.name}: killed {found}, {len(kept_students(folder))} students kept")
    ended(fork(whole_run, folder), wait=True)
    different = differences(whole, result_of(folder))
    print(f"{folder.name}: " + (f"DIFFERENT in {different[:3]} ..." if different else "equal bit for bit"))
    return tally, not different


if __name__ == "__main__":
    sys.exit(kill_and_compare(__doc__, 10, undisturbed_run, disturbed_run))
