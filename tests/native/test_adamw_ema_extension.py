"""The optimizer's kernels called directly: what they refuse, and that instruction sets leave no trace."""

import os
import subprocess
import sys

import pytest
import torch

from progdistill.ops import native

_C = native._C
if _C is None:
    pytest.skip(f"the extension was not built: {native.import_error}", allow_module_level=True)


def described(tensor):
    """The description that stands for a tensor where torch lacks the exchange API."""
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), native._DTYPE_CODES[tensor.dtype])


def lists(dtype=torch.float32):
    """Two parameters with gradients, two moments, averages and twins."""
    generator = torch.Generator().manual_seed(0)
    rows = [[torch.rand(shape, generator=generator, dtype=dtype) for shape in ((4, 6), (5,))] for _ in range(5)]
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "emas")
    return {**dict(zip(names, rows, strict=True)), "twins": [param.bfloat16() for param in rows[0]]}


def adamw_ema(*, step=1, lr=0.1, grad_norm=2.0, max_norm=1.0, ema_decay=0.9, how=1, **rows):
    _C.adamw_ema(*rows.values(), step, lr, (0.9, 0.999, 1e-8, 0.01), grad_norm, max_norm, ema_decay, how)


def bad_updates():
    good = lists()
    double = lists(torch.float64)
    wrong = lambda name, tensor: {name: [tensor, good[name][1]]}  # noqa: E731
    for name in ("grads", "exp_avgs", "exp_avg_sqs", "emas", "twins"):
        yield f"{name} holds 1 tensors, params 2", ValueError, {name: good[name][:1]}
        yield f"{name} of shape .* does not lie in memory as params", ValueError, wrong(name, good[name][0][:2])
        yield f"{name} of shape .* does not lie in memory as params", ValueError, wrong(name, good[name][0][:, :1])
        yield f"{name} of shape .* does not lie in memory", ValueError, wrong(name, good[name][0].T.contiguous().T)
        yield f"{name} is .*int64", TypeError, wrong(name, torch.zeros(4, 6, dtype=torch.int64))
        yield f"{name} is float64", TypeError, wrong(name, double["params"][0])
        yield "expected a torch.Tensor", TypeError, wrong(name, None)
        yield f"{name} has no memory", ValueError, wrong(name, (0, (4, 6), (6, 1), (2, 32)))
    for name in ("exp_avgs", "exp_avg_sqs", "emas"):
        yield f"{name} is bfloat16", TypeError, wrong(name, good["twins"][0])
    yield "twins is float32; twins are bfloat16", TypeError, wrong("twins", good["params"][0])
    yield "params has shape .* with gaps", ValueError, wrong("params", torch.zeros(4, 12)[:, ::2])
    yield "params has shape .* with gaps", ValueError, wrong("params", torch.zeros(4, 1).expand(4, 6))
    yield "params is bfloat16; parameters are", TypeError, wrong("params", good["twins"][0])
    yield (
        r"params is float32, params\[0\] is float64",
        TypeError,
        {name: [double[name][0], good[name][1]] for name in good if name != "twins"} | {"twins": []},
    )
    yield "twins are bfloat16, of float32", TypeError, {**double, "twins": good["twins"]}
    yield r"step is float32 of shape \(\); expected a number or one int64", TypeError, {"step": torch.tensor(1.0)}
    yield r"lr is float32 of shape \(2,\)", TypeError, {"lr": torch.zeros(2)}
    yield "lr is int64", TypeError, {"lr": torch.tensor(1)}
    yield "grad_norm is <class 'NoneType'>", TypeError, {"grad_norm": None}
    yield "ema_decay is bfloat16", TypeError, {"ema_decay": torch.tensor(0.5).bfloat16()}


@pytest.mark.parametrize(("message", "error", "changes"), list(bad_updates()))
def test_an_update_refuses_what_it_could_not_do_safely(message, error, changes):
    given = {**lists(), **changes}
    before = [tensor.clone() for name in lists() for tensor in given[name] if isinstance(tensor, torch.Tensor)]
    with pytest.raises(error, match=message):
        adamw_ema(**given)
    after = [tensor for name in lists() for tensor in given[name] if isinstance(tensor, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "nothing is half done"


def bad_norms():
    norm, grad = torch.zeros(()), torch.zeros(3)
    yield "grads is int64", TypeError, (norm, [torch.arange(3)])
    yield "grads has shape .* with gaps", ValueError, (norm, [grad, torch.zeros(6)[::2]])
    yield "norm is float32; expected float64", TypeError, (norm, [grad.double()])
    yield "norm is float64; expected float32", TypeError, (norm.double(), [grad])
    yield r"norm has shape \(2,\); expected one element", ValueError, (torch.zeros(2), [grad])
    yield "expected a torch.Tensor", TypeError, (norm, [None])


@pytest.mark.parametrize(("message", "error", "call"), list(bad_norms()))
def test_a_norm_refuses_what_it_could_not_read_safely(message, error, call):
    with pytest.raises(error, match=message):
        _C.gradient_norm(*call, None, 1)


def test_descriptions_give_the_same_bits_as_tensors():
    given, other = lists(), lists()
    adamw_ema(**given)
    adamw_ema(**{name: [described(tensor) for tensor in row] for name, row in other.items()})
    assert all(torch.equal(a, b) for name in given for a, b in zip(given[name], other[name], strict=True))


# Loads the extension alone, without torch, runs it on described arrays and prints a digest.
WITHOUT_TORCH = """
import hashlib, importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
_C = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_C)
codes = {"float32": (2, 32), "float64": (2, 64), "uint16": (4, 16)}
def views(arrays):
    return [(a.ctypes.data, a.shape, tuple(s // a.itemsize for s in a.strides), codes[a.dtype.name]) for a in arrays]
random = np.random.default_rng(0)
draw = lambda: [random.standard_normal(shape, np.float32) for shape in ((67, 131), (5,), (1025,))]
params, grads = draw(), draw()
grads[0] = (grads[0].view(np.uint32) >> 16).astype(np.uint16)  # as bfloat16
exp_avgs, exp_avg_sqs, emas = ([np.zeros_like(p) for p in params] for _ in range(3))
twins, norm = [np.zeros(p.shape, np.uint16) for p in params], np.zeros((), np.float32)
_C.gradient_norm(*views([norm]), views(grads), None, 3)
rows = (params, grads, exp_avgs, exp_avg_sqs, emas, twins)
for step in range(1, 6):
    _C.adamw_ema(*map(views, rows), step, 0.1, (0.9, 0.999, 1e-8, 0.01), *views([norm]), 1.0, 0.9, 3)
digest = hashlib.sha256(norm.tobytes())
exact = np.zeros(())
for _ in range(20):  # an empty float64 gradient makes the norm so: less rounding hides another order of summing
    _C.gradient_norm(*views([exact]), views([random.standard_normal(1000, np.float32), np.zeros(0)]), None, 3)
    digest.update(exact.tobytes())
for row in rows:
    for array in row:
        digest.update(array.tobytes())
assert "torch" not in sys.modules and float(norm) > 0 and float(exact) > 0
print(_C.build_info()["cpu_capability"], digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_float32_bits():
    digests = {}
    for name in _C.build_info()["cpu_capabilities_built"]:
        environment = {**os.environ, "PROGDISTILL_CPU_CAPABILITY": name}
        command = [sys.executable, "-c", WITHOUT_TORCH, _C.__file__]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or "this build and machine have" in done.stderr, done.stderr
        if done.returncode == 0:
            ran, digests[name] = done.stdout.split()
            assert ran == name
    assert "baseline" in digests and len(set(digests.values())) == 1
