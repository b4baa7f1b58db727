"""What a network is told about the noise level: its own time input as a function of the angle."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from progdistill.core.schedules import Schedule, schedule_from_dict


@dataclasses.dataclass(frozen=True)
class TimeMap:
    """input = scale t(phi) + offset with t of `schedule`, held within [minimum, maximum] if they are given.

    Networks of our own use 1024 t - 1, which is what plain diffusers passes for the exported student. A foreign
    teacher keeps the map it was trained with (its own schedule, T t - 1 in [0, T - 1]) whatever the student's grid.
    """

    schedule: Schedule
    scale: float = 1024.0
    offset: float = -1.0
    minimum: float | None = None
    maximum: float | None = None

    def __call__(self, phi: Tensor) -> Tensor:
        """The float32 time input (B,) for angles (B,)."""
        time = self.scale * self.schedule.time(phi) + self.offset
        if self.minimum is not None or self.maximum is not None:
            time = time.clamp(self.minimum, self.maximum)
        return time.float()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "schedule": self.schedule.to_dict()}

    @classmethod
    def from_dict(cls, description: dict[str, Any]) -> TimeMap:
        """The inverse of `to_dict`."""
        return cls(**{**description, "schedule": schedule_from_dict(description["schedule"])})
