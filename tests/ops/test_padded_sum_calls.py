"""How padded_sum may be called: layouts, views, autograd, torch.compile, graphs; what it refuses."""

import pytest
import torch
from torch.library import opcheck

from captured_graph import captured
from ops.sums import Sum, results, tensors_of
from progdistill import ops
from progdistill.ops import backends

OPERATION = "padded_sum"
OPERATORS = torch.ops.progdistill
DTYPES = [torch.float32, torch.bfloat16]


def test_equal_tensors_give_equal_bits_whatever_else_is_in_the_batch(backend):
    case = Sum(24, 33, 31, shift=5, samples=5)
    tensors = tensors_of(case, torch.bfloat16)
    first, second = (results(ops.padded_sum, case, tensors, backend.device, backend=backend.name) for _ in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = {name: value[3:4].to(backend.device) for name, value in tensors.items()}
    for one, every in zip(ops.padded_sum(**alone, padding=1, backend=backend.name), ("u", "padded"), strict=True):
        assert torch.equal(one.cpu()[0], first[every][3])


def test_another_memory_order_comes_back(backend):
    case = Sum(16, 4, 5, shift=2)
    last = tensors_of(case, torch.float32)
    expected = results(ops.padded_sum, case, last, backend.device, backend=backend.name)
    other = last | {"residual": last["residual"].contiguous()}
    for tensors, format in [(other | {"x": last["x"].contiguous()}, torch.contiguous_format), (other, last["x"])]:
        format = torch.channels_last if format is last["x"] else format
        for name, device in ((backend.name, backend.device), ("reference", "cpu")):
            got = results(ops.padded_sum, case, tensors, device, backend=name)
            for key, value in got.items():
                torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5)
                assert key not in ("u", "padded") or value.is_contiguous(memory_format=format)


def test_views_with_gaps_and_odd_addresses(backend):
    case = Sum(16, 4, 5, shift=2)

    def moved(value):
        """In the middle of something larger, one element from where a vector could begin."""
        room = torch.zeros(value.numel() + 1, dtype=value.dtype, device=value.device)[1:]
        order = value.permute(0, 2, 3, 1) if value.dim() == 4 else value
        view = room.view(order.shape).copy_(order)
        return view.permute(0, 3, 1, 2) if value.dim() == 4 else view

    def widened(value):
        return torch.cat((value, value), dim=-1)[..., : value.shape[-1]]

    for dtype in DTYPES:
        tensors = tensors_of(case, dtype)
        expected = ops.padded_sum(**tensors, padding=1, backend="reference")
        tensors = {name: value.to(backend.device) for name, value in tensors.items()}
        only_shift = tensors | {"shift": moved(tensors["shift"])}
        everything = ({name: change(value) for name, value in tensors.items()} for change in (moved, widened))
        for changed in (only_shift, *everything):
            got = ops.padded_sum(**changed, padding=1, backend=backend.name)
            assert all(torch.equal(value.cpu(), truth) for value, truth in zip(got, expected, strict=True))


def test_an_empty_batch(backend):
    case = Sum(16, 4, 5, shift=1, samples=0)
    got = results(ops.padded_sum, case, tensors_of(case, torch.float32), backend.device, backend=backend.name)
    assert got["u"].shape == got["dx"].shape == (0, 16, 4, 5) and got["padded"].shape == (0, 16, 5, 6)
    assert not got["dshift"].any()


def test_the_operators_are_registered_as_they_should_be(backend):
    if backend.device != "cpu" or backend.interpreted:
        pytest.skip("once is enough")
    t = {name: value.requires_grad_() for name, value in tensors_of(Sum(4, shift=2), torch.float32).items()}
    for given, padding in [(("residual", "shift"), 1), (("shift",), 0), ((), 1), ((), 0)]:
        arguments = (t["x"], *(t[name] if name in given else None for name in ("residual", "shift")))
        opcheck(OPERATORS.padded_sum.default, (*arguments, padding, backend.name))
    x = t["x"].detach()
    _, padded = OPERATORS.padded_sum(x, None, None, 1, backend.name)
    for dsum in (None, x.requires_grad_()):
        opcheck(OPERATORS.padded_sum_backward.default, (dsum, padded.requires_grad_(), 1, backend.name))


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("padding", [0, 1])
def test_compiled_as_one_graph(backend, padding, format):
    """torch.compile sees one operator, and the reference's own operations where nothing compiled serves."""
    for residual, shift in [(True, 2), (False, None)]:
        case = Sum(8, 4, 5, shift, residual, padding)
        tensors = {
            name: value.contiguous(memory_format=format) if value.dim() == 4 else value
            for name, value in tensors_of(case, torch.float32).items()
        }
        for name, device in ((backend.name, backend.device), ("reference", "cpu")):
            torch._dynamo.reset()
            compiled = torch.compile(ops.padded_sum, fullgraph=True, backend="aot_eager")
            expected = results(ops.padded_sum, case, tensors, device, backend=name)
            got = results(compiled, case, tensors, device, backend=name)
            for key, value in got.items():
                torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
                assert key not in ("u", "padded") or value.stride() == expected[key].stride()


