"""report.html of a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from progdistill.core.files import write_text_atomic
from progdistill.report import Png, Preformatted, Section, Series, Svg, Table, html_page, line_chart

_CALLS, _SECONDS = "network_calls", "training_seconds"


def write_report(output: Path, result: dict[str, Any], picture: Image.Image | None) -> None:
    """Writes the page: for each metric a table and two charts, then costs, what was left out, and pictures.

    The charts are also files: METRIC-network-calls.svg, METRIC-training-seconds.svg.
    """
    for metric in result["metrics"]:
        for against, chart in charts(result, metric).items():
            write_text_atomic(output / f"{metric}-{against.replace('_', '-')}.svg", chart + "\n")
    sections = [Section(result["names"][metric], _metric(result, metric)) for metric in result["metrics"]]
    sections.append(Section("Costs", [Table(_cost_rows(result)), *_left_out(result)]))
    if picture is not None:
        sections.append(Section("The same noise", [Png(picture, "samples by method and network calls")]))
    sections.append(Section("Machine", [Preformatted(json.dumps(result["machine"], indent=2))]))
    write_text_atomic(output / "report.html", html_page("Few network calls: methods compared", sections))


def table_lines(result: dict[str, Any]) -> list[str]:
    """The first metric as a small table."""
    rows = _quality_rows(result, result["metrics"][0])
    width = max(len(row["method"]) for row in rows)
    calls = [name for name in rows[0] if name != "method"]
    lines = ["  ".join([f"{'calls':<{width}}", *(f"{name.split()[0]:>14}" for name in calls)])]
    return lines + [
        "  ".join([f"{row['method']:<{width}}", *(f"{row[name] or '-':>14}" for name in calls)]) for row in rows
    ]


def charts(result: dict[str, Any], metric: str) -> dict[str, str]:
    """A metric against "network_calls" and against "training_seconds", each as an SVG document."""
    name = result["names"][metric]
    points = [point for entry in result["methods"].values() for point in entry["steps"].values()]
    # Figures that fall to nothing or below have no logarithm.
    log_y = min(point["figures"][metric]["mean"] for point in points) > 0
    return {
        key: line_chart(_series(result, metric, key), title=name, x_label=label, y_label=name, log_x=log_x, log_y=log_y)
        for key, label, log_x in ((_CALLS, "network calls an image", True), (_SECONDS, "training seconds", False))
    }


def _metric(result: dict[str, Any], metric: str) -> list:
    classes = result["num_classes"]
    of = "images" if classes is None else f"images of all {classes} classes in turn, without guidance"
    return [
        Table(_quality_rows(result, metric), caption="network calls an image: mean ± deviation"),
        *map(Svg, charts(result, metric).values()),
        f"{result['features']}; {result['num_images']} {of}, mean and standard deviation over {result['seeds']} sets "
        f"of image seeds, the same for all methods, against {result['data_images']} images of {result['data']}.",
    ]


def _points(entry: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return sorted(entry["steps"].values(), key=lambda point: point[key])


def _series(result: dict[str, Any], metric: str, key: str) -> list[Series]:
    series = []
    for method, entry in result["methods"].items():
        points = _points(entry, key)
        if not points:
            continue
        figures = [point["figures"][metric] for point in points]
        values, errors = [figure["mean"] for figure in figures], [figure["deviation"] for figure in figures]
        series.append(Series(method, [point[key] for point in points], values, errors))
    return series


def _quality_rows(result: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    """A row for each method, a column for each number of calls that one of them makes."""
    entries = result["methods"].items()
    calls = sorted({point[_CALLS] for _, entry in entries for point in entry["steps"].values()})
    rows = []
    for method, entry in entries:
        row: dict[str, Any] = {"method": method, **{_counted(n): None for n in calls}}
        for point in _points(entry, _CALLS):
            figure = point["figures"][metric]
            row[_counted(point[_CALLS])] = f"{figure['mean']:.4g} ± {figure['deviation']:.2g}"
        rows.append(row)
    return rows


def _counted(calls: int) -> str:
    return f"{calls} call{'s' * (calls > 1)}"


def _cost_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"method": method, "steps": int(steps), "network calls": point[_CALLS], "training seconds": point[_SECONDS]}
        for method, entry in result["methods"].items()
        for steps, point in entry["steps"].items()
    ]


def _left_out(result: dict[str, Any]) -> list[str]:
    took = result["seconds"]
    lines = [
        "Training seconds are those from the teacher to this step count: of pd, all rounds up to it.",
        f"This call took {took['total']:.0f} s, {took['train']:.0f} s of them training, {took['measure']:.0f} s "
        "measuring; what was trained or measured before is not in it.",
    ]
    for method, entry in result["methods"].items():
        by_reason: dict[str, list[str]] = {}
        for steps, reason in entry["left_out"].items():
            by_reason.setdefault(reason, []).append(steps)
        lines += [f"{method} leaves out {', '.join(steps)} steps: {reason}." for reason, steps in by_reason.items()]
    return lines
