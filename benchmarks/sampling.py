"""Times few-step sampling: progdistill, DDIMPipeline, an eager loop, that loop in a CUDA graph, torch.compile.

    python benchmarks/sampling.py --device cuda --output sampling.json --csv sampling.csv

All contenders (sampling_contenders.py) have the same network with the same random weights, and their images are
compared with those of an eager float32 loop before they are timed. A latency is the time around one call with the
device idle before it and done after it, what a user waits for; contenders take turns. Images a second are those of
calls one behind the other. Launches are counted afterwards, by another process, so that the profiler slows down nothing
that is timed.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from launches import counted_elsewhere, enter, launches
from machine import describe, one_line
from notes import first_line, note, note_line
from options import add_contenders, check_contenders, parsed, parser_of, positive, writer
from progdistill.core import Denoiser
from random_model import random_model
from sampling_contenders import CHECK_SEED, NOISE, Call, Contender, Size, contenders, stock_loop, taking_part
from sampling_table import cell_lines, closing_lines, write_csv
from start_up import Metered, prepare, release, start_up
from textbook_unet import stock_network
from timing import EventClock, HostClock, interleaved, latencies, percentile_99, spread

NETWORKS = ("ddpm-cifar10-32", "digits8")
SIZES = {"cuda": ((1, 8, 64, 512), (1, 2, 4, 8)), "cpu": ((1, 8), (1, 4)), "quick": ((1, 3), (1, 2))}
# A contender may be off by twice what the eager loop in its dtype is, and by what rounding costs; never by more than
# LARGEST. On a GPU cuDNN may try and take TF32 for one contender's convolution and not for another's.
ROUNDING = {"cpu": 1e-5, "cuda": 2e-3}
LARGEST = {torch.float32: 5e-3, torch.bfloat16: 5e-2}


class Settings(NamedTuple):
    """What the command line says about measuring."""

    device: str
    repetitions: int
    seconds: float
    with_compile: bool
    contenders: tuple[str, ...]
    count_launches: bool = False


class Truth(NamedTuple):
    """The images that certain noise must become, and how far from them (in their norm) each dtype may lead."""

    images: Tensor
    allowed: dict[torch.dtype, float]


def truths(size: Size, steps: int, chosen: dict[str, Contender]) -> dict[str, Truth]:
    """What the contenders are compared with, for each kind of noise: the eager loop in float32 without TF32."""
    found = {}
    for noise in {contender.noise for contender in chosen.values()}:
        start = NOISE[noise](size)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            exact = stock_loop(size, steps)(start)
        allowed = {}
        for dtype in {contender.dtype for contender in chosen.values()}:
            error = distance(stock_loop(size, steps, dtype)(start), exact)
            allowed[dtype] = min(2 * error + ROUNDING[size.device.type], LARGEST[dtype])
        found[noise] = Truth(exact, allowed)
    return found


def distance(images: Tensor, exact: Tensor) -> float:
    """|images - exact| / |exact|, both taken to [-1, 1]; infinite for another shape or numbers that are none."""
    if images.shape != exact.shape:
        return math.inf
    error = 2 * (images.float() - exact).norm() / (2 * exact - 1).norm()
    return float(error.nan_to_num(math.inf))


def ready(
    size: Size, steps: int, chosen: dict[str, Contender], prepared: dict[str, Metered], notes: list[dict]
) -> tuple[dict[str, Call], dict[str, dict]]:
    """The calls that run and make the right images, and what starting them took. Others leave a note.

    What a contender needs at every number of steps is made when it is not among `prepared`.
    """
    calls, costs = {}, {}
    expected = truths(size, steps, chosen)
    for name, contender in chosen.items():
        try:
            if name not in prepared:
                prepared[name] = prepare(contender, size)
            call, seconds, peak = start_up(contender, size, steps, prepared[name])
            torch.manual_seed(CHECK_SEED)
            wrong = distance(call(), expected[contender.noise].images)
        except Exception as error:  # the others still count
            lack = isinstance(error, MemoryError | torch.OutOfMemoryError)
            text = f"{'skipped' if lack else 'does not run'}: {first_line(error)}"
            notes.append(note(text, name, failed=contender.ours and not lack))
            continue
        allowed = expected[contender.noise].allowed[contender.dtype]
        if not wrong <= allowed:
            text = f"is WRONG: its images are off by {wrong:.2g} of their norm, allowed are {allowed:.2g}; not timed"
            notes.append(note(text, name, failed=True))
            continue
        calls[name] = call
        costs[name] = {"start_up_seconds": seconds, "memory_bytes": peak, "off_by": wrong, "allowed": allowed}
    return calls, costs


def measure(
    size: Size, steps: int, settings: Settings, chosen: dict[str, Contender], prepared: dict[str, Metered]
) -> dict[str, Any]:
    """What a batch size and a number of steps came to: a record for each contender, and notes."""
    notes: list[dict] = []
    found = {"batch_size": size.batch_size, "steps": steps, "notes": notes, "records": []}
    try:
        calls, costs = ready(size, steps, chosen, prepared, notes)
        if settings.count_launches:
            figures = {name: launches(call) for name, call in calls.items()}
        else:
            figures = timed(calls, size.batch_size, settings)
    except Exception as error:  # the other sizes still count
        lack = isinstance(error, MemoryError | torch.OutOfMemoryError)
        notes.append(note(f"{'skipped' if lack else 'failed'}: {first_line(error)}", failed=not lack))
        return found
    for name, measured in figures.items():
        contender = {"contender": name, "ours": chosen[name].ours, "dtype": str(chosen[name].dtype)[6:]}
        found["records"].append({**contender, **costs[name], **measured})
    return found


def timed(calls: dict[str, Call], batch_size: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """Latencies, and images a second: on a GPU of calls that are not waited for one by one."""
    quick = settings.repetitions < 10
    limits = {"most": settings.repetitions, "most_seconds": settings.seconds}
    alone = latencies(calls, HostClock(settings.device), **limits)
    behind = dict.fromkeys(calls)
    if settings.device == "cuda":
        turns = interleaved(calls, EventClock(), repetitions=2 if quick else 5, seconds_per_turn=0.02)
        behind = {name: spread(seconds).median for name, seconds in turns.items()}
    figures = {}
    for name, seconds in alone.items():
        latency = spread(seconds)
        figures[name] = {
            **latency._asdict(),
            "percentile_99": percentile_99(seconds),
            "repetitions": len(seconds),
            "seconds_back_to_back": behind[name],
            "images_per_second": batch_size / (behind[name] or latency.median),
            "launches": None,
            "kernels": None,
            "seconds": seconds,
        }
    return figures


def run(
    model: Denoiser,
    network: str,
    sizes: tuple[list[int], list[int]],
    settings: Settings,
    caches: Path,
    save: Callable[[dict], None],
) -> dict[str, Any]:
    """Measures and prints; `save` gets all that there is after every batch size and number of steps."""
    about = describe(settings.device)
    stock, stock_name = stock_network(model.network)
    everyone = contenders(settings.device)
    chosen, left_out = taking_part(everyone, settings.device, settings.with_compile, settings.contenders)
    print(f"{one_line(about)}\n{network}; the others' network: {stock_name}")
    print("\n".join(f"left out: {name} ({reason})" for name, reason in left_out.items()), flush=True)
    found: dict[str, Any] = {"machine": about, "settings": settings._asdict(), "network": network}
    found |= {"stock_network": stock_name, "left_out": left_out, "launch_trouble": None, "cells": []}
    for batch_size in sizes[0]:
        size, prepared = Size(model, stock, batch_size, caches), {}
        for steps in sizes[1]:
            cell = measure(size, steps, settings, chosen, prepared)
            found["cells"].append(cell)
            if not settings.count_launches:
                print("\n".join(cell_lines(cell)), flush=True)
            save(found)
        prepared.clear()
        if settings.with_compile:
            torch._dynamo.reset()
        release(model.device)
    return found


def arguments_of(words: list[str]) -> argparse.Namespace:
    parser = parser_of(__doc__, quick="seconds instead of minutes: tiny, no torch.compile")
    parser.add_argument("--network", choices=NETWORKS, help="default: ddpm-cifar10-32, with --quick digits8")
    parser.add_argument("--batch-sizes", nargs="+", type=positive, metavar="B", help="default: 1 8 64 512; CPU 1 8")
    parser.add_argument("--steps", nargs="+", type=positive, metavar="N", help="default: 1 2 4 8; CPU 1 4")
    parser.add_argument("--repetitions", type=positive, help="calls of a contender at most; default: 200, --quick 3")
    parser.add_argument("--seconds", type=float, default=6.0, help="for a contender's calls, 10 at least; default: 6")
    add_contenders(parser)
    parser.add_argument("--no-launches", action="store_true", help="do not count launches (GPU)")
    parser.add_argument("--csv", type=Path, help="write the figures to this CSV file")
    parser.add_argument("--count-launches", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--caches", type=Path, help=argparse.SUPPRESS)
    arguments = parsed(parser, words)
    check_contenders(parser, arguments.contenders, list(contenders(arguments.device)))
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a contender was wrong or one of progdistill's failed."""
    words = sys.argv[1:] if words is None else words
    arguments = arguments_of(words)
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    batch_sizes, step_counts = SIZES["quick" if quick else arguments.device]
    sizes = arguments.batch_sizes or list(batch_sizes), arguments.steps or list(step_counts)
    settings = Settings(
        arguments.device,
        arguments.repetitions or (3 if quick else 200),
        arguments.seconds,
        not (arguments.no_compile or quick),
        tuple(arguments.contenders),
        arguments.count_launches,
    )

    save = writer(arguments.output)
    if arguments.count_launches:  # before anything is captured
        launches(lambda: torch.zeros(1, device=arguments.device))
    network = arguments.network or ("digits8" if quick else "ddpm-cifar10-32")
    model = random_model(network, arguments.device)
    with tempfile.TemporaryDirectory() as folder, torch.backends.cudnn.flags(enabled=True, benchmark=True):
        caches = arguments.caches or Path(folder)
        found = run(model, network, sizes, settings, caches, save)
        if arguments.count_launches:
            noted = [one for cell in found["cells"] for one in cell["notes"]]
            print("\n".join(map(note_line, noted)))
            return int(bool(noted))
        if arguments.device == "cuda" and not arguments.no_launches:
            options = [*words, "--count-launches", "--caches", str(caches)]
            counts, found["launch_trouble"] = counted_elsewhere(Path(__file__), options)
            enter(counts, found["cells"])
    found["summary"], failed = closing_lines(found)
    print("\n".join(found["summary"]))
    save(found)
    if arguments.csv is not None:
        write_csv(arguments.csv, found)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
