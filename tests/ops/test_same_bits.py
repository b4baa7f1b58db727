"""Where compiled kernels must give equal bits: in other layouts, places and batches, on other backends, in graphs."""

import pytest
import torch

from captured_graph import captured, need_backend
from ops.operands import LAYOUTS, SHAPES, angles, images
from progdistill import ops
from progdistill.ops import native


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if len(shape) in LAYOUTS])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip", [None, 0.8])
def test_channels_last_gives_the_same_numbers(backend, shape, prediction_type, dtype, clip):
    def run(layout):
        (z,), (pred,) = images(1, shape), images(1, shape, prediction_type, dtype, seed=1)
        outs, phis = images(2, shape, prediction_type, dtype, seed=2), angles(shape[0], 2)
        z, pred, *outs = (tensor.contiguous(memory_format=layout) for tensor in (z, pred, *outs))
        types = {"prediction_type": prediction_type, "clip": clip}
        loss, grad = backend.call(ops.distillation_loss_and_grad, pred, z, outs, phis, **types)
        target = backend.call(ops.distillation_target, z, outs, phis, target_type=prediction_type, **types)
        assert grad.is_contiguous(memory_format=layout)
        return loss, [grad, target, backend.call(ops.ddim_step, z, outs[0], *phis[:2], **types)]

    (loss, plain), (other_loss, last) = run(torch.contiguous_format), run(LAYOUTS[len(shape)])
    assert all(torch.equal(a, b) for a, b in zip(plain, last, strict=True))
    torch.testing.assert_close(loss, other_loss, rtol=1e-6, atol=0)  # summed in another order


def test_bfloat16_gradients_are_rounded_to_nearest_even(backend):
    shape, phis = (4, 3, 32, 32), angles(4, 2)
    (z,), (pred,) = images(1, shape), images(1, shape, dtype=torch.bfloat16, seed=1)
    outs = images(2, shape, seed=2)
    _, half = backend.call(ops.distillation_loss_and_grad, pred, z, outs, phis)
    _, full = backend.call(ops.distillation_loss_and_grad, pred.float(), z, outs, phis)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, full.bfloat16())


def test_ties_of_bfloat16_gradients_go_to_even(backend):
    # Two elements a sample and an unweighted v error: the gradient is pred - target itself.
    target = 1 + torch.arange(256).reshape(128, 2) / 256
    zero, phi = torch.zeros_like(target), torch.full((128,), 0.5, dtype=torch.float64)
    _, grad = backend.call(
        ops.prediction_loss_and_grad,
        zero.bfloat16(),
        zero,
        -target,
        phi,
        prediction_type="v_prediction",
        target_type="v_prediction",
        weighting="snr_plus_one",
    )
    assert torch.equal(grad, target.bfloat16())


