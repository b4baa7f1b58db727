"""A distillation update as one writes it in plain PyTorch, and that update in a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.data import to_float
from rotation import captured
from update_task import EMA_DECAY, LEARNING_RATE, MAX_GRAD_NORM, Draw, UpdateTask


class StockUpdate:
    """Salimans & Ho 2022, Algorithm 2, truncated SNR weighting: two DDIM steps, their inversion, AdamW, an average.

    The teacher's weights are in `dtype`, the student's in float32, computing under autocast if `dtype` is another.
    Called, it draws images, noise and times from PyTorch's generator on the device and does an update.

    Args:
        task: networks, images, batch size and steps.
        dtype: what the networks compute in.
        channels_last: memory format of the weights and of all states.
        compiled: both networks and all arithmetic between them by torch.compile.
    """

    def __init__(self, task: UpdateTask, dtype: torch.dtype, channels_last: bool = False, compiled: bool = False):
        self.task = task
        self.dtype = dtype
        layout = torch.channels_last if channels_last else torch.contiguous_format
        wrap = (lambda one: torch.compile(one, dynamic=False)) if compiled else (lambda one: one)
        self.student = _copy_of(task.stock, torch.float32, layout).requires_grad_(True)
        self.parameters = list(self.student.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=torch.tensor(LEARNING_RATE, device=task.device),
            weight_decay=0.0,
            fused=True,
            capturable=task.device.type == "cuda",
        )
        self._teacher_network = wrap(_copy_of(task.stock, dtype, layout))
        self._student_network = wrap(self.student)
        self._diffused, self._ddim_step, self._x_target, self._loss = map(
            wrap, (diffused, ddim_step, x_target, truncated_snr_loss)
        )
        grid = task.model.schedule.grid(2 * task.steps)
        self._times = task.model.time_map(grid).to(task.device)
        self._alphas, self._sigmas = (f(grid).float().to(task.device) for f in (torch.cos, torch.sin))
        self._images = task.dataset.images(task.device)
        self._all_labels = task.dataset.labels.to(task.device) if task.conditional else None
        shape = (task.batch_size, *task.model.sample_shape)
        self.x, self.noise = (torch.empty(shape, device=task.device, memory_format=layout) for _ in range(2))
        self.index = torch.zeros(task.batch_size, dtype=torch.int64, device=task.device)
        self.labels = None if self._all_labels is None else torch.zeros_like(self.index)
        self.loss = self.grad_norm = torch.zeros((), device=task.device)

    def __call__(self) -> None:
        """Draws, and does an update."""
        self.draw()
        self.step()

    def draw(self) -> None:
        """What an update of a user draws."""
        rows = torch.randint(len(self._images), (self.task.batch_size,), device=self.x.device)
        self.x.copy_(to_float(self._images.index_select(0, rows)))
        if self.labels is not None:
            self.labels.copy_(self._all_labels.index_select(0, rows))
        self.noise.normal_()
        self.index.random_(0, self.task.steps)

    def give(self, draw: Draw) -> None:
        """Uses these instead."""
        self.x.copy_(draw.x)
        self.noise.copy_(draw.noise)
        self.index.copy_(draw.index)
        if self.labels is not None:
            self.labels.copy_(draw.labels)

    def step(self) -> None:
        """One update with what was drawn; leaves `loss` and `grad_norm`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._mean_loss()
        loss.backward()
        self.grad_norm = nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - EMA_DECAY)
        self.loss = loss.detach()

    def _mean_loss(self) -> Tensor:
        first = 2 * (self.task.steps - 1 - self.index)
        start, middle, end = (self._at(first + k) for k in range(3))
        kind = self.task.model.prediction_type
        z = self._diffused(self.x, self.noise, start)
        with torch.no_grad():
            halfway = self._ddim_step(z, self._of_teacher(z, first), start, middle, kind)
            reached = self._ddim_step(halfway, self._of_teacher(halfway, first + 1), middle, end, kind)
            target = self._x_target(z, reached, start, end)
        with torch.autocast(z.device.type, self.dtype, enabled=self.dtype != torch.float32):
            out = self._student_network(z, self._times[first], **self._condition(), return_dict=False)[0]
        return self._loss(out, z, target, start, kind)

    def _at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        return self._alphas[places].view(-1, 1, 1, 1), self._sigmas[places].view(-1, 1, 1, 1)

    def _of_teacher(self, z: Tensor, places: Tensor) -> Tensor:
        return self._teacher_network(z.to(self.dtype), self._times[places], **self._condition(), return_dict=False)[0]

    def _condition(self) -> dict[str, Tensor]:
        return {} if self.labels is None else {"class_labels": self.labels}

    def reset(self) -> None:
        """Back to the first weights, in place: what a graph holds stays valid."""
        with torch.no_grad():
            for own, average, first in zip(self.parameters, self.average, self.task.stock.parameters(), strict=True):
                own.copy_(first)
                average.copy_(first)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def curve(self, updates: int, step: Callable[[], None] | None = None) -> dict[str, list[float]]:
        """Losses and gradient norms of the first updates on the data that progdistill draws."""
        source, found = self.task.batches(), []
        self.reset()
        for update in range(updates):
            self.give(self.task.draw(source, update))
            (step or self.step)()
            found.append(torch.stack((self.loss, self.grad_norm)))
        losses, norms = torch.stack(found).double().T.tolist()
        return {"loss": losses, "grad_norm": norms}


