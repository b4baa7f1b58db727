"""The N-step sampler as one module of plain torch operations, for torch.export and ONNX."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from progdistill.core import Denoiser
from progdistill.nets.embeddings import FixedTime
from progdistill.nets.unet import UNet
from progdistill.ops import ddim_step, rotation
from progdistill.ops.layout import split_heads
from progdistill.ops.names import heads
from progdistill.sampling.arguments import student_for
from progdistill.sampling.ddim import scaled
from progdistill.sampling.images import to_output

OUTPUT_TYPES = ("float", "uint8")


class UnrolledSampler(nn.Module):
    """DDIM in `steps` steps: forward(noise[, class_labels]) -> images, what `sample` makes of the same latents.

    Angles, time inputs and the coefficients of every step are constants, formed in float64 and rounded once, and so is
    all that a U-Net of ours computes from the time alone. The network is a copy in eval mode that no longer trains.

    Args:
        model: a teacher (any step count) or a student (its own step counts; for others the kept student is taken).
        steps: network calls an image.
        clip: None, or the bound of |x| at each step, as in `ddim`.
        output_type: "float" for (B, C, H, W) float32 in [-1, 1], "uint8" for (B, H, W, C) pixels.

    Raises:
        ValueError: a step count that the student was not trained for, an epsilon prediction at SNR 0, a Denoiser that
            overrides `raw` or takes a guidance scale, an unknown output_type.
    """

    def __init__(self, model: Denoiser, steps: int, *, clip: float | None = None, output_type: str = "float") -> None:
        super().__init__()
        _check_output_type(output_type, model.sample_shape)
        model = student_for(model, steps)
        if model.guidance_range is not None:
            raise ValueError(
                "this student takes a guidance scale, for which a graph has no input; fix it first: `progdistill "
                "export --guidance-scale S`, or progdistill.interop.baked_guidance(student, S)"
            )
        if type(model).raw is not Denoiser.raw:
            raise ValueError(
                f"{type(model).__name__} overrides Denoiser.raw, which a graph of network(z, time) leaves out; move "
                "what it does into the network"
            )
        self.steps, self.clip, self.output_type = steps, clip, output_type
        self.sample_shape, self.num_classes = model.sample_shape, model.num_classes
        self.prediction_type, self.schedule = model.prediction_type, model.schedule
        self.plan = model.plan(steps)
        phis = self.plan.trained_phis
        _check_steps(self.prediction_type, phis, clip)
        self._steps = _step_constants(self.prediction_type, phis)
        self._times = model.time_map(phis[:-1]).tolist()
        self.network = copy.deepcopy(model.network).requires_grad_(False)
        self._blocks: list[nn.Module] = []
        if isinstance(self.network, UNet):
            self._keep_times([self.network.fixed_time(time, model.step_count) for time in self._times])
        self.eval()

    def train(self, mode: bool = True) -> UnrolledSampler:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Images from standard normal noise.

        Args:
            noise: (B, C, H, W) float32.
            class_labels: (B,) int64, for a class-conditional model only.

        Raises:
            ValueError: another shape or dtype; labels that are missing or superfluous.
        """
        self._check_inputs(noise, class_labels)
        z = scaled(noise, self.plan.first_factor)
        for index, step in enumerate(self._steps):
            out = self._call_network(z, index, class_labels)
            parts = split_heads(out, heads(self.prediction_type), z.dtype)
            if self.clip is None:
                z = _combined(step.direct, z, *parts)
            else:
                x = _combined(step.x, z, *parts).clamp(-self.clip, self.clip)
                z = _combined(step.clipped, z, x)
        z = scaled(z, self.plan.last_factor)
        if self.output_type == "float":
            return z.clamp(-1, 1)
        return to_output(z, "uint8")

    def example_inputs(self, batch_size: int) -> tuple[Tensor, ...]:
        """Arguments of `forward`: zeros, on the network's device."""
        device = next((tensor.device for tensor in self.network.parameters()), None)
        noise = torch.zeros(batch_size, *self.sample_shape, device=device)
        if self.num_classes is None:
            return (noise,)
        return noise, torch.zeros(batch_size, dtype=torch.int64, device=device)

    def _call_network(self, z: Tensor, index: int, class_labels: Tensor | None) -> Tensor:
        if isinstance(self.network, UNet):
            time = self._time(slice(index, index + 1))
        else:
            time = torch.full((z.shape[0],), self._times[index], dtype=torch.float32, device=z.device)
        return self.network(z, time) if class_labels is None else self.network(z, time, class_labels)

    def _keep_times(self, fixed: list[FixedTime]) -> None:
        # As buffers, so that they move with the module: one (N, C) for each block, or one (N, E) with classes.
        self._blocks = list(fixed[0])
        for number, block in enumerate(self._blocks):
            self.register_buffer(f"time_of_block_{number}", torch.cat([time[block] for time in fixed]))
        embeddings = [time.embedding for time in fixed]
        self.register_buffer("time_embeddings", None if embeddings[0] is None else torch.cat(embeddings))

    def _time(self, row: slice) -> FixedTime:
        values = [getattr(self, f"time_of_block_{number}")[row] for number in range(len(self._blocks))]
        embedding = None if self.time_embeddings is None else self.time_embeddings[row]
        return FixedTime(zip(self._blocks, values, strict=True), embedding)

    def _check_inputs(self, noise: Tensor, class_labels: Tensor | None) -> None:
        if tuple(noise.shape[1:]) != self.sample_shape or noise.dtype != torch.float32:
            sizes = ", ".join(map(str, self.sample_shape))
            raise ValueError(f"noise is {noise.dtype} {tuple(noise.shape)}; pass torch.float32 (B, {sizes})")
        if self.num_classes is None:
            if class_labels is not None:
                raise ValueError("class_labels were given, but this model is unconditional; leave them out")
        elif class_labels is None or class_labels.shape != noise.shape[:1]:
            given = "none" if class_labels is None else f"shape {tuple(class_labels.shape)}"
            raise ValueError(
                f"this model is conditioned on {self.num_classes} classes; pass class_labels (B,), not {given}"
            )


