"""Figures that stay: what was measured once is not measured again, whatever else a comparison is asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from progdistill import __version__
from progdistill.comparison.methods import Contender
from progdistill.core.files import write_json_atomic
from progdistill.core.processes import on_main_process
from progdistill.evaluation import Quality

Figures = dict[str, dict[str, Any]]
"""By metric, what `Quality.record` says."""


class KeptFigures:
    """A folder with a file for each thing that was measured: FOLDER/KEY.json, written as soon as its figures are known.

    The key is a SHA-256 of all that the figures follow from: the model's fingerprint, the solver's numbers, and the
    conditions of the measurement. Two methods that sample alike (in one step from noise most solvers do) share a file.

    Args:
        folder: made when there is something to keep.
        conditions: JSON-ready facts of the measurement: metrics, counts, features, data.
        fresh: measure everything anew, and keep that.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.folder = folder
        self.conditions = {"version": __version__, **conditions}
        self._fresh = fresh
        self._measured: set[str] = set()

    def figures(self, contender: Contender, measure: Callable[[], Mapping[str, Quality]]) -> tuple[Figures, bool]:
        """The figures of a contender, and whether `measure` had to be called for them; processes call this together."""
        described = {**self.conditions, **contender.description()}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]
        path = self.folder / f"{key}.json"
        fresh = self._fresh and key not in self._measured
        kept = on_main_process(lambda: None if fresh else _read(path))
        if kept is not None:
            return kept, False
        found = {name: quality.record() for name, quality in measure().items()}
        on_main_process(lambda: write_json_atomic(path, {**described, "figures": found}))
        self._measured.add(key)
        # As it is read again: values are a list in the file.
        return json.loads(json.dumps(found)), True


def _read(path: Path) -> Figures | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["figures"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # not there, or not one of ours: measured and written anew
