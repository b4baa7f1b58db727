"""Images part by part: the bytes of `sample`'s pictures."""

import numpy as np
import pytest
import torch
from torch import nn

from analytic import MixtureDenoiser
from progdistill.core import Denoiser
from progdistill.sampling import sample
from progdistill.sampling.parts import Pixels, sample_parts

MODEL = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], sample_shape=(3, 4, 4))
gpu = pytest.mark.gpu


class Labelled(nn.Module):
    """Predicts v such that the sample is the label's brightness."""

    def forward(self, z, time, class_labels):
        return -(class_labels.float() / 5 - 1).reshape(-1, 1, 1, 1).expand_as(z)


def test_parts_are_made_when_asked_for_and_equal_pictures():
    asked = []

    def parts():
        for part in (range(4, 7), range(0, 4)):
            asked.append(part)
            yield part

    made = sample_parts(MODEL, 3, parts(), seed=10, max_batch_size=2)
    assert asked == []
    for expected in (range(4, 7), range(0, 4)):
        part, pixels = next(made)
        assert part == expected == asked[-1]
        pictures = sample(MODEL, 3, seed=[10 + i for i in part], max_batch_size=2)
        arrived = pixels.arrived()
        assert arrived.dtype == torch.uint8 and arrived.is_contiguous()
        assert np.array_equal(arrived.numpy(), np.stack([np.asarray(picture) for picture in pictures]))


def test_labels_go_by_image_number():
    model = Denoiser(Labelled(), sample_shape=(1, 2, 2), num_classes=10)
    labels = torch.arange(10)
    ((_, pixels),) = sample_parts(model, 1, [range(3, 6)], seed=50, class_labels=labels)
    assert pixels.arrived()[:, 0, 0, 0].tolist() == [76, 102, 128]  # round(255 label / 10), 127.5 to even


def test_a_kept_student_is_loaded_once():
    loads = []
    student = MODEL.with_network(nn.Identity(), valid_steps=(4,))
    student.students[2] = lambda: loads.append(2) or MODEL
    assert len(list(sample_parts(student, 2, [range(0, 2), range(2, 4)]))) == 2
    assert loads == [2]


def test_values_that_are_not_finite_name_the_seed():
    images = torch.rand(4, 1, 2, 2)
    images[2, 0, 1, 1] = float("nan")
    images[3] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite for 2 images, the first has seed 92"):
        Pixels(images, torch.arange(90, 94)).arrived()


@gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pixels_arrive_from_a_gpu_while_it_goes_on():
    """The copy is queued before later work, lands in page-locked memory, and holds what was there then."""
    images = torch.rand(64, 3, 32, 32, device="cuda")
    expected = (images.cpu() * 255).round().to(torch.uint8).movedim(1, -1)
    pixels = Pixels(images, torch.arange(64))
    images.zero_()
    arrived = pixels.arrived()
    assert arrived.is_pinned() and torch.equal(arrived, expected)
