"""report.html of the quickstart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from progdistill.core.files import write_text_atomic
from progdistill.report import Png, Preformatted, Section, Series, Svg, Table, html_page, line_chart
from progdistill.training.run_report import loss_chart, round_table


def write_report(
    output: Path, metrics: dict[str, Any], picture: Image.Image, records: dict[str, list[dict[str, Any]]]
) -> None:
    """Writes the page: pictures, quality against steps, losses, timings."""
    sections = [
        Section("The same noise through teacher and students", [Png(picture, "samples by model and step count")]),
        Section("Quality against steps", _quality(metrics)),
        Section("Rounds", [round_table(records["students"])]),
        Section("Loss", [Svg(loss_chart(records["teacher"])), Svg(loss_chart(records["students"]))]),
        Section("Time", _timings(metrics)),
        Section("Machine", [Preformatted(json.dumps(metrics["machine"], indent=2))]),
    ]
    write_text_atomic(output / "report.html", html_page("progdistill quickstart: digits in one step", sections))


def _quality(metrics: dict[str, Any]) -> list:
    names = {"student": "distilled students", "teacher_ddim": "undistilled teacher, DDIM"}
    series, rows = [], []
    for who, name in names.items():
        points = [(int(n), entry[who]) for n, entry in metrics["steps"].items() if entry[who] is not None]
        series.append(
            Series(
                name,
                [steps for steps, _ in points],
                [point["mean"] for _, point in points],
                [point["deviation"] for _, point in points],
            )
        )
    for steps, entry in metrics["steps"].items():
        row: dict[str, object] = {"steps": int(steps)}
        for who, name in names.items():
            point = entry[who]
            row[name] = None if point is None else f"{point['mean']:.1f} ± {point['deviation']:.1f}"
        rows.append(row)
    chart = line_chart(
        series,
        title="Frechet distance to the real images",
        x_label="sampling steps",
        y_label="Frechet distance",
        log_x=True,
        log_y=True,
    )
    return [
        Svg(chart),
        Table(rows),
        f"{metrics['features']}; {metrics['images_per_distance']} images, mean and standard deviation over "
        f"{metrics['sampling_seeds']} sets of image seeds. As many real images, drawn at random, are at "
        f"{metrics['floor']:.1f}. These features are not Inception's, so the distance is not an FID.",
    ]


def _timings(metrics: dict[str, Any]) -> list:
    rows = [{"stage": stage, "seconds": value} for stage, value in metrics["seconds"].items()]
    ratio = metrics["distillation_over_training"]
    return [
        Table(rows),
        f"Distillation took {ratio:.2f} times as long as training the teacher (the paper: at most 1 at its scale).",
    ]
