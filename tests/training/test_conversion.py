"""What a converted network is taught, against textbook formulas in float64, and what it starts from."""

import dataclasses
import math

import pytest
import torch
from torch import nn

import literal
import tiny
from analytic import LINEAR, EpsilonMixture, MixtureDenoiser, foreign_teacher
from interop import models
from progdistill import ops
from progdistill.core import CosineSchedule, Denoiser, FlowMatchingSchedule, TableSchedule
from progdistill.core.random import Stream
from progdistill.core.schedules import logsnr_of
from progdistill.nets.unet import UNet
from progdistill.training import ConvertConfig
from progdistill.training.batches import Batch
from progdistill.training.conversion_objective import (
    TEACHER_ERROR,
    ConversionObjective,
    HeldTeacher,
    held_v,
    known_angles,
    teacher_share,
)
from progdistill.training.converted_student import converted_student
from progdistill.training.plain_unet import output_factors

SHAPE = (1, 2, 2)
MIXTURE = {"means": [-0.7, 0.4], "stds": [0.15, 0.3], "weights": [0.3, 0.7]}
TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")


class Fixed(nn.Module):
    """A network that says what it was given."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, time):
        return self.value.to(z).expand_as(z) + self.weight


def settings(**changes):
    return ConvertConfig(output_dir="x", **changes)


def batch(count=256):
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Batch(x, torch.arange(count), 5, None)


def state_of(batch, phi):
    """(z, noise) as an objective makes them of a batch, in float64."""
    noise = ops.normal(batch.seeds, batch.update, Stream.NOISE, SHAPE).double()
    return literal.diffuse(batch.x.double(), noise, phi), noise


def mixture_teacher(**description):
    return foreign_teacher(EpsilonMixture(**MIXTURE), **description)


def asked(student, batch, teacher, **changes):
    """The losses, and the angles that were drawn."""
    got = ConversionObjective(teacher, settings(**changes))(student, batch, 1.0)
    return got.loss.double(), got.phi


def test_every_level_and_beyond_is_the_textbooks_conversion():
    """x and eps by the level's own alpha and sigma (beyond the table: its end's), then v by those of the angle."""
    teacher = mixture_teacher()
    levels = torch.tensor(LINEAR.alphas_cumprod, dtype=torch.float64)
    angles = torch.atan2((1 - levels).sqrt(), levels.sqrt())
    beyond = torch.tensor([0.0, 1e-4, 5e-3, 1.5685, math.pi / 2], dtype=torch.float64)
    phi = torch.cat([angles, beyond])
    index = torch.cat([torch.arange(1000), torch.tensor([0, 0, 0, 999, 999])])
    z = torch.randn(len(phi), *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = HeldTeacher(teacher, CosineSchedule()).raw(z, phi)

    eps = teacher.network(z, index.float())
    alpha, sigma = literal.expand(levels[index].sqrt(), z), literal.expand((1 - levels[index]).sqrt(), z)
    x = (z - sigma * eps) / alpha
    expected = literal.expand(torch.cos(phi), z) * eps - literal.expand(torch.sin(phi), z) * x
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-4)  # the level's number is a float32
    assert got.isfinite().all()


def test_at_the_clean_end_and_at_snr_0_the_held_teacher_is_exact():
    """v = eps at angle 0 and -x at pi/2, with the x and eps of the nearest level."""
    teacher, z = mixture_teacher(), torch.randn(3, *SHAPE, dtype=torch.float64)
    known = known_angles(teacher)
    held = HeldTeacher(teacher, CosineSchedule())
    clean, noise = torch.full((3,), known.low).double(), torch.full((3,), known.high).double()
    torch.testing.assert_close(held.v(z, torch.zeros(3).double()), teacher.eps(z, clean))
    torch.testing.assert_close(held.x(z, torch.full((3,), math.pi / 2).double()), teacher.x(z, noise))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("weighting", ["truncated_snr", "snr_plus_one", "constant"])
def test_the_loss_is_the_distance_to_the_teachers_x(prediction_type, weighting):
    """Times what the teacher is worth: the inverse of 1 + its error, 0.05 in epsilon, squared, in v."""
    teacher, given = mixture_teacher(), batch()
    student = converted_student(teacher, prediction_type, "truncate")
    loss, phi = asked(student, given, teacher, weighting=weighting)
    low, high = known_angles(teacher)
    assert low - 1e-12 <= phi.min() < 0.05 and 1.5 < phi.max() <= high + 1e-12
    z, _ = state_of(given, phi)
    x_star = literal.x_of(z, teacher.raw(z, phi), *literal.alpha_and_sigma(phi, z), "epsilon")
    pred = student.raw(z, phi)
    worth = 1 / (1 + (TEACHER_ERROR / torch.cos(phi)) ** 2)
    expected = worth * literal.loss(pred, z, x_star, phi, prediction_type, weighting)
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=1e-5)


def test_finetune_mixes_the_teacher_with_the_data():
    """Beyond the teacher's levels the data alone, within them by both variances; such a student loses nothing."""
    teacher, given = mixture_teacher(), batch(4096)
    student = converted_student(teacher, "v_prediction", "finetune")
    phi = asked(student, given, teacher, zero_snr="finetune")[1]
    z, noise = state_of(given, phi)
    low, high = known_angles(teacher)
    outside = (phi < low) | (phi > high)
    assert (phi < low).any() and (phi > high).any()
    alpha, sigma = literal.alpha_and_sigma(phi, z)
    eps = teacher.raw(z, phi)
    of_teacher = alpha * eps - sigma * (z - sigma * eps) / alpha
    share = literal.expand(torch.where(outside, 0.0, 1 / (1 + (TEACHER_ERROR / torch.cos(phi)) ** 2)), z)
    target = torch.where(share == 0, 0.0, share * of_teacher) + (1 - share) * (alpha * noise - sigma * given.x.double())
    perfect = student.with_network(Fixed(target))
    loss, again = asked(perfect, given, teacher, zero_snr="finetune", weighting="snr_plus_one")
    assert torch.equal(phi, again)
    assert loss.max() < 1e-8


