"""The compiled extension: what it links, what it refuses, and that threads and instruction sets leave no trace."""

import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from progdistill.ops import native

_C = native._C
if _C is None:
    pytest.skip(f"the extension was not built: {native.import_error}", allow_module_level=True)

V = 2  # v_prediction's place in names.PREDICTION_TYPES
SHAPE = (4, 3, 8, 8)


def arguments(shape=SHAPE, dtype=torch.float32, seed=0):
    """z, pred, two outputs, angles (3, B), empty loss and gradient for direct calls."""
    generator = torch.Generator().manual_seed(seed)
    z, pred, *outs = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4))
    phi = torch.linspace(0.2, 1.5, shape[0], dtype=torch.float64)
    return (
        z,
        pred,
        outs,
        torch.stack([phi, 0.7 * phi, 0.4 * phi]),
        torch.empty(shape[0], dtype=dtype),
        torch.empty_like(z),
    )


def distillation_loss(loss, grad, pred, z, outs, phis, *, types=(V, V), weighting=2, loss_type=0, clip=None, threads=1):
    options = (types[0], weighting, 5.0, loss_type, 0.1, 1.0)
    return _C.distillation_loss(loss, grad, pred, z, outs, phis, types[1], clip, options, None, threads)


def described(tensor):
    """The description that stands for a tensor where torch lacks the exchange API."""
    return (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), native._DTYPE_CODES[tensor.dtype])


# Segment types, and tags of the dynamic segment.
ELF_LOADABLE, ELF_DYNAMIC = 1, 2
ELF_NEEDED, ELF_STRING_TABLE = 1, 5