def test_float64_is_left_to_the_reference(monkeypatch):
    x, shift = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.ones(4)
    u, padded = ops.padded_sum(x, shift=shift, padding=1)
    assert u.dtype == padded.dtype == torch.float64 and torch.equal(u, x + 1)
    leaves = [value.requires_grad_() for value in (x, x.clone(), shift.double())]
    torch.autograd.gradgradcheck(lambda a, b, c: ops.padded_sum(a, residual=b, shift=c, padding=1)[1] ** 2, leaves)
    monkeypatch.setattr(backends, "unavailable", lambda backend: None)
    monkeypatch.setitem(backends._DEVICE, "cuda", "cpu")
    with pytest.raises(TypeError, match="float64; backend 'cuda' takes float32 and bfloat16"):
        ops.padded_sum(x, shift=shift, backend="cuda")


X = torch.zeros(2, 6, 3, 3)
BAD = [
    (TypeError, "x is torch.float16; expected float32, float64 or bfloat16", {"x": X.half()}),
    (ValueError, r"x has shape \(2, 6, 3\); expected \(B, C, H, W\)", {"x": X[..., 0]}),
    (TypeError, "residual is torch.bfloat16, x is torch.float32; convert one", {"residual": X.bfloat16()}),
    (ValueError, r"residual has shape \(2, 4, 3, 3\).*must have that shape", {"residual": X[:, :4]}),
    (ValueError, r"shift has shape \(3, 6\); expected \(2, 6\) or \(1, 6\) or \(6,\)", {"shift": torch.ones(3, 6)}),
    (TypeError, "shift is torch.float64; beside a torch.float32 x", {"shift": torch.ones(6).double()}),
    (ValueError, "shift is on meta, x on cpu; move one of them", {"shift": torch.ones(6, device="meta")}),
    (ValueError, "padding is 2; use 0, or 1 for a row and a column of zeros", {"padding": 2}),
    (ValueError, "padding is -1; use 0", {"padding": -1}),
    (ValueError, "'cpu' does not implement padded_sum", {"backend": "cpu"}),
]


@pytest.mark.parametrize("kind, message, changes", BAD)
def test_bad_input_is_named(kind, message, changes, monkeypatch):
    monkeypatch.setattr(backends, "unavailable", lambda backend: None)
    with pytest.raises(kind, match=message):
        ops.padded_sum(**{"x": X, "residual": X} | changes)


@pytest.mark.skipif(
    backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
)
def test_triton_takes_samples_of_less_than_2_to_the_31_elements():
    from progdistill.ops.triton_kernels import padded_sum

    x = torch.empty(1, 2**15, 2**8, 2**8 - 1, device="meta")
    padded = torch.empty(1, 2**15, 2**8 + 1, 2**8, device="meta")
    for call in (
        lambda: padded_sum.forward(None, padded, x, None, None, 1),
        lambda: padded_sum.backward(x, None, padded, 1),
    ):
        with pytest.raises(ValueError, match="less than 2.31 elements, got 32768 channels of 257 x 256"):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_captured_graph_gives_the_same_bits(backend, dtype):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    case = Sum(128, 32, 32, shift=8, samples=8)
    t = {key: value.cuda().requires_grad_() for key, value in tensors_of(case, dtype).items()}

    def step():
        outputs = ops.padded_sum(**t, padding=1, backend=backend.name)
        return [*outputs, *torch.autograd.grad(outputs, list(t.values()), outputs)]

    graph, found = captured(step)
    for seed in (1, 2):
        with torch.no_grad():
            for key, value in tensors_of(case, dtype, seed).items():
                t[key].copy_(value)
        graph.replay()
        assert all(torch.equal(got, expected) for got, expected in zip(found, step(), strict=True))
