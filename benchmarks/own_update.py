"""progdistill's distillation update outside a run: the one place here that knows the pieces of its training loop."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from progdistill.training.device import precision
from progdistill.training.distill import DistillationObjective
from progdistill.training.optimizer import learning_rate, set_learning_rate
from progdistill.training.round_state import RoundState, copy_network
from update_task import UpdateTask


class OwnUpdate:
    """What the loop does between two lines of its log, with `mixed_precision` as in a run's settings."""

    def __init__(self, task: UpdateTask, mixed_precision: str = "auto") -> None:
        self.task = task
        self.config = dataclasses.replace(task.config, mixed_precision=mixed_precision)
        self.reset()

    def reset(self) -> None:
        """Back to the first weights."""
        network = copy_network(self.task.model.network).requires_grad_(True).train(False)
        self.student = self.task.model.with_network(network, valid_steps=(self.task.steps,))
        self.objective = DistillationObjective(self.task.model, self.task.steps, self.config)
        self.batches = self.task.batches()
        self.state = RoundState(network, self.config, self.task.device)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """The next update; returns the mean loss and the gradient's norm, on the device."""
        state, config = self.state, self.config
        set_learning_rate(state.optimizer, learning_rate(config, state.update, config.updates_per_round))
        state.optimizer.zero_grad(set_to_none=True)
        (batch,) = self.batches.microbatches(state.update)
        with precision(config, self.task.device):
            result = self.objective(self.student, batch, 1.0 / config.train_batch_size)
        result.pred.backward(result.grad)
        state.running.add(state.update, result.loss.detach(), result.phi)
        grad_norm = nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm or math.inf)
        state.optimizer.step()
        state.update += 1
        state.ema.update(state.network, state.update)
        return result.loss.detach().mean(), grad_norm

    def curve(self, updates: int) -> dict[str, list[float]]:
        """Losses and gradient norms of the first updates."""
        self.reset()
        found = torch.stack([torch.stack(self()) for _ in range(updates)])
        losses, norms = found.double().T.tolist()
        return {"loss": losses, "grad_norm": norms}