class GraphedUpdate:
    """A `StockUpdate` whose draws are one CUDA graph and whose step is another."""

    def __init__(self, update: StockUpdate) -> None:
        self._update = update
        self._draw = captured(update.draw, None)
        self._step = captured(update.step, None)

    def __call__(self) -> None:
        """Draws, and does an update."""
        self._draw()
        self._step()

    def curve(self, updates: int) -> dict[str, list[float]]:
        """As `StockUpdate.curve`."""
        return self._update.curve(updates, self._step)


def diffused(x: Tensor, noise: Tensor, at: tuple[Tensor, Tensor]) -> Tensor:
    """Eq. 1: z = alpha x + sigma noise."""
    return at[0] * x + at[1] * noise


def x_and_eps(z: Tensor, out: Tensor, at: tuple[Tensor, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    """x and eps from a network's output; two heads are mixed as section 4 of the paper says."""
    alpha, sigma = at
    out = out.float()
    if kind == "sample_epsilon":
        x_head, eps_head = out.chunk(2, dim=1)
        x = sigma**2 * x_head + alpha * (z - sigma * eps_head)
        return x, (z - alpha * x) / sigma
    return alpha * z - sigma * out, sigma * z + alpha * out


def ddim_step(z: Tensor, out: Tensor, at: tuple[Tensor, Tensor], to: tuple[Tensor, Tensor], kind: str) -> Tensor:
    """Eq. 8."""
    x, eps = x_and_eps(z, out, at, kind)
    return to[0] * x + to[1] * eps


def x_target(z: Tensor, reached: Tensor, at: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> Tensor:
    """Eq. 43: the x from which one step leads to `reached`."""
    ratio = end[1] / at[1]
    return (reached - ratio * z) / (end[0] - ratio * at[0])


def truncated_snr_loss(out: Tensor, z: Tensor, target: Tensor, at: tuple[Tensor, Tensor], kind: str) -> Tensor:
    """Section 4: the mean of max(1, SNR) |x - target|^2."""
    x, _ = x_and_eps(z, out, at, kind)
    weight = (at[0] / at[1]).square().clamp(min=1)
    return (weight * (x - target).square()).mean()


def _copy_of(network: nn.Module, dtype: torch.dtype, memory_format: Any) -> nn.Module:
    # Not diffusers' own `to`: it warns of modules to be kept in float32, of which this network has none.
    return nn.Module.to(copy.deepcopy(network), dtype).to(memory_format=memory_format).eval().requires_grad_(False)
