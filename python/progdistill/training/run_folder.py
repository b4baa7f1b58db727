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
from progdistill.core.processes import is_main_process, on_main_process
from progdistill.training.checkpoint import Checkpoint, CheckpointFolder
from progdistill.training.config import LoopConfig, fingerprint
from progdistill.training.metrics_log import MetricsLog

_OWN = ("config.json", "metrics.jsonl", "report.html", "checkpoints", "students", "model", "samples")
_HALF_WRITTEN = (".tmp-*", ".old-*", ".progdistill-*.tmp")  # of interop.folders and core.files


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
        description = {"command": command, "inputs": inputs, "settings": fingerprint(config)}
        on_main_process(lambda: self._open(json.loads(json.dumps(description)), config.overwrite))
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

    def resume_round(self, index: int) -> Checkpoint | None:
        """The newest checkpoint of a round, or None; forgets the lines of metrics.jsonl that will be written again."""
        checkpoint = self.checkpoints.latest()
        if checkpoint is None or checkpoint.round_index != index:
            self.metrics.drop_rounds(index)
            return None
        self.metrics.truncate(checkpoint.facts["metrics_position"])
        return checkpoint

    def clear_checkpoints(self) -> None:
        """Removes the checkpoints of a round that is complete."""
        if is_main_process():
            self.checkpoints.clear()

    def finish(self) -> None:
        """Removes what only an unfinished run needs: checkpoints, and what a killed process left half written."""
        self.clear_checkpoints()
        if is_main_process():
            for pattern in _HALF_WRITTEN:
                for path in [*self.path.glob(pattern), *self.path.glob(f"students/{pattern}")]:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _open(self, description: dict[str, Any], overwrite: bool) -> None:
        if overwrite and (self.path / "config.json").exists():
            self._clear()
        self._check_or_write(description)

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
