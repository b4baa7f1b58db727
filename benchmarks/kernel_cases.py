"""What benchmarks/kernels.py measures: operations, their inputs, and who computes the same.

Contenders of an operation:
    cpu, cuda, triton       the backends of progdistill that serve the device, through the public function
    reference               progdistill's formula in eager PyTorch
    textbook                the papers' formulas as written (tests/literal.py) in float32, gradients by autograd
    ..., compiled           the two above under torch.compile
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from progdistill import ops
from progdistill.ops import backends
from progdistill.ops.ddim_step import ddim_step_reference
from progdistill.ops.diffuse import diffuse_reference
from progdistill.ops.diffuse_seeded import diffuse_seeded_reference
from progdistill.ops.distillation_loss import distillation_loss_reference
from progdistill.ops.distillation_target import distillation_target_reference
from progdistill.ops.loss_options import LossOptions
from progdistill.ops.normal import normal_reference
from progdistill.ops.prediction_loss import prediction_loss_reference

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # a baseline of its own would drift from theirs

import literal

V, BOTH, WEIGHTING = "v_prediction", "sample_epsilon", "truncated_snr"
FORWARD, GRADIENT = "forward", "forward + gradient"

Inputs = dict[str, Any]
Function = Callable[..., Any]


class Contender(NamedTuple):
    """What is timed is `join(*pieces)`; torch.compile sees each piece by itself."""

    pieces: tuple[Function, ...]
    join: Callable[..., Callable[[Inputs], Any]]
    compiles: bool = False
    other_numbers: bool = False  # its results are random numbers of another kind


class Case(NamedTuple):
    """One operation in one mode, to be called under no_grad in the mode FORWARD.

    `inputs` makes them from the sizes, a device and a seed. `reads` names them as often as the operation must read
    them; it must write its results once.
    """

    operation: str
    variant: str
    mode: str
    inputs: Callable[[Any, str, int], Inputs]
    reads: tuple[str, ...]
    contenders: dict[str, Contender]
    in_place: bool = False  # contenders change their inputs, and return them
    most_states: int = 40  # memory that the hungriest contender takes, inputs included, in units of a float32 state

    @property
    def name(self) -> str:
        return ", ".join(filter(None, (self.operation, self.variant))) + f": {self.mode}"


def cases(device: str) -> list[Case]:
    """Every operation that this progdistill has, in the modes that it has."""
    found = [*_normal(device), *_diffuse(device), *_diffuse_seeded(device), *_ddim_step(device), *_target(device)]
    return [*found, *_distillation_loss(device), *_prediction_loss(device), *_half_step_and_loss(device)]


def serving(operation: str, device: str) -> list[str]:
    """The backends, but for the reference, that can compute an operation on a device here."""
    declared = backends.declared()[operation]
    fitting = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}[device]
    return [name for name in fitting if name in declared and backends.unavailable(name) is None]


def as_it_is(forward: Function) -> Function:
    """The call alone: its gradient, if it has one, it computes itself."""
    return forward


def with_gradient(*names: str) -> Callable[[Function], Function]:
    """The call, and autograd's gradient of it for the inputs of these names from t["cotangent"]."""

    def join(forward: Function) -> Function:
        def call(t: Inputs) -> tuple[Tensor, ...]:
            result = forward(t)
            return result.detach(), *torch.autograd.grad(result, [t[name] for name in names], t["cotangent"])

        return call

    return join


def _random(shape: tuple[int, ...], device: str, seed: int, **dtypes: torch.dtype) -> Inputs:
    generator = torch.Generator(device).manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, device=device).to(dtype) for name, dtype in dtypes.items()}


def _angles(samples: int, device: str) -> Inputs:
    # Away from both ends, where the textbook's divisions lose digits. float32 for the textbook, as one would write it.
    phi = torch.linspace(0.1, 1.4, samples, dtype=torch.float64, device=device)
    phis = torch.stack([phi, 0.75 * phi, 0.5 * phi])
    return {"phi": phi, "phis": phis, "single_phi": phi.float(), "single_phis": phis.float()}


