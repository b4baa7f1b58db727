"""The one training loop: a recipe gives it a student and an objective, it does the updates of a round."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from progdistill.core import Denoiser
from progdistill.core.processes import is_main_process, on_main_process
from progdistill.training.batches import Batches
from progdistill.training.compute_network import ComputeNetwork
from progdistill.training.config import LoopConfig
from progdistill.training.objective import Objective
from progdistill.training.optimizer import learning_rate
from progdistill.training.precision import dtype_name, round_precision
from progdistill.training.progress import duration
from progdistill.training.round_state import RoundState
from progdistill.training.run_folder import RunFolder
from progdistill.training.run_report import renew_run_report
from progdistill.training.running_loss import LossSummary
from progdistill.training.stopping import RunInterrupted, StopRequest
from progdistill.training.update import Updates


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: what is trained, with what objective, for how long."""

    index: int
    student: Denoiser
    objective: Objective
    updates: int
    label: str
    dropout: bool
    on_validation: Callable[[Denoiser, int], Any]
    """Called with the averaged student and the number of updates, every `validation_steps`, in the first process."""
    precision: torch.dtype | None = None
    """What the student computes in; None: what the settings say where no steps are imitated (`round_precision`)."""
    updates_per_iteration: int = 1
    """Over so many updates the objective keeps a state on the host. Checkpoints are made between iterations only, so
    that nobody need save it, and CUDA graphs, which could not hold it, are not used."""


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """The averaged student, its raw weights, how long the updates took, what computed them ("bfloat16"), and the mean
    loss of the last line of the log."""

    student: Denoiser
    raw_state_dict: dict[str, Tensor]
    seconds: float
    precision: str
    loss: float | None


def run_round(round_: Round, batches: Batches, config: LoopConfig, run: RunFolder) -> RoundResult:
    """Does the updates of a round, from its newest checkpoint if there is one.

    Raises:
        RunInterrupted: SIGTERM came; the state after the update is saved.
        FloatingPointError: the loss is not finite; nothing is saved over the last good checkpoint.
        OSError: a checkpoint could not be written; those before it are as they were.
    """
    try:
        return _RoundInProgress(round_, batches, config, run).to_its_end()
    except (RunInterrupted, KeyboardInterrupt) as interruption:
        run.end("interrupted", str(interruption) or "by the keyboard")
        raise
    except Exception as error:
        run.end("failed", str(error))
        raise


class _RoundInProgress:
    def __init__(self, round_: Round, batches: Batches, config: LoopConfig, run: RunFolder) -> None:
        self.round = round_
        self.batches = batches
        self.config = config
        self.run = run
        network = round_.student.network.train(round_.dropout)
        precision = round_.precision or round_precision(config, batches.device)
        compute = ComputeNetwork(network, precision, batches.device, compiled=config.compile)
        self.state = RoundState(network, config, batches.device, compute)
        checkpoint = run.resume_round(round_.index)
        if checkpoint is not None:
            self.state.restore(checkpoint, main_process=is_main_process())
        self.updates = Updates(
            round_.student,
            round_.objective,
            self.state,
            batches,
            config,
            dropout=round_.dropout,
            on_host=_state_on_host(round_),
        )
        self.started = time.perf_counter() - self.state.seconds
        run.progress.update(round_.index, round_.label, self.state.update, None)

    def to_its_end(self) -> RoundResult:
        round_, state, config = self.round, self.state, self.config
        visible = config.progress and is_main_process()
        bar = tqdm(initial=state.update, total=round_.updates, desc=round_.label, disable=not visible, leave=False)
        generators = torch.random.fork_rng(devices=[self.batches.device] if self.batches.device.type == "cuda" else [])
        with contextlib.closing(self.updates), StopRequest() as stop, bar, generators:
            loss = None
            while state.update < round_.updates:
                between = state.update % round_.updates_per_iteration == 0
                if between and stop.pending():
                    self.stop()
                rate = learning_rate(config, state.update, round_.updates)
                self.updates(rate)
                bar.update()
                last = state.update == round_.updates
                saving = _ends_iteration_after(config.checkpointing_steps, round_, state.update) and not last
                logging = state.update % config.logging_steps == 0 or last
                if saving or logging:
                    loss = _checked_loss(round_, config, state)
                if logging:
                    bar.set_postfix_str(self.log(loss, rate), refresh=False)
                if config.validation_steps and state.update % config.validation_steps == 0 and not last:
                    averaged = round_.student.with_network(state.averaged())
                    on_main_process(partial(round_.on_validation, averaged, state.update))
                if saving:
                    self.save()
        state.seconds = time.perf_counter() - self.started
        averaged = round_.student.with_network(state.averaged())
        facts = state.seconds, dtype_name(state.compute.dtype), None if loss is None else loss.mean
        return RoundResult(averaged, state.raw_state_dict(), *facts)

    def log(self, loss: LossSummary, rate: float) -> str:
        """Writes a line; returns what the progress bar says."""
        round_, state = self.round, self.state
        state.seconds = time.perf_counter() - self.started
        self.run.write(
            {
                "event": "update",
                "round": round_.index,
                "label": round_.label,
                "update": state.update,
                "loss": loss.mean,
                "loss_by_noise_level": loss.by_level,
                "grad_norm": float(state.optimizer.grad_norm),
                "learning_rate": rate,
                "precision": dtype_name(state.compute.dtype),
                "seconds": round(state.seconds, 3),
            }
        )
        state.running.clear()
        left = self.run.progress.update(round_.index, round_.label, state.update, loss.mean)
        renew_run_report(self.run)
        return f"loss {loss.mean:.4g}" + ("" if left is None else f", {duration(left)} left in all")

    def save(self) -> None:
        self.state.seconds = time.perf_counter() - self.started
        checkpoint = self.state.checkpoint(self.round.index, self.run.metrics.position)
        on_main_process(lambda: self.run.checkpoints.save(checkpoint))

    def stop(self) -> None:
        round_, state = self.round, self.state
        if state.update:
            self.save()
        message = (
            f"stopped by SIGTERM after update {state.update} of {round_.updates} of round {round_.index} "
            f"({round_.label}); saved in {self.run.path}: the same command resumes"
        )
        if is_main_process():
            print(message, flush=True)
        raise RunInterrupted(message)


def _ends_iteration_after(interval: int, round_: Round, update: int) -> bool:
    """Whether an iteration ends here within which (or at whose end) a multiple of `interval` updates was reached."""
    length = round_.updates_per_iteration
    return update % length == 0 and update % interval < length


def _state_on_host(round_: Round) -> str | None:
    if round_.updates_per_iteration == 1:
        return None
    return f"the objective goes through {round_.updates_per_iteration} updates with one batch, led by the host"


def _checked_loss(round_: Round, config: LoopConfig, state: RoundState) -> LossSummary:
    """The losses since the last line; FloatingPointError if the weights can no longer be trusted."""
    loss = state.running.read()
    if loss.first_bad is not None:
        window = (state.update - 1) // config.logging_steps * config.logging_steps
        what = (
            f"the loss is not finite in update {window + loss.first_bad + 1}, in tenths {loss.bad_levels} of the noise "
            "levels (0 = clean, 9 = noise)"
        )
    elif not math.isfinite(grad_norm := float(state.optimizer.grad_norm)):
        what = f"the gradient's norm is {grad_norm} in update {state.update}"
    else:
        return loss
    raise FloatingPointError(
        f"round {round_.index} ({round_.label}): {what}; try a lower learning_rate, a longer lr_warmup_steps, a "
        "smaller max_grad_norm or mixed_precision='no' in another output_dir (the last good checkpoint is still here)"
    )
