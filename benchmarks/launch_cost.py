"""What the host spends on a call of each operation, with tensors so small that nothing else counts.

    python benchmarks/launch_cost.py --device cuda --output launch_cost.json

On a GPU this is the time until a call returns: the device works on, and the host waits for it between the turns only.
On a CPU the arithmetic on 192 numbers is in it. `torch.add` on the same tensors is the yardstick. Columns: under
`no_grad`; in grad mode, with inputs that require a gradient where the operation has one; `*_and_grad` of the losses.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import draw_cases
import optimizer_cases
from kernel_cases import FORWARD, GRADIENT, Case, cases
from machine import describe, one_line
from options import parsed, parser_of, writer
from timing import HostClock, Spread, interleaved, spread

SHAPE = (1, 3, 8, 8)
WEIGHTS = ((8, 8),) * 8
NO_GRAD, GRAD_MODE, AND_GRAD = "no_grad", "grad mode", "and_grad"
COLUMNS = (NO_GRAD, GRAD_MODE, AND_GRAD)
# A GPU takes some thousand launches before the host has to wait for it; an eager loss is fifty.
MOST_CALLS = {"cpu": 1000, "cuda": 20}


def calls(device: str) -> dict[tuple[str, str, str], Callable[[], Any]]:
    """(operation, backend, column) -> call, those of the column NO_GRAD to be made under no_grad."""
    a, b, c = torch.randn(3, *SHAPE, device=device).unbind()
    c.requires_grad_()
    found: dict[tuple[str, str, str], Callable[[], Any]] = {
        ("torch.add", "torch", NO_GRAD): lambda: torch.add(a, b),
        ("torch.add", "torch", GRAD_MODE): lambda: torch.add(a, c),
    }
    every = [*cases(device), *draw_cases.cases(device)]
    by_mode = {
        mode: {(case.operation, case.variant): case for case in every if case.mode == mode}
        for mode in (FORWARD, GRADIENT)
    }
    for (operation, variant), case in by_mode[FORWARD].items():
        if variant not in ("", "clip"):
            continue
        tracked = by_mode[GRADIENT].get((operation, variant), case)
        plain, requiring = case.inputs(SHAPE, device, 0), tracked.inputs(SHAPE, device, 0)
        label = f"{operation}, {variant}" if variant else operation
        for backend in (name for name in case.contenders if name != "textbook"):
            found[label, backend, NO_GRAD] = partial(_piece(case, backend), plain)
            found[label, backend, GRAD_MODE] = partial(_piece(case, backend), requiring)
            if operation.endswith("_loss"):
                found[label, backend, AND_GRAD] = partial(_piece(tracked, backend), requiring)
    for case in optimizer_cases.cases(device):
        t = case.inputs(WEIGHTS, device, 0)
        for backend in case.contenders:
            found[f"{case.operation}, {len(WEIGHTS)} tensors", backend, NO_GRAD] = partial(_piece(case, backend), t)
    return found


def _piece(case: Case, backend: str) -> Callable[[Any], Any]:
    (piece,) = case.contenders[backend].pieces
    return piece


def measure(device: str, **options: Any) -> dict[tuple[str, str, str], Spread]:
    """Host time of every call."""
    clock, seconds, every = HostClock(device), {}, calls(device)
    for under_no_grad in (True, False):
        chosen = {key: call for key, call in every.items() if (key[2] == NO_GRAD) == under_no_grad}
        with torch.set_grad_enabled(not under_no_grad):
            seconds |= interleaved(chosen, clock, most_calls=MOST_CALLS[device], **options)
    return {key: spread(seconds[key]) for key in every}


def table(figures: dict[tuple[str, str, str], Spread]) -> list[str]:
    """A line for each operation and backend: medians in microseconds, minima in brackets."""
    lines = [f"{'host time a call, us (minimum)':<50}" + "".join(f"{column:>20}" for column in COLUMNS)]
    for operation, backend in dict.fromkeys(key[:2] for key in figures):
        cells = []
        for column in COLUMNS:
            one = figures.get((operation, backend, column))
            cells.append(f"{'-':>20}" if one is None else f"{1e6 * one.median:>11.2f} ({1e6 * one.minimum:>6.2f})")
        lines.append(f"{operation:<38}{backend:<12}" + "".join(cells))
    return lines


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark."""
    arguments = parsed(parser_of(__doc__), words)
    torch.set_num_threads(arguments.threads)
    about = describe(arguments.device)
    print(one_line(about))
    options = {"repetitions": 50, "seconds_per_turn": 2e-3}
    if arguments.quick:
        options = {"repetitions": 2, "seconds_per_turn": 1e-4}
    figures = measure(arguments.device, **options)
    print("\n".join(table(figures)))
    records = [
        {"operation": operation, "backend": backend, "mode": column, **one._asdict()}
        for (operation, backend, column), one in figures.items()
    ]
    writer(arguments.output)({"machine": about, "records": records, "summary": table(figures)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