def _contenders(
    operation: str, device: str, ours: Function, reference: Function, textbook: Function, join: Callable
) -> dict[str, Contender]:
    named = {name: Contender((partial(ours, name),), join) for name in serving(operation, device)}
    named["reference"] = Contender((reference,), join, compiles=True)
    named["textbook"] = Contender((textbook,), join, compiles=True)
    return named


def _normal(device: str) -> Iterator[Case]:
    def inputs(shape, device, seed):
        seeds = torch.arange(shape[0], device=device) + seed * shape[0]
        return {"seeds": seeds, "step": torch.ones((), dtype=torch.int64, device=device), "shape": shape}

    def ours(backend, t):
        return ops.normal(t["seeds"], t["step"], 0, t["shape"][1:], backend=backend)

    def reference(t):
        return normal_reference(t["seeds"], t["step"], 0, t["shape"][1:])

    def textbook(t):
        return torch.randn(t["shape"], device=t["seeds"].device)

    contenders = _contenders("normal", device, ours, reference, textbook, as_it_is)
    contenders["reference"] = contenders["reference"]._replace(compiles=False)  # 64-bit products by hand: minutes
    contenders["textbook"] = contenders["textbook"]._replace(compiles=False, other_numbers=True)
    yield Case("normal", "", FORWARD, inputs, (), contenders)


def _diffuse(device: str) -> Iterator[Case]:
    def inputs(gradient, shape, device, seed):
        t = _random(shape, device, seed, x=torch.float32, noise=torch.float32, cotangent=torch.float32)
        for name in ("x", "noise"):
            t[name].requires_grad_(gradient)
        return {**t, **_angles(shape[0], device)}

    def ours(backend, t):
        return ops.diffuse(t["x"], t["noise"], t["phi"], backend=backend)

    def reference(t):
        return diffuse_reference(t["x"], t["noise"], t["phi"])

    def textbook(t):
        return literal.diffuse(t["x"], t["noise"], t["single_phi"])

    functions = ours, reference, textbook
    reads = ("x", "noise")
    modes = (FORWARD, as_it_is, reads), (GRADIENT, with_gradient(*reads), (*reads, "cotangent"))
    for mode, join, names in modes:
        contenders = _contenders("diffuse", device, *functions, join)
        yield Case("diffuse", "", mode, partial(inputs, mode == GRADIENT), names, contenders)


def _diffuse_seeded(device: str) -> Iterator[Case]:
    def inputs(gradient, shape, device, seed):
        seeds = torch.arange(shape[0], device=device) + seed * shape[0]
        step = torch.ones((), dtype=torch.int64, device=device)
        t = _random(shape, device, seed, x=torch.float32, cotangent=torch.float32)
        t["x"].requires_grad_(gradient)
        return {**t, "seeds": seeds, "step": step, **_angles(shape[0], device)}

    def ours(backend, t):
        return ops.diffuse_seeded(t["x"], t["seeds"], t["step"], 0, t["phi"], backend=backend)

    def reference(t):
        return diffuse_seeded_reference(t["x"], t["seeds"], t["step"], 0, t["phi"])

    def textbook(t):
        return literal.diffuse(t["x"], torch.randn_like(t["x"]), t["single_phi"])

    functions = ours, reference, textbook
    for mode, join, names in ((FORWARD, as_it_is, ("x",)), (GRADIENT, with_gradient("x"), ("x", "cotangent"))):
        contenders = _contenders("diffuse_seeded", device, *functions, join)
        contenders["reference"] = contenders["reference"]._replace(compiles=False)
        contenders["textbook"] = contenders["textbook"]._replace(other_numbers=True)
        yield Case("diffuse_seeded", "", mode, partial(inputs, mode == GRADIENT), names, contenders)


