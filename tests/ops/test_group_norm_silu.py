"""Group normalisation with its neighbours, against the formula in float64, forwards and backwards."""

import math
from typing import NamedTuple

import pytest
import torch
from torch.library import opcheck

from captured_graph import captured
from progdistill import ops
from progdistill.ops import backends
from tolerance import assert_within_rule

OPERATORS = torch.ops.progdistill


@pytest.fixture
def backend(backend):
    """The compiled backends that have this operation: not the CPU's."""
    if backend.name not in backends.declared()["group_norm_silu"]:
        pytest.skip(f"backend {backend.name} has no group_norm_silu")
    return backend


class Norm(NamedTuple):
    """One call: its sizes, and which tensors it is given. `shift` counts its rows; 0: one dimension; None: none."""

    channels: int
    skip: int = 0
    groups: int = 1
    height: int = 3
    width: int = 3
    samples: int = 2
    shift: int | None = None
    scale_shift: int = 0
    residual: bool = False
    silu: bool = True
    eps: float = 1e-6
    mean: float = 0.0
    deviation: float = 1.0
    values_dtype: torch.dtype = torch.float32


NETWORKS = {
    "ddpm-cifar10-32": [(c, s, 32) for c, s in [(128, 0), (256, 0), (512, 0), (256, 128), (256, 256), (128, 128)]],
    "ddpm-cifar10-32, decoder": [(512, 256, 32), (384, 0, 32), (640, 0, 32), (512, 128, 32)],
    "paper, CIFAR": [(256, 0, 32), (256, 256, 32)],
    "paper, ImageNet": [(192, 0, 32), (384, 192, 32), (576, 0, 32), (768, 768, 32), (1536, 0, 32), (1152, 0, 32)],
    "straddling": [(256, 128, 12), (40, 24, 4), (8, 16, 2), (3, 5, 2), (36, 12, 4)],
    "few": [(3, 0, 1), (1, 0, 1), (8, 0, 8), (5, 0, 5), (7, 4, 1), (16, 1, 17)],
    "most": [(2048, 1024, 32), (1031, 1, 4)],
}
SIZES = [size for sizes in NETWORKS.values() for size in sizes]


def tensors_of(norm: Norm, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """The call's tensors, images channels_last, in the order of the public function."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def image(channels):
        value = norm.deviation * draw(norm.samples, channels, norm.height, norm.width) + norm.mean
        return value.to(dtype).contiguous(memory_format=torch.channels_last)

    every = norm.channels + norm.skip
    t = {"x": image(norm.channels), "weight": draw(every), "bias": draw(every)}
    if norm.shift is not None:
        t["shift"] = draw(*([norm.shift] * (norm.shift > 0)), norm.channels)
    if norm.scale_shift:
        t["scale_shift"] = draw(norm.scale_shift, 2 * every)
    t |= {name: value.to(norm.values_dtype) for name, value in t.items() if name != "x"}
    if norm.skip:
        t["skip"] = image(norm.skip)
    if norm.residual:
        t["residual"] = image(norm.channels)
    return t


def literal(x, weight, bias, groups, eps, skip=None, shift=None, scale_shift=None, residual=None, silu=True):
    """The docstring's formula: group by group, its mean and its variance."""
    u = x if residual is None else x + residual
    if shift is not None:
        u = u + shift.reshape(-1, x.shape[1], 1, 1)
    whole = u if skip is None else torch.cat((u, skip), dim=1)
    normed = []
    for group in whole.chunk(groups, dim=1):
        mean = group.mean(dim=(1, 2, 3), keepdim=True)
        variance = ((group - mean) ** 2).mean(dim=(1, 2, 3), keepdim=True)
        normed.append((group - mean) / torch.sqrt(variance + eps))
    y = torch.cat(normed, dim=1) * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)
    if scale_shift is not None:
        scale, after = scale_shift[:, : whole.shape[1], None, None], scale_shift[:, whole.shape[1] :, None, None]
        y = y * (1 + scale) + after
    if silu:
        y = y / (1 + torch.exp(-y))
    return y if residual is None else (y, u)


def results(function, norm: Norm, tensors, device="cpu", **options) -> dict[str, torch.Tensor]:
    """What the function gives for the tensors, and the gradients of a random mixture of it, by name."""
    t = {name: value.detach().to(device).requires_grad_() for name, value in tensors.items()}
    found = function(**t, groups=norm.groups, eps=norm.eps, silu=norm.silu, **options)
    outputs = found if norm.residual else (found,)
    generator = torch.Generator().manual_seed(1)
    mixture = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype).to(device) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(t.values()), mixture)
    named = dict(zip(("y", "u"), outputs, strict=False)) | {f"d{n}": g for n, g in zip(t, gradients, strict=True)}
    return {name: value.detach().cpu() for name, value in named.items()}


