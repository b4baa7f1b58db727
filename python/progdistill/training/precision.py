"""How precisely the networks of a round compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from progdistill.training.config import LoopConfig

# Up to this many steps of the student, rounds in bfloat16 did no harm: x2 - x1, what the student is told to learn, is
# wrong by a fifth there, by three fifths at 64 (benchmarks/precision.py on a digits teacher, see docs/perf-log.md; no
# network of CIFAR size has been measured).
BFLOAT16_STUDENT_STEPS = 16


def round_precision(config: LoopConfig, device: torch.device, student_steps: int | None = None) -> torch.dtype:
    """What the networks of a round compute in: float32 or bfloat16.

    Args:
        config: mixed_precision "no" and "bf16" decide; "auto" is float32 on the CPU. On a GPU it is bfloat16, unless
            the student learns such small steps that bfloat16 cannot tell the teacher's outputs before and after apart.
        device: where the round is trained.
        student_steps: the student's step count, None where it does not imitate steps.
    """
    if config.mixed_precision == "bf16":
        return torch.bfloat16
    if config.mixed_precision == "no" or device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if student_steps is None or student_steps <= BFLOAT16_STUDENT_STEPS else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """As logs and folders have it: "float32"."""
    return str(dtype).removeprefix("torch.")


@contextlib.contextmanager
def convolution_settings() -> Iterator[None]:
    """cuDNN for updates of one shape: float32 convolutions on TF32 units, the fastest algorithm looked for once.

    Where determinism is asked for nothing is looked for: two runs might choose differently.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    cudnn.conv.fp32_precision = "tf32"
    cudnn.benchmark = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.conv.fp32_precision, cudnn.benchmark = before
