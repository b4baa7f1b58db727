"""progdistill's distillation update outside a run: the one place here that knows the pieces of its training loop."""

from __future__ import annotations

import dataclasses

import torch

from progdistill.core import Denoiser
from progdistill.training.compute_network import ComputeNetwork, computing_teacher
from progdistill.training.distill import DistillationObjective
from progdistill.training.optimizer import learning_rate
from progdistill.training.precision import round_precision
from progdistill.training.round_state import RoundState, copy_network
from progdistill.training.update import Updates
from progdistill.training.update_graph import WARM_UP_UPDATES
from update_task import UpdateTask


class OwnUpdate:
    """What the training loop does between two lines of its log.

    Args:
        task: networks, images, batch size and steps.
        settings: those of a run, `mixed_precision` and `cuda_graph` for instance.
    """

    def __init__(self, task: UpdateTask, **settings: object) -> None:
        self.task = task
        self.config = dataclasses.replace(task.config, **settings)
        self._updates: Updates | None = None
        self.reset()

    def reset(self) -> None:
        """Back to the first weights."""
        if self._updates is not None:
            self._updates.close()
        task, config = self.task, self.config
        precision = round_precision(config, task.device, task.steps)
        network = copy_network(task.model.network).requires_grad_(True).train(False)
        compute = ComputeNetwork(network, precision, task.device, compiled=config.compile)
        student = task.model.with_network(network, valid_steps=(task.steps,))
        objective = DistillationObjective(computing_teacher(task.model, precision), task.steps, config)
        self.state = RoundState(network, config, task.device, compute)
        self._updates = Updates(student, objective, self.state, task.batches(), config, dropout=False)

    def warm_up(self) -> OwnUpdate:
        """Does the updates that come before the first one in a graph."""
        for _ in range(WARM_UP_UPDATES):
            self()
        return self

    def __call__(self) -> None:
        """The next update."""
        self._updates(learning_rate(self.config, self.state.update, self.config.updates_per_round))

    def curve(self, updates: int) -> dict[str, list[float]]:
        """Losses and gradient norms of the first updates."""
        self.reset()
        losses, norms = [], []
        for _ in range(updates):
            self.state.running.clear()
            self()
            losses.append(self.state.running.read().mean)
            norms.append(float(self.state.optimizer.grad_norm))
        return {"loss": losses, "grad_norm": norms}


def bfloat16_model(model: Denoiser) -> Denoiser:
    """The model as a teacher computes in a round in bfloat16."""
    return computing_teacher(model, torch.bfloat16)
