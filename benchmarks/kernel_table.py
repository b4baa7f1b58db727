"""The figures of benchmarks/kernels.py for people and for spreadsheets."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from machine import columns
from notes import note_line

OURS = ("cuda", "triton", "cpu")
TIMERS = ("host", "graph", "events")
WIDTH = 24


def heading(device: str) -> str:
    """The columns. With a GPU the figures are of a graph's replay, the last column's of calls one by one."""
    first = "graph, us" if device == "cuda" else "us"
    columns = f"{first:>12}{'20 %':>11}{'80 %':>11}{'minimum':>11}{'GB/s':>9}{'of copy':>9}{'times':>8}"
    return f"  {'':<{WIDTH}}{columns}" + (f"{'events, us':>13}" if device == "cuda" else "")


def case_lines(case: dict[str, Any]) -> list[str]:
    """A title, a line for each contender, the notes, an empty line."""
    moved = case["must_move_bytes"]
    lines = [f"{case_name(case)}" + (f", must move {moved / 1e6:.3g} MB" if moved else "")]
    by_timer = {timer: [record for record in case["records"] if record["timer"] == timer] for timer in TIMERS}
    events = {record["contender"]: record["median"] for record in by_timer["events"]}
    own = best(case)
    for record in by_timer["host"] or by_timer["graph"]:
        figures = "".join(f"{1e6 * record[key]:>11.2f}" for key in ("quantile_20", "quantile_80", "minimum"))
        lines.append(
            f"  {record['contender']:<{WIDTH}}{1e6 * record['median']:>12.2f}{figures}"
            f"{record['bytes_per_second'] / 1e9:>9.1f}{record['of_copy']:>9.2f}"
            f"{record['median'] / own['median'] if own else math.nan:>8.2f}"
            + (f"{1e6 * events.pop(record['contender']):>13.2f}" if record["contender"] in events else "")
        )
    lines += [f"  {name:<{WIDTH}}{'-':>12}{1e6 * median:>72.2f}" for name, median in events.items()]
    return [*lines, *(f"  {note_line(note)}" for note in case["notes"]), ""]


def case_name(case: dict[str, Any]) -> str:
    """Shape, operation, variant and mode."""
    parts = [part for part in (case["operation"], case["variant"]) if part]
    return f"{case['shape']}  {', '.join(parts)}: {case['mode']}"


def best(case: dict[str, Any]) -> dict[str, Any] | None:
    """The record of progdistill's fastest backend, by the main timer; the reference's if no other serves."""
    records = [record for record in case["records"] if record["timer"] != "events"]
    ours = [record for record in records if record["contender"] in OURS]
    ours = ours or [record for record in records if record["contender"] == "reference"]
    return min(ours, key=lambda record: record["median"], default=None)


def _is_rival(contender: str) -> bool:
    """Not ours, nor one of our backends in a way that it does not choose by itself ("cuda, read twice")."""
    return contender not in ("copy", "reference") and contender.split(", ")[0] not in OURS


def closing_lines(cases: list[dict[str, Any]]) -> tuple[list[str], bool]:
    """The case that the goals are about, what lost, all notes; and whether something failed."""
    goal, lost, noted = [], [], []
    for case in cases:
        own = best(case)
        others = {
            record["contender"]: record["median"] / own["median"]
            for record in case["records"]
            if own and record["timer"] == own["timer"] and _is_rival(record["contender"])
        }
        noted += [f"  {case_name(case)}: {note_line(note)}" for note in case["notes"]]
        if own and case["operation"] == "half step + loss":
            ratios = ", ".join(f"{times:.1f} x {name}" for name, times in others.items())
            line = f"  {case_name(case)}: {own['contender']} {1e6 * own['median']:.1f} us, {own['of_copy']:.2f} of copy"
            goal.append(f"{line}; {ratios}" if ratios else line)
        faster = min(others, key=others.get, default=None)
        if faster and others[faster] < 1:
            lost.append(f"  {case_name(case)}: {faster} takes {others[faster]:.2f} of {own['contender']}'s time")
    lines = ["all that an update does beside its networks:", *goal] if goal else []
    lines += [f"progdistill is slower than PyTorch in {len(lost)} of {len(cases)} cases{':' if lost else ''}", *lost]
    lines += ["notes:", *noted] if noted else []
    return lines, any(note["failed"] for case in cases for note in case["notes"])


def write_csv(path: Path, found: dict[str, Any]) -> None:
    """One line for each case, contender and timer; times in seconds."""
    machine = {**columns(found["machine"]), "copy_bytes_per_second": found["copy"]["bytes_per_second"]}
    rows = []
    for case in found["cases"]:
        named = {key: case[key] for key in ("shape", "operation", "variant", "mode", "must_move_bytes")}
        rows += [
            {**named, **{key: value for key, value in record.items() if key != "seconds"}, **machine}
            for record in case["records"]
        ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["operation"])
        writer.writeheader()
        writer.writerows(rows)