def needed_libraries(path: str) -> list[str]:
    """What an ELF file asks the loader for: `readelf -d`, without needing binutils."""
    data = Path(path).read_bytes()
    assert data[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    table_offset, entry_size, entries = struct.unpack_from("<32xQ14xHH", data)
    segments = [struct.unpack_from("<I4xQQ8xQ", data, table_offset + i * entry_size) for i in range(entries)]
    _, start, _, size = next(segment for segment in segments if segment[0] == ELF_DYNAMIC)
    dynamic = list(struct.iter_unpack("<QQ", data[start : start + size]))
    address = next(value for tag, value in dynamic if tag == ELF_STRING_TABLE)
    strings = next(
        address - begin + offset
        for kind, offset, begin, length in segments
        if kind == ELF_LOADABLE and begin <= address < begin + length
    )
    names = (strings + value for tag, value in dynamic if tag == ELF_NEEDED)
    return [data[name : data.index(b"\0", name)].decode() for name in names]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")
def test_links_neither_torch_nor_cuda_nor_openmp():
    needed = needed_libraries(_C.__file__)
    assert any(name.startswith("libc.") for name in needed)
    assert not [name for name in needed if any(part in name for part in ("torch", "c10", "cuda", "gomp", "iomp"))]


def test_build_info_says_what_was_built():
    info = _C.build_info()
    assert info["cpu_capability"] in info["cpu_capabilities_built"]
    assert "baseline" in info["cpu_capabilities_built"]
    assert info["compiler"] and info["build_type"]
    if info["cuda"]:
        assert "diffuse" in info["cuda_kernels"] and info["cuda_architectures"] and not info["cuda_reason"]
    else:
        assert info["cuda_reason"] and not info["cuda_kernels"]


def test_descriptions_give_the_same_bits_as_tensors():
    z, pred, outs, phis, loss, grad = arguments()
    other_loss, other_grad = torch.empty_like(loss), torch.empty_like(grad)
    distillation_loss(loss, grad, pred, z, outs, phis)
    distillation_loss(
        described(other_loss),
        described(other_grad),
        described(pred),
        described(z),
        [described(out) for out in outs],
        described(phis),
    )
    assert torch.equal(loss, other_loss) and torch.equal(grad, other_grad)


def bad_diffuse():
    x, phi = torch.zeros(SHAPE), torch.zeros(SHAPE[0], dtype=torch.float64)
    last = torch.channels_last
    yield "noise has shape", ValueError, (x, x, torch.zeros(4, 3, 8, 7), phi)
    yield "noise is float64", TypeError, (x, x, x.double(), phi)
    yield "x is bfloat16", TypeError, (x.bfloat16(), x.bfloat16(), x.bfloat16(), phi)
    yield "dtype code", TypeError, (x, x.half(), x.half(), phi)
    yield "angles are float64", TypeError, (x, x, x, phi.float())
    yield "phi has shape", ValueError, (x, x, x, phi[:3])
    yield "contiguous angles", ValueError, (x, x, x, torch.zeros(8, dtype=torch.float64)[::2])
    yield "one common order", ValueError, (x, x, x.contiguous(memory_format=last), phi)
    yield "one common order", ValueError, (x, x, torch.zeros(4, 3, 8, 16)[..., ::2], phi)
    yield "one common order", ValueError, (x, x, torch.zeros(4, 3, 8, 1).expand(SHAPE), phi)
    yield "expected (B, C, ...)", ValueError, (phi, phi, phi, phi)
    yield "z has shape", ValueError, (torch.zeros(4, 3, 8, 4), x, x, phi)
    yield "expected a torch.Tensor", TypeError, (x, x, 3, phi)
    yield "expected a torch.Tensor", TypeError, (x, x, None, phi)
    yield "expected a torch.Tensor", TypeError, (x, x, x.numpy(), phi)
    yield "must be described by", TypeError, (x, x, described(x)[:3], phi)
    yield "must be described by", TypeError, (x, x, (*described(x), x, x), phi)
    yield "negative size", ValueError, (x, x, (x.data_ptr(), (-4, 3), (3, 1), (2, 32)), phi)
    yield "64 bits", ValueError, (x, x, (x.data_ptr(), (2**40, 2**40), (1, 1), (2, 32)), phi)
    yield "64 bits", ValueError, (x, x, (x.data_ptr(), (2**31, 2**31), (1, 1), (2, 32)), phi)
    yield "not aligned", ValueError, (x, x, (x.data_ptr() + 1, *described(x)[1:]), phi)
    yield "no memory", ValueError, (x, x, (0, *described(x)[1:]), phi)
    yield "3 sizes but 2 strides", ValueError, (x, x, (x.data_ptr(), (4, 3, 8), (1, 1), (2, 32)), phi)


@pytest.mark.parametrize(("message", "error", "call"), list(bad_diffuse()))
def test_diffuse_refuses_what_it_could_not_read_safely(message, error, call):
    with pytest.raises(error, match=message.replace("(", r"\(").replace(")", r"\)").replace("...", r"\.\.\.")):
        _C.diffuse(*call, 1)


def bad_losses():
    z, pred, outs, phis, loss, grad = arguments()
    good = {"loss": loss, "grad": grad, "pred": pred, "z": z, "outs": outs, "phis": phis}
    half = [out.bfloat16() for out in outs]
    yield "outs holds 0", ValueError, {**good, "outs": []}
    yield "outs holds 17", ValueError, {**good, "outs": outs[:1] * 17, "phis": torch.zeros(18, 4).double()}
    yield "phis has shape", ValueError, {**good, "phis": phis[:2]}
    yield r"outs\[1\] has shape", ValueError, {**good, "outs": [outs[0], torch.zeros(4, 6, 8, 8)]}
    yield r"outs\[0\] has shape", ValueError, {**good, "types": (V, 3)}
    yield "pred has shape", ValueError, {**good, "types": (3, V)}
    yield "grad is float32", TypeError, {**good, "pred": pred.bfloat16()}
    yield "grad has shape", ValueError, {**good, "grad": grad[:2]}
    yield "loss has shape", ValueError, {**good, "loss": loss[:3]}
    yield "loss is float64", TypeError, {**good, "loss": loss.double()}
    yield "contiguous one", ValueError, {**good, "loss": torch.empty(8)[::2]}
    yield "one common order", ValueError, {**good, "grad": grad.contiguous(memory_format=torch.channels_last)}
    yield "bfloat16 beside float32", TypeError, {**good, "z": z.double(), "outs": half}
    yield "prediction_type is 4", ValueError, {**good, "types": (4, V)}
    yield "prediction type is -1", ValueError, {**good, "types": (V, -1)}
    yield "weighting is 5", ValueError, {**good, "weighting": 5}
    yield "loss_type is 3", ValueError, {**good, "loss_type": 3}
    yield "loss_type is -1", ValueError, {**good, "loss_type": -1}


@pytest.mark.parametrize(("message", "error", "call"), list(bad_losses()))
def test_losses_refuse_what_they_could_not_read_safely(message, error, call):
    with pytest.raises(error, match=message):
        distillation_loss(**call)


def test_normal_refuses_what_it_could_not_read_safely():
    out, seeds, step = torch.empty(2, 5), torch.arange(2), torch.tensor(0)
    for error, call in [
        (TypeError, (out.double(), seeds, step, 0)),
        (TypeError, (out, seeds.double(), step, 0)),
        (ValueError, (out, torch.arange(3), step, 0)),
        (ValueError, (torch.empty(5, 2).T, seeds, step, 0)),
        (ValueError, (out, seeds, step, 2**32)),
        (ValueError, (out, seeds, step, -1)),
        (TypeError, (out, seeds, step.int(), 0)),
        (ValueError, (out, seeds, torch.arange(2), 0)),
    ]:
        with pytest.raises(error):
            _C.normal(*call, 1)


def test_a_meta_tensor_is_refused():
    x, phi = torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError, BufferError)):
        _C.diffuse(x, x, torch.zeros(2, 3, device="meta"), phi, 1)


