"""How group_norm_silu may be called: equal bits, layouts, views, autograd, torch.compile, graphs; what it refuses."""

import pytest
import torch
from torch.library import opcheck

from captured_graph import captured
from ops.norms import Norm, results, tensors_of
from progdistill import ops
from progdistill.ops import backends
from tolerance import assert_within_rule

OPERATION = "group_norm_silu"
OPERATORS = torch.ops.progdistill


def test_equal_tensors_give_equal_bits(backend):
    for dtype in (torch.float32, torch.bfloat16):
        norm = Norm(24, 16, 4, 33, 31, samples=3, shift=3, scale_shift=3, residual=True)
        tensors = tensors_of(norm, dtype)
        first, second = (
            results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name) for _ in "ab"
        )
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_sample_does_not_see_the_others(backend):
    norm = Norm(24, 16, 4, 33, 31, samples=5, shift=5, residual=True)
    tensors = tensors_of(norm, torch.bfloat16)
    alone = {name: value[3:4] if value.dim() > 1 else value for name, value in tensors.items()}
    options = {"groups": 4, "eps": 1e-6, "backend": backend.name}
    whole, single = (
        ops.group_norm_silu(**{name: value.to(backend.device) for name, value in t.items()}, **options)
        for t in (tensors, alone)
    )
    assert all(torch.equal(of_one[0], of_all[3]) for of_one, of_all in zip(single, whole, strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_another_memory_order_comes_back(backend, residual):
    norm = Norm(16, 8, 4, 4, 5, residual=residual, shift=2)
    last = tensors_of(norm, torch.float32)
    expected = results(ops.group_norm_silu, norm, last, backend.device, backend=backend.name)
    mixed = {name: value.contiguous() if name in ("x", "skip") else value for name, value in last.items()}
    for tensors, format in [(mixed, torch.contiguous_format), (last | {"skip": mixed["skip"]}, torch.channels_last)]:
        got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        assert all(got[name].is_contiguous(memory_format=format) for name in ("y", "u")[: 1 + residual])


def test_views_with_gaps_and_odd_addresses(backend):
    norm = Norm(16, 8, 4, 4, 5, residual=True, shift=2, scale_shift=2)
    tensors = tensors_of(norm, torch.bfloat16)
    expected = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)

    def moved(value):
        """In the middle of something larger, 2 bytes from where a vector could begin."""
        room = torch.zeros(value.numel() + 1, dtype=value.dtype)[1:]
        order = value.permute(0, 2, 3, 1) if value.dim() == 4 else value
        view = room.view(order.shape).copy_(order)
        return view.permute(0, 3, 1, 2) if value.dim() == 4 else view

    def widened(value):
        return torch.cat((value, value), dim=-1)[..., : value.shape[-1]]

    assert moved(tensors["x"]).data_ptr() % 16 == 2

    for change in (moved, widened):
        changed = {name: change(value) for name, value in tensors.items()}
        got = results(ops.group_norm_silu, norm, changed, backend.device, backend=backend.name)
        for name, value in got.items():
            assert_within_rule(value, expected[name], expected[name].double())


def test_an_empty_batch(backend):
    norm = Norm(16, 8, 4, 4, 5, samples=0, residual=True, shift=1)
    got = results(ops.group_norm_silu, norm, tensors_of(norm, torch.float32), backend.device, backend=backend.name)
    assert got["y"].shape == (0, 24, 4, 5) and got["u"].shape == got["dx"].shape == (0, 16, 4, 5)
    assert not got["dweight"].any() and not got["dshift"].any()


def test_the_operators_are_registered_as_they_should_be(backend):
    if backend.device != "cpu" or backend.interpreted or backend.in_chunks:
        pytest.skip("once is enough")
    norm = Norm(4, 4, 2, shift=1, scale_shift=2, residual=True)
    names = ("x", "skip", "residual", "shift", "weight", "bias", "scale_shift")
    for given in (norm, Norm(4, 0, 2)):
        tensors = tensors_of(given, torch.float32)
        t = [tensors[name].requires_grad_() if name in tensors else None for name in names]
        for return_sources in (False, True):
            opcheck(OPERATORS.group_norm_silu.default, (*t, 2, 1e-6, True, return_sources, backend.name))
        t = [value if value is None else value.detach() for value in t]
        x, skip, residual, shift, weight, bias, scale_shift = t
        y, u, mean, rstd = OPERATORS.group_norm_silu(*t, 2, 1e-6, True, False, backend.name)
        images = (y, residual, skip, x if residual is None else u, skip, shift if residual is None else None)
        values = (weight, bias, scale_shift, mean, rstd)
        opcheck(
            OPERATORS.group_norm_silu_backward.default, (*images, *values, 2, True, residual is not None, backend.name)
        )


@pytest.mark.parametrize("format", [torch.channels_last, torch.contiguous_format])
def test_compiled_as_one_graph(backend, format):
    """torch.compile sees one operator, and the reference's own operations where nothing compiled serves."""
    norm = Norm(8, 4, 2, shift=2, scale_shift=2, residual=True)
    tensors = {
        name: value.contiguous(memory_format=format) if value.dim() == 4 else value
        for name, value in tensors_of(norm, torch.float32).items()
    }
    for name, device in ((backend.name, backend.device), ("reference", "cpu")):
        torch._dynamo.reset()
        compiled = torch.compile(ops.group_norm_silu, fullgraph=True, backend="aot_eager")
        expected = results(ops.group_norm_silu, norm, tensors, device, backend=name)
        got = results(compiled, norm, tensors, device, backend=name)
        for key, value in got.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)
            assert key not in ("y", "u") or value.stride() == expected[key].stride()


