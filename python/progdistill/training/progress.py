"""How far a run is, and how long the whole of it will still take: status.json."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from pathlib import Path
from typing import Any

from progdistill.core.files import write_json_atomic
from progdistill.core.processes import is_main_process

STATUS = "status.json"


@dataclasses.dataclass
class Plan:
    """The rounds of a run: updates of each, in order."""

    updates: list[int]

    @property
    def total(self) -> int:
        """Updates in all."""
        return sum(self.updates)

    def before(self, round_index: int) -> int:
        """Updates of the rounds before one."""
        return sum(self.updates[:round_index])


class RunProgress:
    """Writes status.json as the run goes on; `progdistill runs` reads it."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.path = folder / STATUS
        self.plan = plan
        self._started = time.monotonic()
        self._done_at_start: int | None = None
        self.facts: dict[str, Any] = {}
        """What status.json says, but for process, host and time."""

    def update(self, round_index: int, label: str, update: int, loss: float | None) -> float | None:
        """Notes that a round has come to `update`; returns the seconds that the whole run will still take, if known.

        The estimate goes by the time that this process has taken for its updates so far, pictures and all.
        """
        done = self.plan.before(round_index) + update
        if self._done_at_start is None:
            self._done_at_start, self._started = done, time.monotonic()
        gained = done - self._done_at_start
        left = None
        if gained:
            left = (time.monotonic() - self._started) / gained * (self.plan.total - done)
        self.facts = {
            "round": round_index,
            "rounds": len(self.plan.updates),
            "label": label,
            "update": update,
            "updates": self.plan.updates[round_index],
            "done_updates": done,
            "total_updates": self.plan.total,
            "seconds_left": None if left is None else round(left, 1),
            "loss": loss,
        }
        self._write("running", None)
        return left

    def end(self, state: str, message: str | None = None) -> None:
        """Notes the end: "finished", "interrupted" or "failed"."""
        if state == "finished":
            done = {"done_updates": self.plan.total, "total_updates": self.plan.total, "seconds_left": 0.0}
            self.facts = {**self.facts, **done}
        self._write(state, message)

    def _write(self, state: str, message: str | None) -> None:
        if is_main_process():
            self.facts = {**self.facts, "state": state, "message": message}
            about = {"process": os.getpid(), "host": socket.gethostname(), "time": round(time.time(), 1)}
            write_json_atomic(self.path, {**self.facts, **about})


def duration(seconds: float) -> str:
    """Seconds for people: "45 s", "12 min", "3 h 20 min", "2 d 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"