def test_errors_of_the_teacher_are_not_blown_up_where_data_help():
    """Its share of the target times its factor on an error: 157 at the last level alone, 10 at most in the mixture."""
    teacher = mixture_teacher()
    known = known_angles(teacher)
    phi = torch.linspace(0, math.pi / 2, 100_001, dtype=torch.float64)
    form = held_v("epsilon", phi, known)
    assert form.output[0].max() > 150
    assert (teacher_share(form, phi, known) * form.output[0]).max() < 10.01


def test_the_schedule_ends_where_the_teachers_does_or_at_snr_0():
    teacher = mixture_teacher()
    truncated = converted_student(teacher, "v_prediction", "truncate")
    ends = logsnr_of(truncated.schedule.angle(torch.tensor([0.0, 1.0])))
    expected = logsnr_of(LINEAR.angle(torch.tensor([1e-3, 1.0], dtype=torch.float64)))
    torch.testing.assert_close(ends, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(ends, torch.tensor([9.2102, -10.1177], dtype=torch.float64), rtol=1e-4, atol=0)
    assert truncated.time_map == teacher.time_map
    assert converted_student(teacher, "v_prediction", "finetune").schedule == CosineSchedule()


def test_a_cosine_teacher_keeps_its_schedule_and_pure_noise_is_left_out():
    kept = CosineSchedule(-20, 20)
    teacher = Denoiser(Fixed(torch.zeros(1)), sample_shape=SHAPE, prediction_type="epsilon", schedule=kept)
    assert converted_student(teacher, "v_prediction", "truncate").schedule == kept
    pure = teacher.with_network(teacher.network, schedule=CosineSchedule(), time_map=None)
    schedule = converted_student(pure, "v_prediction", "truncate").schedule
    assert float(schedule.angle(1.0)) == pytest.approx(math.pi / 2 * 1023 / 1024) and schedule.logsnr_max is None
    flow = pure.with_network(teacher.network, schedule=FlowMatchingSchedule(), prediction_type="v", time_map=None)
    assert converted_student(flow, "v_prediction", "truncate").schedule == CosineSchedule()


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("wanted", ["v_prediction", "sample"])
@pytest.mark.parametrize("schedule", [CosineSchedule(), CosineSchedule(-3, 9)])
def test_the_first_output_is_the_least_squares_one(source, wanted, schedule):
    """Against numerical least squares over random x, eps and times."""
    generator = torch.Generator().manual_seed(0)
    x, eps, t = (f(400_000, generator=generator, dtype=torch.float64) for f in (torch.randn, torch.randn, torch.rand))
    phi = schedule.angle(t)
    z = torch.cos(phi) * x + torch.sin(phi) * eps
    says = {
        kind: literal.from_x(z[:, None], x[:, None], phi, kind) for kind in ("epsilon", "sample", "v_prediction")
    } | {"sample_epsilon": torch.stack([x, eps], dim=1)}
    expected = torch.linalg.lstsq(says[source], says[wanted]).solution[:, 0]
    got = torch.tensor(output_factors(source, wanted, schedule), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=6e-3)


def test_a_two_headed_u_net_becomes_one_of_one_head():
    network = models.randomise(UNet(dataclasses.replace(tiny.NETWORK, out_channels=2)))
    teacher = Denoiser(network, sample_shape=(1, 8, 8), prediction_type="sample_epsilon")
    student = converted_student(teacher, "v_prediction", "truncate")
    assert student.network.config.out_channels == 1 and all(p.requires_grad for p in student.network.parameters())
    z, time = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 700.0])
    x, eps = network(z, time).chunk(2, dim=1)
    torch.testing.assert_close(student.network(z, time), 2 / math.pi * (eps - x), rtol=1e-5, atol=1e-5)
    before = [p.clone() for p in network.parameters()]
    with torch.no_grad():
        for parameter in student.network.parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_a_distilled_teacher_is_asked_at_its_own_times_only():
    network = models.randomise(UNet(dataclasses.replace(tiny.NETWORK, out_channels=2)))
    teacher = Denoiser(network, sample_shape=(1, 8, 8), prediction_type="sample_epsilon", valid_steps=(4, 2))
    student = converted_student(teacher, "v_prediction", "finetune")
    assert student.valid_steps == (4, 2) and student.schedule == teacher.schedule
    given = dataclasses.replace(batch(), x=torch.zeros(256, 1, 8, 8))
    phi = asked(student, given, teacher)[1]
    assert sorted(set(phi.tolist())) == sorted(teacher.schedule.grid(4).tolist()[:-1])
    odd = teacher.with_network(network, valid_steps=(4, 3))
    with pytest.raises(ValueError, match=r"distilled for \(4, 3\) steps"):
        ConversionObjective(odd, settings())


