"""Tables and charts of `sfd_ablation.py`'s output: a self-contained HTML page, or the tables for the docs.

python benchmarks/ablations/sfd_ablation_report.py sfd-ablation-digits.json --output sfd-ablation.html
python benchmarks/ablations/sfd_ablation_report.py sfd-ablation-digits.json --markdown
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ablation_report import cells_of, figure, table
from progdistill.core.files import write_text_atomic
from progdistill.metrics import mean_and_standard_error
from progdistill.report import Section, Series, Svg, Table, html_page, line_chart

Cells = dict[str, Any]
DEFAULT = "default"
HEAD = (
    "student",
    "calls",
    "teacher's",
    "Frechet distance",
    "minus default's",
    "of the trajectory",
    "to it, before",
    "after",
    "to the ODE",
)


class Group(NamedTuple):
    """Students that differ in one thing: those whose names begin so, below the one that they are set against."""

    title: str
    prefix: str
    base: str | None = None
    """The value of the default, which belongs among the others on a numeric axis; None if the axis is not numeric."""
    numeric: bool = False
    log_x: bool = False


GROUPS = (
    Group("The teacher's solver", "solver/"),
    Group("The teacher's steps inside a student's step, K", "substeps/", base="4", numeric=True, log_x=True),
    Group("The analytic first step", "analytic-first-step/"),
    Group("The loss", "loss/"),
    Group("sigma_min of a polynomial grid", "sigma-min/", numeric=True, log_x=True),
    Group("The end of the schedule's own times", "time-end/", base="0", numeric=True),
    Group("Where a step starts", "start/"),
)
GRIDS = {"timestamp": "equal times", "timestamp-polynomial": "a polynomial grid, sigma from 80 to 0.002"}


def by_seed(cells: Cells, name: str) -> dict[int, Any]:
    """The training seeds that have this cell."""
    found = {int(full.rsplit("/", 1)[1]): cell for full, cell in cells.items() if full.rsplit("/", 1)[0] == name}
    return dict(sorted(found.items()))


def members(cells: Cells, group: Group) -> list[str]:
    """The names below "student/" of a group, the default first."""
    return [DEFAULT, *(name for name in cells_of(cells, "student") if name.startswith(group.prefix))]


def student_row(cells: Cells, name: str) -> list[str]:
    """A row of `HEAD`: seeds are parted by " / "; the spread is over three sets of image seeds."""
    found = by_seed(cells, f"student/{name}")
    one = next(iter(found.values()))
    row = [name.replace("/", " ", 1), str(one["network_calls"]), str(one["teacher_calls"])]
    row += [_joined(found, "frechet"), "" if name == DEFAULT else difference(cells, name)]
    row.append(_joined(found, "frechet_followed"))
    return row + [_means(found, key) for key in ("to_followed_before", "to_followed", "to_solution")]


def difference(cells: Cells, name: str) -> str:
    """Frechet distance minus the default's, of equal training seeds and sets of image seeds: mean and standard error.

    For each training seed by itself: the error is that of the images alone.
    """
    default, parts = by_seed(cells, f"student/{DEFAULT}"), []
    for seed, cell in by_seed(cells, f"student/{name}").items():
        if seed in default:
            pairs = zip(cell["frechet"]["values"], default[seed]["frechet"]["values"], strict=True)
            mean, error = mean_and_standard_error(torch.tensor([own - other for own, other in pairs]))
            parts.append(f"{mean:+.1f} ± {error:.1f}")
    return " / ".join(parts)


def _joined(found: dict[int, Any], key: str) -> str:
    return " / ".join(figure([cell[key]]) for cell in found.values())


def _means(found: dict[int, Any], key: str) -> str:
    return " / ".join(f"{cell[key][0]:.3f}" for cell in found.values())


def student_rows(cells: Cells, group: Group) -> list[list[str]]:
    """The rows of a group's students; none before they are computed."""
    names = [name for name in members(cells, group) if by_seed(cells, f"student/{name}")]
    return [student_row(cells, name) for name in names] if names != [DEFAULT] else []


