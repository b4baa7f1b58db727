"""Times the CPU kernels against the same formulas in eager PyTorch and under torch.compile.

    python benchmarks/ops_cpu.py --threads 2 --output ops_cpu.json

Contenders take turns within a repetition, so that another load on the machine meets all of them alike. After a turn of
PyTorch's, its OpenMP threads spin on for some milliseconds and take cores from whoever comes next. GB/s counts what the
operation must move (each input and output once). "normal" has torch.randn for an eager contender, which makes other
numbers.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from progdistill import ops
from progdistill.ops import native, normal
from progdistill.ops.ddim_step import ddim_step_reference
from progdistill.ops.diffuse import diffuse_reference
from progdistill.ops.distillation_loss import distillation_loss_reference
from progdistill.ops.distillation_target import distillation_target_reference
from progdistill.ops.loss_options import LossOptions
from progdistill.ops.prediction_loss import prediction_loss_reference

SHAPES = ((4, 3, 8, 8), (128, 3, 32, 32), (64, 3, 128, 128), (512, 3, 64, 64))
SECONDS_PER_TURN = 0.05  # a turn repeats short calls until about this long


def cases(shape: tuple[int, ...]) -> dict[str, tuple[int, Callable, Callable]]:
    """Operation -> (bytes it must move, our call, the same in plain PyTorch)."""
    z, pred, first, second = (torch.randn(shape) for _ in range(4))
    phi = torch.linspace(0.1, 1.4, shape[0], dtype=torch.float64)
    phis = torch.stack([phi, 0.75 * phi, 0.5 * phi])
    outs, seeds = [first, second], torch.arange(shape[0])
    half_pred, half_outs = pred.bfloat16(), [out.bfloat16() for out in outs]
    last = [torch.cat([t, t], 1).contiguous(memory_format=torch.channels_last) for t in (pred, first, second)]
    last_z = z.contiguous(memory_format=torch.channels_last)
    v, both, weighting = "v_prediction", "sample_epsilon", "truncated_snr"
    loss = ops.distillation_loss_and_grad
    size = 4 * z.numel()

    def options(kind):
        return LossOptions(kind, weighting, 5.0, "l2", 1e-3, 1.0, True)

    def loss_reference(pred, z, outs, kind, clip):
        return distillation_loss_reference(pred, z, outs, phis, kind, clip, options(kind))

    return {
        "diffuse": (3 * size, lambda: ops.diffuse(z, pred, phi), lambda: diffuse_reference(z, pred, phi)),
        "ddim_step": (
            3 * size,
            lambda: ops.ddim_step(z, pred, phi, phis[1]),
            lambda: ddim_step_reference(z, pred, phi, phis[1], v, None),
        ),
        "ddim_step, clip": (
            3 * size,
            lambda: ops.ddim_step(z, pred, phi, phis[1], clip=1.0),
            lambda: ddim_step_reference(z, pred, phi, phis[1], v, 1.0),
        ),
        "distillation_target": (
            4 * size,
            lambda: ops.distillation_target(z, outs, phis),
            lambda: distillation_target_reference(z, outs, phis, v, v, None),
        ),
        "distillation_loss": (
            5 * size,
            lambda: loss(pred, z, outs, phis),
            lambda: loss_reference(pred, z, outs, v, None),
        ),
        "distillation_loss, clip": (
            5 * size,
            lambda: loss(pred, z, outs, phis, clip=1.0),
            lambda: loss_reference(pred, z, outs, v, 1.0),
        ),
        "distillation_loss, bf16 outputs": (
            3 * size,
            lambda: loss(half_pred, z, half_outs, phis),
            lambda: loss_reference(half_pred, z, half_outs, v, None),
        ),
        "distillation_loss, 2 heads, channels_last": (
            9 * size,
            lambda: loss(last[0], last_z, last[1:], phis, prediction_type=both),
            lambda: loss_reference(last[0], last_z, last[1:], both, None),
        ),
        "prediction_loss": (
            4 * size,
            lambda: ops.prediction_loss_and_grad(
                pred, z, first, phi, prediction_type=v, target_type="sample", weighting=weighting
            ),
            lambda: prediction_loss_reference(pred, z, first, phi, "sample", options(v)),
        ),
        "normal": (size, lambda: normal(seeds, 1, 0, shape[1:]), lambda: torch.randn(shape)),
    }


def compiled(call: Callable) -> Callable | None:
    """The call under torch.compile, or None where that does not work on this machine."""
    torch._dynamo.reset()
    try:
        result = torch.compile(call, fullgraph=True, dynamic=False)
        result()
    except Exception as error:
        print(f"    torch.compile failed: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return None
    return result


def turns(call: Callable) -> int:
    """How often a turn repeats a call."""
    call()
    start = time.perf_counter()
    call()
    return max(1, min(1000, int(SECONDS_PER_TURN / max(time.perf_counter() - start, 1e-7))))


def interleaved(contenders: dict[str, Callable], repetitions: int) -> dict[str, list[float]]:
    """Seconds a call, one figure for each repetition; contenders take turns within it."""
    counts = {name: turns(call) for name, call in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repetitions):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            seconds[name].append((time.perf_counter() - start) / counts[name])
    return seconds


def measure(shape: tuple[int, ...], repetitions: int, with_compile: bool, only: str) -> list[dict]:
    """One record for each operation and contender; prints them as they come."""
    records = []
    for operation, (moved, ours, eager) in cases(shape).items():
        if only not in operation:
            continue
        contenders = {"progdistill": ours, "eager": eager}
        fused = compiled(eager) if with_compile and operation != "normal" else None
        if fused is not None:
            contenders["compile"] = fused
        seconds = interleaved(contenders, repetitions)
        best = statistics.median(seconds["progdistill"])
        for name, values in seconds.items():
            median, least = statistics.median(values), min(values)
            records.append(
                {"operation": operation, "shape": shape, "contender": name, "bytes": moved, "seconds": values}
            )
            print(
                f"{'x'.join(map(str, shape)):>14}  {operation:<42}{name:<12}{median * 1e3:>9.3f}{least * 1e3:>9.3f}"
                f"{moved / median / 1e9:>9.1f}{moved / least / 1e9:>9.1f}{median / best:>8.2f}",
                flush=True,
            )
    return records


def machine() -> dict:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "processor": models[0].split(":", 1)[1].strip() if models else platform.processor(),
        "logical_cores": len(models) or None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "extension": native._C.build_info() if native._C is not None else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="write all figures to this JSON file")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes minutes)")
    arguments = parser.parse_args()
    if native._C is None:
        raise SystemExit(f"the extension is missing ({native.import_error}): there is nothing to compare")
    torch.set_num_threads(arguments.threads)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items() if key != "extension"))
    print(", ".join(f"{key} {value}" for key, value in about["extension"].items()))
    print(
        f"{'shape':>14}  {'operation':<42}{'contender':<12}{'median ms':>9}{'min ms':>9}"
        f"{'GB/s':>9}{'best':>9}{'ratio':>8}"
    )
    records = []
    for shape in sorted(SHAPES, key=math.prod):
        records += measure(shape, arguments.repetitions, not arguments.no_compile, arguments.only)
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"machine": about, "records": records}, indent=1))
        print(f"written to {arguments.output}")


if __name__ == "__main__":
    main()
