"""Times every operation of progdistill against the same mathematics in plain PyTorch, on the CPU or on a GPU.

    python benchmarks/kernels.py --device cuda --output kernels.json --csv kernels.csv

Contenders are listed in kernel_cases.py and the other files of cases; beside them "copy" moves as many bytes as the
operation must. The results of every contender are compared with the reference's before it is timed. On a GPU the
figures are those of a CUDA graph's replay, and beside them those of calls launched one by one ("events"); rotating
copies of the inputs keep the L2 cache cold. On the CPU contenders take turns on one set of inputs, so what fits in a
cache stays there.

A call's figure is its median over the repetitions, with the 20 and 80 % quantiles and the minimum. "must move" counts
each input as often as the operation has to read it and each result once; "of copy" is that over the time, over the rate
of a large copy in the same run. "times" is the median over that of progdistill's best backend.
"""

from __future__ import annotations

import argparse
import gc
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import draw_cases
import group_norm_cases
import kernel_cases
import optimizer_cases
import padded_sum_cases
import sampling_cases
from copy_rate import copy_rate
from kernel_cases import GRADIENT, Case, Contender
from kernel_table import OURS, case_lines, closing_lines, heading, write_csv
from machine import describe, free_bytes, one_line
from notes import first_line, note
from options import add_contenders, parsed, parser_of, positive, writer
from progdistill.nets.presets import PRESETS
from rotation import Rotation, captured, copies_beyond, tensor_bytes
from timing import EventClock, HostClock, clock_of, interleaved, spread

SHAPES = ("128x3x32x32", "2048x3x64x64", "512x3x128x128", "64x4x64x64", "cifar10", *group_norm_cases.LAYERS)
QUICK_SHAPES = ("4x3x8x8", "digits8", *group_norm_cases.QUICK_LAYERS)
LARGEST_DISAGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 1e-2, torch.float64: 1e-6, torch.int64: 1e-6}


class Settings(NamedTuple):
    """What the command line says about measuring."""

    device: str
    repetitions: int
    seconds_per_turn: float
    with_compile: bool
    contenders: tuple[str, ...]

    def wants(self, name: str) -> bool:
        return not self.contenders or any(part in name for part in self.contenders)


class Subject(NamedTuple):
    """What a case works on: the sizes of a batch of images, of a layer's images, or of a network's parameters."""

    label: str
    sizes: tuple[Any, ...]

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.sizes)) if self.is_network or self.is_layer else math.prod(self.sizes)

    @property
    def is_network(self) -> bool:
        return self.label in PRESETS

    @property
    def is_layer(self) -> bool:
        return "+" in self.label


def subject(text: str) -> Subject:
    """The subject of "128x3x32x32", "128x256+128x32x32" or "cifar10".

    Raises:
        ValueError: the text is none of them.
    """
    if text in PRESETS:
        return Subject(text, optimizer_cases.weight_shapes(text))
    if "+" in text:
        return Subject(text, group_norm_cases.layer_sizes(text))
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(
            f"{text!r} is no shape; write samples, channels, height, width: 128x3x32x32; or, for the optimizer, a "
            f"network: {', '.join(PRESETS)}"
        )
    return Subject(text, tuple(map(int, sizes)))


def ready(contender: Contender, with_compile: bool) -> Callable[[Any], Any]:
    """The contender's call, its pieces through torch.compile or not."""
    pieces = contender.pieces
    if with_compile:
        pieces = tuple(torch.compile(piece, fullgraph=True, dynamic=False) for piece in pieces)
    return contender.join(*pieces)


def calls_of(case: Case, settings: Settings) -> dict[str, Callable[[Any], Any]]:
    """The contenders that were asked for, and always the reference, by name."""
    calls = {}
    for name, contender in case.contenders.items():
        if name == "reference" or settings.wants(name):
            calls[name] = ready(contender, with_compile=False)
        if contender.compiles and settings.with_compile and settings.wants(f"{name}, compiled"):
            calls[f"{name}, compiled"] = ready(contender, with_compile=True)
    return calls


