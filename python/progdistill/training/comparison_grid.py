"""The picture of a comparison on equal noise, as every round keeps it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from progdistill.data import to_uint8
from progdistill.evaluation import rows_by_class
from progdistill.report import labelled_rows
from progdistill.training.run_folder import RunFolder

GRID_COLUMNS = 12


class Comparison(Protocol):
    """What `progdistill.evaluation` makes of two models on the same noise."""

    labels: Tensor | None

    def rows(self) -> list[tuple[str, Tensor]]: ...


def save_comparison_grid(run: RunFolder, comparison: Comparison, name: str, round_index: int, update: int) -> None:
    """Keeps samples/NAME.png, the models' images one above the other, classes apart; grey and colour images only."""
    rows = [(model, to_uint8(images)) for model, images in comparison.rows()]
    if rows[0][1].shape[1] in (1, 3):
        picture = labelled_rows(rows_by_class(rows, comparison.labels, GRID_COLUMNS))
        run.save_grid(picture, name, round_index, update)