def every_operation(threads, shape, dtype=torch.float32, layout=torch.contiguous_format):
    """The bits of each operation's results for given threads."""
    z, pred, outs, phis, loss, grad = arguments(shape, dtype)
    z, pred, grad, *outs = (t.contiguous(memory_format=layout) for t in (z, pred, grad, *outs))
    half = [out.bfloat16() for out in outs] if dtype == torch.float32 else outs
    results = [torch.empty_like(z) for _ in range(3)]
    _C.diffuse(results[0], z, pred, phis[0].contiguous(), threads)
    _C.ddim_step(results[1], None, z, half[0], phis[0].contiguous(), phis[1].contiguous(), V, 1.0, threads)
    _C.distillation_target(results[2], z, half, phis, V, V, None, threads)
    losses = []
    for loss_type in range(3):
        distillation_loss(loss, grad, pred, z, half, phis, loss_type=loss_type, clip=1.0, threads=threads)
        losses += [loss.clone(), grad.clone()]
    noise = torch.empty(shape)
    _C.normal(noise, torch.arange(shape[0]), torch.tensor(3), 1, threads)
    return [*results, *losses, noise]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 3, 131, 97), (2000, 3, 5, 5), (1, 2, 401, 257)])
def test_results_do_not_depend_on_the_number_of_threads(shape, dtype):
    alone = every_operation(1, shape, dtype)
    for threads in (2, 3, 8):
        for mine, theirs in zip(alone, every_operation(threads, shape, dtype), strict=True):
            assert torch.equal(mine, theirs)


def test_calls_from_several_python_threads():
    shape = (6, 3, 96, 96)
    expected = every_operation(1, shape)
    wrong = []

    def work():
        for _ in range(10):
            results = every_operation(3, shape)
            wrong.extend(i for i, (a, b) in enumerate(zip(expected, results, strict=True)) if not torch.equal(a, b))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def child_of_fork(work) -> int:
    """Exit status of a forked child that runs work(); one that waits for threads it does not have is ended."""
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if work() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_workers():
    x, phi = torch.randn(8, 3, 128, 128), torch.full((8,), 0.5, dtype=torch.float64)
    z, again = torch.empty_like(x), torch.empty_like(x)
    _C.diffuse(z, x, x, phi, 4)

    def work():
        _C.diffuse(again, x, x, phi, 4)
        tasks = "/proc/self/task"
        return again.numpy().tobytes() == z.numpy().tobytes() and (
            not os.path.exists(tasks) or len(os.listdir(tasks)) == 4
        )

    assert child_of_fork(work) == 0
    stop = threading.Event()

    def keep_the_pool_busy():
        mine = torch.empty_like(x)
        while not stop.is_set():
            _C.diffuse(mine, x, x, phi, 4)

    busy = threading.Thread(target=keep_the_pool_busy)
    busy.start()
    statuses = [child_of_fork(work) for _ in range(10)]
    stop.set()
    busy.join()
    assert statuses == [0] * 10
    _C.diffuse(again, x, x, phi, 4)
    assert torch.equal(z, again)


# Loads the extension alone, without torch, runs it on described arrays and prints a digest; then ends with workers
# waiting.
WITHOUT_TORCH = """
import hashlib, importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
_C = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_C)
codes = {"float32": (2, 32), "float64": (2, 64), "int64": (0, 64)}
def view(a):
    return a.ctypes.data, a.shape, tuple(s // a.itemsize for s in a.strides), codes[a.dtype.name]
noise, seeds = np.empty((4, 3, 67, 65), np.float32), np.arange(4)
_C.normal(view(noise), view(seeds), view(np.array(5)), 9, 3)
pred, first, second = noise + 1, noise[::-1].copy(), -noise
phis = np.linspace(0.3, 1.5, 4) * np.array([[1.0], [0.7], [0.4]])
loss, grad = np.empty(4, np.float32), np.empty_like(noise)
states = [view(array) for array in (loss, grad, pred, noise)]
digest = hashlib.sha256(noise.tobytes())
for loss_type in range(3):
    options = (2, 2, 5.0, loss_type, 0.1, 1.0)
    _C.distillation_loss(*states, [view(first), view(second)], view(phis), 2, 1.0, options, None, 3)
    digest.update(loss.tobytes() + grad.tobytes())
assert "torch" not in sys.modules
print(_C.build_info()["cpu_capability"], digest.hexdigest())
"""


def run_without_torch(capability):
    environment = {**os.environ, "PROGDISTILL_CPU_CAPABILITY": capability}
    command = [sys.executable, "-c", WITHOUT_TORCH, _C.__file__]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_every_instruction_set_gives_the_same_float32_bits():
    results = {name: run_without_torch(name) for name in _C.build_info()["cpu_capabilities_built"]}
    ran = {name: result.stdout.split() for name, result in results.items() if result.returncode == 0}
    assert "baseline" in ran
    assert all(output[0] == name for name, output in ran.items())
    assert len({output[1] for output in ran.values()}) == 1
    for name, result in results.items():
        assert name in ran or "this build and machine have" in result.stderr


def test_an_unknown_instruction_set_is_an_error():
    result = run_without_torch("sse9")
    assert result.returncode != 0 and "PROGDISTILL_CPU_CAPABILITY is sse9" in result.stderr
