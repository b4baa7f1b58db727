"""DDIM with everything that is known beforehand made a constant: angles, times, embeddings, and the network's dtype."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from progdistill.core import Condition, Denoiser
from progdistill.core.random import Stream
from progdistill.nets.bfloat16_twin import bfloat16_twin
from progdistill.nets.constants import keep_constants
from progdistill.nets.embeddings import FixedTime
from progdistill.nets.unet import UNet
from progdistill.ops import ddim_step, ddim_step_and_input, normal
from progdistill.sampling.ddim import scaled
from progdistill.sampling.images import FORMS


class FixedSteps:
    """`steps` network calls of a denoiser, from seeds or latents to samples in [-1, 1].

    Args:
        model: in the state in which it is to sample; its weights are read now where its network is copied.
        steps: network calls; the caller has made sure that the model samples in so many.
        dtype: what the network computes in. The state and the steps are float32.
        clip: None, or the bound of |x| at each step.

    A network in another dtype, and a `UNet` on a GPU, is a copy, which keeps what it makes of its weights; on a GPU in
    channels_last order. States then lie as its inputs do, and a step writes the next bfloat16 input beside the next
    state: only the first is made by a cast.
    """

    def __init__(self, model: Denoiser, steps: int, dtype: torch.dtype, clip: float | None = None) -> None:
        self.device = model.device
        self.sample_shape = model.sample_shape
        self.num_classes = model.num_classes
        self.prediction_type = model.prediction_type
        self.clip = clip
        self.dtype = dtype
        self.plan = model.plan(steps)
        self.phis = self.plan.trained_phis.to(self.device)
        self._times = model.time_map(self.phis[:-1])
        self._own = model.raw if type(model).raw is not Denoiser.raw else None  # a denoiser of the user's own
        self._source = model.network
        self.network = _twin(model.network, dtype, self.device)
        self._denoiser = model.with_network(self.network)
        self._channels_last = self.network is not self._source and self.device.type == "cuda"  # as its weights are
        self._fixed = self._fixed_times()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes in the weights as they are now, in memory that stays where it is."""
        if self.network is not self._source:
            for mine, theirs in zip(_tensors(self.network), _tensors(self._source), strict=True):
                mine.copy_(theirs)
            keep_constants(self.network)
        for mine, theirs in zip(self._fixed, self._fixed_times(), strict=True):
            mine.copy_(theirs)

    def _fixed_times(self) -> list[FixedTime]:
        # Other networks than ours are told the time at every call.
        if self._own is not None or not isinstance(self.network, UNet):
            return []
        return [self.network.fixed_time(time, self._denoiser.step_count) for time in self._times.tolist()]

    def constants(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Angles (N + 1, B) float64 and times (N, B) float32, to be kept as long as `run` is to read them."""
        return tuple(values.unsqueeze(1).repeat(1, batch_size) for values in (self.phis, self._times))

    @torch.no_grad()
    def run(
        self,
        constants: tuple[Tensor, Tensor],
        start: Tensor,
        labels: Tensor | None = None,
        scales: Tensor | None = None,
        form: str = "samples",
    ) -> Tensor:
        """Samples (B, ...) float32 in [-1, 1], or another form of them (`images.FORMS`).

        Args:
            constants: what `constants(B)` gave.
            start: (B,) int64 seeds, or (B, ...) latents.
            labels: (B,) int64, for a network with classes.
            scales: (B,) float32 guidance scales, for a model that is to be guided.
        """
        phis, times = constants
        cond = None if labels is None else Condition(labels, scales)
        z = normal(start, 0, Stream.LATENT, self.sample_shape) if start.dim() == 1 else start.float()
        z = scaled(z, self.plan.first_factor)
        given = self._input(z)
        for step in range(len(phis) - 1):
            out = self._predict(z, given, phis[step], self._fixed[step] if self._fixed else times[step], cond)
            z, given = self._step(z, out, phis[step], phis[step + 1], last=step == len(phis) - 2)
        return FORMS[form](scaled(z, self.plan.last_factor)).contiguous()

    def _input(self, z: Tensor) -> Tensor | None:
        """What the network takes of a state; None for a denoiser of the user's own, which takes the state."""
        return None if self._own is not None else z.to(self.dtype, memory_format=self._order(z))

    def _order(self, z: Tensor) -> torch.memory_format:
        return torch.channels_last if self._channels_last and z.dim() == 4 else torch.preserve_format

    def _predict(
        self, z: Tensor, given: Tensor | None, phi: Tensor, time: Tensor | FixedTime, cond: Condition | None
    ) -> Tensor:
        return self._own(z, phi, cond) if given is None else self._denoiser.raw_at(given, time, cond)

    def _step(self, z: Tensor, out: Tensor, phi: Tensor, phi_next: Tensor, last: bool) -> tuple[Tensor, Tensor | None]:
        """(the next state, what the network takes of it if it is called again)"""
        options = {"prediction_type": self.prediction_type, "clip": self.clip}
        if last or self._own is not None or self.dtype != torch.bfloat16:
            z = ddim_step(z, out, phi, phi_next, **options)
            return z, None if last else self._input(z)
        if self._order(z) == torch.channels_last:
            options["memory_format"] = torch.channels_last
        return ddim_step_and_input(z, out, phi, phi_next, **options)


def _twin(network: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The network itself if it computes in that dtype already, else a copy that does, in eval mode.

    A `UNet` on a GPU is copied in any case: into channels_last order, in which the kernels work.
    """
    on_gpu, ours = device.type == "cuda", isinstance(network, UNet)
    same = all(tensor.dtype == dtype for tensor in network.parameters() if tensor.is_floating_point())
    if same and not (on_gpu and ours):
        return network
    if on_gpu and ours and dtype == torch.bfloat16:
        twin = bfloat16_twin(network)
    else:
        twin = copy.deepcopy(network).to(dtype)
        twin = twin.to(memory_format=torch.channels_last) if on_gpu else twin
    keep_constants(twin)
    return twin.eval().requires_grad_(False)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
