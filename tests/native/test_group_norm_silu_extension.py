"""The kernels of group normalisation called directly: what they refuse, so that nothing is read or written astray."""

import pytest
import torch

import cuda_on_cpu
from progdistill.ops import native

FORWARD = ("y", "sum", "mean", "rstd", "x", "skip", "residual", "shift", "weight", "bias", "scale_shift")
BACKWARD = (
    *("du", "dskip", "dweight", "dbias", "dshift", "dscale_shift", "dy", "du_bypass", "dskip_bypass", "u", "skip"),
    *("shift", "weight", "bias", "scale_shift", "mean", "rstd"),
)


def image(channels, dtype=torch.float32, samples=2):
    return torch.zeros(samples, channels, 3, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)


def good():
    """Everything that either kernel takes, for 8 + 4 channels in 3 groups."""
    t = {name: image(8) for name in ("x", "residual", "sum", "u", "du", "du_bypass")}
    t |= {"skip": image(4), "dskip": image(4), "dskip_bypass": image(4), "y": image(12), "dy": image(12)}
    t |= {name: torch.ones(2, 3) for name in ("mean", "rstd")}
    t |= {name: torch.ones(12) for name in ("weight", "bias", "dweight", "dbias")}
    t |= {"shift": torch.ones(1, 8), "dshift": torch.ones(2, 8)}
    return t | {"scale_shift": torch.ones(2, 24), "dscale_shift": torch.ones(2, 24)}


def call(t, forward, groups=3, workspace=None, tile_bytes=0):
    module = cuda_on_cpu.extension()
    view = lambda value: (  # noqa: E731
        (value.data_ptr(), tuple(value.shape), tuple(value.stride()), native._DTYPE_CODES[value.dtype], value)
        if isinstance(value, torch.Tensor)
        else value
    )
    x, skip = (view(good()[name]) for name in ("x", "skip"))
    if workspace is None:
        workspace = torch.empty(module.group_norm_workspace(x, skip, 3, not forward, tile_bytes, (0, 0)))
    if forward:
        numbers = (groups, 1e-6, True, tile_bytes, view(workspace), (0, 0))
        return module.group_norm_silu(*(view(t[name]) for name in FORWARD), *numbers)
    return module.group_norm_silu_backward(
        *(view(t[name]) for name in BACKWARD), groups, True, tile_bytes, view(workspace), (0, 0)
    )


@pytest.mark.parametrize("tile_bytes", [0, 2**14])
@pytest.mark.parametrize("forward", [True, False])
def test_what_is_good_is_taken(forward, tile_bytes):
    call(good(), forward, tile_bytes=tile_bytes)


@pytest.mark.parametrize("tile_bytes", [0, 2**14])
@pytest.mark.parametrize("missing", [("residual",), ("residual", "sum"), ("du_bypass",), ("dskip_bypass",)])
def test_what_may_be_left_out(missing, tile_bytes):
    """The sum of x and the shift is written where it is asked for."""
    t = good() | dict.fromkeys(missing)
    call(t, forward="residual" in missing, tile_bytes=tile_bytes)
    assert t["sum"] is None or torch.equal(t["sum"], torch.full_like(t["sum"], "residual" in missing))


BAD_IMAGES = [
    ("has shape", ValueError, lambda value: value[:1]),
    ("has shape", ValueError, lambda value: value[:, :, :2].contiguous(memory_format=torch.channels_last)),
    ("dense in channels_last order", ValueError, torch.Tensor.contiguous),
    ("is bfloat16|is float32, x is", TypeError, torch.Tensor.bfloat16),
    ("expected .B, C, H, W", ValueError, lambda value: value[0]),
]
IMAGES = [(name, True) for name in ("y", "sum", "x", "skip", "residual")]
IMAGES += [(name, False) for name in ("du", "dskip", "dy", "du_bypass", "dskip_bypass", "u", "skip")]


@pytest.mark.parametrize("message, error, change", BAD_IMAGES)
@pytest.mark.parametrize("name, forward", IMAGES)
def test_images_that_do_not_fit(name, forward, message, error, change):
    t = good()
    with pytest.raises(error, match=message):
        call(t | {name: change(t[name])}, forward)


VALUES = [(name, forward) for name in ("weight", "bias", "shift", "scale_shift") for forward in (True, False)]


@pytest.mark.parametrize("name, forward", VALUES)
def test_values_that_do_not_fit(name, forward):
    t = good()
    for wrong in (t[name][..., :-1].contiguous(), torch.ones(3, *t[name].shape[-1:]), torch.ones(2, 48)[:, ::2]):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            call(t | {name: wrong}, forward)
    with pytest.raises(TypeError, match=f"{name} is float64; expected float32, or as x"):
        call(t | {name: t[name].double()}, forward)


SUMS = [("mean", True), ("rstd", True), ("mean", False), ("rstd", False)]
SUMS += [(name, False) for name in ("dweight", "dbias", "dshift", "dscale_shift")]


@pytest.mark.parametrize("name, forward", SUMS)
def test_results_that_are_too_small(name, forward):
    t = good()
    with pytest.raises(ValueError, match=f"{name} has shape"):
        call(t | {name: t[name][..., :-1].contiguous()}, forward)
    with pytest.raises(TypeError, match=f"{name} is float64; expected float32"):
        call(t | {name: t[name].double()}, forward)


@pytest.mark.parametrize("forward", [True, False])
def test_sizes_that_the_kernels_do_not_take(forward):
    t = good()
    for groups in (0, 5, -3):
        with pytest.raises(ValueError, match=f"groups is {groups}, which does not divide the 12 channels"):
            call(t, forward, groups)
    with pytest.raises(ValueError, match="workspace has shape"):
        call(t, forward, workspace=torch.empty(3))
    many = {name: torch.zeros(2, 3072, 1, 1) for name in ("x", "u")}
    with pytest.raises(ValueError, match=r"3072 channels, skip 4; the kernels take 1 to 3072"):
        call(t | many | {"skip": torch.zeros(2, 4, 1, 1)}, forward)
    with pytest.raises(ValueError, match="without pixels|samples of 1 to"):
        call(t | {name: torch.zeros(2, 8, 0, 4) for name in ("x", "u")}, forward)


@pytest.mark.parametrize("missing, forward", [("y", True), ("sum", True), ("weight", True), ("dskip", False)])
def test_results_that_are_left_out(missing, forward):
    with pytest.raises(TypeError, match="expected a torch.Tensor"):
        call(good() | {missing: None}, forward)