def _ddim_step(device: str) -> Iterator[Case]:
    def inputs(gradient, shape, device, seed):
        t = _random(shape, device, seed, z=torch.float32, out=torch.float32, cotangent=torch.float32)
        for name in ("z", "out"):
            t[name].requires_grad_(gradient)
        return {**t, **_angles(shape[0], device)}

    def ours(clip, backend, t):
        return ops.ddim_step(t["z"], t["out"], t["phi"], t["phis"][1], clip=clip, backend=backend)

    def reference(clip, t):
        return ddim_step_reference(t["z"], t["out"], t["phi"], t["phis"][1], V, clip)

    def textbook(clip, t):
        return literal.ddim(t["z"], t["out"], t["single_phi"], t["single_phis"][1], V, clip)

    for clip in (None, 1.0):
        functions = [partial(function, clip) for function in (ours, reference, textbook)]
        # The gradient through a clip depends on where it clipped, and so on z and out once more.
        again = ("cotangent",) if clip is None else ("cotangent", "z", "out")
        for mode, join, names in ((FORWARD, as_it_is, ()), (GRADIENT, with_gradient("z", "out"), again)):
            contenders = _contenders("ddim_step", device, *functions, join)
            variant = "" if clip is None else "clip"
            yield Case("ddim_step", variant, mode, partial(inputs, mode == GRADIENT), ("z", "out", *names), contenders)


class Variant(NamedTuple):
    """How a distillation loss is asked for."""

    name: str = ""
    clip: float | None = None
    dtype: torch.dtype = torch.float32
    prediction_type: str = V
    layout: torch.memory_format = torch.contiguous_format


LOSS_VARIANTS = (
    Variant(),
    Variant("clip", clip=1.0),
    Variant("bf16 outputs", dtype=torch.bfloat16),
    Variant("two heads, channels_last", prediction_type=BOTH, layout=torch.channels_last),
)


def _distillation_inputs(variant: Variant, gradient: bool, shape: tuple[int, ...], device: str, seed: int) -> Inputs:
    z = _random(shape, device, 2 * seed, z=torch.float32)
    heads = 2 if variant.prediction_type == BOTH else 1
    names = dict.fromkeys(("pred", "first", "second"), variant.dtype)
    outputs = _random((shape[0], heads * shape[1], *shape[2:]), device, 2 * seed + 1, **names)
    t = {name: value.contiguous(memory_format=variant.layout) for name, value in {**z, **outputs}.items()}
    t["pred"].requires_grad_(gradient)
    cotangent = torch.full((shape[0],), 1 / shape[0], device=device)
    return {**t, **_angles(shape[0], device), "cotangent": cotangent}


def _options(prediction_type: str, samples: int, need_grad: bool) -> LossOptions:
    return LossOptions(prediction_type, WEIGHTING, 5.0, "l2", 1e-3, 1 / samples, need_grad)


def _target(device: str) -> Iterator[Case]:
    def ours(backend, t):
        return ops.distillation_target(t["z"], [t["first"], t["second"]], t["phis"], backend=backend)

    def reference(t):
        return distillation_target_reference(t["z"], [t["first"], t["second"]], t["phis"], V, V, None)

    def textbook(t):
        x = literal.x_target(t["z"], [t["first"], t["second"]], t["single_phis"], V)
        return literal.from_x(t["z"], x, t["single_phi"], V)

    contenders = _contenders("distillation_target", device, ours, reference, textbook, as_it_is)
    inputs = partial(_distillation_inputs, Variant(), False)
    yield Case("distillation_target", "", FORWARD, inputs, ("z", "first", "second"), contenders)


def _distillation_loss(device: str) -> Iterator[Case]:
    reads = ("pred", "z", "first", "second")
    for variant in LOSS_VARIANTS:
        for mode in (FORWARD, GRADIENT):
            gradient = mode == GRADIENT
            ours, reference = partial(_our_loss, variant, gradient), partial(_reference_loss, variant, gradient)
            contenders = _contenders("distillation_loss", device, ours, reference, reference, as_it_is)
            # The reference has the gradient written out; the textbook leaves it to autograd.
            join = with_gradient("pred") if gradient else as_it_is
            contenders["textbook"] = Contender((partial(_textbook_loss, variant),), join, compiles=True)
            inputs = partial(_distillation_inputs, variant, gradient)
            yield Case("distillation_loss", variant.name, mode, inputs, reads, contenders)


def _our_loss(variant: Variant, gradient: bool, backend: str, t: Inputs) -> Any:
    options = {"prediction_type": variant.prediction_type, "clip": variant.clip, "backend": backend}
    arguments = t["pred"], t["z"], [t["first"], t["second"]], t["phis"]
    if gradient:
        return ops.distillation_loss_and_grad(*arguments, grad_scale=1 / len(t["z"]), **options)
    return ops.distillation_loss(*arguments, **options)


