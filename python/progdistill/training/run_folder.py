"""The folder of a run: what lies where, and whether the same command starts, resumes or refuses.

config.json      the settings, written once
metrics.jsonl    a line every `logging_steps`, and one at the end of each round
checkpoints/     the newest states of the round in progress
converted/       an epsilon teacher as the network that the rounds start from (distillation)
guided/          a teacher that takes a guidance scale, which the rounds start from (distillation)
students/        steps-0512/, steps-0256/, ... every student as a model folder (distillation)
model/           the result
samples/         PNG grids
status.json      how far the run is, and whether it ended well
logs/            TensorBoard's files, if asked for
report.html      the run at a glance, renewed while it goes on
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from progdistill.core.files import write_json_atomic
from progdistill.core.processes import is_main_process, on_main_process
from progdistill.report import save_png
from progdistill.training.checkpoint import Checkpoint, CheckpointFolder
from progdistill.training.config import LoopConfig
from progdistill.training.metrics_log import MetricsLog
from progdistill.training.progress import Plan, RunProgress
from progdistill.training.run_fingerprint import fingerprint
from progdistill.training.trackers import Tracker, open_trackers, require_trackers

_OWN = ("config.json", "metrics.jsonl", "report.html", "checkpoints", "converted", "guided", "students", "model")
_OWN += ("samples", "status.json", "logs", "wandb", "wandb-id.txt")
_HALF_WRITTEN = (".tmp-*", ".old-*", ".progdistill-*.tmp")  # of interop.folders and core.files


class RunFolder:
    """Opens or makes the folder of a run.

    Args:
        config: its settings; `output_dir` is the folder.
        command: "train", "distill", "convert" or "sfd".
        inputs: JSON-ready facts about data and teacher that a resumed run must share.
        plan: the updates of each round.
        title: of its report.

    Raises:
        ImportError: the package of a tracker in `config.report_to` is missing.
        ValueError: the folder holds a run with other settings (they are listed), or something else.
    """

    def __init__(self, config: LoopConfig, command: str, inputs: dict[str, Any], plan: Plan, title: str) -> None:
        require_trackers(config.report_to)
        self.path = Path(config.output_dir)
        self.title = title
        self.report_time = -math.inf
        description = {"command": command, "inputs": inputs, "settings": fingerprint(config)}
        on_main_process(lambda: self._open(json.loads(json.dumps(description)), config.overwrite))
        self.metrics = MetricsLog(self.path / "metrics.jsonl")
        self.checkpoints = CheckpointFolder(self.path / "checkpoints", config.checkpoints_total_limit)
        self.progress = RunProgress(self.path, plan)
        self._report_to = config.report_to
        self._settings = description["settings"]
        self._trackers: list[Tracker] | None = None

    def student(self, steps: int) -> Path:
        """Where the student for a step count is kept."""
        return self.path / "students" / f"steps-{steps:04d}"

    @property
    def converted(self) -> Path:
        """Where the teacher is kept that a distillation has made of one it could not start from."""
        return self.path / "converted"

    @property
    def guided(self) -> Path:
        """Where the teacher is kept that a distillation has taught to take a guidance scale."""
        return self.path / "guided"

    @property
    def model(self) -> Path:
        """Where the result is kept."""
        return self.path / "model"

    def save_grid(self, image: Image.Image, name: str, round_index: int, update: int) -> None:
        """Keeps a picture of samples as samples/NAME.png, and shows it to the trackers."""
        save_png(image, self.path / "samples" / f"{name}.png")
        for tracker in self._open_trackers(round_index, update):
            tracker.picture("samples", image, self.progress.plan.before(round_index) + update)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl, and its numbers to the trackers' curves."""
        self.metrics.write(record)
        update = record.get("update", record.get("updates", 0))
        if not is_main_process():
            return
        for tracker in self._open_trackers(record["round"], update):
            values = {f"{record['label']}/{k}": v for k, v in record.items() if _is_curve(k, v)}
            tracker.scalars(values, self.progress.plan.before(record["round"]) + update)

    def _open_trackers(self, round_index: int, update: int) -> list[Tracker]:
        # Not before the first thing to say: only then it is known where a resumed run goes on.
        if self._trackers is None:
            first = self.progress.plan.before(round_index) + update
            self._trackers = open_trackers(self._report_to, self.path, self._settings, first)
        return self._trackers

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

    def end(self, state: str, message: str | None = None) -> None:
        """Notes that the run is "finished", "interrupted" or "failed", and lets the trackers go."""
        for tracker in self._trackers or ():
            tracker.close()
        self._trackers = None
        self.progress.end(state, message)

    def finish(self) -> None:
        """Notes the end, and removes what only an unfinished run needs, or a killed process left half written."""
        self.end("finished")
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


def _is_curve(name: str, value: Any) -> bool:
    return isinstance(value, int | float) and name not in ("round", "update", "updates", "steps")


def _differences(before: Any, now: Any, place: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [
            _differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key)
        ]
        return "; ".join(parts)
    return f"{place} was {before!r}, is {now!r}"
