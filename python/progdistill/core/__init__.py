"""Angles and schedules, the Denoiser, keyed random numbers, atomic files."""

from progdistill.core.denoiser import Condition, Denoiser
from progdistill.core.schedules import (
    CosineSchedule,
    EDMSchedule,
    FlowMatchingSchedule,
    Schedule,
    TableSchedule,
    schedule_from_dict,
)
from progdistill.core.time_map import TimeMap

__all__ = [
    "Condition",
    "CosineSchedule",
    "Denoiser",
    "EDMSchedule",
    "FlowMatchingSchedule",
    "Schedule",
    "TableSchedule",
    "TimeMap",
    "schedule_from_dict",
]