def test_the_teacher_is_asked_in_full_precision():
    """Rounded to bfloat16, its epsilon would be worth little where it is divided by a small cosine."""
    network = models.randomise(UNet(tiny.NETWORK))
    teacher = foreign_teacher(network, sample_shape=(1, 8, 8))
    given = dataclasses.replace(batch(32), x=torch.zeros(32, 1, 8, 8))
    student = converted_student(teacher, "v_prediction", "truncate").with_network(Fixed(torch.zeros(1)))
    exact, _ = asked(student, given, teacher)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = asked(student, given, teacher)
    assert torch.equal(exact, rounded)


def test_what_cannot_be_converted_is_refused():
    own = MixtureDenoiser(**MIXTURE)
    with pytest.raises(ValueError, match="MixtureDenoiser, which does not call its network"):
        converted_student(own, "v_prediction", "truncate")
    with pytest.raises(ValueError, match="Identity without parameters"):
        converted_student(foreign_teacher(nn.Identity()), "v_prediction", "truncate")
    two = foreign_teacher(nn.Conv2d(1, 2, 1), prediction_type="sample_epsilon")
    with pytest.raises(ValueError, match="Conv2d of 2 heads"):
        converted_student(two, "v_prediction", "truncate")


def test_the_ends_of_a_table_without_time_limits():
    """A TimeMap that is not held at the table's ends claims no level below the first."""
    table = TableSchedule((0.9, 0.5, 0.1))
    teacher = Denoiser(Fixed(torch.zeros(1)), sample_shape=SHAPE, prediction_type="epsilon", schedule=table)
    expected = [math.acos(math.sqrt(a)) for a in (0.9, 0.1)]
    assert list(known_angles(teacher)) == pytest.approx(expected)
