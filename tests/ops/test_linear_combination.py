"""Sums of tensors times numbers on every backend, against exact arithmetic, and to the same bits."""

import math
from itertools import product

import pytest
import torch
from torch.library import opcheck

from captured_graph import captured, need_backend
from progdistill import ops
from progdistill.ops import native
from tolerance import LAST_PLACE

SHAPES = [(3, 5), (1, 1), (2, 3, 7, 5), (2, 3, 2, 4, 4), (2, 1, 3, 3), (5, 4, 40, 40), (128, 3, 4, 4), (0, 3, 4, 4)]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
FACTORS = [1.25, -0.7, 1 / 3, 1e-3, -12.0, 0.1, 2.0, -1.0]


def images(count, shape, dtype=torch.float32, heads=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (shape[0], heads * shape[1], *shape[2:])
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


def literal(tensors, factors, state):
    """The sum in float64, and the sum of its terms' magnitudes."""
    parts = [part for tensor in tensors for part in tensor.double().split(state.shape[1], dim=1)]
    rounded = [float(torch.tensor(factor, dtype=state.dtype)) for factor in factors]
    total, size = torch.zeros_like(state).double(), torch.zeros_like(state).double()
    for factor, part in zip(rounded, parts, strict=True):
        total, size = total + factor * part, size + (factor * part).abs()
    return total, size


def check(backend, tensors, factors):
    """Each element is as good as one rounding for each term, of sums that may cancel, can be."""
    state = tensors[0]
    got, (exact, size) = backend.call(ops.linear_combination, tensors, factors), literal(tensors, factors, state)
    plain = ops.linear_combination(tensors, factors, backend="reference")
    assert got.dtype == state.dtype and got.shape == state.shape
    assert got.stride() == plain.stride() or not len(state)
    for value in (got, plain):
        assert ((value.double() - exact).abs() <= len(factors) * LAST_PLACE[state.dtype] / 2 * 2 * size + 1e-300).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8])
