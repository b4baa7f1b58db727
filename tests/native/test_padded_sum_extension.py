"""The kernels of padded sums called directly: what they refuse, so that nothing is read or written astray."""

import pytest
import torch

import cuda_on_cpu
from progdistill.ops import native

FORWARD, BACKWARD = ("u", "padded", "x", "residual", "shift"), ("du", "dsum", "dpadded")
LARGER = ("padded", "dpadded")


def image(name, dtype=torch.float32, samples=2, channels=8):
    height, width = (4, 5) if name in LARGER else (3, 4)
    return torch.zeros(samples, channels, height, width, dtype=dtype).contiguous(memory_format=torch.channels_last)


def good():
    """Everything that either kernel takes."""
    t = {name: image(name) for name in (*FORWARD, *BACKWARD) if name != "shift"}
    return t | {"shift": torch.ones(1, 8)}


def described(value):
    if not isinstance(value, torch.Tensor):
        return value
    return value.data_ptr(), tuple(value.shape), tuple(value.stride()), native._DTYPE_CODES[value.dtype], value


def call(t, names, padding=1):
    module = cuda_on_cpu.extension()
    function = module.padded_sum if names == FORWARD else module.padded_sum_backward
    return function(*(described(t[name]) for name in names), padding, (0, 0))


@pytest.mark.parametrize("names", [FORWARD, BACKWARD])
def test_what_is_good_is_taken(names):
    call(good(), names)
    call(good() | dict.fromkeys(("residual", "shift", "u", "dsum")), names)


BAD_IMAGES = [
    ("has shape", ValueError, lambda value: value[:1]),
    ("has shape", ValueError, lambda value: value[:, :, :2].contiguous(memory_format=torch.channels_last)),
    ("dense in channels_last order", ValueError, torch.Tensor.contiguous),
    ("is bfloat16|is float32, (x|du) is", TypeError, torch.Tensor.bfloat16),
    ("expected .B, C, H, W", ValueError, lambda value: value[0]),
]


@pytest.mark.parametrize("message, error, change", BAD_IMAGES)
@pytest.mark.parametrize("name", [name for name in (*FORWARD, *BACKWARD) if name != "shift"])
def test_images_that_do_not_fit(name, message, error, change):
    t = good()
    with pytest.raises(error, match=message):
        call(t | {name: change(t[name])}, FORWARD if name in FORWARD else BACKWARD)


def test_shifts_that_do_not_fit():
    for wrong in (torch.ones(1, 7), torch.ones(3, 8), torch.ones(2, 16)[:, ::2]):
        with pytest.raises(ValueError, match="shift has shape"):
            call(good() | {"shift": wrong}, FORWARD)
    with pytest.raises(TypeError, match="shift is float64; expected float32, or as x"):
        call(good() | {"shift": torch.ones(8).double()}, FORWARD)


@pytest.mark.parametrize("names", [FORWARD, BACKWARD])
def test_sizes_that_the_kernels_do_not_take(names):
    for padding in (-1, 2):
        with pytest.raises(ValueError, match=f"padding is {padding}; the kernels take 0 or 1"):
            call(good(), names, padding)
    with pytest.raises(ValueError, match="has shape .*; expected .2, 8, 3, 4."):
        call(good(), names, padding=0)  # what is padded has a row and a column too many
    first = "x" if names == FORWARD else "du"
    with pytest.raises(ValueError, match=rf"{first} has shape .*; the kernels take samples of 1 to 2\^31"):
        call(good() | {first: torch.zeros(2, 8, 0, 4)}, names)
    # Without padding it were small enough. Nothing is there, and nothing is looked at.
    channels, height, width = 2**15, 2**8, 2**8 - 1
    strides = (channels * height * width, 1, width * channels, channels)
    large = (4096, (1, channels, height, width), strides, native._DTYPE_CODES[torch.float32])
    with pytest.raises(
        ValueError, match=rf"{first} has shape .*, with padding 1; the kernels take samples of 1 to 2\^31"
    ):
        call(good() | {first: large}, names)


@pytest.mark.parametrize("missing, names", [("x", FORWARD), ("du", BACKWARD), ("dpadded", BACKWARD)])
def test_what_must_not_be_left_out(missing, names):
    with pytest.raises(TypeError, match="expected a torch.Tensor"):
        call(good() | {missing: None}, names)


def test_what_has_no_kernel():
    t = good()
    with pytest.raises(ValueError, match="padded_sum has no kernel for CPU tensors"):
        cuda_on_cpu.extension().padded_sum(*(described(t[name]) for name in FORWARD), 1, 1)
    with pytest.raises(TypeError, match="x is float64; expected float32 or bfloat16"):
        call(t | {"x": t["x"].double()}, FORWARD)
