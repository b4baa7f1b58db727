"""metrics.jsonl: one JSON object a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from progdistill.core.files import write_text_atomic
from progdistill.core.processes import is_main_process


class MetricsLog:
    """Appends lines; `position` is the length that a checkpoint remembers and `truncate` goes back to.

    Only the first of several processes writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line; the same keys every time a kind of event is written."""
        if not is_main_process():
            return
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, position: int) -> None:
        """Forgets what was written after a checkpoint, because it will be written again."""
        if is_main_process() and self.position > position:
            os.truncate(self.path, position)

    def drop_rounds(self, first: int) -> None:
        """Forgets the lines of round `first` and later ones."""
        if not is_main_process():
            return
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