def test_float64_is_left_to_the_reference(monkeypatch):
    x, ones = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.ones(4)
    assert ops.group_norm_silu(x, ones, ones, 2, 1e-6).dtype == torch.float64
    monkeypatch.setattr(backends, "unavailable", lambda backend: None)
    monkeypatch.setitem(backends._DEVICE, "cuda", "cpu")
    with pytest.raises(TypeError, match="float64; backend 'cuda' takes float32 and bfloat16"):
        ops.group_norm_silu(x, ones, ones, 2, 1e-6, backend="cuda")


def test_second_derivatives_are_refused(backend):
    norm = Norm(4, 0, 2)
    t = {name: value.to(backend.device).requires_grad_() for name, value in tensors_of(norm, torch.float32).items()}
    y = ops.group_norm_silu(**t, groups=2, eps=1e-6, backend=backend.name)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(y.sum(), t["x"], create_graph=True)


X = torch.zeros(2, 6, 3, 3)
BAD = [
    (TypeError, "x is torch.float16; expected float32, float64 or bfloat16", {"x": X.half()}),
    (ValueError, r"x has shape \(2, 6, 3\); expected \(B, C, H, W\)", {"x": X[..., 0]}),
    (ValueError, "groups is 4, which does not divide the 10 channels", {"groups": 4}),
    (ValueError, "groups is 0, which does not divide", {"groups": 0}),
    (ValueError, "eps is 0.0; use a positive number such as 1e-6", {"eps": 0.0}),
    (ValueError, r"weight has shape \(6,\); expected \(10,\)", {"weight": torch.ones(6)}),
    (
        TypeError,
        "bias is torch.bfloat16; beside a torch.float32 x it may be torch.float32",
        {"bias": torch.ones(10).bfloat16()},
    ),
    (ValueError, r"skip has shape \(2, 4, 3, 2\).*must have its samples, height", {"skip": X[:, :4, :, :2]}),
    (TypeError, "skip is torch.float64, x is torch.float32", {"skip": X[:, :4].double()}),
    (ValueError, r"residual has shape \(2, 4, 3, 3\).*must have that shape", {"residual": X[:, :4]}),
    (ValueError, r"shift has shape \(3, 6\); expected \(2, 6\) or \(1, 6\) or \(6,\)", {"shift": torch.ones(3, 6)}),
    (
        ValueError,
        r"scale_shift has shape \(2, 10\); expected \(2, 20\) or \(1, 20\)",
        {"scale_shift": torch.ones(2, 10)},
    ),
    (ValueError, "weight is on meta, x on cpu; move one of them", {"weight": torch.ones(10, device="meta")}),
    (ValueError, "'cpu' does not implement group_norm_silu", {"backend": "cpu"}),
]


@pytest.mark.parametrize("kind, message, changes", BAD)
def test_bad_input_is_named(kind, message, changes, monkeypatch):
    monkeypatch.setattr(backends, "unavailable", lambda backend: None)
    t = {"x": X, "skip": X[:, :4], "weight": torch.ones(10), "bias": torch.ones(10), "groups": 2, "eps": 1e-6}
    with pytest.raises(kind, match=message):
        ops.group_norm_silu(**t | changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_gives_the_same_bits(backend, dtype):
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    norm = Norm(256, 128, 32, 32, 32, samples=8, shift=8, scale_shift=8, residual=True)
    t = {key: value.cuda().requires_grad_() for key, value in tensors_of(norm, dtype).items()}

    def step():
        outputs = ops.group_norm_silu(**t, groups=32, eps=1e-6, backend=backend.name)
        return [*outputs, *torch.autograd.grad(outputs, list(t.values()), outputs)]

    graph, results = captured(step)
    for seed in (1, 2):
        with torch.no_grad():
            for key, value in tensors_of(norm, dtype, seed).items():
                t[key].copy_(value)
        graph.replay()
        assert all(torch.equal(got, expected) for got, expected in zip(results, step(), strict=True))
