"""The Denoiser: a network together with what its inputs and outputs mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.core.callable_network import CallableNetwork
from progdistill.core.schedules import CosineSchedule, Schedule
from progdistill.core.time_map import TimeMap
from progdistill.ops import rotation
from progdistill.ops.layout import per_sample, split_heads
from progdistill.ops.names import canonical_prediction_type, heads


@dataclasses.dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on."""

    class_labels: Tensor | None = None


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
        valid_steps: the step counts that a distilled network was trained for; None = any (a teacher).
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
        valid_steps: tuple[int, ...] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network if isinstance(network, nn.Module) else CallableNetwork(network)
        self.sample_shape = tuple(sample_shape)
        self.schedule = schedule or CosineSchedule()
        self.prediction_type = canonical_prediction_type(prediction_type)
        self.time_map = time_map or TimeMap(self.schedule)
        self.num_classes = num_classes
        self.valid_steps = None if valid_steps is None else tuple(sorted(valid_steps, reverse=True))
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
            "valid_steps": self.valid_steps,
            "provenance": self.provenance,
        }
        return Denoiser(network, **{**description, **changes})

    @property
    def device(self) -> torch.device:
        """Where the network's parameters are, or its buffers if it has none (CPU if it has neither)."""
        tensor = next(chain(self.network.parameters(), self.network.buffers()), None)
        return torch.device("cpu") if tensor is None else tensor.device

    def raw(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The network's own output at angle phi (B,): what the fused operations take."""
        time = self.time_map(phi)
        if self.num_classes is None:
            return self.network(z, time)
        if cond is None or cond.class_labels is None:
            raise ValueError(
                f"this network is conditioned on {self.num_classes} classes; pass class_labels, one for each sample"
            )
        return self.network(z, time, cond.class_labels)

    def v(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The predicted v = dz/dphi, float32 (float64 for a float64 state)."""
        return self._predict("v", z, phi, cond)

    def x(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The predicted clean data."""
        return self._predict("x", z, phi, cond)

    def eps(self, z: Tensor, phi: Tensor, cond: Condition | None = None) -> Tensor:
        """The predicted noise."""
        return self._predict("eps", z, phi, cond)

    def _predict(self, quantity: str, z: Tensor, phi: Tensor, cond: Condition | None) -> Tensor:
        out = self.raw(z, phi, cond)
        form = rotation.prediction_form(self.prediction_type, quantity, phi)
        value = per_sample(form.z, z) * z
        for coefficient, part in zip(form.output, split_heads(out, heads(self.prediction_type), z.dtype), strict=True):
            value = value + per_sample(coefficient, z) * part
        return value
