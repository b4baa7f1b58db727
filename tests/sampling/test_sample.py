"""`progdistill.sample`: what its arguments mean, and what it refuses."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from analytic import MixtureDenoiser
from interop import models
from progdistill.core import Denoiser
from progdistill.sampling import generate, sample

MODEL = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], sample_shape=(1, 4, 4))


class Labelled(nn.Module):
    """Predicts v such that the sample is the label's brightness."""

    def forward(self, z, time, class_labels):
        return -(class_labels.float() / 5 - 1).reshape(-1, 1, 1, 1).expand_as(z)


def test_output_types_agree():
    pt = sample(MODEL, 4, batch_size=3, output_type="pt")
    array = sample(MODEL, 4, batch_size=3, output_type="np")
    pictures = sample(MODEL, 4, batch_size=3)
    assert pt.shape == (3, 1, 4, 4) and float(pt.min()) >= 0 and float(pt.max()) <= 1
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(picture, Image.Image) and picture.size == (4, 4) for picture in pictures)
    np.testing.assert_array_equal(np.asarray(pictures[1]), (array[1, ..., 0] * 255).round())


def test_images_depend_on_their_own_seed():
    together = sample(MODEL, 4, batch_size=7, seed=10, output_type="pt")
    small = sample(MODEL, 4, batch_size=7, seed=10, output_type="pt", max_batch_size=2)
    alone = sample(MODEL, 4, seed=13, output_type="pt")
    chosen = sample(MODEL, 4, seed=[16, 13], output_type="pt")
    assert torch.equal(together, small)
    assert torch.equal(alone[0], together[3])
    assert torch.equal(chosen, together[[6, 3]])


def test_a_u_nets_images_in_batches_of_1_7_and_64():
    """Noise is bitwise the seed's own; convolutions of another batch size round otherwise."""
    model = models.denoiser(valid_steps=(4,))
    whole = sample(model, 4, batch_size=64, output_type="pt")
    for size in (1, 7):
        parts = [sample(model, 4, seed=list(range(k, k + size)), output_type="pt") for k in range(0, 21, size)]
        torch.testing.assert_close(torch.cat(parts), whole[:21], rtol=0, atol=1e-5)


def test_alias_and_latents_and_generators():
    latents = torch.randn(2, 1, 4, 4)
    first = sample(MODEL, num_inference_steps=4, latents=latents, output_type="pt")
    assert torch.equal(first, sample(MODEL, 4, latents=latents, output_type="pt"))
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    drawn = sample(MODEL, 4, batch_size=2, generator=torch.Generator().manual_seed(3), output_type="pt")
    assert torch.equal(drawn, sample(MODEL, 4, latents=start, output_type="pt"))
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    listed = sample(MODEL, 4, generator=generators, output_type="pt")
    own = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(listed[1:], sample(MODEL, 4, latents=own, output_type="pt"))


def test_stochastic_sampler_is_reproducible():
    one = sample(MODEL, 8, batch_size=4, sampler="stochastic", output_type="pt")
    two = sample(MODEL, 8, batch_size=4, sampler="stochastic", output_type="pt", max_batch_size=1)
    assert torch.equal(one, two)
    assert not torch.equal(one, sample(MODEL, 8, batch_size=4, output_type="pt"))


def test_class_labels():
    model = Denoiser(Labelled(), sample_shape=(1, 2, 2), num_classes=10)
    images = sample(model, 1, class_labels=[0, 5, 9], output_type="pt")
    torch.testing.assert_close(images[:, 0, 0, 0], torch.tensor([0.0, 0.5, 0.9]))
    assert sample(model, 1, batch_size=4, class_labels=5, output_type="pt").shape[0] == 4
    with pytest.raises(ValueError, match="conditioned on 10 classes; pass class_labels"):
        sample(model, 1)
    with pytest.raises(ValueError, match="class label 10 is out of range.*0 to 9"):
        sample(model, 1, class_labels=10)
    with pytest.raises(ValueError, match="unconditional"):
        sample(MODEL, 1, class_labels=3)


def test_a_student_knows_its_step_counts():
    student = MODEL.with_network(nn.Identity(), valid_steps=(4,))
    with pytest.raises(ValueError, match=r"distilled for 4 steps, not 3.*can be sampled: 2, 4"):
        student.students[2] = lambda: MODEL
        sample(student, 3)
    kept = sample(student, 2, batch_size=2, output_type="pt")
    assert torch.equal(kept, sample(MODEL, 2, batch_size=2, output_type="pt"))


def test_mode_is_restored():
    class Noisy(nn.Module):
        def forward(self, z, time):
            assert not self.training
            return z

    model = Denoiser(Noisy(), sample_shape=(1, 2, 2))
    generate(model, 1, seeds=torch.arange(2))
    assert model.training and model.network.training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"sampler": "euler"}, "unknown sampler 'euler'; use one of ddim, stochastic"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'; use one of pil, np, pt"),
        ({"seed": [1, 2], "batch_size": 3}, "pass one for each image"),
        ({"latents": torch.zeros(2, 1, 5, 4)}, r"expected \(2, 1, 4, 4\)"),
        ({"generator": [torch.Generator()], "batch_size": 2}, "1 generators were given"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(MODEL, **{"steps": 1, **arguments})


def test_pictures_need_image_data():
    vector = MixtureDenoiser([0.0], [1.0], sample_shape=(5,))
    with pytest.raises(ValueError, match="output_type='pt'"):
        sample(vector, 1)
    assert sample(vector, 1, output_type="pt").shape == (1, 5)