def group_chart(cells: Cells, group: Group) -> str:
    """Frechet distances of students and of what they followed against the number that was changed."""
    values = {name: float(name.removeprefix(group.prefix)) for name in members(cells, group) if _is_value(group, name)}
    if group.base is not None:
        values[DEFAULT] = float(group.base)
    series = []
    for seed in sorted({seed for name in values for seed in by_seed(cells, f"student/{name}")}):
        own = [(x, by_seed(cells, f"student/{name}").get(seed)) for name, x in values.items()]
        points = sorted(((x, cell) for x, cell in own if cell), key=lambda point: point[0])
        for label, key in (("student", "frechet"), ("what it followed", "frechet_followed")):
            figures = [cell[key] for _, cell in points]
            y, error = ([one[part] for one in figures] for part in ("mean", "deviation"))
            series.append(Series(f"{label}, training seed {seed}", [x for x, _ in points], y, error))
    return line_chart(
        series,
        title=group.title,
        x_label=group.prefix.rstrip("/"),
        y_label="Frechet distance",
        log_x=group.log_x,
        log_y=True,
    )


def _is_value(group: Group, name: str) -> bool:
    try:
        float(name.removeprefix(group.prefix))
    except ValueError:
        return False
    return True


def overview_rows(cells: Cells) -> list[list[str]]:
    """The numbers of the overview's axis."""
    return [
        [str(number), name.replace("/", " ", 1), _joined(by_seed(cells, f"student/{name}"), "frechet")]
        for number, name in enumerate(cells_of(cells, "student"), 1)
    ]


def overview_chart(cells: Cells) -> str:
    """All students, by their number."""
    names, series = list(cells_of(cells, "student")), []
    for seed in sorted({seed for name in names for seed in by_seed(cells, f"student/{name}")}):
        own = [by_seed(cells, f"student/{name}").get(seed) for name in names]
        figures = [cell["frechet"] if cell else {} for cell in own]
        # A gap after each point: neighbours have nothing to do with each other.
        x = [place for number in range(1, len(names) + 1) for place in (number, None)]
        y, error = ([value for one in figures for value in (one.get(part), None)] for part in ("mean", "deviation"))
        series.append(Series(f"training seed {seed}", x, y, error))
    return line_chart(
        series, title="All students", x_label="number in the table", y_label="Frechet distance", log_y=True
    )


def trained_at(cell: dict[str, Any]) -> str:
    """ "t = 0.75", for the step that starts there."""
    stride = (len(cell["times"]) - 1) // (len(cell["along"]) - 1)
    times = [f"{cell['times'][stride * step]:.3g}" for step in cell["trained"]]
    return f"trained at t = {', '.join(times)}" if times else "before"


def timestamp_rows(cells: Cells, where: str, key: str, columns: Sequence[int]) -> list[list[str]]:
    """Distances times 1000, a row for each way of training; seeds parted by " / "."""
    rows = []
    for name, found in cells_of(cells, where).items():
        own = by_seed(cells, f"{where}/{name}").values()
        figures = [" / ".join(f"{1e3 * cell[key][column]:.3g}" for cell in own) for column in columns]
        rows.append([trained_at(found[0]), *figures])
    return rows


def timestamp_chart(cells: Cells, where: str, title: str) -> str:
    """Distance after one step against where it starts, before and after training; bars span the training seeds."""
    series = []
    for found in cells_of(cells, where).values():
        columns = list(zip(*(cell["one_step"] for cell in found), strict=True))
        means = [statistics.mean(column) for column in columns]
        halves = [(max(column) - min(column)) / 2 for column in columns]
        series.append(Series(trained_at(found[0]), found[0]["times"], means, halves if len(found) > 1 else None))
    return line_chart(
        series,
        title=f"One step from the teacher's trajectory: {title}",
        x_label="time t at which the step starts (1: noise)",
        y_label="distance from the teacher's state",
        log_y=True,
    )