def by_sample(name: str, value: torch.Tensor, norm: Norm) -> torch.Tensor:
    """What the rule takes for a sample: gradients for all samples at once are one."""
    shared = value.dim() == 1 or len(value) != norm.samples
    return value.reshape(1, -1) if shared else value


def check(backend, norm: Norm, dtype: torch.dtype) -> None:
    tensors = tensors_of(norm, dtype)
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    plain = results(ops.group_norm_silu, norm, tensors, backend="reference")
    got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == plain[name].dtype and value.shape == plain[name].shape
        if value.dim() == 4:
            assert value.is_contiguous(memory_format=torch.channels_last), name
        try:
            assert_within_rule(*(by_sample(name, which[name], norm) for which in (got, plain, exact)))
        except AssertionError as error:
            raise AssertionError(f"{name} of {norm} in {dtype}: {error} times what is allowed") from error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels, skip, groups", SIZES)
def test_channels_and_groups_of_the_networks(backend, channels, skip, groups, dtype):
    alone = groups == channels + skip  # a channel in its group: its shift changes nothing
    check(backend, Norm(channels, skip, groups, shift=None if alone else 2), dtype)
    check(backend, Norm(channels, skip, groups, residual=True, shift=None if alone else 0), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("scale_shift", [0, 1, 2])
@pytest.mark.parametrize("shift", [None, 0, 1, 2])
@pytest.mark.parametrize("skip", [0, 8])
def test_every_combination(backend, skip, shift, scale_shift, residual, silu, dtype):
    options = {"shift": shift, "scale_shift": scale_shift, "residual": residual, "silu": silu}
    check(backend, Norm(16, skip, 4, **options), dtype)
    check(backend, Norm(7, skip and 5, 2 if skip else 1, 4, 5, values_dtype=dtype, **options), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("height, width", [(1, 1), (1, 2), (7, 5), (16, 16), (33, 31)])
def test_sizes_of_images(backend, height, width, dtype):
    """One pixel; fewer than threads share a column; several chunks, the last one shorter."""
    for channels, skip, groups in [(24, 16, 4), (5, 2, 1)]:
        check(backend, Norm(channels, skip, groups, height, width, shift=2, scale_shift=2, residual=True), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_chunks(backend, dtype):
    check(backend, Norm(8, 8, 4, 80, 77, samples=3, shift=3, scale_shift=3), dtype)
    check(backend, Norm(264, 0, 8, 18, 18, residual=True, shift=0), dtype)


def test_a_mean_far_above_the_deviation(backend):
    """100 times: what E[u^2] - E[u]^2 would get wrong in the third digit."""
    norm = Norm(32, 16, 4, 19, 17, mean=100.0, shift=2)
    tensors = tensors_of(norm, torch.float32)
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
    for name, value in got.items():
        torch.testing.assert_close(value.double(), exact[name], rtol=0, atol=3e-5 * exact[name].abs().max().item())


def test_one_number_far_off(backend):
    """The first of its group, which sums are shifted by."""
    norm = Norm(16, 0, 2, 12, 12)
    tensors = tensors_of(norm, torch.float32)
    tensors["x"][:, 0, 0, 0] = 1e4
    exact = results(literal, norm, {name: value.double() for name, value in tensors.items()})
    got = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)
    torch.testing.assert_close(got["y"].double(), exact["y"], rtol=1e-5, atol=1e-5)


def test_a_constant_image_is_its_bias(backend):
    for value in (0.0, 3.7, -1e4):
        x = torch.full((2, 8, 5, 5), value).contiguous(memory_format=torch.channels_last)
        bias = torch.arange(8.0)
        y = backend.call(ops.group_norm_silu, x, torch.ones(8), bias, 4, 1e-6, silu=False)
        torch.testing.assert_close(y, bias.reshape(1, 8, 1, 1).expand(2, 8, 5, 5), rtol=0, atol=abs(value) * 1e-4)


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


def test_what_is_not_finite_stays_in_its_group(backend):
    for bad in (math.nan, math.inf):
        norm = Norm(16, 0, 4, 3, 3)
        tensors = tensors_of(norm, torch.float32)
        tensors["x"][1, 5, 1, 1] = bad
        y = backend.call(ops.group_norm_silu, *(tensors[name] for name in ("x", "weight", "bias")), 4, 1e-6)
        touched = torch.zeros(2, 16, dtype=torch.bool)
        touched[1, 4:8] = True
        assert torch.equal(~y.isfinite().all(dim=(2, 3)), touched)


def test_parts_of_the_gradient(backend):
    """Only what is asked for; y or the sum alone; frozen tensors."""
    norm = Norm(16, 8, 4, 4, 5, residual=True, shift=2, scale_shift=1)
    tensors = tensors_of(norm, torch.float32)
    for wanted in ("x", "skip", "shift", "weight", "scale_shift", "residual"):
        for part in (0, 1):
            found = []
            for name, device in ((backend.name, backend.device), ("reference", "cpu")):
                t = {key: value.detach().to(device) for key, value in tensors.items()}
                t[wanted].requires_grad_()
                output = ops.group_norm_silu(**t, groups=4, eps=1e-6, backend=name)[part]
                if not output.requires_grad:
                    continue
                (gradient,) = torch.autograd.grad(output.sum(), t[wanted], allow_unused=True)
                found.append(torch.zeros_like(t[wanted]).cpu() if gradient is None else gradient.cpu())
            if found:
                torch.testing.assert_close(found[0], found[-1], rtol=1e-4, atol=1e-4)


def test_an_empty_batch(backend):
    norm = Norm(16, 8, 4, 4, 5, samples=0, residual=True, shift=1)
    got = results(ops.group_norm_silu, norm, tensors_of(norm, torch.float32), backend.device, backend=backend.name)
    assert got["y"].shape == (0, 24, 4, 5) and got["u"].shape == got["dx"].shape == (0, 16, 4, 5)
    assert not got["dweight"].any() and not got["dshift"].any()


def test_the_operators_are_registered_as_they_should_be(backend):
    if backend.device != "cpu" or backend.interpreted:
        pytest.skip("once is enough")
    norm = Norm(4, 4, 2, shift=1, scale_shift=2, residual=True)
    names = ("x", "skip", "residual", "shift", "weight", "bias", "scale_shift")
    for given in (norm, Norm(4, 0, 2)):
        tensors = tensors_of(given, torch.float32)
        t = [tensors[name].requires_grad_() if name in tensors else None for name in names]
        opcheck(OPERATORS.group_norm_silu.default, (*t, 2, 1e-6, True, backend.name))
        t = [value if value is None else value.detach() for value in t]
        x, skip, residual, shift, weight, bias, scale_shift = t
        y, u, mean, rstd = OPERATORS.group_norm_silu(*t, 2, 1e-6, True, backend.name)
        images = (y, residual, x if residual is None else u, skip, shift if residual is None else None)
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


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("scale_shift", [0, 1, 2])
@pytest.mark.parametrize("silu", [False, True])
def test_gradcheck_of_the_reference(residual, scale_shift, silu):
    norm = Norm(4, 2, 3, 2, 2, shift=scale_shift, scale_shift=scale_shift, residual=residual, silu=silu, eps=1e-2)
    tensors = tensors_of(norm, torch.float64)
    names = list(tensors)

    def call(*values):
        given = dict(zip(names, values, strict=True))
        return ops.group_norm_silu(**given, groups=norm.groups, eps=norm.eps, silu=silu)

    leaves = [value.double().requires_grad_() for value in tensors.values()]
    assert torch.autograd.gradcheck(call, leaves)
    torch.testing.assert_close(
        call(*leaves), literal(**dict(zip(names, leaves, strict=True)), groups=3, eps=1e-2, silu=silu)
    )


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


@pytest.fixture
def on_gpu(backend):
    """The compiled backends where they are at home: graphs and large images are not for emulators."""
    if backend.device != "cuda":
        pytest.skip("needs a GPU")
    return backend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_gives_the_same_bits(on_gpu, dtype):
    norm = Norm(256, 128, 32, 32, 32, samples=8, shift=8, scale_shift=8, residual=True)
    t = {key: value.cuda().requires_grad_() for key, value in tensors_of(norm, dtype).items()}

    def step():
        outputs = ops.group_norm_silu(**t, groups=32, eps=1e-6, backend=on_gpu.name)
        return [*outputs, *torch.autograd.grad(outputs, list(t.values()), outputs)]

    graph, results = captured(step)
    for seed in (1, 2):
        with torch.no_grad():
            for key, value in tensors_of(norm, dtype, seed).items():
                t[key].copy_(value)
        graph.replay()
        assert all(torch.equal(got, expected) for got, expected in zip(results, step(), strict=True))


@pytest.mark.parametrize(
    "channels, skip, size", [(128, 0, 32), (256, 128, 32), (256, 0, 16), (512, 256, 8), (256, 0, 4)]
)
def test_layers_of_ddpm_cifar10_at_their_sizes(on_gpu, channels, skip, size):
    for options in ({"shift": 4}, {"shift": 0, "residual": True}):
        check(on_gpu, Norm(channels, skip, 32, size, size, samples=4, **options), torch.bfloat16)
