"""Tables and plots of `d_ode_ablation.py`'s output: a page of the docs, or an HTML page that needs no other file.

    python benchmarks/ablations/d_ode_report.py d-ode-ablation-digits.json --docs docs --page d-ode.html

Writes docs/d-ode.md from `d_ode_page.md`, and docs/images/d-ode-*.svg.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ablation_report import table
from d_ode_heat_map import heat_map
from progdistill.core.files import write_text_atomic
from progdistill.report import Section, Series, Svg, Table, html_page, line_chart

NAMES = {
    "ddim": "DDIM",
    "d_ddim": "D-DDIM",
    "two": "D-DDIM-2",
    "differences": "eq. 9, all differences",
    "sep": "D-DDIM-Sep",
    "all": "D-DDIM-All",
    "fixed": "Fixed-D-DDIM",
    "la": "LA-DDIM",
}
# The settings that hold the numbers tried for those that fit none.
STRENGTHS = {"fixed": "fixed", "la": "lookahead"}
TEXT = Path(__file__).parent / "d_ode_page.md"
Rows = tuple[list[str], list[list[str]]]
Cells = dict[str, Any]


def tables(results: dict[str, Any]) -> dict[str, Rows]:
    """Each table's head and rows."""
    cells, settings = results["cells"], results["settings"]
    steps = settings["steps"]
    found = {"variants": _of_variants(cells, settings), "searched": _of_searches(cells, settings)}
    found["lagging"] = _of_lagging(cells, settings["searched_steps"])
    scales = sorted({*settings["scales"], settings["scale"]})
    head = ["S", *(f"{what}, {n} steps" for n in steps for what in ("Frechet", "error"))]
    found["scale"] = head, [[str(scale), *_cells_of_scale(cells, settings, scale)] for scale in scales]
    found["batch"] = _of_batches(cells, settings)
    return found


def _of_variants(cells: Cells, settings: dict[str, Any]) -> Rows:
    rows, steps = [], settings["steps"]
    for name, label in NAMES.items():
        key, row = name, [label]
        if name in STRENGTHS:
            best = min(settings[STRENGTHS[name]], key=lambda k: cells[f"searched/{name}/{k:g}"]["frechet"]["mean"])
            key, row = f"{name}-{best:g}", [f"{label}, {best:g}"]
        for count in steps:
            cell = cells[f"variants/{key}/{count}"]
            fitted = f" ({cell['fitted_error']:.4f})" if "fitted_error" in cell else ""
            row += [_frechet(cell), f"{cell['error']:.4f}{fitted}"]
        rows.append(row)
    limit = cells[f"limit/ddim/{settings['limit_steps']}"]
    rest = [""] * (2 * len(steps) - 2)
    rows.append([f"DDIM, {settings['limit_steps']} steps", _frechet(limit), f"{limit['error']:.4f}", *rest])
    return ["solver", *(f"{what}, {n} steps" for n in steps for what in ("Frechet", "error (fitted)"))], rows


def _of_searches(cells: Cells, settings: dict[str, Any]) -> Rows:
    rows = []
    for name, setting in STRENGTHS.items():
        for strength in settings[setting]:
            cell = cells[f"searched/{name}/{strength:g}"]
            rows.append([NAMES[name], f"{strength:g}", _frechet(cell), f"{cell['error']:.4f}"])
    return ["solver", "number", f"Frechet, {settings['searched_steps']} steps", "error"], rows


def _of_lagging(cells: Cells, steps: int) -> Rows:
    rows = []
    for name in NAMES:
        if f"lagging/{name}/{steps}" in cells:
            nested, lagging = (cells[f"{part}/{name}/{steps}"] for part in ("variants", "lagging"))
            row = [NAMES[name], _frechet(nested), f"{nested['error']:.4f}", _frechet(lagging)]
            rows.append([*row, f"{lagging['error']:.4f}", f"{lagging['fitted_error']:.4f}"])
    head = ["solver", "Frechet, equal noise", "error", "Frechet, lagging", "error", "on fitted noises"]
    return head, rows


def _cells_of_scale(cells: Cells, settings: dict[str, Any], scale: int) -> list[str]:
    found = []
    for steps in settings["steps"]:
        own = f"variants/d_ddim/{steps}" if scale == settings["scale"] else f"scale/{scale}/{steps}"
        found += [_frechet(cells[own]), f"{cells[own]['error']:.4f}"]
    return found


def _of_batches(cells: Cells, settings: dict[str, Any]) -> Rows:
    rows, steps = [], settings["searched_steps"]
    for size in settings["batch_sizes"]:
        cell = cells[f"batch/{size}/{steps}"]
        frechet, error = cell["frechet"], cell["error"]
        spread = f"{frechet['mean']:.1f} ± {frechet['deviation']:.1f}"
        rows.append([str(size), spread, f"{error['mean']:.4f} ± {error['deviation']:.4f}"])
    return ["noises", f"Frechet, {steps} steps", "error"], rows