class _StepConstants(NamedTuple):
    """Coefficients of one DDIM step, each tuple for the state first, then for the heads of the output (or for x)."""

    direct: tuple[float, ...]
    x: tuple[float, ...]
    clipped: tuple[float, float]


def _step_constants(prediction_type: str, phis: Tensor) -> list[_StepConstants]:
    form = rotation.step_form(prediction_type, phis[:-1], phis[1:])
    return [
        _StepConstants(*parts)
        for parts in zip(
            _by_step(form.direct.z, *form.direct.output),
            _by_step(form.x.z, *form.x.output),
            _by_step(form.z_of_clipped, form.x_of_clipped),
            strict=True,
        )
    ]


def _by_step(*coefficients: Tensor) -> list[tuple[float, ...]]:
    # Rounded to float32 here, as `ddim_step` rounds them: whoever reads the graph finds the numbers that it uses.
    return [tuple(row) for row in torch.stack(coefficients, dim=1).float().tolist()]


def _combined(coefficients: tuple[float, ...], *tensors: Tensor) -> Tensor:
    total = coefficients[0] * tensors[0]
    for coefficient, tensor in zip(coefficients[1:], tensors[1:], strict=True):
        total = total + coefficient * tensor
    return total


def _check_steps(prediction_type: str, phis: Tensor, clip: float | None) -> None:
    # The operation knows which angles, prediction types and bounds it refuses.
    count = len(phis) - 1
    out = torch.zeros(count, heads(prediction_type))
    ddim_step(torch.zeros(count, 1), out, phis[:-1], phis[1:], prediction_type=prediction_type, clip=clip)


def _check_output_type(output_type: str, sample_shape: tuple[int, ...]) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"unknown output_type {output_type!r}; use one of {', '.join(OUTPUT_TYPES)}")
    if output_type == "uint8" and len(sample_shape) != 3:
        raise ValueError(f"samples of shape {sample_shape} are not images; use output_type='float'")