def draws(shape, layout=torch.contiguous_format, dtype=torch.float32):
    """Arguments of `diffuse_seeded`."""
    (x,) = images(1, shape, dtype=dtype)
    seeds = torch.arange(shape[0]) * 7919 - 3
    return x.contiguous(memory_format=layout), seeds, 2**33 + 5, 3, angles(shape[0], 1)[0]


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 32, 32), (2, 5, 40, 36), (0, 3, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diffuse_seeded_is_diffuse_of_normal(backend, shape, dtype):
    for layout in (torch.contiguous_format, LAYOUTS.get(len(shape), torch.contiguous_format)):
        x, seeds, step, stream, phi = draws(shape, layout, dtype)
        noise = backend.call(ops.normal, seeds, step, stream, shape[1:]).to(dtype)
        expected = backend.call(ops.diffuse, x, noise, phi)
        got = backend.call(ops.diffuse_seeded, x, seeds, step, stream, phi)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def every_result(backend, shape, dtype=torch.bfloat16, layout=torch.contiguous_format, prediction_type="v_prediction"):
    """Results of all operations but the losses' sums."""
    (z, x), phis = images(2, shape), angles(shape[0], 2)
    outs, types = images(3, shape, prediction_type, dtype, seed=1), {"prediction_type": prediction_type}
    z, x, *outs = (tensor.contiguous(memory_format=layout) for tensor in (z, x, *outs))
    draw = draws(shape, layout)
    return [
        backend.call(ops.normal, *draw[1:4], shape[1:]),
        backend.call(ops.diffuse, z, x, phis[0]),
        backend.call(ops.diffuse_seeded, *draw),
        backend.call(ops.ddim_step, z, outs[0], *phis[:2], clip=0.8, **types),
        backend.call(ops.distillation_target, z, outs[:2], phis, clip=0.8, **types),
        backend.call(ops.distillation_loss_and_grad, outs[2], z, outs[:2], phis, **types)[1],
        backend.call(
            ops.prediction_loss_and_grad, outs[2], z, x, phis[0], target_type="sample", weighting="snr", **types
        )[1],
    ]


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
@pytest.mark.parametrize("shape", [(3, 3, 32, 32), (2, 3, 7, 5), (1, 4, 50, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "sample_epsilon"])
def test_cpu_and_cuda_kernels_give_the_same_bits(backend, shape, dtype, prediction_type):
    if backend.name == "triton":
        pytest.skip("Triton brings its own sine")
    on_cpu = type(backend)("cpu", "cpu")
    for layout in (torch.contiguous_format, torch.channels_last):
        arguments = {"shape": shape, "dtype": dtype, "layout": layout, "prediction_type": prediction_type}
        assert all(map(torch.equal, every_result(backend, **arguments), every_result(on_cpu, **arguments)))


@pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")
@pytest.mark.parametrize("shape", [(3, 50, 41), (1,)])
def test_noise_is_the_same_bits_on_every_backend(backend, shape):
    draw = torch.arange(5) * 2**61 - 7, torch.tensor([2**33 + 5]), 2**32 - 1, shape
    noise, expected = backend.call(ops.normal, *draw), ops.normal(*draw, backend="cpu")
    if backend.interpreted:  # without a fused multiply-add, which one rounding hides but for a number in a million
        torch.testing.assert_close(noise, expected, rtol=2.0**-23, atol=0)
        assert (noise != expected).float().mean() < 1e-3
    else:
        assert torch.equal(noise, expected)


@pytest.mark.parametrize("size", [64, 4096, 4104, 12288])
def test_tensors_off_the_16_byte_grid(backend, size):
    def shifted(tensor):
        """The same numbers one element further in memory."""
        room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype, device=tensor.device)
        return room[1:].copy_(tensor.flatten()).reshape(tensor.shape)

    (z, pred, *outs), phis = images(4, (3, size)), angles(3, 2)
    for move in (
        lambda tensors: [shifted(tensor) for tensor in tensors],
        lambda tensors: [tensors[0], *map(shifted, tensors[1:])],
    ):
        a, b, c, d = move(backend.place([z, pred, *outs]))
        loss, grad = ops.distillation_loss_and_grad(b, a, [c, d], backend.place(phis), backend=backend.name)
        plain = backend.call(ops.distillation_loss_and_grad, pred, z, outs, phis)
        assert torch.equal(grad.cpu(), plain[1])
        torch.testing.assert_close(loss.cpu(), plain[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (2, 3, 40, 40), (1, 4, 64, 64)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_nothing_is_written_beside_the_results(backend, shape, layout, monkeypatch):
    kept = []

    def guarded(like, **options):
        """`empty_like` within a larger piece of memory whose ends are marked."""
        room = torch.full((like.numel() + 256,), 7.0, dtype=like.dtype, device=like.device)
        kept.append(room)
        return room[128:-128].as_strided(like.shape, empty_like(like, **options).stride())

    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", guarded)
    every_result(backend, shape, layout=layout)
    assert len(kept) >= 4
    for room in kept:
        assert (room[:128] == 7).all() and (room[-128:] == 7).all()


@pytest.mark.parametrize("shape", [(2, 3, 80, 80), (2, 1, 64, 64), (1, 3, 129, 131)])
def test_samples_of_several_blocks_sum_up_to_the_same_bits_every_time(backend, shape):
    (z, pred, *outs), phis = images(4, shape), angles(shape[0], 2)
    results = [backend.call(ops.distillation_loss_and_grad, pred, z, outs, phis) for _ in range(2)]
    assert all(map(torch.equal, *results))
    alone = backend.call(ops.distillation_loss_and_grad, pred[:1], z[:1], [out[:1] for out in outs], phis[:, :1])
    assert torch.equal(alone[0], results[0][0][:1])  # whatever else is in the batch


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("shape", [(128, 3, 32, 32), (4, 3, 129, 131)])
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_captured_graph_sees_new_seeds_steps_and_angles(shape, name):
    need_backend(name)
    x, outs = images(1, shape)[0].cuda(), [out.cuda() for out in images(3, shape, dtype=torch.bfloat16, seed=1)]
    seeds, step, phis = (
        torch.arange(shape[0]).cuda(),
        torch.zeros(1, dtype=torch.int64).cuda(),
        angles(shape[0], 2).cuda(),
    )

    def update():
        z = ops.diffuse_seeded(x, seeds, step, 1, phis[0], backend=name)
        half = ops.ddim_step(z, outs[0], phis[0], phis[1], clip=1.0, backend=name)
        loss = ops.distillation_loss_and_grad(outs[2], z, outs[:2], phis, backend=name)
        return z, half, *loss, ops.normal(seeds, step, 2, shape[1:], backend=name)

    graph, results = captured(update)
    for number in (1, 2):
        seeds.add_(number)
        step.fill_(number)
        phis.mul_(0.9)
        graph.replay()
        assert all(map(torch.equal, results, update()))
