"""The one training loop: a recipe gives it a student and an objective, it does the updates of a round."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from progdistill.core import Denoiser
from progdistill.core.random import Stream, integers
from progdistill.training.batches import Batch, BatchSource
from progdistill.training.checkpoint import Checkpoint, environment
from progdistill.training.config import LoopConfig
from progdistill.training.ema import ExponentialMovingAverage
from progdistill.training.metrics_log import RunningLoss
from progdistill.training.optimizer import (
    learning_rate,
    make_optimizer,
    moments,
    restore_moments,
    set_learning_rate,
)
from progdistill.training.run_folder import RunFolder


@dataclasses.dataclass(frozen=True)
class Loss:
    """What an objective computes for a microbatch."""

    pred: Tensor
    """The student's output, still attached to its graph."""
    grad: Tensor
    """The gradient of the loss for `pred`, already scaled."""
    loss: Tensor
    """(B,) per-sample losses."""
    phi: Tensor
    """(B,) angles."""


class Objective(Protocol):
    """A recipe's loss: (student, microbatch, factor on the sum of the samples' losses) -> Loss."""

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss: ...


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: what is trained, with what objective, for how long."""

    index: int
    student: Denoiser
    objective: Objective
    updates: int
    label: str
    dropout: bool
    on_validation: Callable[[Denoiser, int], None]
    """Called with the averaged student and the number of updates, every `validation_steps` and at the end."""


@dataclasses.dataclass(frozen=True)
class RoundResult:
    """The averaged student, its raw weights, and how long the updates took."""

    student: Denoiser
    raw_state_dict: dict[str, Tensor]
    seconds: float


def choose_device(name: str | None) -> torch.device:
    """The named device, or cuda if there is one, else cpu.

    Raises:
        ValueError: a device that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch sees no GPU; use --device cpu")
    return device


def precision(config: LoopConfig, device: torch.device) -> contextlib.AbstractContextManager:
    """The networks' precision: bf16 where asked for (auto: on a GPU), else float32."""
    low = config.mixed_precision == "bf16" or (config.mixed_precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16) if low else contextlib.nullcontext()


def run_round(round_: Round, batches: BatchSource, config: LoopConfig, run: RunFolder) -> RoundResult:
    """Does the updates of a round, from its newest checkpoint if there is one.

    Raises:
        FloatingPointError: the loss is not finite; nothing is saved over the last good checkpoint.
    """
    network = round_.student.network.train(round_.dropout)
    device = batches.device
    optimizer = make_optimizer(network, config)
    ema = ExponentialMovingAverage(network, config.ema_decay)
    running = RunningLoss(device)
    done, seconds_before = _restore(round_, network, optimizer, ema, running, run)
    started = time.perf_counter()
    elapsed = lambda: seconds_before + time.perf_counter() - started  # noqa: E731
    save = lambda update: run.checkpoints.save(  # noqa: E731
        _checkpoint(round_.index, update, network, optimizer, ema, running, run, elapsed())
    )

    bar = tqdm(initial=done, total=round_.updates, desc=round_.label, disable=not config.progress, leave=False)
    with bar, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for update in range(done, round_.updates):
            rate = learning_rate(config, update, round_.updates)
            set_learning_rate(optimizer, rate)
            grad_norm = _update(round_, batches, config, optimizer, running, update)
            ema.update(network, update + 1)
            bar.update()
            finished = update + 1
            if finished % config.logging_steps == 0 or finished == round_.updates:
                loss = _log(round_, run, running, finished, rate, grad_norm, elapsed())
                bar.set_postfix(loss=f"{loss:.4g}", refresh=False)
            if finished < round_.updates:
                if config.validation_steps and finished % config.validation_steps == 0:
                    round_.on_validation(_averaged(round_.student, ema), finished)
                if finished % config.checkpointing_steps == 0:
                    save(finished)
    raw = {name: p.detach().cpu().clone() for name, p in network.state_dict().items()}
    return RoundResult(_averaged(round_.student, ema), raw, elapsed())


def _update(
    round_: Round,
    batches: BatchSource,
    config: LoopConfig,
    optimizer: torch.optim.AdamW,
    running: RunningLoss,
    update: int,
) -> Tensor:
    optimizer.zero_grad(set_to_none=True)
    for part, batch in enumerate(batches.microbatches(update)):
        if round_.dropout:
            key = torch.tensor([config.seed]), update * config.gradient_accumulation_steps + part
            torch.manual_seed(int(integers(*key, Stream.DROPOUT, 2**31 - 1)))
        with precision(config, batches.device):
            result = round_.objective(round_.student, batch, 1.0 / config.train_batch_size)
        result.pred.backward(result.grad)
        running.add(result.loss.detach(), result.phi)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
    optimizer.step()
    return grad_norm


def _log(
    round_: Round, run: RunFolder, running: RunningLoss, update: int, rate: float, grad_norm: Tensor, seconds: float
) -> float:
    loss, by_level = running.read()
    if not math.isfinite(loss):
        levels = [i for i, value in enumerate(by_level) if value is not None and not math.isfinite(value)]
        raise FloatingPointError(
            f"the loss is {loss} by update {update} of round {round_.index} ({round_.label}), in tenths {levels} of "
            "the noise levels (0 = clean, 9 = noise); try a lower learning_rate, a longer lr_warmup_steps or "
            "mixed_precision='no' in another output_dir (the last good checkpoint is still here)"
        )
    run.metrics.write(
        {
            "event": "update",
            "round": round_.index,
            "label": round_.label,
            "update": update,
            "loss": loss,
            "loss_by_noise_level": by_level,
            "grad_norm": float(grad_norm),
            "learning_rate": rate,
            "seconds": round(seconds, 3),
        }
    )
    return loss


def _averaged(student: Denoiser, ema: ExponentialMovingAverage) -> Denoiser:
    network = copy_network(student.network)
    ema.copy_to(network)
    return student.with_network(network.eval())


def copy_network(network: nn.Module) -> nn.Module:
    """A deep copy without gradients."""
    for parameter in network.parameters():
        parameter.grad = None
    return copy.deepcopy(network)


def _checkpoint(
    index: int,
    update: int,
    network: nn.Module,
    optimizer: torch.optim.AdamW,
    ema: ExponentialMovingAverage,
    running: RunningLoss,
    run: RunFolder,
    seconds: float,
) -> Checkpoint:
    tensors = {
        "student": network.state_dict(),
        "ema": ema.state_dict(),
        "optimizer": moments(optimizer, network),
    }
    facts = {
        "metrics_position": run.metrics.position,
        "running_loss": running.state(),
        "seconds": seconds,
        **environment(),
    }
    return Checkpoint(index, update, tensors, facts)


def _restore(
    round_: Round,
    network: nn.Module,
    optimizer: torch.optim.AdamW,
    ema: ExponentialMovingAverage,
    running: RunningLoss,
    run: RunFolder,
) -> tuple[int, float]:
    checkpoint = run.checkpoints.latest()
    if checkpoint is None or checkpoint.round_index != round_.index:
        return 0, 0.0
    network.load_state_dict(checkpoint.tensors["student"])
    ema.load_state_dict(checkpoint.tensors["ema"])
    restore_moments(optimizer, network, checkpoint.tensors["optimizer"], checkpoint.update)
    running.load_state(checkpoint.facts["running_loss"])
    run.metrics.truncate(checkpoint.facts["metrics_position"])
    return checkpoint.update, checkpoint.facts["seconds"]