def test_every_number_of_terms(backend, shape, count):
    for dtype in (torch.float32, torch.float64):
        tensors = images(count, shape, dtype)
        check(backend, tensors, FACTORS[:count])
        if len(shape) in LAYOUTS:
            tensors = [tensor.contiguous(memory_format=LAYOUTS[len(shape)]) for tensor in tensors]
            check(backend, tensors, FACTORS[:count])
            check(backend, [tensors[0], *(tensor.contiguous() for tensor in tensors[1:])], FACTORS[:count])


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_terms_of_other_dtypes_and_heads(backend, state, layout):
    shape = (3, 3, 8, 6)
    narrower = [torch.bfloat16, torch.float16, *([torch.float32] if state == torch.float64 else [])]
    for dtype, heads in product((state, *narrower), (1, 2)):
        tensors = [*images(2, shape, state), *images(2, shape, dtype, heads, seed=1)]
        check(backend, [tensor.contiguous(memory_format=layout) for tensor in tensors], FACTORS[: 2 + 2 * heads])


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
@pytest.mark.parametrize("shape", SHAPES[2:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_same_bits_on_every_backend(backend, shape, dtype):
    if backend.interpreted and dtype == torch.float64:
        pytest.skip("the interpreter rounds a fused multiply-add of float64 twice")
    if native._C.build_info()["cpu_capability"] == "baseline" and dtype == torch.float64:
        pytest.skip("without the instruction the C++ loops round a fused multiply-add of float64 twice")
    on_cpu = type(backend)("cpu", "cpu")
    state = torch.float64 if dtype == torch.float64 else torch.float32
    for count, heads in product((1, 4, 5, 8), (1, 2)):
        tensors = [*images(1, shape, state), *images((count - 1) // heads, shape, dtype, heads, seed=1)]
        given = tensors, FACTORS[: 1 + heads * (len(tensors) - 1)]
        got, expected = backend.call(ops.linear_combination, *given), on_cpu.call(ops.linear_combination, *given)
        assert torch.equal(got, expected)
        assert torch.equal(got.signbit(), expected.signbit())


def test_what_has_no_factor_is_not_read(backend):
    state, other = images(2, (2, 3, 4, 4))
    wild = torch.full_like(state, math.nan)
    both = torch.cat([wild, other], dim=1)
    assert torch.equal(backend.call(ops.linear_combination, [wild, other], [0.0, 1.0]), other)
    assert torch.equal(backend.call(ops.linear_combination, [wild, both], [0, 0, 2]), 2 * other)
    assert torch.equal(backend.call(ops.linear_combination, [state, both], [1, 0, 0]), state)
    assert torch.equal(backend.call(ops.linear_combination, [wild], [0.0]), torch.zeros_like(state))
    assert backend.call(ops.linear_combination, [wild, other], [1.0, 1.0]).isnan().all()


@pytest.mark.parametrize("size", [64, 4096, 4104, 12288])
def test_tensors_off_the_16_byte_grid(backend, size):
    tensors = images(3, (3, size))
    expected = backend.call(ops.linear_combination, tensors, FACTORS[:3])
    shifted = [torch.empty(tensor.numel() + 1)[1:].copy_(tensor.flatten()).reshape(3, size) for tensor in tensors]
    for given in (shifted, [tensors[0], *shifted[1:]]):
        assert torch.equal(backend.call(ops.linear_combination, given, FACTORS[:3]), expected)


def test_nothing_is_written_beside_the_result(backend, monkeypatch):
    kept, empty_like = [], torch.empty_like

    def guarded(like, **options):
        kept.append(torch.full((like.numel() + 256,), 7.0, dtype=like.dtype, device=like.device))
        return kept[-1][128:-128].as_strided(like.shape, empty_like(like, **options).stride())

    monkeypatch.setattr(torch, "empty_like", guarded)
    for shape in ((2, 3, 7, 5), (2, 3, 40, 40), (3, 4, 8, 8)):
        state, *others = images(3, shape)
        (both,) = images(1, shape, torch.bfloat16, 2)
        backend.call(ops.linear_combination, [state, *others], FACTORS[:3])
        backend.call(ops.linear_combination, [state, both], FACTORS[:3])
    assert len(kept) == 6 and all((room[:128] == 7).all() and (room[-128:] == 7).all() for room in kept)


def test_registration_and_gradients():
    shape = (2, 2, 3)
    leaves = [*images(1, shape), *images(1, shape, torch.bfloat16), *images(1, shape, heads=2)]
    _, half, both = [leaf.requires_grad_() for leaf in leaves]
    opcheck(torch.ops.progdistill.linear_combination.default, (leaves, FACTORS[:4], None))
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    torch.autograd.gradcheck(lambda *tensors: ops.linear_combination(tensors, FACTORS[:4]), exact)
    ops.linear_combination(leaves, FACTORS[:4]).sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.unique().tolist() == [-0.69921875]
    assert both.grad.flatten(2)[0, :, 0].tolist() == torch.tensor([1 / 3, 1 / 3, 1e-3, 1e-3]).tolist()


def test_compile_fullgraph():
    state, other = images(2, (2, 3, 4, 4))
    step = lambda a, b: ops.linear_combination([2 * a, b], [0.5, -1.5])  # noqa: E731
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = state.clone().requires_grad_()
        value = function(leaf, other)
        value.sum().backward()
        results.append((value.detach(), leaf.grad))
    assert all(map(torch.equal, *results))


def bad_calls():
    state, other = images(2, (2, 3, 4))
    wide, odd, both = other.double(), torch.zeros(2, 3, 5), torch.cat([other, other], dim=1)
    yield ValueError, "tensors is empty", [], []
    yield TypeError, r"tensors\[0\] is torch.bfloat16; states are", [state.bfloat16()], [1.0]
    yield ValueError, r"tensors\[0\] has shape \(3,\); expected \(B", [torch.zeros(3)], [1.0]
    yield TypeError, r"tensors\[1\] is torch.float64, tensors\[0\] is torch.float32; pass", [state, wide], [1, 1]
    yield TypeError, r"tensors\[1\] is torch.int64", [state, other.long()], [1, 1]
    yield ValueError, r"tensors\[1\] has shape \(2, 3, 5\).*two heads, \(2, 6, 4\)", [state, odd], [1, 1]
    yield ValueError, "1 factors were given for 2 tensors", [state, other], [1.0]
    yield ValueError, "2 factors were given for 3 tensors", [state, both], [1.0, 2.0]
    yield ValueError, "9 tensors were given.*at most 8", [state] * 9, [1.0] * 9
    yield ValueError, r"factors\[1\] is nan; factors are finite", [state, other], [1.0, math.nan]


@pytest.mark.parametrize(("error", "message", "tensors", "factors"), list(bad_calls()))
def test_errors_name_value_and_fix(error, message, tensors, factors):
    with pytest.raises(error, match=message):
        ops.linear_combination(tensors, factors)


def bad_native_calls():
    state, (half,) = torch.zeros(2, 3, 4, 4), images(1, (2, 3, 4, 4), torch.bfloat16)
    yield ValueError, "tensors holds 1, factors 2", (state, [state], [[1.0], [1.0]])
    yield ValueError, r"factors\[0\] holds 3; expected 1 or 2", (state, [state], [[1.0] * 3])
    yield ValueError, r"factors\[0\] holds 0", (state, [state], [[]])
    yield ValueError, r"tensors\[0\] has shape .*; with 2 head", (state, [state], [[1.0, 1.0]])
    yield ValueError, r"tensors\[0\] has shape", (state, [state[:1]], [[1.0]])
    yield ValueError, "9 terms were given", (state, [state] * 9, [[1.0]] * 9)
    yield ValueError, "one common order", (state, [state.contiguous(memory_format=torch.channels_last)], [[1.0]])
    yield TypeError, "result is bfloat16", (half, [half], [[1.0]])
    yield TypeError, r"tensors\[0\] is float64", (state, [state.double()], [[1.0]])
    yield TypeError, "bfloat16 beside float32", (state.double(), [half], [[1.0]])
    yield TypeError, "expected a torch.Tensor", (state, [None], [[1.0]])


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
@pytest.mark.parametrize(("error", "message", "call"), list(bad_native_calls()))
def test_the_extension_refuses_what_it_could_not_read_safely(error, message, call):
    with pytest.raises(error, match=message):
        native._C.linear_combination(*call, 1)


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
def test_threads_leave_no_trace():
    for shape in ((3, 3, 131, 97), (2000, 3, 5, 5)):
        tensors = images(6, shape)
        results = [torch.empty(shape) for _ in range(4)]
        for threads, result in zip((1, 2, 3, 8), results, strict=True):
            native._C.linear_combination(result, tensors, [[factor] for factor in FACTORS[:6]], threads)
        assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_sees_new_tensors(name):
    need_backend(name)
    tensors = [tensor.cuda() for tensor in images(3, (8, 3, 32, 32))]
    call = lambda: ops.linear_combination(tensors, FACTORS[:3], backend=name)  # noqa: E731
    graph, results = captured(call)
    tensors[1].add_(1)
    graph.replay()
    assert torch.equal(results, call())
