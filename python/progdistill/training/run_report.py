"""The page of a run: loss curves, rounds, pictures; written as it goes on, and at its end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from PIL import Image

from progdistill.core.files import write_text_atomic
from progdistill.core.processes import is_main_process
from progdistill.report import Png, Preformatted, Section, Series, Svg, Table, html_page, line_chart
from progdistill.training.run_folder import RunFolder

RENEWAL_SECONDS = 60
PICTURES = 24


def loss_chart(records: list[dict[str, Any]]) -> str:
    """SVG of the loss against updates, a curve for each round."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        if record["event"] == "update":
            curves.setdefault(record["label"], []).append((record["update"], record["loss"]))
    series = [Series(label, *zip(*points, strict=True)) for label, points in curves.items()]
    return line_chart(series, title="Loss", x_label="update", y_label="weighted error", log_y=True)


def round_table(records: list[dict[str, Any]]) -> Table:
    """What each round took and lost."""
    rows = []
    for record in records:
        if record["event"] == "round_end":
            row = {"round": record["label"], "seconds": f"{record['seconds']:.1f}"}
            if "conversion_distance" in record:
                row["updates"] = str(record["updates"])
                value, error = record["conversion_distance"], record["conversion_distance_error"]
                row["converted to teacher, at equal steps"] = f"{value:.4f} ± {error:.4f} ({record['sampling_steps']})"
            if "guidance_distance" in record:
                row["updates"] = str(record["updates"])
                value, error = record["guidance_distance"], record["guidance_distance_error"]
                row["guided to teacher, at equal steps"] = f"{value:.4f} ± {error:.4f} ({record['sampling_steps']})"
            if "teacher_calls" in record:
                row["updates"] = str(record["updates"])
                for who in ("student", "teacher"):
                    value, error = record[f"{who}_distance"], record[f"{who}_distance_error"]
                    name = f"{who} in {record['steps']} to teacher in {record['teacher_calls']} calls"
                    row[name] = f"{value:.4f} ± {error:.4f}"
            elif "steps" in record:
                row["updates"] = str(record["updates"])
                substeps = record["teacher_steps"] // record["steps"]
                for who in ("student", "teacher"):
                    value, error = record[f"{who}_distance"], record[f"{who}_distance_error"]
                    row[f"{who} at N to teacher at {substeps}N"] = f"{value:.4f} ± {error:.4f}"
            rows.append(row)
    return Table(rows)


def write_run_report(run: RunFolder, *, running: bool = False) -> None:
    """Writes report.html beside the run's other files; while the run goes on, browsers load it again by themselves."""
    records = run.metrics.records()
    pictures = sorted((run.path / "samples").glob("*.png"), key=lambda path: path.stat().st_mtime)
    sections = [
        Section("State", [Preformatted(json.dumps(run.progress.facts, indent=2))]),
        Section(
            "Rounds",
            [
                round_table(records),
                "Paired distances are root-mean-square pixel differences (data range 2) on the same noise, with their "
                "standard errors. A student should be closer to its teacher's many steps than the teacher's N are.",
            ],
        ),
        Section("Loss", [Svg(loss_chart(records))]),
        Section("Samples", [_picture(path) for path in pictures[-PICTURES:]]),
    ]
    refresh = RENEWAL_SECONDS if running else None
    write_text_atomic(run.path / "report.html", html_page(run.title, sections, refresh_seconds=refresh))


def renew_run_report(run: RunFolder) -> None:
    """Writes the report of a run that goes on, once a minute at most."""
    now = time.monotonic()
    if is_main_process() and now - run.report_time > RENEWAL_SECONDS:
        write_run_report(run, running=True)
        run.report_time = now


def _picture(path: Path) -> Png:
    with Image.open(path) as image:
        return Png(image.copy(), alt=f"samples, {path.stem}", caption=path.stem)
