"""Times a distillation update: progdistill, and plain PyTorch eager, compiled, and compiled in a CUDA graph.

    python benchmarks/train_step.py --device cuda --network ddpm-cifar10-32 --batch-size 128 --output train_step.json

An update is all between two batches: images to floats, noise, two passes of the teacher, the student forward and
backward, clipping, AdamW, the average of the weights. All contenders (train_step_contenders.py) begin with the same
weights, and before they are timed they do some updates on the same images, noise and times: their losses are compared
with those of plain PyTorch in float32, and what plain PyTorch is off by in the contenders' dtype is the yardstick. Then
they are timed one after the other, each with the GPU to itself. Kernels are counted afterwards, by another process, so
that the profiler slows down nothing that is timed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernel_classes import profiled
from launches import counted_elsewhere, enter, trace_of
from loss_curves import Apart, apart
from machine import describe, one_line
from matrix_rate import matrix_rate
from notes import first_line, note
from options import add_contenders, check_contenders, parsed, parser_of, positive, writer
from products import update_flop
from progdistill.nets.presets import PRESETS
from random_model import random_model
from sampling_contenders import taking_part
from start_up import Metered, prepare, release, start_up
from stock_update import StockUpdate
from textbook_unet import stock_network
from timing import clock_of, interleaved, spread
from train_step_contenders import Contender, Update, contenders
from train_step_table import closing_lines, heading, record_line
from update_task import UpdateTask

FIGURES = ("launches", "kernels", "by_class")
# Twice what plain PyTorch in the same dtype is off by is allowed, and so much more: of a few updates it may be off by
# little for no reason.
SLACK = {torch.float32: 1e-3, torch.bfloat16: 1e-2}


class Settings(NamedTuple):
    """What the command line says about measuring."""

    device: str
    repetitions: int
    with_compile: bool
    contenders: tuple[str, ...]
    curve_updates: int
    with_profile: bool
    profiling: bool = False


class Truth(NamedTuple):
    """Losses and gradient norms in float32, and how far others may be off in each dtype."""

    curve: dict[str, list[float]]
    allowed: dict[torch.dtype, Apart]


def truth_of(task: UpdateTask, updates: int, dtypes: set[torch.dtype]) -> Truth:
    """What the contenders are compared with: plain PyTorch, eager, float32 without TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        exact = StockUpdate(task, torch.float32).curve(updates)
    allowed = {}
    for dtype in dtypes:
        own = apart(StockUpdate(task, dtype).curve(updates), exact)
        allowed[dtype] = Apart(*(2 * abs(value) + SLACK[dtype] for value in own))
    release(task.device)
    return Truth(exact, allowed)


def measure(
    task: UpdateTask,
    settings: Settings,
    chosen: dict[str, Contender],
    flop: int,
    ceiling: float,
    found: Callable[[dict[str, Any] | None, dict[str, Any] | None], None],
) -> None:
    """Hands a record or a note of each contender to `found(record, note)`."""
    truth = None
    if not settings.profiling:
        truth = truth_of(task, settings.curve_updates, {contender.dtype for contender in chosen.values()})
    last: tuple[Any, Metered] | None = None
    for name, contender in chosen.items():
        try:
            if last is None or last[0] is not contender.prepare:
                last = None
                forget(task.device, settings.with_compile)
                last = (contender.prepare, prepare(contender, task))
            record, trouble = _measured(task, settings, contender, last[1], truth)
        except Exception as error:  # the others still count
            lack = isinstance(error, MemoryError | torch.OutOfMemoryError)
            text = f"{'skipped' if lack else 'does not run'}: {first_line(error)}"
            found(None, note(text, name, failed=contender.ours and not lack))
            continue
        if trouble is not None:
            found(None, note(trouble, name, failed=True))
            continue
        if not settings.profiling:
            record["flop_per_second"] = flop / record["median"]
            record["of_matrix_rate"] = record["flop_per_second"] / ceiling
        found({"contender": name, "ours": contender.ours, "dtype": str(contender.dtype)[6:], **record}, None)


def _measured(
    task: UpdateTask, settings: Settings, contender: Contender, prepared: Metered, truth: Truth | None
) -> tuple[dict[str, Any], str | None]:
    """A record, and what is wrong with the contender if its losses are."""
    update, seconds, peak = start_up(contender, task, task.steps, prepared)
    if truth is None:
        return profiled(update, settings.device), None
    curve = update.curve(settings.curve_updates)
    off, allowed = apart(curve, truth.curve)._asdict(), truth.allowed[contender.dtype]._asdict()
    wrong = [name for name in off if not abs(off[name]) <= allowed[name]]
    if wrong:
        what = ", ".join(f"{name} is off by {off[name]:.2g} ({allowed[name]:.2g} allowed)" for name in wrong)
        return {}, f"is WRONG: {what}; not timed"
    record = {"start_up_seconds": seconds, "memory_bytes": peak, "curve": curve, "apart": off, "allowed": allowed}
    record |= _timed(update, settings)
    if settings.with_profile and settings.device == "cpu":
        record |= profiled(update, settings.device)
    return record, None


