"""What group_norm_silu has normalised, returned for whoever needs it too, and the gradients that reach it there."""

from contextlib import nullcontext
from itertools import combinations

import pytest
import torch

from image_passes import ImagePasses
from ops.norms import Norm, check, literal, mixture_of, named_outputs, results, tensors_of
from progdistill import ops

OPERATION = "group_norm_silu"
# (shift, residual): u is x itself, or a sum.
SUMS = [(None, False), (2, False), (None, True), (2, True)]


def outputs_of(norm: Norm, leaves, backend, name=None):
    return named_outputs(ops.group_norm_silu(**leaves, **norm.options, backend=name or backend.name))


def leaves_of(norm: Norm, backend, dtype=torch.float32):
    return {name: value.to(backend.device).requires_grad_() for name, value in tensors_of(norm, dtype).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("scale_shift", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shift", [None, 0, 1, 2])
@pytest.mark.parametrize("skip", [0, 8])
def test_every_combination(backend, skip, shift, residual, scale_shift, silu, dtype):
    options = {"shift": shift, "residual": residual, "scale_shift": scale_shift, "silu": silu, "sources": True}
    check(backend, Norm(16, skip, 4, **options), dtype)
    check(backend, Norm(7, skip and 5, 2 if skip else 1, 4, 5, values_dtype=dtype, **options), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift, residual", SUMS)
def test_seams_and_chunks(backend, shift, residual, dtype):
    """A group partly in each tensor; fewer pixels than threads; several chunks, the last one shorter."""
    for size in [(40, 24, 4), (3, 5, 2), (24, 16, 4, 1, 1), (5, 2, 1, 17, 16), (40, 8, 1, 33, 31)]:
        check(backend, Norm(*size, shift=shift, residual=residual, sources=True), dtype)


@pytest.mark.parametrize("groups, height, width", [(8, 4, 5), (2, 33, 31)])
@pytest.mark.parametrize("skip", [0, 16])
@pytest.mark.parametrize("residual", [False, True])
def test_u_is_normalised_as_rounded(backend, residual, skip, groups, height, width):
    """Far above 0, where bfloat16 has no digits left behind the point, that is far from the unrounded sum's norm."""
    given = {"shift": 2, "residual": residual, "silu": False, "sources": True, "mean": 300.0}
    norm = Norm(48, skip, groups, height, width, **given)
    t = {name: value.to(backend.device) for name, value in tensors_of(norm, torch.bfloat16).items()}
    y, u, _ = ops.group_norm_silu(**t, **norm.options, backend=backend.name)
    unrounded = t["x"].float() + (t["residual"] if residual else 0.0) + t["shift"][:, :, None, None]
    assert torch.equal(u, unrounded.bfloat16())
    exact = {name: value.double() for name, value in t.items() if name not in ("shift", "residual")}
    of_rounded, of_sum = (
        literal(**exact | {"x": value.double()}, groups=groups, eps=norm.eps, silu=False) for value in (u, unrounded)
    )
    tolerance = 2.0**-8 * of_rounded.abs().max()
    assert (y.double() - of_rounded).abs().max() < tolerance < (y.double() - of_sum).abs().max() / 4


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("shift, residual", SUMS)
def test_what_exists_is_not_copied(backend, shift, residual, recorded):
    norm = Norm(16, 8, 4, shift=shift, residual=residual, sources=True)
    for format in (torch.channels_last, torch.contiguous_format):
        leaves = leaves_of(norm, backend)
        for name in ("x", "skip"):
            leaves[name] = leaves[name].detach().contiguous(memory_format=format).requires_grad_()
        with torch.set_grad_enabled(recorded):
            outputs = outputs_of(norm, leaves, backend)
        assert outputs["skip"].data_ptr() == leaves["skip"].data_ptr()
        is_x = shift is None and not residual
        assert (outputs["u"].data_ptr() == leaves["x"].data_ptr()) == is_x
        assert outputs["u"].is_contiguous(memory_format=format)
        assert all(value.requires_grad == recorded for value in outputs.values() if recorded or not value.is_leaf)


@pytest.mark.parametrize("shift, residual", SUMS)
@pytest.mark.parametrize("skip", [0, 8])
def test_gradients_of_the_sources_take_no_pass_of_their_own(backend, skip, shift, residual):
    norm = Norm(16, skip, 4, 8, 8, shift=shift, residual=residual, sources=True)
    leaves = leaves_of(norm, backend)
    outputs = outputs_of(norm, leaves, backend)

    def passes_of(outputs):
        mixture = [grad.contiguous(memory_format=torch.channels_last) for grad in mixture_of(outputs)]
        with ImagePasses(size=norm.samples * 8 * 8 * 8) as seen:
            torch.autograd.grad(outputs, list(leaves.values()), mixture)
        return dict(seen.written)

    images = 2 if skip else 1
    assert passes_of(list(outputs.values())) == {"group_norm_silu_backward": images}
    if skip:  # what autograd would add is seen
        outputs = outputs_of(norm, leaves, backend) | {"skip": leaves["skip"]}
        assert passes_of(list(outputs.values())) == {"group_norm_silu_backward": images, "add": 1}


@pytest.mark.parametrize("shift, residual", SUMS)
def test_any_part_of_the_outputs(backend, shift, residual):
    norm = Norm(16, 8, 4, 4, 5, shift=shift, residual=residual, sources=True)
    for used in [part for count in (1, 2) for part in combinations(("y", "u", "skip"), count)]:
        found = []
        for name in (backend.name, "reference"):
            leaves = leaves_of(norm, backend)
            outputs = [outputs_of(norm, leaves, backend, name)[key] for key in used]
            options = {"allow_unused": True, "materialize_grads": True}
            found.append(torch.autograd.grad(outputs, list(leaves.values()), mixture_of(outputs), **options))
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("shift, residual", SUMS)
def test_frozen_tensors(backend, shift, residual, watched):
    """What is returned wants a gradient where what it is made of does, and gets it."""
    norm = Norm(16, 8, 4, 4, 5, shift=shift, residual=residual, sources=True)
    for wanted in tensors_of(norm, torch.float32):
        found = []
        for name in (backend.name, "reference"):
            leaves = {key: value.detach() for key, value in leaves_of(norm, backend).items()}
            leaves[wanted].requires_grad_()
            with ImagePasses(size=1) if watched else nullcontext():
                outputs = outputs_of(norm, leaves, backend, name)
            differentiable = [key for key, value in outputs.items() if value.requires_grad]
            chosen = [outputs[key] for key in differentiable]
            found.append((differentiable, *torch.autograd.grad(chosen, leaves[wanted], mixture_of(chosen))))
        (names, gradient), (expected_names, expected) = found
        assert names == expected_names
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_one_tensor_twice_and_a_part_of_another(backend):
    """x is its own skip, or has a sample in common with it."""
    norm = Norm(8, 8, 4, sources=True)
    tensors = tensors_of(norm, torch.float32)
    for first in (0, 1):
        found = []
        for name in (backend.name, "reference"):
            whole = torch.cat((tensors["x"], tensors["skip"][:1])).to(backend.device).requires_grad_()
            values = {key: tensors[key].to(backend.device) for key in ("weight", "bias")}
            images = {"x": whole[first : first + 2], "skip": whole[:2]}
            outputs = list(outputs_of(norm, values | images, backend, name).values())
            found.append(torch.autograd.grad(outputs, whole, mixture_of(outputs)))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shift, residual", SUMS)
def test_whoever_watches_sees_the_same(backend, shift, residual, dtype):
    """A mode, and torch.compile: autograd adds, after du and dskip are rounded."""
    norm = Norm(16, 8, 4, shift=shift, residual=residual, sources=True)
    tensors = tensors_of(norm, dtype)
    expected = results(ops.group_norm_silu, norm, tensors, backend.device, backend=backend.name)

    def watched(**given):
        with ImagePasses(size=1):
            return ops.group_norm_silu(**given)

    torch._dynamo.reset()
    compiled = torch.compile(ops.group_norm_silu, fullgraph=True, backend="aot_eager")
    functions = [watched] + ([] if backend.interpreted else [compiled])
    for function in functions:
        got = results(function, norm, tensors, backend.device, backend=backend.name)
        for name, value in got.items():
            tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)
            assert name.startswith("d") or value.stride() == expected[name].stride()