def disagreement(result: Any, reference: Any) -> float:
    """The largest |result - reference| / |reference| of its tensors, over what their dtype allows."""
    pairs = [(result, reference)] if isinstance(result, torch.Tensor) else list(zip(result, reference, strict=True))
    worst = 0.0
    for got, expected in pairs:
        error = (got.float() - expected.float()).norm() / expected.float().norm()
        worst = max(worst, float(error.nan_to_num(math.inf)) / LARGEST_DISAGREEMENT[expected.dtype])
    return worst


def working(
    case: Case, calls: dict[str, Callable], fresh: Callable[[], Any], notes: list[dict]
) -> tuple[dict[str, Callable], int]:
    """The calls that run and agree with the reference, and the bytes of the results. Others leave a note."""
    inputs = fresh()
    expected = calls["reference"](inputs)
    kept = {}
    for name, call in calls.items():
        try:
            wrong = disagreement(call(fresh() if case.in_place else inputs), expected)
        except Exception as error:
            notes.append(note(f"does not run: {first_line(error)}", name, failed=name in OURS))
            continue
        contender = case.contenders[name.removesuffix(", compiled")]
        if wrong > 1 and not contender.other_numbers:
            text = f"is WRONG, {wrong:.3g} times the allowed distance from the reference, and was not timed"
            notes.append(note(text, name, failed=True))
            continue
        kept[name] = call
    return kept, tensor_bytes(expected)


def timed(calls: dict[str, Callable], sets: dict[str, list], settings: Settings, notes: list[dict]) -> dict[str, dict]:
    """Timer -> contender -> seconds a call in each repetition; `sets` holds the inputs of each contender."""
    options = {"repetitions": settings.repetitions, "seconds_per_turn": settings.seconds_per_turn}
    if settings.device == "cpu":
        warm = {name: partial(call, sets[name][0]) for name, call in calls.items()}
        return {"host": interleaved(warm, HostClock(), **options)}
    rounds = {name: Rotation(call, sets[name]) for name, call in calls.items()}
    pool, graphs = torch.cuda.graph_pool_handle(), {}
    for name, rotation in rounds.items():
        try:
            graphs[name] = captured(rotation, pool)
        except RuntimeError as error:
            text = f"cannot be captured in a CUDA graph: {first_line(error)}"
            notes.append(note(text, name, failed=name in OURS))
        rotation.forget()
    figures = {
        "graph": interleaved(graphs, EventClock(), **options),
        "events": interleaved(rounds, EventClock(), **options),
    }
    return {
        timer: {name: [second / len(sets[name]) for second in seconds] for name, seconds in found.items()}
        for timer, found in figures.items()
    }


def measure(case: Case, about: Subject, settings: Settings, cache: int, ceiling: float) -> dict[str, Any]:
    """What one case came to: a record for each contender and timer, and notes on what did not go as it should."""
    found = {"operation": case.operation, "variant": case.variant, "mode": case.mode, "shape": about.label}
    found |= {"must_move_bytes": None, "notes": [], "records": []}
    needed, free = case.most_states * 4 * about.elements, free_bytes(settings.device)
    if free is not None and needed > free:
        text = f"skipped: needs about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
        return found | {"notes": [note(text)]}
    try:
        with torch.set_grad_enabled(case.mode == GRADIENT):
            return found | _measured(case, about.sizes, settings, cache, ceiling)
    except Exception as error:  # the other cases still count
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        text = f"{'skipped' if out_of_memory else 'failed'}: {first_line(error)}"
        return found | {"notes": [note(text, failed=not out_of_memory)]}


