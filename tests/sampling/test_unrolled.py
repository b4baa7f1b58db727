"""The unrolled sampler: `sample`'s images from plain torch operations."""

import math

import pytest
import torch
from torch import nn

import tiny
from analytic import MixtureDenoiser, gaussian_slope, gaussian_steps
from interop import models
from progdistill.core import CosineSchedule, Denoiser, EDMSchedule, FlowMatchingSchedule
from progdistill.nets.unet import UNet
from progdistill.sampling import UnrolledSampler, sample
from tiny_models import MILD, model, truth


def noise(count=3, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


CASES = {
    "v": {},
    "x": {"prediction_type": "sample"},
    "two heads": {"prediction_type": "sample_epsilon"},
    "epsilon": {"prediction_type": "epsilon", "schedule": MILD},
    "clipped cosine": {"schedule": CosineSchedule(-20.0, 20.0)},
    "EDM": {"schedule": EDMSchedule()},
    "flow matching": {"schedule": FlowMatchingSchedule()},
    "classes": {"classes": 4},
    "classes, two heads": {"classes": 4, "prediction_type": "sample_epsilon"},
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_the_images_of_sample(case, steps, clip):
    denoiser, z = model(**CASES[case]), noise()
    labels = torch.tensor([3, 0, 2]) if denoiser.num_classes else None
    images = UnrolledSampler(denoiser, steps, clip=clip)(z, labels)
    ours = sample(denoiser, steps, latents=z, class_labels=labels, clip=clip, output_type="pt")
    # Saturated pixels would agree whatever happened.
    assert (images.abs() < 1).float().mean() > 0.2
    torch.testing.assert_close(images / 2 + 0.5, ours, rtol=0, atol=1e-6)
    exact = truth(denoiser, z, steps, labels, clip)
    assert (images - exact).abs().max() <= 2 * (2 * ours - 1 - exact).abs().max() + 1e-7


def test_bytes_are_those_of_sample():
    denoiser, z = model(), noise()
    pixels = UnrolledSampler(denoiser, 2, output_type="uint8")(z)
    ours = sample(denoiser, 2, latents=z, output_type="uint8")
    assert pixels.dtype == torch.uint8 and pixels.shape == (3, 8, 8, 1)
    # Float32 may round to the other side of a half once in a while.
    assert (pixels.int() - ours.int()).abs().max() <= 1 and (pixels == ours).float().mean() > 0.99


class IdealGaussian(nn.Module):
    """E[v | z] for data N(0, 0.5^2), from the time that our cosine schedule passes."""

    def forward(self, z, time):
        phi = (time.double() + 1) / 1024 * math.pi / 2
        return (gaussian_slope(phi, 0.5).reshape(-1, 1, 1, 1) * z).to(z.dtype)


def test_a_network_of_the_users_own_is_told_the_time_of_each_step():
    denoiser = Denoiser(IdealGaussian(), sample_shape=(1, 8, 8))
    images = UnrolledSampler(denoiser, 4)(noise())
    exact = noise().double() * gaussian_steps(CosineSchedule().grid(4), 0.5)
    torch.testing.assert_close(images, exact.clamp(-1, 1).float(), rtol=0, atol=1e-6)


def test_it_is_a_copy_without_dropout():
    denoiser = Denoiser(models.randomise(UNet(tiny.WITH_DROPOUT)), sample_shape=(1, 8, 8)).train()
    sampler = UnrolledSampler(denoiser, 1)
    images = sampler(noise())
    assert denoiser.network.training and next(denoiser.parameters()).requires_grad
    torch.testing.assert_close(images / 2 + 0.5, sample(denoiser, 1, latents=noise(), output_type="pt"))
    models.randomise(denoiser.network, seed=1)
    assert torch.equal(sampler.train()(noise()), images)
    assert not images.requires_grad


def test_the_kept_student_is_taken():
    other = model(valid_steps=(2,))
    student = model(valid_steps=(4,))
    models.randomise(other.network, seed=5)
    student.students[2] = lambda: other
    assert torch.equal(UnrolledSampler(student, 2)(noise()), UnrolledSampler(other, 2)(noise()))
    with pytest.raises(ValueError, match=r"distilled for 4 steps, not 3.*can be sampled: 2, 4"):
        UnrolledSampler(student, 3)


@pytest.mark.parametrize(
    ("denoiser", "arguments", "message"),
    [
        (model(), {"steps": 0}, "steps is 0"),
        (model(), {"output_type": "pil"}, "unknown output_type 'pil'; use one of float, uint8"),
        (model(), {"clip": -1.0}, "clip"),
        (model("epsilon"), {}, "an epsilon prediction says nothing about x at SNR 0"),
        (MixtureDenoiser([0.0], [1.0]), {}, "MixtureDenoiser overrides Denoiser.raw"),
        (Denoiser(nn.Identity(), sample_shape=(5,)), {"output_type": "uint8"}, "not images; use output_type='float'"),
    ],
)
def test_what_cannot_be_unrolled(denoiser, arguments, message):
    with pytest.raises(ValueError, match=message):
        UnrolledSampler(denoiser, **{"steps": 1, **arguments})


@pytest.mark.parametrize(
    ("classes", "inputs", "message"),
    [
        (None, (torch.zeros(2, 8, 8),), r"noise is torch.float32 \(2, 8, 8\); pass torch.float32 \(B, 1, 8, 8\)"),
        (None, (noise().double(),), r"noise is torch.float64"),
        (None, (noise(), torch.zeros(3).long()), "unconditional"),
        (4, (noise(),), r"4 classes; pass class_labels \(B,\), not none"),
        (4, (noise(), torch.zeros(2).long()), r"not shape \(2,\)"),
    ],
)
def test_inputs_that_do_not_fit(classes, inputs, message):
    with pytest.raises(ValueError, match=message):
        UnrolledSampler(model(classes=classes), 1)(*inputs)
