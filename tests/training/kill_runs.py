"""Kills real runs at random moments and resumes them; the end must equal that of an undisturbed run, bit for bit.

    python tests/training/kill_runs.py --kills 100 --seed 1

Each attempt is a process of its own, forked from this one (which has imported everything and started no threads), and
ended by SIGKILL: at a random time, as soon as a checkpoint is being written, or as soon as a student has been kept
(the boundary of two rounds). After the last kill the run is left to end. Prints a line for each kill.
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import load_file

import progdistill
from progdistill.training import checkpoint as checkpoint_module

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny

WHEN = ("at random", "while a checkpoint is written", "at the end of a round")
SLOW_FLUSH = 0.002  # seconds; widens the time in which a checkpoint is half written


def whole_run(folder: Path) -> None:
    """A teacher and three students: the run that is killed."""
    common = {"train_batch_size": 4, "progress": False, "device": "cpu", "logging_steps": 3, "checkpointing_steps": 2}
    common |= {"ema_decay": 0.9, "learning_rate": 1e-3}
    teacher = progdistill.train(
        tiny.IMAGES, str(folder / "teacher"), network=tiny.WITH_DROPOUT, max_train_steps=40, lr_warmup_steps=2, **common
    )
    progdistill.distill(
        teacher,
        rounds=3,
        data=tiny.IMAGES,
        output_dir=str(folder / "student"),
        updates_per_round=20,
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


def start(folder: Path) -> int:
    """Forks a process that does the run; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        original = checkpoint_module.flush_file
        checkpoint_module.flush_file = lambda path: (time.sleep(SLOW_FLUSH), original(path))
        whole_run(folder)
        status = 0
    finally:
        os._exit(status)


def ended(process: int) -> int | None:
    """The exit status of a process that has ended by itself, else None."""
    done, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


# pathlib's glob raises when a folder disappears under it, as checkpoints do; this one does not.
def half_written(folder: Path) -> bool:
    """Whether a checkpoint is being written or removed."""
    return bool(glob.glob(f"{folder}/*/checkpoints/.tmp-*"))


def kept_students(folder: Path) -> set[str]:
    """The students that are complete."""
    return set(glob.glob(f"{folder}/student/students/steps-*"))


def kill(folder: Path, when: str, longest: float, chance: random.Random) -> str | None:
    """Starts the run and kills it; returns what was there then, or None if it had ended before."""
    process = start(folder)
    patience = time.monotonic() + chance.uniform(0, longest)
    students = kept_students(folder)
    while True:
        writing = half_written(folder)
        boundary = kept_students(folder) != students
        if time.monotonic() > patience and (
            when == WHEN[0] or (when == WHEN[1] and writing) or (when == WHEN[2] and boundary)
        ):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return "a checkpoint half written" if half_written(folder) else "no write going on"
        if (status := ended(process)) is not None:
            if status:
                raise SystemExit(f"the resumed run failed with status {status} in {folder}")
            return None
        if when == WHEN[2]:
            patience = 0.0


def main() -> int:
    """Returns 0 if every killed and resumed run equals the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as root:
        started = time.monotonic()
        process = start(Path(root, "whole"))
        _, status = os.waitpid(process, 0)
        seconds = time.monotonic() - started
        if status:
            raise SystemExit("the undisturbed run failed")
        whole = result_of(Path(root, "whole"))
        print(f"undisturbed: {seconds:.2f} s, {len(whole)} tensors and logs")
        kills, runs, unequal, tally = 0, 0, 0, Counter()
        while kills < arguments.kills:
            folder, in_this_run = Path(root, f"run-{runs}"), 0
            folder.mkdir()
            # Some kills a run, so that runs are resumed again and again and still come to their end.
            while kills < arguments.kills and in_this_run < 8:
                when = WHEN[chance.choices((0, 1, 2), (2, 2, 1))[0]]
                found = kill(folder, when, seconds / 3, chance)
                if found is None:
                    break
                kills, in_this_run = kills + 1, in_this_run + 1
                tally[f"{when}: {found}"] += 1
                kept = len(kept_students(folder))
                print(f"kill {kills:3d} in run {runs}, {when}: {found}, {kept} students kept")
            process = start(folder)
            os.waitpid(process, 0)
            different = differences(whole, result_of(folder))
            unequal += bool(different)
            print(
                f"run {runs} resumed to its end: "
                + (f"DIFFERENT in {different[:3]} ..." if different else "equal bit for bit")
            )
            runs += 1
        for kind, count in sorted(tally.items()):
            print(f"{count:4d} {kind}")
        print(f"{kills} kills, {runs} runs, {unequal} different")
        return int(unequal > 0)


if __name__ == "__main__":
    sys.exit(main())
