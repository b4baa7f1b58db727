"""Angles and schedules, the Denoiser and what makes one of any network, keyed random numbers, atomic files."""

from progdistill.core.adapters import from_edm, from_flow_matching
from progdistill.core.callable_network import CallableNetwork
from progdistill.core.denoiser import Condition, Denoiser
from progdistill.core.sampling_plan import SamplingPlan
from progdistill.core.schedules import (
    CosineSchedule,
    EDMSchedule,
    ExponentialSchedule,
    FlowMatchingSchedule,
    Schedule,
    TableSchedule,
    schedule_from_dict,
)
from progdistill.core.time_map import TimeMap

__all__ = [
    "CallableNetwork",
    "Condition",
    "CosineSchedule",
    "Denoiser",
    "EDMSchedule",
    "ExponentialSchedule",
    "FlowMatchingSchedule",
    "SamplingPlan",
    "Schedule",
    "TableSchedule",
    "TimeMap",
    "from_edm",
    "from_flow_matching",
    "schedule_from_dict",
]
