"""The Triton kernels compiled for the H100 and H200 without a GPU: every launch of every operation, and its PTX.

See `triton_launches` for how they come about.
"""

import itertools
import math
import os
import re
import struct

import pytest
import torch

from progdistill.ops import backends
from progdistill.ops.adamw_ema import AdamWOptions
from progdistill.ops.loss_options import LossOptions
from triton_launches import split

pytestmark = [
    pytest.mark.skipif(
        backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
    ),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

BATCH, SHAPE = 4, (3, 32, 32)
HEADS = {"v_prediction": 1, "sample_epsilon": 2}


def images(prediction_type="v_prediction", dtype=torch.float32, shape=SHAPE, layout=torch.contiguous_format):
    channels = HEADS[prediction_type] * shape[0]
    return torch.zeros(BATCH, channels, *shape[1:], dtype=dtype).contiguous(memory_format=layout)


def angles(steps, batch=BATCH):
    return torch.linspace(1.0, 0.5, steps + 1, dtype=torch.float64).unsqueeze(1).repeat(1, batch)


def options(prediction_type="v_prediction", loss_type="l2", need_grad=True):
    return LossOptions(prediction_type, "truncated_snr", 5.0, loss_type, 1e-3, 0.25, need_grad)


def triton(operation, *arguments):
    """An operation's Triton implementation, which here compiles and computes nothing."""
    return backends.declared()[operation]["triton"](*arguments)


def calls(prediction_type, dtype, clip, shape=SHAPE, layout=torch.contiguous_format, state=torch.float32):
    """(main kernel, 16-byte vectors that a thread's 8 elements of all images are loaded and stored in, call)."""
    z, out = images(dtype=state, shape=shape, layout=layout), images(prediction_type, dtype, shape, layout)
    phis, heads = angles(2), HEADS[prediction_type]
    own, given = 8 * state.itemsize // 16, heads * 8 * dtype.itemsize // 16
    loss = [out, z, [out, out], phis, prediction_type, clip, options(prediction_type)]
    target = [z, [out, out], phis, prediction_type, prediction_type, clip]
    yield "_ddim_step", own + given, own, ("ddim_step", z, out, *phis[:2], prediction_type, clip)
    yield "_distillation_target", own + heads * 2 * given, heads * own, ("distillation_target", *target)
    yield "_distillation_loss", own + 3 * given, given, ("distillation_loss", *loss)
    if clip is None:
        tail = (prediction_type, options(prediction_type))
        yield "_prediction_loss", 2 * given, given, ("prediction_loss", out, z, out, phis[0], *tail)
        yield "_diffuse", 2 * own, own, ("diffuse", z, z, phis[0])
        factors = [0.5] * (1 + heads)
        yield "_linear_combination", own + given, own, ("linear_combination", [z, out], factors)


@pytest.mark.parametrize("prediction_type", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_images_move_by_16_bytes(launches, prediction_type, dtype, clip):
    layouts = (
        [torch.contiguous_format, torch.channels_last] if HEADS[prediction_type] == 1 else [torch.contiguous_format]
    )
    for layout in layouts:
        for name, loads, stores, call in calls(prediction_type, dtype, clip, layout=layout):
            launches.clear()
            triton(*call)
            (kernel,) = [launch for launch in launches if launch.name == name]
            vectors, rest = split(kernel.accesses("ld"))
            assert len(vectors) == loads and set(rest) <= {"b32"}, name  # the rest: coefficients
            vectors, rest = split(kernel.accesses("st"))
            assert len(vectors) == stores and rest == ["b32"] * name.endswith("_loss"), name


def test_a_copy_is_written_by_16_bytes(launches):
    z, out = images(layout=torch.channels_last), images(dtype=torch.bfloat16, layout=torch.channels_last)
    triton("ddim_step", z, out, *angles(1), "v_prediction", None, torch.empty_like(out))
    assert split(launches[-1].accesses("st"))[0] == ["v4.b32"] * 3
    assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", launches[-1].ptx)  # to nearest even


def test_noise_moves_by_16_bytes(launches):
    seeds, step = torch.arange(BATCH), torch.tensor([1])
    triton("normal", seeds, step, 3, SHAPE)
    noise = launches[-1]
    assert noise.accesses("st") == ["v4.b32"] * 2 and noise.accesses("ld") == ["b64"] * 2
    seeded(images(), seeds, step, torch.contiguous_format)
    assert split(launches[-1].accesses("ld"))[0] == split(launches[-1].accesses("st"))[0] == ["v4.b32"] * 2


def test_a_number_a_sample_is_one_launch_of_integers(launches):
    """Philox has no float; a number in [0, 1) is converted once and scaled exactly."""
    for seeds in (torch.arange(1), torch.arange(128), torch.arange(200)[1:], torch.arange(1000)):
        step, batch = torch.tensor([0, len(seeds)])[1:], len(seeds)
        triton("draw", seeds, step, batch, None)
        triton("draw", seeds, step, batch, batch)
        triton("random_bits", seeds, -batch, batch)
    assert [launch.name for launch in launches] == ["_draw", "_draw", "_random_bits"] * 4
    assert len({launch.ptx for launch in launches}) == 3
    uniform, integers, bits = (launch.ptx for launch in launches[:3])
    assert not re.search(r"\.f(32|64)", integers + bits) and not re.search(r"\.f32|\bfma", uniform)


def seeded(x, seeds, step, layout):
    from progdistill.ops.triton_kernels.diffuse_seeded import diffuse_seeded

    x = x.contiguous(memory_format=layout)
    channels = 0 if layout == torch.contiguous_format else x.shape[1]
    diffuse_seeded(torch.empty_like(x), x, seeds, step, 3, angles(0, len(x))[0], channels)


def test_clipping_keeps_nan(launches):
    """Minimum and maximum of floats return the other number."""
    z = images()
    triton("ddim_step", z, z, *angles(1), "v_prediction", 1.0)
    assert not re.search(r"\b(min|max)\.f32", launches[-1].ptx)


def test_constants_of_the_noise_are_doubles(launches):
    """A number that meets a tensor in the wrong way is rounded to float32 first."""
    triton("normal", torch.arange(BATCH), torch.tensor(1), 3, SHAPE)
    used = set(re.findall(r"0d([0-9A-F]{16})", launches[-1].ptx.upper().replace("0D", "0d")))
    circle = [(-1) ** (n // 2) / math.factorial(n) for n in range(3, 17)]
    for value in [*circle, *(1 / n for n in range(3, 21, 2)), math.log(2)]:
        assert struct.pack(">d", value).hex().upper() in used, value
    assert "fma.rn.f64" in launches[-1].ptx and "sqrt.rn.f64" in launches[-1].ptx


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_sizes_and_layouts_compile(launches, dtype):
    shape, layouts = (3, 7, 5), (torch.contiguous_format, torch.channels_last)
    # Each pair of prediction type, clipping and layout, four of the eight combinations.
    for k, (prediction_type, clip) in enumerate(itertools.product(HEADS, (None, 1.0))):
        layout = layouts[(k in (1, 2)) != (dtype == torch.bfloat16)]
        for name, _, _, call in calls(prediction_type, dtype, clip, shape, layout):
            triton(*call)
            assert launches[-1].name == name
    for layout in layouts:
        seeded(images(shape=shape), torch.arange(BATCH), torch.tensor(1), layout)
    assert all(launch.machine_code for launch in launches)


def test_float64_compiles_and_moves_by_16_bytes(launches):
    for name, loads, _, call in calls("v_prediction", torch.float64, None, state=torch.float64):
        launches.clear()
        triton(*call)
        (kernel,) = [launch for launch in launches if launch.name == name]
        assert len(split(kernel.accesses("ld"))[0]) == loads, name


@pytest.mark.parametrize("types", [*itertools.product(("epsilon", "sample", "v_prediction"), repeat=2)])
def test_prediction_types_compile(launches, types):
    own, other = types
    z, phis = images(), angles(2)
    # Every type meets both, as its own and as the other.
    known = ("epsilon", "sample", "v_prediction")
    clip = 1.0 if (known.index(other) - known.index(own)) % 3 == 1 else None
    triton("ddim_step", z, z, *phis[:2], own, clip)
    triton("distillation_target", z, [z, z], phis, own, other, clip)
    triton("distillation_loss", z, z, [z, z], phis, other, clip, options(own))
    triton("prediction_loss", z, z, z, phis[0], other, options(own))
    assert len(launches) == 8 and all(launch.machine_code for launch in launches)


@pytest.mark.parametrize("loss_type", ["l2", "l1", "pseudo_huber"])
def test_losses_of_large_samples(launches, loss_type):
    """Partial sums to slots of their own, added up by one program a sample; no atomics, no approximate divisions."""
    z, out = images(shape=(3, 128, 128)), images(dtype=torch.bfloat16, shape=(3, 128, 128))
    triton("distillation_loss", out, z, [out, out], angles(2), "v_prediction", None, options(loss_type=loss_type))
    assert [launch.name for launch in launches] == ["_coefficients", "_distillation_loss", "_means"]
    main = launches[1].ptx
    assert not any(re.search(r"\b(atom|red)\.", launch.ptx) for launch in launches)
    assert not re.search(r"approx|div\.full", main)
    assert ("sqrt.rn.f32" in main) == ("div.rn.f32" in main) == (loss_type == "pseudo_huber")
    assert re.search(r"cvt\.rn\.bf16(x2)?\.f32", main)  # gradients: to nearest even


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_teachers_of_many_steps(launches, steps):
    z = images()
    for clip in (None, 1.0):
        triton("distillation_loss", z, z, [z] * steps, angles(steps), "v_prediction", clip, options())
        with_state = steps > 1 or clip is not None
        assert split(launches[-1].accesses("ld"))[0] == ["v4.b32"] * 2 * (1 + with_state + steps)
        assert ".local" not in launches[-1].ptx


def test_without_gradient_nothing_but_the_loss_is_written(launches):
    z = images()
    triton("prediction_loss", z, z, z, angles(0)[0], "v_prediction", options(need_grad=False))
    assert launches[-1].accesses("st") == ["b32"]


def test_state_of_the_optimizer_moves_by_16_bytes(launches):
    """All of it in one launch, whatever the number of parameters; no addresses are copied from the host."""
    rows = {name: [torch.zeros(shape) for shape in ((64, 3, 3, 3), (64,), (129, 257), (5,))] for name in "pmve"}
    number = torch.tensor
    given = (1, number(1), 0.0, number(1e-3), 0.9, 0.999, 1e-8, 0.01, number(2.0), 1.0, 0.99, None)
    for dtype, vectors in ((torch.float32, 2), (torch.bfloat16, 1)):
        launches.clear()
        grads, twins = ([param.to(kind) for param in rows["p"]] for kind in (dtype, torch.bfloat16))
        state = (rows["p"], grads, rows["m"], rows["v"], rows["e"], twins)
        triton("adamw_ema", *state, AdamWOptions(*given))
        assert [launch.name for launch in launches] == ["_store_factors", "_write", "_adamw_ema"]
        assert len(split(launches[-1].accesses("ld"))[0]) == 8 + vectors
        assert len(split(launches[-1].accesses("st"))[0]) == 8 + 1
        assert not re.search(r"approx|div\.full", launches[-1].ptx)
        triton("gradient_norm", grads)
        assert [launch.name for launch in launches[3:]] == ["_write", "_sums_of_squares", "_root_of_sum"]
        assert len(split(launches[4].accesses("ld"))[0]) == vectors
        assert not any(re.search(r"\b(atom|red)\.", launch.ptx) for launch in launches)


def test_another_place_of_a_gradient_needs_no_other_kernel(launches):
    room = torch.zeros(4096)
    for start in (0, 16, 1024, 2048):
        triton("gradient_norm", [room[start : start + 8], room[start + 8 : start + 100]])
    assert len({launch.ptx for launch in launches}) == 3


def test_another_batch_needs_no_other_kernels(launches):
    """A last batch that is smaller must not stop for a compiler."""
    kernels = set()
    for batch in (64, 16, 7, 1):
        z, phis, seeds = torch.zeros(batch, *SHAPE), angles(2, batch), torch.arange(batch)
        launches.clear()
        triton("normal", seeds, torch.tensor(batch), batch, SHAPE)
        triton("diffuse", z, z, phis[1])
        seeded(z, seeds, torch.tensor([0, batch])[1:], torch.contiguous_format)
        triton("ddim_step", z, z, *phis[:2], "v_prediction", None)
        triton("linear_combination", [z, z], [batch / 3, 1.0])
        triton("distillation_target", z, [z, z], phis, "v_prediction", "sample_epsilon", None)
        triton("distillation_loss", z, z, [z, z], phis, "v_prediction", 1.0, options())
        triton("prediction_loss", z, z, z, phis[1], "sample", options())
        kernels.add(tuple(launch.ptx for launch in launches))
    assert len(kernels) == 1
