"""One update of a round: what the host writes before it, and the work on the device, which reads nothing else."""

from __future__ import annotations

import torch

from progdistill.core import Denoiser
from progdistill.core.processes import process_count
from progdistill.core.random import Stream, integers
from progdistill.training.batches import Batches, BatchInputs, Microbatch
from progdistill.training.config import LoopConfig
from progdistill.training.objective import Objective
from progdistill.training.optimizer import set_learning_rate
from progdistill.training.precision import convolution_settings
from progdistill.training.replicas import replicated, without_exchange
from progdistill.training.round_state import RoundState
from progdistill.training.update_graph import UpdateGraph


class Updates:
    """Does the updates of a round, one a call: eagerly, or on a GPU as CUDA graphs.

    All that differs from update to update (images, seeds, the update's number, the learning rate) lies in device
    memory, where the host writes it beforehand. A graph holds one microbatch rather than a whole update, and that of
    an update's last microbatch holds the optimizer's step too. So without accumulation there is one graph for the
    update; with it two, however many microbatches there are, and each microbatch has its own seed of dropout.

    Args:
        student: what is trained, around the network of `state`.
        objective: the recipe's.
        dropout: whether the network draws from torch's generator.
        on_host: None, or what the objective does on the host, so that no graph can hold it.
    """

    def __init__(
        self,
        student: Denoiser,
        objective: Objective,
        state: RoundState,
        batches: Batches,
        config: LoopConfig,
        *,
        dropout: bool,
        on_host: str | None = None,
    ) -> None:
        self.state = state
        self._student = student.with_network(replicated(state.compute, batches.device))
        self._objective = objective
        self._batches = batches
        self._config = config
        self._dropout = dropout
        self._inputs: BatchInputs | None = None
        forget = state.optimizer.zero_grad
        self._run = UpdateGraph(self._microbatch, forget, state.network, batches.device, config.cuda_graph, on_host)
        forget()

    def __call__(self, rate: float) -> None:
        """The next update, at this learning rate. Waits for nothing; the gradient's norm is in the optimizer."""
        state, parts = self.state, self._config.gradient_accumulation_steps
        with convolution_settings():
            self._run.prepare()
        set_learning_rate(state.optimizer, rate)
        for part, microbatch in enumerate(self._batches.microbatches(state.update), start=1):
            self._write(microbatch)
            with convolution_settings():
                self._run(part == parts)
        state.update += 1

    def close(self) -> None:
        """Lets go of the graphs and their memory."""
        self._run.close()

    def _write(self, microbatch: Microbatch) -> None:
        if self._inputs is None:
            self._inputs = BatchInputs(microbatch, self._batches.device, self.state.compute.memory_format)
        self._inputs.write(microbatch)
        if self._dropout:
            # A graph's kernels take the generator's seed and offset from device memory, filled when it is replayed.
            key = torch.tensor([self._config.seed]), microbatch.number
            torch.manual_seed(int(integers(*key, Stream.DROPOUT, 2**31 - 1)))

    def _microbatch(self, last: bool) -> None:
        """The gradients of what was written last, and after an update's last microbatch the optimizer's step.

        A function of device memory: no decision and no read on the host.
        """
        state, batch, parts = self.state, self._inputs.batch(), self._config.gradient_accumulation_steps
        with without_exchange(self._student.network, not last):
            result = self._objective(self._student, batch, 1.0 / self._config.train_batch_size)
            result.pred.backward(result.grad)
        state.running.add(batch.update, result.loss.detach(), result.phi)
        if process_count() > 1 and last:
            state.compute.drop_gradients()  # their sums over all processes are the masters' gradients
        elif process_count() > 1 or parts > 1:
            state.compute.collect_gradients()
        if last:
            state.optimizer.step()
            # Graphs of several microbatches add up gradients in memory that must stay.
            state.optimizer.zero_grad(set_to_none=parts == 1 or not self._run.wanted)
