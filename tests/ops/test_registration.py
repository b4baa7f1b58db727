"""torch.library: opcheck, gradcheck, torch.compile, layouts, and the errors."""

import importlib.util
import math
import re
import subprocess
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck

import literal
from progdistill import ops
from progdistill.ops import backends
from progdistill.ops.diffuse import diffuse_reference

OPS = torch.ops.progdistill
LOSS_TYPES = ("l2", "l1", "pseudo_huber")


def case(prediction_type="v_prediction", batch=3, shape=(2, 4, 4), dtype=torch.float64, teacher_steps=2):
    generator = torch.Generator().manual_seed(0)
    width = 2 if prediction_type == "sample_epsilon" else 1
    wide = (batch, width * shape[0], *shape[1:])
    draw = lambda size: torch.randn(size, generator=generator, dtype=dtype)  # noqa: E731
    z, pred, outs = draw((batch, *shape)), draw(wide), [draw(wide) for _ in range(teacher_steps)]
    return pred, z, outs, literal.cosine_grid(4, torch.arange(batch) % 4, teacher_steps)


def test_opcheck_every_operator():
    pred, z, outs, phis = case()
    grad = lambda t: t.detach().clone().requires_grad_()  # noqa: E731
    opcheck(OPS.normal.default, (torch.arange(3), torch.tensor(1), 0, [2, 5], None))
    opcheck(OPS.diffuse.default, (grad(z), grad(pred), phis[0], None))
    opcheck(OPS.diffuse_seeded.default, (grad(z), torch.arange(3), torch.tensor(1), 0, phis[0], None))
    opcheck(OPS.ddim_step.default, (grad(z), grad(outs[0]), phis[0], phis[1], "v_prediction", None, None))
    opcheck(OPS.ddim_step.default, (grad(z), grad(outs[0]), phis[0], phis[1], "v_prediction", 1.0, None))
    opcheck(OPS.distillation_target.default, (z, outs, phis, "v_prediction", "sample_epsilon", None, None))
    for need_grad in (True, False):
        leaf = grad(pred) if need_grad else pred
        for loss_type in LOSS_TYPES:
            options = (5.0, loss_type, 0.1, 1.0, need_grad)
            tail = ("v_prediction", 1.0, "v_prediction", "truncated_snr", *options, None)
            opcheck(OPS.distillation_loss.default, (leaf, z, outs, phis, *tail))
            tail = ("sample", "v_prediction", "min_snr", *options, None)
            opcheck(OPS.prediction_loss.default, (leaf, z, outs[0], phis[0], *tail))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_gradcheck(prediction_type, clip):
    pred, z, outs, phis = case(prediction_type)
    phis = phis * 0.99
    z, out = z.requires_grad_(), outs[0].requires_grad_()
    step = lambda z, out: ops.ddim_step(  # noqa: E731
        z, out, phis[0], phis[1], prediction_type=prediction_type, clip=clip
    )
    torch.autograd.gradcheck(step, (z, out))
    torch.autograd.gradcheck(lambda x, noise: ops.diffuse(x, noise, phis[0]), (z, torch.randn_like(z).requires_grad_()))
    z, outs = z.detach(), [o.detach() for o in outs]
    loss = lambda pred: ops.distillation_loss(  # noqa: E731
        pred, z, outs, phis, prediction_type=prediction_type, clip=clip
    )
    torch.autograd.gradcheck(loss, (pred.requires_grad_(),))
    torch.autograd.gradcheck(
        lambda pred: ops.prediction_loss(
            pred, z, z, phis[0], prediction_type=prediction_type, target_type="sample", weighting="snr_plus_one"
        ),
        (pred,),
    )


def test_compile_fullgraph():
    pred, z, outs, phis = case(dtype=torch.float32)

    def update(pred, z, outs, phis):
        noised = ops.diffuse(z, outs[0], phis[0])
        half = ops.ddim_step(noised, outs[0], phis[0], phis[1], clip=1.0)
        target = ops.distillation_target(half, outs, phis, target_type="sample")
        loss = ops.distillation_loss(pred, noised, outs, phis)
        return (
            loss.mean()
            + ops.prediction_loss(
                pred, noised, target, phis[0], prediction_type="v", target_type="x", weighting="snr"
            ).mean()
        )

    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    results = []
    for function in (update, compiled):
        leaf = pred.clone().requires_grad_()
        value = function(leaf, z, outs, phis)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
