"""Noise schedules: every one is a map between time t in [0, 1] and the angle phi in [0, pi/2].

alpha = cos(phi), sigma = sin(phi), logSNR = -2 log tan(phi). Variance-exploding (EDM) and flow-matching states are
the variance-preserving state times a known factor (`state_scale`), so one algebra serves all. A time grid is a
falling list of angles that ends at exactly 0; the last step is exact, as in the released code of Salimans & Ho,
which returns the predicted x there.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor


def as_float64(value: Tensor | float) -> Tensor:
    """A float64 tensor on the value's device."""
    return torch.as_tensor(value, dtype=torch.float64)


def logsnr_of(phi: Tensor | float) -> Tensor:
    """log(alpha^2 / sigma^2) of an angle; +-inf at the ends."""
    phi = as_float64(phi)
    return 2 * (torch.log(torch.cos(phi)) - torch.log(torch.sin(phi)))


def angle_of_logsnr(logsnr: Tensor | float) -> Tensor:
    """The angle with a given logSNR: phi = atan(exp(-logSNR / 2))."""
    return torch.atan(torch.exp(-0.5 * as_float64(logsnr)))


class Schedule(ABC):
    """A monotone map from time (0 = clean, 1 = noise) to angles, float64 throughout."""

    kind: ClassVar[str]

    @abstractmethod
    def angle(self, time: Tensor | float) -> Tensor:
        """phi(t) for times in [0, 1]."""

    @abstractmethod
    def time(self, phi: Tensor | float) -> Tensor:
        """t(phi), the inverse of `angle`; angles beyond the schedule's ends are extrapolated or held, see the class."""

    def state_scale(self, phi: Tensor | float) -> Tensor:
        """What the variance-preserving state is multiplied by to become this family's own state."""
        return torch.ones_like(as_float64(phi))

    def grid(self, num_inference_steps: int) -> Tensor:
        """Angles (N + 1,) of an N-step sampler: phi(N / N), phi((N - 1) / N), ..., phi(1 / N), and exactly 0.

        Raises:
            ValueError: fewer than one step.
        """
        if num_inference_steps < 1:
            raise ValueError(f"{num_inference_steps} sampling steps make no grid; use at least 1")
        index = torch.arange(num_inference_steps, 0, -1, dtype=torch.float64)
        return torch.cat([self.angle(index / num_inference_steps), torch.zeros(1, dtype=torch.float64)])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description that `schedule_from_dict` reads."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class CosineSchedule(Schedule):
    """phi = a t + b (Salimans & Ho section 2).

    Without bounds this is the paper's alpha = cos(pi t / 2), from exactly clean to exactly noise. With bounds
    logSNR runs from logsnr_max at t = 0 to logsnr_min at t = 1, as in the released code (+-20):
    b = atan(exp(-logsnr_max / 2)), a = atan(exp(-logsnr_min / 2)) - b.
    """

    logsnr_min: float | None = None
    logsnr_max: float | None = None
    kind: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        low = -math.inf if self.logsnr_min is None else self.logsnr_min
        high = math.inf if self.logsnr_max is None else self.logsnr_max
        if not low < high:
            raise ValueError(f"logsnr_min = {low} must be below logsnr_max = {high} (the paper's code: -20 and 20)")

    @property
    def offset(self) -> float:
        """b, the angle at t = 0."""
        return 0.0 if self.logsnr_max is None else float(angle_of_logsnr(self.logsnr_max))

    @property
    def slope(self) -> float:
        """a, the angles that t = 0 ... 1 covers."""
        end = math.pi / 2 if self.logsnr_min is None else float(angle_of_logsnr(self.logsnr_min))
        return end - self.offset

    def angle(self, time: Tensor | float) -> Tensor:
        # a + b may exceed pi/2 by a rounding, which the operations would refuse.
        return (self.slope * as_float64(time) + self.offset).clamp(0.0, math.pi / 2)

    def time(self, phi: Tensor | float) -> Tensor:
        """t = (phi - b) / a, extrapolated beyond the ends."""
        return (as_float64(phi) - self.offset) / self.slope