def _measured(case: Case, sizes: tuple[Any, ...], settings: Settings, cache: int, ceiling: float) -> dict[str, Any]:
    notes: list[dict] = []
    fresh = partial(case.inputs, sizes, settings.device)
    calls, result_bytes = working(case, calls_of(case, settings), partial(fresh, 0), notes)
    inputs = fresh(0)
    calls = {name: call for name, call in calls.items() if settings.wants(name)}
    moved = sum(tensor_bytes(inputs[name]) for name in case.reads) + result_bytes
    copies = copies_beyond(cache, tensor_bytes(inputs) + (0 if case.in_place else result_bytes))
    everything = [inputs, *(fresh(seed) for seed in range(1, copies))]
    sets = dict.fromkeys(calls, everything)
    if settings.wants("copy"):
        calls["copy"] = lambda pair: pair[1].copy_(pair[0])
        sets["copy"] = [_pair(moved // 2, settings.device) for _ in range(copies)]
    records = []
    for timer, contenders in timed(calls, sets, settings, notes).items():
        for name, seconds in contenders.items():
            figures = spread(seconds)
            rate = moved / figures.median
            records.append(
                {"contender": name, "timer": timer, **figures._asdict(), "bytes_per_second": rate}
                | {"of_copy": rate / ceiling, "seconds": seconds}
            )
    return {"must_move_bytes": moved, "copies": copies, "notes": notes, "records": records}


def _pair(size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.randint(-128, 128, (max(size, 1),), dtype=torch.int8, device=device)
    return source, torch.empty_like(source)


def run(
    subjects: list[Subject], settings: Settings, only: list[str], quick: bool, save: Callable[[dict], None]
) -> dict:
    """Measures and prints; `save` gets all that there is after every case."""
    clock = clock_of(settings.device)
    about = describe(settings.device)
    print(one_line(about))
    ceiling = copy_rate(settings.device, clock, largest=2**22 if quick else 2**31)
    print(f"large copy: {ceiling['bytes_per_second'] / 1e9:.1f} GB/s read + written\n", flush=True)
    found: dict[str, Any] = {"machine": about, "copy": ceiling, "settings": settings._asdict(), "cases": []}
    for one in subjects:
        chosen = [c for c in cases_of(one, settings.device) if not only or any(part in c.name for part in only)]
        if chosen:
            print(heading(settings.device))
        for case in chosen:
            result = measure(case, one, settings, about.get("l2_bytes") or 0, ceiling["bytes_per_second"])
            found["cases"].append(result)
            print("\n".join(case_lines(result)), flush=True)
            save(found)
            release(settings)
    if only and not found["cases"]:
        names = "\n  ".join(dict.fromkeys(case.name for one in subjects for case in cases_of(one, settings.device)))
        raise SystemExit(f"no case has {' or '.join(map(repr, only))} in its name; there are:\n  {names}")
    return found


def cases_of(about: Subject, device: str) -> list[Case]:
    """The operations on images, those on a layer's, or those on a network's parameters."""
    if about.is_layer:
        has_skip = about.sizes[1][1] > 0
        return [*group_norm_cases.cases(device), *([] if has_skip else padded_sum_cases.cases(device))]
    if about.is_network:
        return optimizer_cases.cases(device)
    return [*kernel_cases.cases(device), *sampling_cases.cases(device), *draw_cases.cases(device)]


def release(settings: Settings) -> None:
    """Gives back what the last case held: compiled code, graphs, buffers."""
    if settings.with_compile:
        torch._dynamo.reset()
    gc.collect()
    if settings.device == "cuda":
        torch.cuda.empty_cache()


def arguments_of(words: list[str] | None) -> argparse.Namespace:
    parser = parser_of(__doc__, quick="seconds instead of minutes: tiny, no torch.compile")
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="BxCxHxW",
        help="batches of images; with C+S channels for a norm that has a skip connection of S, and with C+0 also for "
        f"padded sums; networks for the optimizer's operations; default: {' '.join(SHAPES)}",
    )
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name contains one of these")
    parser.add_argument("--repetitions", type=positive, help="default: 20, with --quick 2")
    add_contenders(parser)
    parser.add_argument("--csv", type=Path, help="write the figures to this CSV file")
    arguments = parsed(parser, words)
    try:
        arguments.subjects = list(map(subject, arguments.shapes or (QUICK_SHAPES if arguments.quick else SHAPES)))
    except ValueError as error:
        parser.error(str(error))
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if one of progdistill's backends failed or was wrong."""
    arguments = arguments_of(words)
    torch.set_num_threads(arguments.threads)
    quick = arguments.quick
    settings = Settings(
        arguments.device,
        arguments.repetitions or (2 if quick else 20),
        1e-4 if quick else {"cpu": 0.05, "cuda": 0.01}[arguments.device],
        not (arguments.no_compile or quick),
        tuple(arguments.contenders),
    )

    save = writer(arguments.output)
    found = run(arguments.subjects, settings, arguments.only, quick, save)
    found["summary"], failed = closing_lines(found["cases"])
    print("\n".join(found["summary"]))
    save(found)
    if arguments.csv is not None:
        write_csv(arguments.csv, found)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
