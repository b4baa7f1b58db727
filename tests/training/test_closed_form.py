"""Training against data whose ideal networks are known in closed form."""

import json
import math

import pytest
import torch
from torch import nn

from analytic import cosine_angles, distilled_slope, gaussian_slope, gaussian_steps
from progdistill.core import Denoiser
from progdistill.training import distill, train

STD = 0.4
SHAPE = (1, 4, 4)


def gaussian_images(count=256):
    generator = torch.Generator().manual_seed(0)
    return list((STD * torch.randn(count, *SHAPE, generator=generator)).clamp(-1, 1))


class SlopeTable(nn.Module):
    """v = slope(t) z with a free slope at each of the 1024 grid times: exactly the shape of the Gaussian's ideal."""

    def __init__(self):
        super().__init__()
        times = torch.arange(1, 1025, dtype=torch.float64) / 1024
        self.slope = nn.Parameter(gaussian_slope(times * math.pi / 2, STD).float())

    def forward(self, z, time):
        return self.slope[time.round().long()].reshape(-1, 1, 1, 1) * z


class SlopeSeries(nn.Module):
    """v = slope(t) z with a sine series for the slope, which vanishes at both ends as the ideal one does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10))

    def forward(self, z, time):
        phase = (time + 1) / 1024 * math.pi
        basis = torch.sin(phase[:, None] * torch.arange(1, 11))
        return (basis @ self.weight).reshape(-1, 1, 1, 1) * z


def test_students_of_a_gaussian_reach_the_closed_form(tmp_path):
    """8 -> 4 -> 2 -> 1: each student's slope is the one whose single step is its teacher's two (eq. 43 in v)."""
    teacher = Denoiser(SlopeTable(), sample_shape=SHAPE)
    student = distill(
        teacher,
        rounds=3,
        data=gaussian_images(),
        output_dir=str(tmp_path),
        updates_per_round=300,
        train_batch_size=32,
        learning_rate=2e-2,
        ema_decay=0.9,
        progress=False,
        validation_images=4,
        device="cpu",
    )
    grid = cosine_angles(8)
    for steps in (4, 2, 1):
        kept = student if steps == 1 else student.students[steps]()
        stride = 8 // steps
        for k in range(steps):
            own = grid[k * stride : (k + 1) * stride + 1]
            time = 1024 - 1024 * k // steps
            got = float(kept.network.slope[time - 1].detach())
            assert abs(got - float(distilled_slope(own, STD))) < 2e-3, (steps, k)
    noise = torch.randn(16, *SHAPE)
    from progdistill.sampling import ddim

    image = ddim(student, noise, student.schedule.grid(1))
    torch.testing.assert_close(image, noise * float(gaussian_steps(grid, STD)), atol=1e-2, rtol=0)


@pytest.mark.parametrize(("rounds", "substeps"), [(2, 4), (1, 2)])
def test_students_of_four_times_fewer_steps(rounds, substeps, tmp_path):
    """16 -> 4 -> 1 with all four teacher steps; 4 -> 1 with two of them, which only a first teacher can take freely."""
    teacher = Denoiser(SlopeTable(), sample_shape=SHAPE)
    student = distill(
        teacher,
        rounds=rounds,
        step_factor=4,
        teacher_substeps=substeps,
        data=gaussian_images(),
        output_dir=str(tmp_path),
        updates_per_round=300,
        train_batch_size=32,
        learning_rate=2e-2,
        ema_decay=0.9,
        progress=False,
        validation_images=4,
        device="cpu",
    )
    got = float(student.network.slope[1023].detach())
    assert abs(got - float(distilled_slope(cosine_angles(substeps**rounds), STD))) < 2e-3
    end = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert end["steps"] == 1 and end["teacher_steps"] == substeps
    assert end["student_distance"] < 0.01 * end["teacher_distance"]


def test_teacher_of_a_gaussian_reaches_the_ideal_denoiser(tmp_path):
    teacher = train(
        gaussian_images(2048),
        str(tmp_path),
        network=SlopeSeries(),
        max_train_steps=400,
        train_batch_size=128,
        learning_rate=3e-2,
        lr_scheduler="linear",
        lr_warmup_steps=20,
        ema_decay=0.98,
        progress=False,
        device="cpu",
    )
    phi = torch.linspace(0.1, 1.5, 15, dtype=torch.float64)
    got = teacher.network(torch.ones(15, *SHAPE), teacher.time_map(phi))[:, 0, 0, 0]
    torch.testing.assert_close(got.double(), gaussian_slope(phi, STD), atol=0.06, rtol=0)