def _frechet(cell: dict[str, Any]) -> str:
    return f"{cell['frechet']['mean']:.1f} ± {cell['frechet']['deviation']:.1f}"


def plots(results: dict[str, Any]) -> dict[str, str]:
    """SVG documents by name."""
    cells = results["cells"]
    correlation, drawn = cells["figures/correlation"], cells["figures/trajectories"]
    found = {
        f"correlation-{name}": heat_map(
            correlation[name], correlation["times"], title=f"Cosine similarity of {name}", label="time"
        )
        for name in ("eps", "x")
    }
    paths = drawn["paths"]
    plain = {"fine": f"DDIM, {results['settings']['fine_steps']}", "ddim": "DDIM", "d_ddim": "D-DDIM"}
    others = {"fine": plain["fine"], **{name: NAMES[name] for name in ("two", "sep", "all")}}
    late = {"fine": plain["fine"], **{f"{name}-lagging": NAMES[name] for name in ("d_ddim", "two", "sep", "all")}}
    found["norm"] = _paths(paths, plain, "norm", f"Norm of the state, {drawn['steps']} steps")
    for number, pixel in enumerate(drawn["pixels"]):
        found[f"pixel-{number + 1}"] = _paths(paths, plain, number, f"Pixel {pixel}, {drawn['steps']} steps")
    found["norm-variants"] = _paths(paths, others, "norm", "Norm, fitted at equal noise")
    found["norm-lagging"] = _paths(paths, late, "norm", "Norm, fitted to states that lag")
    found["searched"] = _search_chart(results)
    return found


def _paths(paths: dict[str, Any], shown: dict[str, str], what: str | int, title: str) -> str:
    series = []
    for name, label in shown.items():
        path = paths[name]
        values = path["norm"] if what == "norm" else path["pixels"][what]
        series.append(Series(label, [1 - time for time in path["times"]], values))
    label = "root-mean-square" if what == "norm" else "value"
    return line_chart(series, title=title, x_label="1 - time", y_label=label, width=560, height=360)


def _search_chart(results: dict[str, Any]) -> str:
    """Figure 8 (b), (c): the distance against the number, and that of solvers without one as level lines."""
    cells, settings = results["cells"], results["settings"]
    series = []
    for name, setting in STRENGTHS.items():
        values = [cells[f"searched/{name}/{strength:g}"]["frechet"]["mean"] for strength in settings[setting]]
        series.append(Series(NAMES[name], settings[setting], values))
    tried = settings["lookahead"] + settings["fixed"]
    ends = [min(tried), max(tried)]
    for name in ("ddim", "d_ddim"):
        level = cells[f"variants/{name}/{settings['searched_steps']}"]["frechet"]["mean"]
        series.append(Series(NAMES[name], ends, [level, level]))
    title = f"One number for all of {settings['searched_steps']} steps"
    return line_chart(series, title=title, x_label="number", y_label="Frechet distance", width=560, height=360)


def write_page(results: dict[str, Any], path: Path) -> None:
    """An HTML page with everything."""
    made, drawn = tables(results), plots(results)
    tabled = {
        "variants": "Variants",
        "lagging": "Targets at equal noise, and lagging ones",
        "searched": "One number for all steps",
        "scale": "Scale",
        "batch": "Batch size",
    }
    sections = [
        Section(heading, [Table(made[name][1], header=_unique(made[name][0]))]) for name, heading in tabled.items()
    ]
    sections.append(Section("Figures", [Svg(markup, caption=name) for name, markup in drawn.items()]))
    write_text_atomic(path, html_page("D-ODE on the digits", sections))


def _unique(head: list[str]) -> list[str]:
    """Headings of a table, of which HTML's need not differ but readers' do."""
    return [name if name not in head[:place] else f"{head[place - 1]}: {name}" for place, name in enumerate(head)]


def main(given: list[str] | None = None) -> None:
    """Fills the page's text with what was computed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args(given)
    results = json.loads(arguments.results.read_text())
    if arguments.page:
        write_page(results, arguments.page)
    if arguments.docs:
        for name, markup in plots(results).items():
            write_text_atomic(arguments.docs / "images" / f"d-ode-{name}.svg", markup)
        made = {name: table(*rows) for name, rows in tables(results).items()}
        machine = results["machine"]
        facts = {**results["settings"], "processor": machine["processor"], "torch": machine["torch"]}
        write_text_atomic(arguments.docs / "d-ode.md", TEXT.read_text().format(**made, **{"facts": facts}))


if __name__ == "__main__":
    main()
