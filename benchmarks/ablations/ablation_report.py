"""Tables and plots of `ablation.py`'s output, as a page of the docs.

    python benchmarks/ablations/ablation_report.py ablation-digits.json --docs docs

Writes docs/ablation.md and docs/images/ablation-*.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from ablation import PREDICTIONS, WEIGHTINGS
from progdistill.core.files import write_text_atomic
from progdistill.report import Series, line_chart

NAMES = {"sample_epsilon": "(x, epsilon)", "sample": "x", "epsilon": "epsilon", "v_prediction": "v"}
TEXT = Path(__file__).parent / "ablation_page.md"


def cells_of(cells: dict[str, Any], prefix: str) -> dict[str, list[dict[str, Any]]]:
    """Cells below a prefix, the training seeds of each together."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cell in cells.items():
        if name.startswith(prefix + "/"):
            inner, _ = name[len(prefix) + 1 :].rsplit("/", 1)
            found.setdefault(inner, []).append(cell)
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def figure(points: list[dict[str, float]]) -> str:
    """One training seed: mean and deviation over image seeds; several: each one's mean."""
    if len(points) == 1:
        return f"{points[0]['mean']:.1f} ± {points[0]['deviation']:.1f}"
    return " / ".join(f"{point['mean']:.1f}" for point in points)


def table1(cells: dict[str, Any]) -> str:
    """Rows: predictions; columns: weightings, stochastic / DDIM as in the paper."""
    found, rows = cells_of(cells, "table1"), []
    for prediction in PREDICTIONS:
        row = [NAMES[prediction]]
        for weighting in WEIGHTINGS:
            seeds = found.get(f"{prediction}/{weighting}", [])
            good = [cell for cell in seeds if "diverged" not in cell]
            for sampler in ("stochastic", "ddim"):
                text = figure([cell[sampler] for cell in good]) if good else ""
                row.append(" / ".join(filter(None, [text, *["diverges"] * (len(seeds) - len(good))])) or "-")
        rows.append(row)
    head = ["prediction", *(f"{w}, {s}" for w in WEIGHTINGS for s in ("stochastic", "DDIM"))]
    return table(head, rows)


def appendix_f(cells: dict[str, Any], images: Path) -> str:
    """Best noise level against DDIM, first training seed."""
    parts = []
    for who in ("teacher", "student"):
        found, rows = cells_of(cells, f"appendix_f/{who}"), []
        for steps in sorted(found, key=int):
            cell = found[steps][0]
            best = min(range(len(cell["gammas"])), key=lambda k: cell["stochastic"][k])
            row = [steps, f"{cell['ddim']:.1f}", f"{cell['stochastic'][best]:.1f}", f"{cell['gammas'][best]:.1f}"]
            rows.append([*row, f"{max(cell['stochastic']):.1f}"])
        parts.append(table([f"{who}, steps", "DDIM", "stochastic, best", "its gamma", "stochastic, worst"], rows))
        series = [
            Series(name, [int(row[0]) for row in rows], [float(row[k]) for row in rows])
            for name, k in (("DDIM", 1), ("stochastic, best of 11 gammas", 2))
        ]
        write_text_atomic(
            images / f"ablation-sampler-{who}.svg",
            line_chart(series, title=who, x_label="sampling steps", y_label="Frechet distance", log_x=True, log_y=True),
        )
    return "\n\n".join(parts)


def appendix_i(cells: dict[str, Any], images: Path) -> str:
    """A row for each run, a column for each step count."""
    found, counts = cells_of(cells, "appendix_i"), ("1", "2", "4", "8", "16")
    rows, series = [], []
    for name, seeds in found.items():
        key = "ddim" if name == "teacher" else "students"
        present = [n for n in counts if n in seeds[0][key]]
        row = ["teacher, plain DDIM" if name == "teacher" else name]
        row += [figure([cell[key][n] for cell in seeds]) if n in present else "-" for n in counts]
        rows.append(row)
        means = [statistics.mean(cell[key][n]["mean"] for cell in seeds) for n in present]
        series.append(Series(row[0], [int(n) for n in present], means))
    chart = line_chart(
        series, title="Schedules", x_label="sampling steps", y_label="Frechet distance", log_x=True, log_y=True
    )
    write_text_atomic(images / "ablation-schedules.svg", chart)
    return table(["run", *(f"{n} step{'s' * (n != '1')}" for n in counts)], rows)


def main() -> None:
    """Fills the page's text with what was computed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    cells, settings, images = results["cells"], results["settings"], arguments.docs / "images"
    seeds = sorted({int(name.rsplit("/", 1)[1]) for name in cells})
    page = TEXT.read_text().format(
        table1=table1(cells),
        appendix_f=appendix_f(cells, images),
        appendix_i=appendix_i(cells, images),
        seeds=", ".join(map(str, seeds)),
        processor=results["machine"]["processor"],
        torch=results["machine"]["torch"],
        **settings,
    )
    write_text_atomic(arguments.docs / "ablation.md", page)


if __name__ == "__main__":
    main()
