"""The figures of benchmarks/train_step.py for people."""

from __future__ import annotations

from typing import Any

from kernel_classes import CLASSES, conversion_share
from notes import note_line

WIDTH = 46


def heading(found: dict[str, Any]) -> list[str]:
    """What is measured, and the columns."""
    (cell,) = found["cells"]
    ceiling = found["matrix_rate"]
    return [
        f"{found['network']}, batch {cell['batch_size']}, {2 * cell['steps']} -> {cell['steps']} steps: "
        f"{found['update_flop'] / 1e12:.3g} TFLOP an update; the others' network: {found['stock_network']}",
        f"{ceiling['size']}^3 product in {ceiling['dtype']}: {ceiling['flop_per_second'] / 1e12:.3g} TFLOP/s",
        *(f"left out: {name} ({reason})" for name, reason in found["left_out"].items()),
        f"{'':<{WIDTH}}{'ms':>10}{'20 %':>10}{'80 %':>10}{'TFLOP/s':>10}{'of ceiling':>12}{'MB':>9}{'start, s':>10}",
    ]


def record_line(record: dict[str, Any]) -> str:
    """A contender's figures."""
    memory = record["memory_bytes"]
    return (
        f"{record['contender']:<{WIDTH}}"
        + "".join(f"{1e3 * record[key]:>10.2f}" for key in ("median", "quantile_20", "quantile_80"))
        + f"{record['flop_per_second'] / 1e12:>10.4g}{100 * record['of_matrix_rate']:>10.1f} %"
        + (f"{'-':>9}" if memory is None else f"{memory / 1e6:>9.0f}")
        + f"{record['start_up_seconds']:>10.1f}"
    )


def class_lines(records: list[dict[str, Any]]) -> list[str]:
    """Milliseconds of each contender in each class of kernels; nothing where none was profiled."""
    records = [record for record in records if record["by_class"]]
    if not records:
        return []
    lines = ["milliseconds by class of kernels:"]
    lines += [f"  ({letter}) {record['contender']}" for letter, record in zip("abcdefgh", records, strict=False)]
    lines.append(f"{'':<{WIDTH}}" + "".join(f"{f'({letter})':>10}" for letter in "abcdefgh"[: len(records)]))
    for name in CLASSES:
        lines.append(f"  {name:<{WIDTH - 2}}" + _row(record["by_class"]["seconds"][name] for record in records))
    lines.append(f"  {'sum':<{WIDTH - 2}}" + _row(sum(record["by_class"]["seconds"].values()) for record in records))
    shares = "".join(f"{100 * conversion_share(record['by_class']):>8.1f} %" for record in records)
    lines.append(f"  {'layout copies and casts':<{WIDTH - 2}}" + shares)
    for figure in ("launches", "kernels"):
        if any(record[figure] for record in records):
            counts = "".join(f"{record[figure] or 0:>10}" for record in records)
            lines.append(f"  {figure + ' an update':<{WIDTH - 2}}{counts}")
    return lines


def _row(seconds: Any) -> str:
    return "".join(f"{1e3 * value:>10.3f}" for value in seconds)


def curve_lines(records: list[dict[str, Any]]) -> list[str]:
    """How far the losses are from those of plain PyTorch in float32."""
    if not records:
        return []
    count = len(records[0]["curve"]["loss"])
    lines = [f"losses of {count} updates beside those of eager PyTorch in float32, relative differences:"]
    columns = ("first loss", "gradient", "mean", "window", "sum")
    lines.append(f"{'':<{WIDTH}}" + "".join(f"{column:>12}" for column in columns))
    for record in records:
        lines.append(f"  {record['contender']:<{WIDTH - 2}}" + "".join(f"{v:>12.1e}" for v in record["apart"].values()))
    return lines


def closing_lines(found: dict[str, Any]) -> tuple[list[str], bool]:
    """All of it, who was faster, and notes; and whether something failed."""
    (cell,) = found["cells"]
    records = cell["records"]
    lines = [*heading(found), *map(record_line, records)]
    ours, others = ([record for record in records if record["ours"] == own] for own in (True, False))
    if ours and others:
        own, fastest = (min(some, key=lambda record: record["median"]) for some in (ours, others))
        ratio = fastest["median"] / own["median"]
        lines.append(f"the fastest other, {fastest['contender']}, takes {ratio:.2f} of {own['contender']}'s time")
    lines += ["", *class_lines(records), "", *curve_lines(records)]
    trouble = found["profile_trouble"]
    lines += ["not all could be profiled; the process said:", *trouble.splitlines()] if trouble else []
    notes = cell["notes"]
    lines += ["notes:", *(f"  {note_line(one)}" for one in notes)] if notes else []
    return lines, any(one["failed"] for one in notes)
