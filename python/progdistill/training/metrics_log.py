"""metrics.jsonl: one JSON object a line, and the loss by noise level that goes into it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from progdistill.core.files import write_text_atomic

NOISE_LEVELS = 10


class MetricsLog:
    """Appends lines; `position` is the length that a checkpoint remembers and `truncate` goes back to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line; the same keys every time a kind of event is written."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, position: int) -> None:
        """Forgets what was written after a checkpoint, because it will be written again."""
        if self.position > position:
            os.truncate(self.path, position)

    def drop_rounds(self, first: int) -> None:
        """Forgets the lines of round `first` and later ones."""
        records = self.records()
        kept = [record for record in records if record.get("round", -1) < first]
        if len(kept) < len(records):
            write_text_atomic(self.path, "".join(json.dumps(record) + "\n" for record in kept))

    def records(self) -> list[dict[str, Any]]:
        """All lines; a half-written last one (the process was killed) is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1] if line]


class RunningLoss:
    """Sums of losses since the last line, in all and by noise level, kept on the device until they are read."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(NOISE_LEVELS, dtype=torch.float64, device=device)
        self._counts = torch.zeros(NOISE_LEVELS, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, phi: Tensor) -> None:
        """Takes in losses (B,) at angles (B,)."""
        level = (phi * (NOISE_LEVELS / (math.pi / 2))).long().clamp(max=NOISE_LEVELS - 1)
        self._sums.index_add_(0, level, loss.double())
        self._counts.index_add_(0, level, torch.ones_like(loss, dtype=torch.float64))

    def state(self) -> list[list[float]]:
        """The sums so far, JSON-ready; a checkpoint between two lines needs them."""
        return [self._sums.tolist(), self._counts.tolist()]

    def load_state(self, state: list[list[float]]) -> None:
        """Puts back what `state` gave."""
        self._sums.copy_(torch.tensor(state[0], dtype=torch.float64))
        self._counts.copy_(torch.tensor(state[1], dtype=torch.float64))

    def read(self) -> tuple[float, list[float | None]]:
        """(mean, mean in each tenth of the angles from clean to noise, None where there were none); starts anew."""
        sums, counts = self._sums.tolist(), self._counts.tolist()
        self._sums.zero_()
        self._counts.zero_()
        by_level = [s / c if c else None for s, c in zip(sums, counts, strict=True)]
        return sum(sums) / max(1.0, sum(counts)), by_level