def _reference_loss(variant: Variant, gradient: bool, t: Inputs) -> Any:
    options = _options(variant.prediction_type, len(t["z"]), gradient)
    outs, teacher = [t["first"], t["second"]], variant.prediction_type
    pred = t["pred"].detach() if gradient else t["pred"]
    loss, grad = distillation_loss_reference(pred, t["z"], outs, t["phis"], teacher, variant.clip, options)
    return (loss, grad) if gradient else loss


def _textbook_loss(variant: Variant, t: Inputs) -> Tensor:
    outs = [t["first"], t["second"]]
    x = literal.x_target(t["z"], outs, t["single_phis"], variant.prediction_type, variant.clip)
    return literal.loss(t["pred"], t["z"], x, t["single_phi"], variant.prediction_type, WEIGHTING)


def _prediction_loss(device: str) -> Iterator[Case]:
    names = {"prediction_type": V, "target_type": "sample", "weighting": WEIGHTING}

    def ours(gradient, backend, t):
        arguments = t["pred"], t["z"], t["first"], t["phi"]
        if gradient:
            scale = 1 / len(t["z"])
            return ops.prediction_loss_and_grad(*arguments, grad_scale=scale, backend=backend, **names)
        return ops.prediction_loss(*arguments, backend=backend, **names)

    def reference(gradient, t):
        options = _options(V, len(t["z"]), gradient)
        pred = t["pred"].detach() if gradient else t["pred"]
        loss, grad = prediction_loss_reference(pred, t["z"], t["first"], t["phi"], "sample", options)
        return (loss, grad) if gradient else loss

    def textbook(t):
        return literal.loss(t["pred"], t["z"], t["first"], t["single_phi"], V, WEIGHTING)

    for mode in (FORWARD, GRADIENT):
        gradient = mode == GRADIENT
        functions = partial(ours, gradient), partial(reference, gradient), textbook
        contenders = _contenders("prediction_loss", device, *functions, as_it_is)
        if gradient:
            contenders["textbook"] = contenders["textbook"]._replace(join=with_gradient("pred"))
        inputs = partial(_distillation_inputs, Variant(), gradient)
        yield Case("prediction_loss", "", mode, inputs, ("pred", "z", "first"), contenders)


def _half_step_and_loss(device: str) -> Iterator[Case]:
    """All that an update does beside its networks: the step between the teacher's two calls, then loss and gradient."""

    def ours(backend, t):
        half = ops.ddim_step(t["z"], t["first"], t["phi"], t["phis"][1], backend=backend)
        return half, *_our_loss(Variant(), True, backend, t)

    def reference_half(t):
        return ddim_step_reference(t["z"], t["first"], t["phi"], t["phis"][1], V, None)

    def textbook_half(t):
        return literal.ddim(t["z"], t["first"], t["single_phi"], t["single_phis"][1], V)

    def textbook_rest(t, half):
        end = literal.ddim(half, t["second"], t["single_phis"][1], t["single_phis"][2], V)
        x = literal.one_step_x(t["z"], end, t["single_phi"], t["single_phis"][2])
        return literal.loss(t["pred"], t["z"], x, t["single_phi"], V, WEIGHTING)

    def one_after_the_other(half_step, loss):
        return lambda t: (half_step(t), *loss(t))

    def through_the_half_step(half_step, loss):
        def call(t):
            half = half_step(t)
            return half, *with_gradient("pred")(lambda t: loss(t, half))(t)

        return call

    # The teacher's second call stands between the two pieces, so no compiler can fuse them.
    pieces = reference_half, partial(_reference_loss, Variant(), True)
    for variant in (Variant(), Variant("bf16 outputs", dtype=torch.bfloat16)):
        both = [name for name in serving("ddim_step", device) if name in serving("distillation_loss", device)]
        contenders = {name: Contender((partial(ours, name),), as_it_is) for name in both}
        contenders["reference"] = Contender(pieces, one_after_the_other, compiles=True)
        contenders["textbook"] = Contender((textbook_half, textbook_rest), through_the_half_step, compiles=True)
        reads = ("z", "first", "pred", "z", "first", "second")
        inputs = partial(_distillation_inputs, variant, True)
        yield Case("half step + loss", variant.name, GRADIENT, inputs, reads, contenders)
