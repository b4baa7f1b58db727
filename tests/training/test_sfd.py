"""SFD: the literal algorithm of Zhou et al. 2024 in float64, its grids and its batches."""

import math

import pytest
import torch
from torch import nn

import literal
from analytic import MixtureDenoiser
from progdistill.core import CosineSchedule, Denoiser, EDMSchedule, SamplingPlan, TimeMap
from progdistill.core.random import Stream
from progdistill.ops import normal
from progdistill.sampling.solvers import Solver, Thresholding, solve, solver_stages
from progdistill.training import TrajectoryConfig
from progdistill.training.batches import Batch
from progdistill.training.noise_batches import NoiseBatches
from progdistill.training.optimizer import learning_rate
from progdistill.training.perceptual_distance import PerceptualDistance
from progdistill.training.trajectory_grid import FollowedPath, followed_path, student_plan, teacher_angles
from progdistill.training.trajectory_objective import TrajectoryObjective

SHAPE = (1, 3, 3)
QUICK = {"train_batch_size": 8, "progress": False, "device": "cpu", "logging_steps": 2, "validation_images": 4}


def config(**settings):
    return TrajectoryConfig(output_dir="x", **settings)


def sigmas(values):
    return torch.tan(torch.as_tensor(values, dtype=torch.float64))


class Affine(nn.Module):
    """A network of three parameters: a z + b time + c."""

    def __init__(self, heads=1):
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.tensor([0.3, 0.2, 0.1]))

    def forward(self, z, time):
        value = self.scale[0] * z + self.scale[1] * (time / 1024).reshape(-1, 1, 1, 1) + self.scale[2]
        return torch.cat([value] * self.heads, dim=1)


def own_grid(schedule, settings):
    angles = teacher_angles(schedule, settings.steps[0], settings)
    return angles, student_plan(angles, settings.teacher_substeps, settings)


def objective_of(teacher, plan, stages, thresholding=None, **options):
    return TrajectoryObjective(teacher, [FollowedPath(plan, Solver(stages, thresholding))], **options)


# The reference's values for rho 7 from 80 to 0.006, and the teacher's 13 nodes of N = 4, M = 3.
def test_the_grids_of_edm_are_the_published_ones_and_nested():
    angles, plan = own_grid(EDMSchedule(), config(steps=2))
    assert sigmas(plan.phis).tolist() == pytest.approx([80, 10.9293, 0.6699, 0.006], rel=1e-4)
    published = [80, 51.1571, 31.7298, 19.0034, 10.9293, 5.9941, 3.1071, 1.5045, 0.6699, 0.2683, 0.0936, 0.0271, 0.006]
    assert sigmas(angles).tolist() == pytest.approx(published, rel=2e-3)
    assert angles[::4].tolist() == list(plan.phis)
    assert plan.analytic_first_step and plan.network_calls == 2


@pytest.mark.parametrize("grid", ["trailing", "polynomial", "logsnr"])
@pytest.mark.parametrize("schedule", [CosineSchedule(), EDMSchedule()])
@pytest.mark.parametrize("substeps", [1, 3, 4])
def test_the_students_steps_are_those_of_a_grid_of_their_own(grid, schedule, substeps):
    settings = config(steps=3, grid=grid, teacher_substeps=substeps, analytic_first_step=False)
    angles, plan = own_grid(schedule, settings)
    alone = teacher_angles(schedule, 3, config(grid=grid, teacher_substeps=1, analytic_first_step=False))
    assert len(angles) == 3 * substeps + 1 and angles[::substeps].tolist() == list(plan.phis)
    torch.testing.assert_close(torch.tensor(plan.phis, dtype=torch.float64), alone, rtol=1e-12, atol=1e-15)
    assert (plan.phis[-1] == 0.0) == (grid == "trailing")