@dataclasses.dataclass(frozen=True)
class TableSchedule(Schedule):
    """A discrete schedule of T noise levels (diffusers' `alphas_cumprod`), level i at time (i + 1) / T.

    A level is the angle of equal logSNR, cos^2(phi) = alphas_cumprod[i]; between levels (and between level 0 and
    the clean end) angles are linear in time.
    """

    alphas_cumprod: tuple[float, ...]
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        levels = self.alphas_cumprod
        if len(levels) < 2 or not all(1.0 > a > b >= 0.0 for a, b in zip(levels, levels[1:], strict=False)):
            raise ValueError(
                "alphas_cumprod must be at least two values that fall strictly within [0, 1); got "
                f"{len(levels)} values from {levels[:1]} to {levels[-1:]}"
            )
        object.__setattr__(self, "_nodes_on", {})

    @classmethod
    def from_betas(cls, betas: Tensor) -> TableSchedule:
        """alphas_cumprod = cumprod(1 - beta), formed in float64."""
        return cls(tuple(torch.cumprod(1.0 - as_float64(betas), 0).tolist()))

    @classmethod
    def from_diffusers(cls, config: dict[str, Any]) -> TableSchedule:
        """The schedule of a diffusers scheduler_config.json (DDPM, DDIM and their relatives).

        Raises:
            ValueError: a beta schedule that diffusers' DDIM does not define.
        """
        return cls(tuple(_diffusers_alphas_cumprod(config).tolist()))

    def _nodes(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """(times, angles) of the clean end and the levels, (T + 1,) each, beside `at`; equal bits on every device."""
        if type(at) is not Tensor:
            # What a tracer puts in a tensor's place mixes with nothing that was there before, nor lasts.
            return self._new_nodes(at.device)
        if at.device not in self._nodes_on:
            with torch.inference_mode(False):
                self._nodes_on[at.device] = self._new_nodes(at.device)
        return self._nodes_on[at.device]

    def _new_nodes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        levels = torch.tensor(self.alphas_cumprod, dtype=torch.float64, device="cpu")
        angles = torch.atan2(torch.sqrt(1.0 - levels), torch.sqrt(levels))
        times = torch.arange(len(levels) + 1, dtype=torch.float64, device="cpu") / len(levels)
        return times.to(device), torch.cat([angles.new_zeros(1), angles]).to(device)

    def angle(self, time: Tensor | float) -> Tensor:
        time = as_float64(time)
        times, angles = self._nodes(time)
        return _interpolate(time, times, angles)

    def time(self, phi: Tensor | float) -> Tensor:
        """The fractional level by equal logSNR, as (i + 1) / T; angles beyond the last level are held there."""
        phi = as_float64(phi)
        times, angles = self._nodes(phi)
        return _interpolate(phi, angles, times)


@dataclasses.dataclass(frozen=True)
class EDMSchedule(Schedule):
    """EDM's sigma (Karras et al. 2022, eq. 5): tan(phi) = sigma, sigma^(1/rho) linear in t.

    t runs from sigma_min at 0 to sigma_max at 1; a grid's last step goes to sigma = 0. The family's own state is
    x + sigma eps, the variance-preserving one divided by cos(phi).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    kind: ClassVar[str] = "edm"

    def __post_init__(self) -> None:
        if not (0 < self.sigma_min < self.sigma_max < math.inf and self.rho > 0):
            raise ValueError(f"need 0 < sigma_min < sigma_max and rho > 0; got {self}")

    def angle(self, time: Tensor | float) -> Tensor:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.atan((low + as_float64(time) * (high - low)) ** self.rho)

    def time(self, phi: Tensor | float) -> Tensor:
        """Extrapolated beyond the ends."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (torch.tan(as_float64(phi)) ** (1 / self.rho) - low) / (high - low)

    def state_scale(self, phi: Tensor | float) -> Tensor:
        return 1.0 / torch.cos(as_float64(phi))


@dataclasses.dataclass(frozen=True)
class ExponentialSchedule(Schedule):
    """tan(phi) = sigma from sigma_min to sigma_max with log(sigma) linear in t: EDM's schedule for rho to infinity.

    The state is the variance-preserving one. Networks that are told log(sigma) have it in their time map.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    kind: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise ValueError(f"need 0 < sigma_min < sigma_max; got {self}")

    def angle(self, time: Tensor | float) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return torch.atan(torch.exp(low + as_float64(time) * (high - low)))

    def time(self, phi: Tensor | float) -> Tensor:
        """Extrapolated beyond the ends, infinite at angle 0."""
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (torch.log(torch.tan(as_float64(phi))) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class FlowMatchingSchedule(Schedule):
    """The straight path z = (1 - t) x + t eps: tan(phi) = t / (1 - t); own state = VP state / (cos + sin)."""

    kind: ClassVar[str] = "flow_matching"

    def angle(self, time: Tensor | float) -> Tensor:
        time = as_float64(time)
        return torch.atan2(time, 1.0 - time)

    def time(self, phi: Tensor | float) -> Tensor:
        """Exact on all of [0, pi/2]."""
        phi = as_float64(phi)
        return torch.sin(phi) / (torch.sin(phi) + torch.cos(phi))

    def state_scale(self, phi: Tensor | float) -> Tensor:
        phi = as_float64(phi)
        return 1.0 / (torch.sin(phi) + torch.cos(phi))


_CLASSES = (CosineSchedule, TableSchedule, EDMSchedule, ExponentialSchedule, FlowMatchingSchedule)
_KINDS = {cls.kind: cls for cls in _CLASSES}


def schedule_from_dict(description: dict[str, Any]) -> Schedule:
    """The inverse of `Schedule.to_dict`.

    Raises:
        ValueError: an unknown kind or field.
    """
    fields = dict(description)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"unknown schedule kind {kind!r}; use one of {', '.join(_KINDS)}")
    try:
        if kind == "table":
            fields["alphas_cumprod"] = tuple(float(a) for a in fields["alphas_cumprod"])
        return _KINDS[kind](**fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"a {kind!r} schedule cannot be made of {sorted(fields)}: {error}") from None


def _interpolate(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # Piecewise linear and monotone, held at the ends.
    segment = torch.searchsorted(x, at.contiguous(), right=True).clamp(1, len(x) - 1)
    x0, x1, y0, y1 = x[segment - 1], x[segment], y[segment - 1], y[segment]
    return (y0 + (at - x0) / (x1 - x0) * (y1 - y0)).clamp(y[0], y[-1])


def _diffusers_alphas_cumprod(config: dict[str, Any]) -> Tensor:
    count = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        betas = as_float64(config["trained_betas"])
    elif name == "linear":
        betas = torch.linspace(start, end, count, dtype=torch.float64)
    elif name == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    elif name == "squaredcos_cap_v2":
        time = torch.arange(count + 1, dtype=torch.float64) / count
        bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    else:
        raise ValueError(
            f"beta_schedule {name!r} is not known; use linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
        )
    levels = torch.cumprod(1.0 - betas, 0)
    if config.get("rescale_betas_zero_snr"):
        # Lin et al. 2023, algorithm 1: shift and scale sqrt(alphas_cumprod) so that the last one is 0.
        root = levels.sqrt()
        levels = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return levels
