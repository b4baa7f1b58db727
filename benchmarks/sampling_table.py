"""The figures of benchmarks/sampling.py for people and for spreadsheets."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from machine import columns
from notes import note_line

WIDTH = 32


def cell_name(cell: dict[str, Any]) -> str:
    """Batch size and steps."""
    return f"batch {cell['batch_size']}, {cell['steps']} step{'s' if cell['steps'] > 1 else ''}"


def cell_lines(cell: dict[str, Any]) -> list[str]:
    """A title with the columns, a line for each contender, the notes, an empty line."""
    own = best(cell)
    columns = f"{'ms':>10}{'99 %':>10}{'calls':>7}{'images/s':>11}{'start, s':>10}{'MB':>9}{'off by':>10}{'times':>8}"
    lines = [f"{cell_name(cell):<{WIDTH + 2}}{columns}"]
    for record in cell["records"]:
        p99, memory = record["percentile_99"], record["memory_bytes"]
        lines.append(
            f"  {record['contender']:<{WIDTH}}{1e3 * record['median']:>10.3f}"
            + (f"{'-':>10}" if p99 is None else f"{1e3 * p99:>10.3f}")
            + f"{record['repetitions']:>7}{record['images_per_second']:>11.1f}{record['start_up_seconds']:>10.2f}"
            + (f"{'-':>9}" if memory is None else f"{memory / 1e6:>9.0f}")
            + f"{record['off_by']:>10.1e}"
            + (f"{record['median'] / own['median']:>8.2f}" if own else f"{'-':>8}")
        )
    return [*lines, *(f"  {note_line(note)}" for note in cell["notes"]), ""]


def best(cell: dict[str, Any]) -> dict[str, Any] | None:
    """The record of progdistill's fastest contender."""
    return min((record for record in cell["records"] if record["ours"]), key=lambda r: r["median"], default=None)


def grid(cells: list[dict[str, Any]], figure: str, shown: str, scale: float = 1.0) -> list[str]:
    """A line for each contender, a column for each size."""
    names = list(dict.fromkeys(record["contender"] for cell in cells for record in cell["records"]))
    heads = [f"{cell['batch_size']} x {cell['steps']}" for cell in cells]
    lines = [f"  {'batch x steps':<{WIDTH}}" + "".join(f"{head:>10}" for head in heads)]
    for name in names:
        values = [_figure(cell, name, figure) for cell in cells]
        columns = "".join(f"{'-':>10}" if value is None else f"{scale * value:>10{shown}}" for value in values)
        lines.append(f"  {name:<{WIDTH}}{columns}")
    return lines


def _figure(cell: dict[str, Any], contender: str, figure: str) -> float | None:
    return next((record[figure] for record in cell["records"] if record["contender"] == contender), None)


def launch_lines(found: dict[str, Any]) -> list[str]:
    """What the host launches and what the GPU runs in each call, if that was counted, and why if not."""
    cells, trouble = found["cells"], found["launch_trouble"]
    lines = ["not all launches could be counted; the process said:", *trouble.splitlines()] if trouble else []
    if any(record["launches"] is not None for cell in cells for record in cell["records"]):
        lines += ["launches a call:", *grid(cells, "launches", ".0f")]
        lines += ["kernels and copies a call:", *grid(cells, "kernels", ".0f")]
    return lines


def closing_lines(found: dict[str, Any]) -> tuple[list[str], bool]:
    """Median latencies, launches, where progdistill lost, who was left out, notes; and whether something failed."""
    cells = found["cells"]
    lost, noted = [], []
    for cell in cells:
        noted += [f"  {cell_name(cell)}: {note_line(note)}" for note in cell["notes"]]
        own = best(cell)
        others = [record for record in cell["records"] if not record["ours"]]
        fastest = min(others, key=lambda record: record["median"], default=None)
        if own and fastest and fastest["median"] < own["median"]:
            ratio = fastest["median"] / own["median"]
            lost.append(f"  {cell_name(cell)}: {fastest['contender']} takes {ratio:.2f} of {own['contender']}'s time")
    lines = ["median latency, ms:", *grid(cells, "median", ".3f", 1e3), *launch_lines(found)]
    lines += [f"progdistill is slower than another in {len(lost)} of {len(cells)} sizes{':' if lost else ''}", *lost]
    lines += [f"left out: {name} ({reason})" for name, reason in found["left_out"].items()]
    lines += ["notes:", *noted] if noted else []
    return lines, any(note["failed"] for cell in cells for note in cell["notes"])


def write_csv(path: Path, found: dict[str, Any]) -> None:
    """One line for each size and contender; times in seconds."""
    about = {"network": found["network"], "stock_network": found["stock_network"], **columns(found["machine"])}
    rows = [
        {
            "batch_size": cell["batch_size"],
            "steps": cell["steps"],
            **{key: value for key, value in record.items() if key != "seconds"},
            **about,
        }
        for cell in found["cells"]
        for record in cell["records"]
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["batch_size"])
        writer.writeheader()
        writer.writerows(rows)
