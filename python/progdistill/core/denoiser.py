"""The Denoiser: a network together with what its inputs and outputs mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.core.callable_network import CallableNetwork
from progdistill.core.sampling_plan import SamplingPlan
from progdistill.core.schedules import CosineSchedule, Schedule
from progdistill.core.time_map import TimeMap
from progdistill.ops import rotation
from progdistill.ops.layout import per_sample, split_heads
from progdistill.ops.names import canonical_prediction_type, heads


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on."""

    class_labels: Tensor | None = None
    """(B,) int64."""
    guidance_scale: Tensor | None = None
    """(B,) float32, 1 + w in Meng et al. 2023: 1 is no guidance. None: not asked for."""


class Denoiser(nn.Module):
    """network + schedule + time map + prediction type + description of the data.

    Args:
        network: called as network(z, time) or network(z, time, class_labels) with z (B, C, ...), time (B,) float32
            and class_labels (B,) int64; returns its output (two-headed: 2C channels, x first). Any module, or any
            callable as `CallableNetwork` takes it.
        sample_shape: the shape of one sample, (C, H, W) for images. Data lie in [-1, 1].
        schedule: default the pure cosine phi = pi t / 2.
        prediction_type: "epsilon", "sample", "v_prediction" or "sample_epsilon" (aliases eps, x, v, both).
        time_map: default 1024 t - 1 on the schedule.
        num_classes: number of class labels, None for an unconditional network.
        unconditional_label: the label that a class-conditional network was trained with in place of dropped ones, so
            that it can be guided.
        guidance_range: the lowest and highest guidance scale that a network was distilled for, which it then takes as
            an input: network(z, time, class_labels, guidance_scale - 1).
        valid_steps: the step counts that a distilled network was trained for; None = any (a teacher).
        step_conditioned: whether the network was trained for several step counts and is told which:
            network(z, time, class_labels or None, guidance_scale - 1 or None, step_count).
        step_count: what such a network is told; `for_steps` sets it.
        sampling_plans: by step count, the steps of a network that was fine-tuned for others than its schedule's.
        provenance: JSON-ready facts about where it comes from, kept with the saved model.

    `z` is always the variance-preserving state; angles are float64.
    """

    def __init__(
        self,
        network: nn.Module | Callable[..., Any],
        *,
        sample_shape: tuple[int, ...],
        schedule: Schedule | None = None,
        prediction_type: str = "v_prediction",
        time_map: TimeMap | None = None,
        num_classes: int | None = None,
        unconditional_label: int | None = None,
        guidance_range: tuple[float, float] | None = None,
        valid_steps: tuple[int, ...] | None = None,
        step_conditioned: bool = False,
        step_count: int | None = None,
        sampling_plans: Mapping[int, SamplingPlan] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else CallableNetwork(network)
        self.sample_shape = tuple(sample_shape)
        self.schedule = schedule or CosineSchedule()
        self.prediction_type = canonical_prediction_type(prediction_type)
        self.time_map = time_map or TimeMap(self.schedule)
        self.num_classes = num_classes
        self.unconditional_label = unconditional_label
        self.guidance_range = guidance_range
        self.valid_steps = None if valid_steps is None else tuple(sorted(valid_steps, reverse=True))
        self.step_conditioned = step_conditioned
        self.step_count = step_count
        self.sampling_plans = dict(sampling_plans or {})
        self.provenance: dict[str, Any] = dict(provenance or {})
        # Students for other step counts, loaded when asked for; filled by whoever knows where they are kept.
        self.students: dict[int, Callable[[], Denoiser]] = {}

    def with_network(self, network: nn.Module, **changes: Any) -> Denoiser:
        """The same description around another network; keyword arguments override the constructor's."""
        description = {
            "sample_shape": self.sample_shape,
            "schedule": self.schedule,
            "prediction_type": self.prediction_type,
            "time_map": self.time_map,
            "num_classes": self.num_classes,
            "unconditional_label": self.unconditional_label,
            "guidance_range": self.guidance_range,
            "valid_steps": self.valid_steps,
            "step_conditioned": self.step_conditioned,
            "step_count": self.step_count,
            "sampling_plans": self.sampling_plans,
            "provenance": self.provenance,
        }
        return Denoiser(network, **{**description, **changes})

    def for_steps(self, steps: int) -> Denoiser:
        """The model as it samples in so many network calls: itself, or with a network that is told the number."""
        if not self.step_conditioned or self.step_count == steps:
            return self
        told = self.with_network(self.network, step_count=steps)
        told.training, told.students = self.training, self.students  # the network's own mode stays
        return told

    def plan(self, steps: int) -> SamplingPlan:
        """The steps that DDIM takes with so many network calls: the network's own, or those of its schedule's grid."""
        if steps in self.sampling_plans:
            return self.sampling_plans[steps]
        return SamplingPlan(tuple(self.schedule.grid(steps).tolist()))

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are, or its buffers if it has none (CPU if it has neither)."""
        tensor = next(chain(self.network.parameters(), self.network.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def raw(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's own output at angle phi (B,): what the fused operations take.

        With a guidance scale s and a network that does not take it as an input, out_u + s (out_c - out_u): two network
        calls in one of twice the batch (Ho & Salimans 2022). Outputs may be mixed in place of predictions, for these
        are linear in them with coefficients that both share.
        """
        return self.raw_at(z, self.time_map(phi), cond)

    def raw_at(self, z: Tensor, time: Any, cond: Condition | None = None) -> Tensor:
        """`raw` at a time input of the network, which `time_map` gives, or whatever else the network takes for one."""
        if self.num_classes is None:
            return self._told(z, time)
        if cond is None or cond.class_labels is None:
            raise ValueError(
                f"this network is conditioned on {self.num_classes} classes; pass class_labels, one for each sample"
            )
        labels, scale = cond.class_labels, cond.guidance_scale
        if self.guidance_range is not None:
            if scale is None:
                raise ValueError(f"this network takes a guidance scale in {self.guidance_range}; pass guidance_scale")
            return self._told(z, time, labels, scale - 1)
        if scale is None:
            return self._told(z, time, labels)
        if self.unconditional_label is None:
            raise ValueError("this network knows no unconditional label and cannot be guided; leave guidance_scale out")
        nothing = torch.full_like(labels, self.unconditional_label)
        # A time that is no tensor holds for all samples alike.
        times = torch.cat((time, time)) if isinstance(time, Tensor) else time
        both = self._told(torch.cat((z, z)), times, torch.cat((labels, nothing)))
        # Above scale 1 rounding errors grow: not in bfloat16.
        with_label, without = both.to(torch.promote_types(both.dtype, torch.float32)).chunk(2)
        return torch.lerp(without, with_label, per_sample(scale, with_label))

    def _told(self, z: Tensor, time: Any, labels: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        if self.step_conditioned:
            if self.step_count is None:
                raise ValueError("this network is told the number of steps; use denoiser.for_steps(N)")
            return self.network(z, time, labels, guidance, self.step_count)
        given = (value for value in (labels, guidance) if value is not None)
        return self.network(z, time, *given)

    def v(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The predicted v = dz/dphi, float32 (float64 for a float64 state)."""
        return self.converted(self.raw(z, phi, cond), z, phi, "v")

    def x(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The predicted clean data."""
        return self.converted(self.raw(z, phi, cond), z, phi, "x")

    def eps(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The predicted noise."""
        return self.converted(self.raw(z, phi, cond), z, phi, "eps")

    def converted(self, out: Tensor, z: Tensor, phi: Tensor, quantity: str) -> Tensor:
        """What an output of `raw` says of "x", "eps" or "v", float32 (float64 for a float64 state)."""
        form = rotation.prediction_form(self.prediction_type, quantity, phi)
        value = per_sample(form.z, z) * z
        for coefficient, part in zip(form.output, split_heads(out, heads(self.prediction_type), z.dtype), strict=True):
            value = value + per_sample(coefficient, z) * part
        return value
