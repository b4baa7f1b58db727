"""A step and the network's next input from one launch: the bits of a step and of a cast."""

import math

import pytest
import torch
from torch.library import opcheck

from captured_graph import captured, need_backend
from progdistill import ops
from progdistill.ops import native

SHAPES = [(3, 5), (2, 3, 7, 5), (2, 3, 2, 4, 4), (2, 1, 3, 3), (2, 3, 80, 80), (0, 3, 4, 4)]
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def case(shape, prediction_type="v_prediction", dtype=torch.bfloat16):
    """z, out, phi and phi_next, the last of the first sample at exactly 0."""
    generator = torch.Generator().manual_seed(0)
    heads = 2 if prediction_type == "sample_epsilon" else 1
    z = torch.randn(shape, generator=generator)
    out = torch.randn((shape[0], heads * shape[1], *shape[2:]), generator=generator).to(dtype)
    phi = torch.linspace(0.3, 1.4, shape[0], dtype=torch.float64)
    return z, out, phi, phi - phi[:1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon", "sample"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_the_bits_of_a_step_and_a_cast(backend, shape, prediction_type, clip):
    options = {"prediction_type": prediction_type, "clip": clip}
    last = LAYOUTS.get(len(shape), torch.contiguous_format)
    for dtype in (torch.float32, torch.bfloat16):
        z, out, *phis = case(shape, prediction_type, dtype)
        expected = backend.call(ops.ddim_step, z, out, *phis, **options)
        given = [(z, None), (z.contiguous(memory_format=last), None), (z, last), (z, torch.contiguous_format)]
        for state, wanted in given:
            z_next, copy = backend.call(ops.ddim_step_and_input, state, out, *phis, memory_format=wanted, **options)
            assert torch.equal(z_next, expected) and torch.equal(copy, expected.bfloat16())
            assert copy.dtype == torch.bfloat16 and copy.stride() == z_next.stride()
            layout = wanted or (torch.contiguous_format if state is z else last)
            assert z_next.is_contiguous(memory_format=layout) or not len(z)


def test_rounding_to_nearest_even_and_not_a_number(backend):
    special = [math.nan, math.inf, -math.inf, 3e38, 3.4e38, -0.0, 1e-40]
    z = torch.cat([1 + torch.arange(257) / 256, torch.tensor(special)]).reshape(2, -1)
    zero = torch.zeros(2, dtype=torch.float64)
    z_next, copy = backend.call(ops.ddim_step_and_input, z, torch.zeros_like(z), zero, zero)
    assert torch.equal(z_next.nan_to_num(7), z.nan_to_num(7))
    assert torch.equal(copy.nan_to_num(7), z.bfloat16().nan_to_num(7)) and copy.isnan().sum() == 1


@pytest.mark.parametrize("size", [64, 4104])
def test_tensors_off_the_16_byte_grid(backend, size):
    z, out, *phis = case((3, size))
    room = torch.empty(out.numel() + 1, dtype=out.dtype)[1:].copy_(out.flatten()).reshape(out.shape)
    expected = backend.call(ops.ddim_step, z, out, *phis)
    z_next, copy = backend.call(ops.ddim_step_and_input, z, room, *phis)
    assert torch.equal(z_next, expected) and torch.equal(copy, expected.bfloat16())


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (2, 3, 40, 40)])
def test_nothing_is_written_beside_the_results(backend, shape, monkeypatch):
    kept, empty_like = [], torch.empty_like

    def guarded(like, *, dtype=None, **options):
        kept.append(torch.full((like.numel() + 256,), 7.0, dtype=dtype or like.dtype, device=like.device))
        return kept[-1][128:-128].as_strided(like.shape, empty_like(like, **options).stride())

    monkeypatch.setattr(torch, "empty_like", guarded)
    backend.call(ops.ddim_step_and_input, *case(shape), clip=1.0)
    backend.call(ops.ddim_step_and_input, *case(shape), memory_format=torch.channels_last)
    assert len(kept) == 4 and {room.dtype for room in kept} == {torch.float32, torch.bfloat16}
    assert all((room[:128] == 7).all() and (room[-128:] == 7).all() for room in kept)


def test_registration():
    z, out, *phis = case((3, 2, 4, 4))
    for clip in (None, 1.0):
        opcheck(torch.ops.progdistill.ddim_step_and_input.default, (z, out, *phis, "v_prediction", clip, None))
    step = lambda z, out: ops.ddim_step_and_input(2 * z, out, *phis, memory_format=torch.channels_last)  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(z, out), step(z, out)))


def test_errors_name_value_and_fix():
    z, out, *phis = case((3, 2, 4))
    with pytest.raises(TypeError, match=r"z is torch.float64; bfloat16 copies are of float32 states: pass z.float\(\)"):
        ops.ddim_step_and_input(z.double(), out.double(), *phis)
    with pytest.raises(ValueError, match="out requires a gradient.*pass out.detach"):
        ops.ddim_step_and_input(z, out.requires_grad_(), *phis)
    with pytest.raises(ValueError, match="rises from"):
        ops.ddim_step_and_input(z, z, *phis[::-1])
    with pytest.raises(ValueError, match="unknown prediction type 'velocity'"):
        ops.ddim_step_and_input(z, z, *phis, prediction_type="velocity")


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
def test_the_extension_refuses_a_copy_that_it_could_not_write():
    z, out, *phis = case((3, 2, 4, 4))
    for error, message, copy in [
        (TypeError, "copy is float32; expected bfloat16", torch.empty_like(z)),
        (ValueError, "copy has shape", out[:2]),
        (ValueError, "one common order", out.contiguous(memory_format=torch.channels_last)),
        (TypeError, "expected a torch.Tensor", 3),
    ]:
        with pytest.raises(error, match=message):
            native._C.ddim_step(torch.empty_like(z), copy, z, out, *phis, 2, None, 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_sees_new_tensors(name):
    need_backend(name)
    z, out, *phis = (tensor.cuda() for tensor in case((8, 3, 32, 32)))
    call = lambda: ops.ddim_step_and_input(z, out, *phis, backend=name)  # noqa: E731
    graph, results = captured(call)
    z.mul_(0.5)
    graph.replay()
    assert all(map(torch.equal, results, call()))
