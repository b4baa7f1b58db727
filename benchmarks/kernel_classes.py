"""What a kernel is for, by its name, and the time that a call spends in each class of kernels.

The names are those of cuDNN, cuBLAS, CUTLASS, flash attention, PyTorch, Inductor and progdistill on a GPU, and of
PyTorch's operations on a CPU, which do not tell a change of layout from one of type: both are "layout copies" there.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile

from launches import ON_THE_GPU, counted, trace_of

ARITHMETIC, NORMALISATION, LAYOUT, CASTS = "arithmetic", "normalisation", "layout copies", "casts"
ELEMENTWISE, REDUCTIONS, OPTIMIZER, COPIES, OTHER = "element-wise", "reductions", "optimizer", "copies", "other"
CLASSES = (ARITHMETIC, NORMALISATION, LAYOUT, CASTS, ELEMENTWISE, REDUCTIONS, OPTIMIZER, COPIES, OTHER)
MOST_NAMES = 40
ROOT = Path(__file__).resolve().parents[1]

# Inductor names a kernel by its kind and by the operations that it fused.
_INDUCTOR = re.compile(r"triton_(poi|red|per|tem|for|mm)_fused_(.*?)(_\d+)?$")
_NORMALISATION = (
    r"group_?norm|group_moments|GroupNorm|layer_?norm|RowwiseMoments|Compute(Fused|Internal|Backward)|GammaBeta|Welford"
)
_CLONES = r"(_?(clone|view|_unsafe_view|permute|transpose|t|slice|expand|unsqueeze|squeeze|reshape))+"

# The first that is found in a name decides. Of PyTorch's element-wise kernels that copy, contiguous ones are
# "vectorized", those that change the type "WithCast" or named by it, those with strides neither.
_RULES: tuple[tuple[str, str], ...] = (
    (r"multi_tensor_apply|adamw|_foreach_|lpnorm|FusedAdam|sum_of_squares_kernel|root_of_sum_kernel", OPTIMIZER),
    (_NORMALISATION, NORMALISATION),
    (r"nchwToNhwc|nhwcToNchw|convertTensor|transpose|permute(?!d)", LAYOUT),
    (r"^void at::native::elementwise_kernel<.*copy_kernel", LAYOUT),
    (r"WithCast.*copy_kernel|copy_kernel.*WithCast|b?float\w*_copy_kernel", CASTS),
    (r"copy_kernel|^Memcpy|^Memset|CatArray|FillFunctor|aten::(cat|zero_|fill_)$", COPIES),
    (r"aten::(copy_|_to_copy|contiguous|clone)$", LAYOUT),
    (
        r"distillation_|prediction_loss|ddim_step|linear_combination|diffuse|normal_kernel|draw_kernel|random_bits|"
        r"padded_sum|\bmean_kernel",
        ELEMENTWISE,
    ),
    (r"gemm|gemv|conv(?!er)|wgrad|dgrad|fprop|xmma|cutlass|nvjet|cublas|splitK|winograd", ARITHMETIC),
    (r"flash|fmha|sdpa|attention|aten::\w*(mm|linear|matmul|bmm)$", ARITHMETIC),
    (r"reduce_kernel|aten::(sum|mean|norm|linalg_vector_norm)$", REDUCTIONS),
    (r"elementwise_kernel|upsample|avg_pool|index|distribution|silu|residual|philox", ELEMENTWISE),
    (
        r"aten::\w*(add|sub|mul|div|silu|sigmoid|lerp|rsub|neg|cos|sin|sqrt|clamp|pow|exp|pad|where|maximum)\w*$",
        ELEMENTWISE,
    ),
)
_TRITON_FILES = {"group_norm": NORMALISATION, "adamw": OPTIMIZER, "gradient_norm": OPTIMIZER}
_COMPILED_RULES = tuple((re.compile(pattern), found) for pattern, found in _RULES)


@functools.cache
def _own_triton_kernels() -> dict[str, str]:
    """The classes of progdistill's Triton kernels, whose names tell little: by the files that they are in."""
    found = {}
    for path in sorted((ROOT / "kernels" / "triton").glob("*.py")):
        group = next((kind for part, kind in _TRITON_FILES.items() if part in path.stem), ELEMENTWISE)
        for name in re.findall(r"@triton\.jit(?:\([^)]*\))?\s*def (\w+)\(", path.read_text(encoding="utf-8")):
            found[name] = group
    return found


def kernel_class(name: str) -> str:
    """One of `CLASSES` for a kernel's (demangled) name, a copy's, or that of one of PyTorch's operations."""
    if name in _own_triton_kernels():
        return _own_triton_kernels()[name]
    inductor = _INDUCTOR.search(name)
    if inductor:
        return _inductor_class(inductor[1], inductor[2])
    return next((found for pattern, found in _COMPILED_RULES if pattern.search(name)), OTHER)


def _inductor_class(kind: str, operations: str) -> str:
    if kind in ("tem", "mm"):
        return ARITHMETIC
    if re.search(_NORMALISATION, operations):
        return NORMALISATION
    if kind in ("red", "per"):
        return REDUCTIONS
    # "convolution" is where the result goes to, or the bias that is added to it: then it is not alone.
    rest = re.sub(r"_?convolution(_backward)?", "", operations)
    if re.fullmatch(r"(_?_to_copy)+", rest):
        return CASTS
    return LAYOUT if re.fullmatch(_CLONES, rest) else ELEMENTWISE


def profiled(call: Callable[[], object], device: str) -> dict[str, Any]:
    """Of one call: "by_class", as `summed` has it, and on a GPU what `launches.counted` has, elsewhere None.

    On a GPU the times are those of its kernels and copies, on a CPU those of operations without what they call. What
    `launches.trace_of` says of the profiler holds here too.
    """
    if device == "cuda":
        events = trace_of(call)
        times = [(event["name"], event["dur"] / 1e6) for event in events if event.get("cat") in ON_THE_GPU]
        return {**counted(events), "by_class": summed(times)}
    with profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        call()
    times = [(event.key, event.self_cpu_time_total / 1e6) for event in found.key_averages()]
    return {"launches": None, "kernels": None, "by_class": summed(times)}


def summed(times: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """Names and seconds -> {"seconds": {class: seconds}, "names": [[name, class, seconds]] of those that took most}."""
    by_name: dict[str, float] = defaultdict(float)
    for name, spent in times:
        by_name[name] += spent
    most = sorted(by_name.items(), key=lambda pair: -pair[1])
    seconds = dict.fromkeys(CLASSES, 0.0)
    for name, spent in most:
        seconds[kernel_class(name)] += spent
    return {"seconds": seconds, "names": [[name, kernel_class(name), spent] for name, spent in most[:MOST_NAMES]]}


def conversion_share(by_class: dict[str, Any]) -> float:
    """Layout copies and casts, of the whole."""
    seconds = by_class["seconds"]
    return (seconds[LAYOUT] + seconds[CASTS]) / max(sum(seconds.values()), 1e-30)