def timestamp_tables(cells: Cells, where: str) -> list[tuple[list[str], list[list[str]]]]:
    """(head, rows) of both tables: one step, and along the student's own trajectory."""
    first = next(iter(cells_of(cells, where).values()))[0]
    columns, along = range(0, len(first["times"]), 2), range(len(first["along"]))
    times = [f"{first['times'][n]:.3g}" for n in columns]
    return [
        (["one step from t", *times], timestamp_rows(cells, where, "one_step", columns)),
        (["own trajectory, after step", *(str(n + 1) for n in along)], timestamp_rows(cells, where, "along", along)),
    ]


def teacher_rows(cells: Cells) -> list[list[str]]:
    """The teacher itself."""
    return [
        [f"DDIM, {steps} calls", _joined(by_seed(cells, f"teacher/{steps}"), "frechet")]
        for steps in cells_of(cells, "teacher")
    ]


def markdown(results: dict[str, Any]) -> str:
    """All tables, for the docs: that of the students is one."""
    cells = results["cells"]
    parts = [table(["teacher", "Frechet distance"], teacher_rows(cells))]
    if by_seed(cells, f"student/{DEFAULT}"):
        changed = [row for group in GROUPS for row in student_rows(cells, group)[1:]]
        parts.append(table(list(HEAD), [student_row(cells, DEFAULT), *changed]))
    for where, title in GRIDS.items():
        if cells_of(cells, where):
            parts += [f"{title}:", *(table(*both) for both in timestamp_tables(cells, where))]
    return "\n\n".join(parts) + "\n"


def page(results: dict[str, Any]) -> str:
    """The whole output as one HTML document; what has not been computed is left out."""
    cells, settings, machine = results["cells"], results["settings"], results["machine"]
    about = (
        f"Students of {settings['student_steps']} network calls, {settings['iterations']} iterations of "
        f"{settings['student']['train_batch_size']} noises; teachers of {settings['teacher_updates']} updates. Frechet "
        f"distances are in the features of a digits classifier, of {settings['images']} images: mean ± standard "
        "deviation over three sets of image seeds; training seeds, each with a teacher of its own, are parted by a "
        "slash. Differences are of equal seeds, with their standard error over the sets. Distances are "
        f"root-mean-square, of {settings['compared']} images; the ODE is the teacher's in 64 steps of "
        f"DPM-Solver++(3M). {machine['processor']}, torch {machine['torch']}."
    )
    sections = [Section("What this is", [about, Table(teacher_rows(cells), ["teacher", "Frechet distance"])])]
    if cells_of(cells, "student"):
        overview = Table(overview_rows(cells), ["number", "student", "Frechet distance"])
        sections.append(Section("Quality by cell", [Svg(overview_chart(cells)), overview]))
    for group in GROUPS:
        if rows := student_rows(cells, group):
            blocks = [Table(rows, HEAD)]
            sections.append(
                Section(group.title, [Svg(group_chart(cells, group)), *blocks] if group.numeric else blocks)
            )
    text = (
        "Four steps, each trained from the teacher's states: at one of them only, at all, or at none. One step starts "
        "on the teacher's trajectory, at every time from which the teacher goes on to the same share of the grid. "
        "Every other column of the table is a time that nobody was trained at. Distances in the tables are times 1000."
    )
    for where, title in GRIDS.items():
        if cells_of(cells, where):
            tables = [Table(rows, head) for head, rows in timestamp_tables(cells, where)]
            chart = Svg(timestamp_chart(cells, where, title))
            sections.append(Section(f"Matching at untrained timestamps: {title}", [text, chart, *tables]))
    return html_page("SFD on the digits: ablations", sections)


def main() -> None:
    """Writes the page, or prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--output", type=Path, default=Path("sfd-ablation.html"))
    parser.add_argument("--markdown", action="store_true", help="print the tables instead")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text())
    if arguments.markdown:
        print(markdown(results), end="")
    else:
        write_text_atomic(arguments.output, page(results))


if __name__ == "__main__":
    main()
