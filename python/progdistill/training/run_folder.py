"""The folder of a run: what lies where, and whether the same command starts, resumes or refuses.

config.json      the settings, written once
metrics.jsonl    a line every `logging_steps`, and one at the end of each round
checkpoints/     the newest states of the round in progress
students/        steps-0512/, steps-0256/, ... every student as a model folder (distillation)
model/           the result
samples/         PNG grids
report.html      the run at a glance
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from progdistill.core.files import write_json_atomic
from progdistill.training.checkpoint import CheckpointFolder
from progdistill.training.config import LoopConfig, fingerprint
from progdistill.training.metrics_log import MetricsLog

_OWN = ("config.json", "metrics.jsonl", "report.html", "checkpoints", "students", "model", "samples")


class RunFolder:
    """Opens or makes the folder of a run.

    Args:
        config: its settings; `output_dir` is the folder.
        command: "train" or "distill".
        inputs: JSON-ready facts about data and teacher that a resumed run must share.

    Raises:
        ValueError: the folder holds a run with other settings (they are listed), or something else.
    """

    def __init__(self, config: LoopConfig, command: str, inputs: dict[str, Any]) -> None:
        self.path = Path(config.output_dir)
        if config.overwrite and (self.path / "config.json").exists():
            self._clear()
        description = {"command": command, "inputs": inputs, "settings": fingerprint(config)}
        self._check_or_write(json.loads(json.dumps(description)))
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", config.checkpoints_total_limit)

    def student(self, steps: int) -> Path:
        """Where the student for a step count is kept."""
        return self.path / "students" / f"steps-{steps:04d}"

    @property
    def model(self) -> Path:
        """Where the result is kept."""
        return self.path / "model"

    def sample_grid(self, name: str) -> Path:
        """Where a PNG of samples goes."""
        return self.path / "samples" / f"{name}.png"

    def start_round(self, index: int) -> None:
        """Forgets what an interrupted attempt without a checkpoint has written of this round."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None or checkpoint.round_index != index:
            self.metrics.drop_rounds(index)

    def clear_checkpoints(self) -> None:
        """Removes the checkpoints of a round that is complete."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)

    def _clear(self) -> None:
        for name in _OWN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _check_or_write(self, description: dict[str, Any]) -> None:
        path = self.path / "config.json"
        if not path.exists():
            strangers = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else []
            if set(strangers) & set(_OWN):
                raise ValueError(
                    f"{self.path} holds {sorted(strangers)} but no config.json of a run; use another --output-dir "
                    "(--overwrite removes runs only)"
                )
            write_json_atomic(path, description)
            return
        before = json.loads(path.read_text())
        if before != description:
            raise ValueError(
                f"{self.path} holds a run with other settings: {_differences(before, description)}; use the same "
                "settings to resume it, another --output-dir, or --overwrite to start anew"
            )


def _differences(before: Any, now: Any, place: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [
            _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        return "; ".join(parts)
    return f"{place} was {before!r}, is {now!r}"