def test_channels_last_gives_the_same_numbers_in_its_own_layout(prediction_type):
    pred, z, outs, phis = case(prediction_type, batch=4, shape=(3, 6, 5), dtype=torch.float32)
    last = lambda t: t.contiguous(memory_format=torch.channels_last)  # noqa: E731
    options = {"prediction_type": prediction_type}
    for clip in (None, 1.0):
        plain = ops.ddim_step(z, outs[0], phis[0], phis[1], clip=clip, **options)
        moved = ops.ddim_step(last(z), last(outs[0]), phis[0], phis[1], clip=clip, **options)
        mixed = ops.ddim_step(last(z), outs[0], phis[0], phis[1], clip=clip, **options)
        assert moved.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(plain, moved) and torch.equal(plain, mixed)
    loss, grad = ops.distillation_loss_and_grad(pred, z, outs, phis, **options)
    loss_last, grad_last = ops.distillation_loss_and_grad(last(pred), last(z), [last(o) for o in outs], phis, **options)
    assert grad_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(grad, grad_last, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(loss, loss_last, rtol=1e-6, atol=0)


def test_bfloat16_outputs():
    pred, z, outs, phis = case(batch=4, shape=(3, 8, 8), dtype=torch.float32)
    low = lambda t: t.bfloat16()  # noqa: E731
    loss, grad = ops.distillation_loss_and_grad(low(pred), z, [low(o) for o in outs], phis)
    exact, exact_grad = ops.distillation_loss_and_grad(low(pred).float(), z, [low(o).float() for o in outs], phis)
    assert loss.dtype == torch.float32 and grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)
    assert torch.equal(grad, exact_grad.bfloat16())
    assert ops.ddim_step(z, low(outs[0]), phis[0], phis[1]).dtype == torch.float32


def test_second_derivative_is_refused():
    pred, z, outs, phis = case()
    loss = ops.distillation_loss(pred.requires_grad_(), z, outs, phis).sum()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, pred, create_graph=True)


def test_errors_name_value_and_fix():
    pred, z, outs, phis = case(dtype=torch.float32)
    with pytest.raises(ValueError, match="unknown prediction type 'velocity'; use one of epsilon, sample"):
        ops.ddim_step(z, pred, phis[0], phis[1], prediction_type="velocity")
    with pytest.raises(ValueError, match="unknown weighting 'p2'"):
        ops.distillation_loss(pred, z, outs, phis, weighting="p2")
    with pytest.raises(TypeError, match="angles are float64"):
        ops.ddim_step(z, pred, phis[0].float(), phis[1])
    with pytest.raises(TypeError, match="angles are float64"):
        ops.diffuse(z, z, 0.5)
    with pytest.raises(ValueError, match=r"phi has shape \(2,\); expected \(3,\)"):
        ops.diffuse(z, z, phis[0, :2])
    with pytest.raises(ValueError, match=r"holds the angle 1.6; angles lie in \[0, pi/2\]"):
        ops.diffuse(z, z, torch.full((3,), 1.6, dtype=torch.float64))
    with pytest.raises(ValueError, match="holds the angle nan"):
        ops.diffuse(z, z, torch.full((3,), math.nan, dtype=torch.float64))
    with pytest.raises(ValueError, match="fall strictly"):
        ops.distillation_loss(pred, z, outs, phis.flip(0))
    with pytest.raises(ValueError, match="rises from"):
        ops.ddim_step(z, pred, phis[1], phis[0])
    with pytest.raises(TypeError, match=r"states are float32 \(or float64\)"):
        ops.ddim_step(z.bfloat16(), pred, phis[0], phis[1])
    with pytest.raises(TypeError, match="may be torch.float32 or torch.bfloat16"):
        ops.ddim_step(z, pred.double(), phis[0], phis[1])
    with pytest.raises(ValueError, match=r"needs \(3, 4, 4, 4\) \(two heads"):
        ops.ddim_step(z, pred, phis[0], phis[1], prediction_type="both")
    with pytest.raises(ValueError, match=r"phis has shape \(3, 3\); expected \(2, 3\)"):
        ops.distillation_loss(pred, z, outs[:1], phis)
    with pytest.raises(ValueError, match="outs is empty"):
        ops.distillation_loss(pred, z, [], phis)
    with pytest.raises(ValueError, match="clip is -1.0"):
        ops.ddim_step(z, pred, phis[0], phis[1], clip=-1.0)
    with pytest.raises(ValueError, match="min_snr_gamma is 0"):
        ops.distillation_loss(pred, z, outs, phis, weighting="min_snr", min_snr_gamma=0)
    with pytest.raises(ValueError, match=r"requires a gradient.*pass outs\[1\].detach"):
        ops.distillation_loss(pred, z, [outs[0], outs[1].clone().requires_grad_()], phis)


@pytest.mark.parametrize("weighting", ["constant", "truncated_snr", "snr_plus_one"])
def test_infinite_pairs_are_refused(weighting):
    pred, z, outs, _ = case(dtype=torch.float32)
    phis = literal.cosine_grid(1, torch.zeros(3))
    with pytest.raises(ValueError, match=r"infinite at phi = 1.57.*use v_prediction"):
        ops.distillation_loss(
            pred, z, outs, phis, prediction_type="eps", teacher_prediction_type="v", weighting=weighting
        )
    with pytest.raises(ValueError, match="infinite at phi = 0"):
        ops.prediction_loss(
            pred, z, outs[0], torch.zeros(3, dtype=torch.float64), prediction_type="v", target_type="x", weighting="snr"
        )


