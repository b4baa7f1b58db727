"""All that changes while a round is trained, to and from a checkpoint."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from progdistill.core.processes import process_count
from progdistill.training.checkpoint import Checkpoint
from progdistill.training.compute_network import ComputeNetwork
from progdistill.training.config import LoopConfig
from progdistill.training.optimizer import make_optimizer, moments, restore_moments
from progdistill.training.precision import dtype_name
from progdistill.training.running_loss import RunningLoss


class RoundState:
    """The student's network, its optimizer with the average, the losses since the last line, and the time taken.

    The network's parameters are the float32 masters. `compute`, of the same network, is what computes for it.
    """

    def __init__(
        self, network: nn.Module, config: LoopConfig, device: torch.device, compute: ComputeNetwork | None = None
    ) -> None:
        self.network = network
        self.compute = compute or ComputeNetwork(network, torch.float32, device)
        self.optimizer = make_optimizer(network, config, device, self.compute.twins)
        self.running = RunningLoss(config.logging_steps, device)
        self.update = 0
        self.seconds = 0.0

    def checkpoint(self, round_index: int, metrics_position: int) -> Checkpoint:
        """Everything, for saving. With several processes each must call this: they add up their losses."""
        tensors = {
            "student": self.network.state_dict(),
            "ema": self._averages(),
            "optimizer": moments(self.optimizer, self.network, self.update),
            "running_loss": self.running.state(),
        }
        facts = {"metrics_position": metrics_position, "seconds": self.seconds, **self._environment()}
        return Checkpoint(round_index, self.update, tensors, facts)

    def restore(self, checkpoint: Checkpoint, *, main_process: bool) -> None:
        """Puts everything back; the losses since the last line go to the first process."""
        self.network.load_state_dict(checkpoint.tensors["student"])
        self.compute.refresh()
        trained = self.optimizer.ema_state_dict()
        self.optimizer.load_ema_state_dict({name: checkpoint.tensors["ema"][name] for name in trained})
        restore_moments(self.optimizer, self.network, checkpoint.tensors["optimizer"], checkpoint.update)
        if main_process:
            self.running.load_state(checkpoint.tensors["running_loss"])
        self.update = checkpoint.update
        self.seconds = checkpoint.facts["seconds"]
        changed = {k: (checkpoint.facts.get(k, now), now) for k, now in self._environment().items()}
        changed = {k: pair for k, pair in changed.items() if pair[0] != pair[1]}
        if changed and main_process:
            differences = ", ".join(f"{name} was {before}, is {now}" for name, (before, now) in changed.items())
            warnings.warn(
                f"resuming in another environment ({differences}): the result will not equal that of an "
                "uninterrupted run bit for bit",
                stacklevel=2,
            )

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights, in evaluation mode."""
        network = copy_network(self.network).to(memory_format=torch.contiguous_format)
        network.load_state_dict(self._averages(), strict=False)
        return network.eval()

    def raw_state_dict(self) -> dict[str, Tensor]:
        """A copy of the weights as they were last trained, on the CPU."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.network.state_dict().items()}

    def _averages(self) -> dict[str, Tensor]:
        """Of all parameters by name; those that are not trained are their own average."""
        own = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        return {**own, **self.optimizer.ema_state_dict()}

    def _environment(self) -> dict[str, Any]:
        # What equal bits depend on besides the settings.
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processes": process_count()}
        formats = {"memory_format": str(self.compute.memory_format), "precision": dtype_name(self.compute.dtype)}
        return {**facts, **formats}


def copy_network(network: nn.Module) -> nn.Module:
    """A deep copy without gradients."""
    return copy.deepcopy(network)  # parameters leave their gradients behind