def _timed(update: Update, settings: Settings) -> dict[str, Any]:
    turn = 0.2 if settings.device == "cuda" else 1e-3
    clock = clock_of(settings.device)
    seconds = interleaved({"it": update}, clock, repetitions=settings.repetitions, seconds_per_turn=turn)["it"]
    return {**spread(seconds)._asdict(), "seconds": seconds, **dict.fromkeys(FIGURES)}


def forget(device: torch.device, with_compile: bool) -> None:
    """Gives back what the last contender held."""
    if with_compile:
        torch._dynamo.reset()
    gc.collect()
    release(device)


def run(
    arguments: argparse.Namespace, settings: Settings, caches: Path, save: Callable[[dict], None]
) -> dict[str, Any]:
    """Measures and prints; `save` gets all that there is after every contender."""
    about = describe(settings.device)
    clock = clock_of(settings.device)
    ceiling = matrix_rate(settings.device, clock, size=64 if arguments.quick else None)
    model = random_model(arguments.network, settings.device)
    stock, stock_name = stock_network(model.network)
    task = UpdateTask(model, stock, arguments.batch_size, arguments.steps)
    flop = update_flop(model.network, arguments.batch_size)
    chosen, left_out = taking_part(
        contenders(settings.device, caches), settings.device, settings.with_compile, settings.contenders
    )
    cell: dict[str, Any] = {"batch_size": arguments.batch_size, "steps": arguments.steps, "records": [], "notes": []}
    found: dict[str, Any] = {"machine": about, "settings": settings._asdict(), "network": arguments.network}
    found |= {"stock_network": stock_name, "left_out": left_out, "profile_trouble": None}
    found |= {"update_flop": flop, "matrix_rate": ceiling, "cells": [cell]}
    if not settings.profiling:
        print("\n".join([one_line(about), *heading(found)]), flush=True)

    def note_down(record: dict[str, Any] | None, trouble: dict[str, Any] | None) -> None:
        if record is not None:
            cell["records"].append(record)
            if not settings.profiling:
                print(record_line(record), flush=True)
        if trouble is not None:
            cell["notes"].append(trouble)
        save(found)

    measure(task, settings, chosen, flop, ceiling["flop_per_second"], note_down)
    return found


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, quick="seconds instead of minutes: tiny, no torch.compile")
    parser.add_argument("--network", choices=list(PRESETS), help="default: ddpm-cifar10-32; on a CPU digits8")
    parser.add_argument("--batch-size", type=positive, help="images an update; default: 128, with --quick 4")
    parser.add_argument("--steps", type=positive, default=8, help="the student's steps, which cost no time; default: 8")
    parser.add_argument("--repetitions", type=positive, help="default: 20, with --quick 2")
    parser.add_argument(
        "--curve-updates", type=positive, help="updates whose losses are compared; default: 200, with --quick 3"
    )
    add_contenders(parser)
    parser.add_argument("--no-profile", action="store_true", help="leave the time by class of kernels out")
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--caches", type=Path, help=argparse.SUPPRESS)
    arguments = parsed(parser, words)
    check_contenders(parser, arguments.contenders, list(contenders(arguments.device, None)))
    small = arguments.quick or arguments.device == "cpu"
    arguments.network = arguments.network or ("digits8" if small else "ddpm-cifar10-32")
    arguments.batch_size = arguments.batch_size or (4 if arguments.quick else 128)
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a contender was wrong or progdistill failed."""
    words = sys.argv[1:] if words is None else words
    arguments = arguments_of(words)
    torch.set_num_threads(arguments.threads)
    quick, save = arguments.quick, writer(arguments.output)
    settings = Settings(
        arguments.device,
        arguments.repetitions or (2 if quick else 20),
        not (arguments.no_compile or quick),
        tuple(arguments.contenders),
        arguments.curve_updates or (3 if quick else 200),
        not arguments.no_profile,
        arguments.profile,
    )
    with tempfile.TemporaryDirectory() as folder, torch.backends.cudnn.flags(enabled=True, benchmark=True):
        caches = arguments.caches or Path(folder)
        if settings.profiling:
            trace_of(lambda: torch.zeros(1, device=settings.device))
        found = run(arguments, settings, caches, save)
        if settings.profiling:
            return 0
        if settings.with_profile and arguments.device == "cuda":
            forget(torch.device("cuda"), settings.with_compile)
            options = [*words, "--profile", "--caches", str(caches)]
            counts, found["profile_trouble"] = counted_elsewhere(Path(__file__), options)
            enter(counts, found["cells"], FIGURES)
    found["summary"], failed = closing_lines(found)
    print("\n".join(found["summary"]))
    save(found)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