def test_epsilon_pair_with_snr_weighting_is_finite_at_zero_snr():
    pred, z, outs, _ = case(dtype=torch.float32)
    phis = literal.cosine_grid(1, torch.zeros(3))
    loss = ops.distillation_loss(
        pred, z, outs, phis, prediction_type="eps", teacher_prediction_type="v", weighting="snr"
    )
    assert torch.isfinite(loss).all()


def test_forced_backend(monkeypatch):
    _, z, _, phis = case(dtype=torch.float32)
    expected = ops.diffuse(z, z, phis[0], backend="reference")
    torch.testing.assert_close(ops.diffuse(z, z, phis[0]), expected)
    with pytest.raises(ValueError, match="unknown backend 'fast'; use one of reference, cpu, cuda, triton"):
        ops.diffuse(z, z, phis[0], backend="fast")
    monkeypatch.setenv("PROGDISTILL_BACKEND", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    with pytest.raises(ValueError, match="'triton' works on cuda tensors; diffuse got cpu tensors"):
        ops.diffuse(z, z, phis[0])
    monkeypatch.setattr(backends, "unavailable", lambda name: "it is not there")
    with pytest.raises(RuntimeError, match="'triton' was asked for diffuse, but it is not there"):
        ops.diffuse(z, z, phis[0])
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    monkeypatch.delitem(backends.declared(), "diffuse")
    backends.declare("diffuse", {"reference": diffuse_reference})
    with pytest.raises(ValueError, match="'triton' does not implement diffuse; it has: reference"):
        ops.diffuse(z, z, phis[0])


def triton_without(monkeypatch, **modules):
    """Why the backend cannot be used if these modules are so."""
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return backends.unavailable.__wrapped__("triton")


def test_triton_that_is_missing_or_old_is_explained(monkeypatch):
    assert re.search(r"cannot be imported \(.*; .*pip install 'triton>=3.6'", triton_without(monkeypatch, triton=None))
    old = types.SimpleNamespace(__version__="3.5.1+git")
    assert "Triton 3.5.1+git is too old; " in triton_without(monkeypatch, triton=old)
    new = types.SimpleNamespace(__version__="4.0.0")
    assert triton_without(monkeypatch, triton=new) is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert triton_without(monkeypatch) == "its kernels were not installed with the package; reinstall: pip install ."


def test_what_is_best_on_a_gpu(monkeypatch):
    """CUDA kernels, else Triton's, else plain PyTorch."""
    missing = set()
    monkeypatch.setattr(backends, "unavailable", lambda name: "gone" if name in missing else None)
    for operation in backends.declared():
        missing.clear()
        for expected in ("cuda", "triton", "reference"):
            if expected in backends.declared()[operation]:
                assert backends.best(operation, "cuda") == expected
            missing.add(expected)


def test_triton_is_imported_by_need_alone():
    code = "import sys, progdistill, progdistill.ops; print('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_empty_batch():
    pred, z, outs, phis = case(dtype=torch.float32)
    empty = [t[:0] for t in (pred, z, *outs)]
    loss, grad = ops.distillation_loss_and_grad(empty[0], empty[1], empty[2:], phis[:, :0])
    assert loss.shape == (0,) and grad.shape == (0, 2, 4, 4)
    assert ops.ddim_step(empty[1], empty[2], phis[0, :0], phis[1, :0]).shape == (0, 2, 4, 4)


def test_modes_and_subclasses_see_the_operator():
    """Calls go past the dispatcher only where nobody would notice."""
    z, phi = torch.randn(2, 3), torch.full((2,), 0.5, dtype=torch.float64)
    graph = make_fx(lambda x: ops.diffuse(x, x, phi))(z)
    assert torch.ops.progdistill.diffuse.default in [node.target for node in graph.graph.nodes]
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(z)
        assert isinstance(ops.diffuse(fake, fake, mode.from_tensor(phi)), FakeTensor)
    outside = FakeTensorMode().from_tensor(z)
    with pytest.raises(Exception, match="Fake"):  # mixing is the dispatcher's complaint; we would read memory
        ops.diffuse(outside, outside, phi)

    class Named(torch.Tensor):
        pass

    assert isinstance(ops.diffuse(z.as_subclass(Named), z, phi), Named)
    leaf = z.clone().requires_grad_()
    assert ops.diffuse(leaf, z, phi).requires_grad
    with torch.no_grad():
        assert not ops.diffuse(leaf, z, phi).requires_grad


def test_diffuse_seeded_refuses():
    x, seeds, phi = torch.zeros(3, 2, 4), torch.arange(3), torch.zeros(3, dtype=torch.float64)
    for error, message, arguments in [
        (ValueError, "seeds has 2 elements.*x 3 samples", (x, seeds[:2], 0, 0, phi)),
        (TypeError, "seeds is torch.int32", (x, seeds.int(), 0, 0, phi)),
        (ValueError, "stream is 4294967296", (x, seeds, 0, 2**32, phi)),
        (TypeError, "x is torch.bfloat16", (x.bfloat16(), seeds, 0, 0, phi)),
        (ValueError, "holds the angle 2.0", (x, seeds, 0, 0, phi + 2)),
    ]:
        with pytest.raises(error, match=message):
            ops.diffuse_seeded(*arguments)