def literal_sfd_edm(student, teacher, x, sigma, substeps, weights_at):
    """Algorithm 1.3 in EDM's states and float64, Euler's rule for both: (loss, gradient of x) of each step."""
    targets, fine = {}, x
    for i in range(len(sigma) - 1):
        fine = fine + (sigma[i + 1] - sigma[i]) * (fine - teacher(fine, sigma[i])) / sigma[i]
        targets[i + 1] = fine
    sigma = sigma[::substeps]
    for n in range(len(sigma) - 1):
        called = (x - student(x, sigma[n], weights_at[n - 1])) / sigma[n]
        d = called if n else x / torch.sqrt(1 + sigma[0] ** 2)
        x = x + (sigma[n + 1] - sigma[n]) * d
        if n > 0:
            yield x, x - targets[(n + 1) * substeps]


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "epsilon", "sample_epsilon"])
def test_each_update_is_the_literal_algorithms(prediction_type):
    """States and losses of all steps, with weights that change after each as an optimizer would change them."""
    settings, substeps = config(steps=3, teacher_solver="ddim", teacher_substeps=3), 3
    schedule, heads = EDMSchedule(), 1 + (prediction_type == "sample_epsilon")
    teacher = MixtureDenoiser([-0.6, 0.5], [0.2, 0.3], sample_shape=SHAPE, schedule=schedule)
    student = Denoiser(
        Affine(heads),
        sample_shape=SHAPE,
        schedule=schedule,
        prediction_type=prediction_type,
        time_map=TimeMap(schedule),
    )
    angles, plan = own_grid(schedule, settings)
    objective = objective_of(teacher, plan, solver_stages("ddim", angles, teacher))
    seeds = torch.arange(5)
    z = normal(seeds, 0, Stream.LATENT, SHAPE).double()
    weights = [student.network.scale.detach().double() + 0.01 * n for n in range(3)]

    def denoised(x, sigma, scale):
        phi = torch.atan(sigma)
        out = scale[0] * x * torch.cos(phi) + scale[1] * student.time_map(phi).double() / 1024 + scale[2]
        state = x * torch.cos(phi)
        out = torch.cat([out] * heads, dim=1)
        return literal.x_and_eps(state, out, phi.expand(len(x)), prediction_type)[0]

    def ideal(x, sigma):
        phi = torch.atan(sigma).expand(len(x))
        return teacher.x(x * torch.cos(phi[0]), phi)

    sigma = sigmas(angles)
    steps = literal_sfd_edm(denoised, ideal, z / math.cos(plan.phis[0]), sigma, substeps, weights)
    for update, ((x, error), phi) in enumerate(zip(steps, plan.phis[2:], strict=True)):
        with torch.no_grad():
            student.network.scale.copy_(weights[update])
        got = objective(student, Batch(None, seeds, torch.tensor(6 + update), None), 1 / len(seeds))
        cos = math.cos(phi)  # the state is the variance-preserving one
        torch.testing.assert_close(got.pred.double(), x * cos, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.loss.double(), (cos * error).abs().flatten(1).mean(1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.grad, (error.sign() / error.numel()).float())
        assert got.phi.tolist() == [plan.phis[update + 1]] * 5
    assert not objective._begun


def test_the_gradient_goes_through_one_step_only():
    schedule = CosineSchedule()
    teacher = MixtureDenoiser([-0.6, 0.5], [0.2, 0.3], sample_shape=SHAPE)
    student = Denoiser(Affine(), sample_shape=SHAPE)
    angles, plan = own_grid(schedule, config(steps=2))
    objective = objective_of(teacher, plan, solver_stages("dpmpp_3m", angles, teacher))
    seeds, network = torch.arange(6), student.network
    objective(student, Batch(None, seeds, 0, None), 1 / 6)
    start = objective._begun[0].z.clone()
    assert not start.requires_grad
    got = objective(student, Batch(None, seeds, 1, None), 1 / 6)
    got.pred.backward(got.grad)
    scale = network.scale.detach().double().requires_grad_(True)
    phi, phi_next = (torch.full((6,), p, dtype=torch.float64) for p in plan.phis[2:])
    out = scale[0] * start.double() + scale[1] * (student.time_map(phi) / 1024).reshape(-1, 1, 1, 1) + scale[2]
    z = normal(seeds, 0, Stream.LATENT, SHAPE)
    target = solve(teacher, z, solver_stages("dpmpp_3m", angles, teacher)).double()
    moved = literal.ddim(start.double(), out, phi, phi_next, "v_prediction")
    (moved - target).abs().mean().backward()
    torch.testing.assert_close(network.scale.grad.double(), scale.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["l1", "l2", "pseudo_huber"])
def test_losses_and_their_gradients(loss_type):
    teacher = MixtureDenoiser([-0.6, 0.5], [0.2, 0.3], sample_shape=SHAPE)
    angles, plan = own_grid(teacher.schedule, config(steps=2))
    stages = solver_stages("dpmpp_2m", angles, teacher)
    objective = objective_of(teacher, plan, stages, loss_type=loss_type, huber_c=0.05)
    student, seeds = Denoiser(Affine(), sample_shape=SHAPE), torch.arange(4)
    got = objective(student, Batch(None, seeds, 0, None), 0.25)
    states = {}
    z = normal(seeds, 0, Stream.LATENT, SHAPE)
    solve(teacher, z, stages, callback=lambda n, state: states.update({stages[n].phi_next: state}))
    moved = got.pred.detach().double().requires_grad_(True)
    error = moved - states[plan.phis[2]].double()
    each = {
        "l1": lambda e: e.abs(),
        "l2": lambda e: e**2,
        "pseudo_huber": lambda e: torch.sqrt(e**2 + 0.05**2) - 0.05,
    }[loss_type](error)
    each.mean().backward()
    torch.testing.assert_close(got.loss.double(), each.detach().flatten(1).mean(1), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(got.grad.double(), moved.grad, rtol=1e-4, atol=1e-7)


def test_a_thresholding_teacher_is_followed():
    teacher = MixtureDenoiser([-1.6, 1.5], [0.2, 0.3], sample_shape=SHAPE)
    angles, plan = own_grid(teacher.schedule, config(steps=1))
    stages, seeds = solver_stages("dpmpp_3m", angles, teacher), torch.arange(4)
    bounded = objective_of(teacher, plan, stages, thresholding=Thresholding())
    student = Denoiser(Affine(), sample_shape=SHAPE)
    got = bounded(student, Batch(None, seeds, 0, None), 1.0)
    target = solve(teacher, normal(seeds, 0, Stream.LATENT, SHAPE), stages, thresholding=Thresholding())
    assert target.abs().max() <= 1.0
    torch.testing.assert_close(got.loss, (got.pred.detach() - target).abs().flatten(1).mean(1))


def test_the_analytic_first_step_is_that_of_edm():
    plan = SamplingPlan((math.atan(80.0), math.atan(3.0), math.atan(0.006)), analytic_first_step=True)
    x = torch.tensor([0.7], dtype=torch.float64) * 80
    moved = x + (3.0 - 80.0) * x / math.sqrt(1 + 80.0**2)
    z = x * math.cos(plan.phis[0]) * plan.first_factor
    torch.testing.assert_close(z / math.cos(plan.phis[1]), moved, rtol=1e-12, atol=0)
    assert SamplingPlan((math.pi / 2, 1.0, 0.0), True).first_factor == pytest.approx(math.sin(1.0), abs=1e-15)


@pytest.mark.parametrize("phis", [(1.0,), (1.0, 2.0), (1.0, 0.0, -1.0), (2.0, 0.0), (math.nan, 0.0)])
def test_plans_that_are_none(phis):
    with pytest.raises(ValueError, match="falls? from|fall from"):
        SamplingPlan(phis)
    with pytest.raises(ValueError, match="calls the network"):
        SamplingPlan((1.0, 0.0), analytic_first_step=True)


def test_batches_stay_for_an_iteration_and_classes_are_uniform():
    settings = config(steps=3, train_batch_size=64, gradient_accumulation_steps=2)
    batches = NoiseBatches(settings, 0, torch.device("cpu"), iterations=(3,), num_classes=4)
    drawn = [list(batches.microbatches(update)) for update in range(6)]
    seeds = [torch.cat([part.seeds for part in parts]).tolist() for parts in drawn]
    assert seeds[0] == seeds[1] == seeds[2] and seeds[3] == seeds[4] == seeds[5]
    assert len({*seeds[0], *seeds[3]}) == 128
    labels = torch.cat([part.labels for update in (0, 3) for part in drawn[update]])
    assert torch.bincount(labels, minlength=4).min() > 15
    assert torch.equal(drawn[0][1].labels, drawn[2][1].labels)
    numbers = [part.number for parts in drawn for part in parts]
    assert numbers == list(range(12))  # each update and microbatch draws its own dropout


def test_the_learning_rate_falls_at_half():
    settings = config(learning_rate=1.0)
    assert [learning_rate(settings, update, 5) for update in range(5)] == [1.0, 1.0, 1.0, 0.1, 0.1]
    assert [learning_rate(settings, update, 4) for update in range(4)] == [1.0, 1.0, 0.1, 0.1]


def test_iterations_of_several_step_counts_take_turns():
    settings = config(steps=(1, 3), train_batch_size=4)
    batches = NoiseBatches(settings, 0, torch.device("cpu"), iterations=settings.steps, num_classes=None)
    seeds = [tuple(next(iter(batches.microbatches(update))).seeds.tolist()) for update in range(8)]
    assert seeds[0] == seeds[1] == seeds[2] and seeds[4] == seeds[5] == seeds[6]
    assert len({seeds[0], seeds[3], seeds[4], seeds[7]}) == 4
    assert settings.steps == (3, 1) and config(steps=(1, 3), iterations=6).updates == 12


class Told(nn.Module):
    """Says how many steps it was told of."""

    def forward(self, z, time, labels, guidance, step_count):
        assert labels is None and guidance is None
        return torch.full_like(z, step_count / 10)


def test_a_network_for_several_step_counts_is_told_which():
    teacher = MixtureDenoiser([-0.6, 0.5], [0.2, 0.3], sample_shape=SHAPE)
    settings = config(steps=(1, 3))
    objective = TrajectoryObjective(teacher, [followed_path(teacher, steps, settings) for steps in settings.steps])
    student = Denoiser(Told(), sample_shape=SHAPE, step_conditioned=True)
    seeds = torch.arange(4)
    z = normal(seeds, 0, Stream.LATENT, SHAPE)
    for update, told in enumerate([3, 3, 3, 1]):
        plan = followed_path(teacher, told, settings).plan
        if update in (0, 3):
            state = plan.first_factor * z
        number = update % 3
        got = objective(student, Batch(None, seeds, update, None), 1.0)
        h = plan.phis[number + 1] - plan.phis[number + 2]
        state = math.cos(h) * state - math.sin(h) * torch.full_like(state, told / 10)
        torch.testing.assert_close(got.pred, state)
    with pytest.raises(ValueError, match="is told the number of steps"):
        student.raw(z, torch.ones(4, dtype=torch.float64))


class Features(nn.Module):
    """Two features of an image that are no sums over its pixels alone."""

    def forward(self, images):
        flat = images.flatten(1)
        return torch.stack([flat.square().mean(1), (flat[:, 0] - 0.5 * flat[:, 1]).sin()], dim=1)


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_a_perceptual_distance_is_added_where_the_last_step_ends(loss_type):
    schedule = EDMSchedule()
    teacher = MixtureDenoiser([-0.6, 0.5], [0.2, 0.3], sample_shape=SHAPE, schedule=schedule)
    student = Denoiser(Affine(), sample_shape=SHAPE, schedule=schedule, time_map=TimeMap(schedule))
    settings = config(steps=2, sigma_min=0.3)  # so that states are no images yet
    path = followed_path(teacher, 2, settings)
    perceptual = PerceptualDistance(Features(), weight=0.7, sample_shape=SHAPE, device=torch.device("cpu"))
    with_it = TrajectoryObjective(teacher, [path], loss_type=loss_type, perceptual=perceptual)
    without = TrajectoryObjective(teacher, [path], loss_type=loss_type)
    seeds = torch.arange(5)
    target = solve(teacher, normal(seeds, 0, Stream.LATENT, SHAPE), path.solver.stages).double()
    for update in range(2):
        got, plain = (o(student, Batch(None, seeds, update, None), 0.2) for o in (with_it, without))
        moved = got.pred.detach().double().requires_grad_(True)
        if update == 0:
            assert torch.equal(got.grad, plain.grad) and torch.equal(got.loss, plain.loss)
            continue
        images, wanted = moved / math.cos(path.plan.phis[-1]), target / math.cos(path.plan.phis[-1])
        distance = 0.7 * (Features()(images) - Features()(wanted)).square().sum(1)
        (0.2 * distance.sum()).backward()
        assert distance.min() > 1e-4
        torch.testing.assert_close((got.loss - plain.loss).double(), distance.detach(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close((got.grad - plain.grad).double(), moved.grad, rtol=1e-3, atol=1e-6)


class Fails(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return self.answer(images)


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda images: images.detach(), "gradients go through"),
        (lambda images: images.reshape(18, 1), "features for 18 images of 2"),
        (lambda images: (images, images), "float images"),
        (lambda images: images.to(torch.uint8), "float images"),
    ],
)
def test_networks_that_are_no_perceptual_ones(answer, message):
    with pytest.raises(ValueError, match=message):
        PerceptualDistance(Fails(answer), weight=1.0, sample_shape=SHAPE, device=torch.device("cpu"))


def test_settings_of_a_perceptual_distance():
    for settings in ({"perceptual": "weights.bin"}, {"perceptual": "lpips.pt", "perceptual_weight": 0.0}):
        with pytest.raises(ValueError, match="TorchScript file"):
            config(**settings)
