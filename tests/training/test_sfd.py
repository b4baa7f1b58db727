"""SFD: the literal algorithm of Zhou et al. 2024 in float64, its grids, runs that resume, and what a student gains."""

import json
import math

import pytest
import torch
from torch import nn

import literal
import progdistill
import tiny
from analytic import MixtureDenoiser
from interop import models
from progdistill.cli.main import main
from progdistill.core import CosineSchedule, Denoiser, EDMSchedule, SamplingPlan, TimeMap
from progdistill.core.random import Stream
from progdistill.nets.unet import UNet
from progdistill.ops import normal
from progdistill.sampling.ddim import ddim, follow_plan
from progdistill.sampling.solvers import Solver, Thresholding, solve, solver_stages
from progdistill.training import TrajectoryConfig, finetune_trajectory
from progdistill.training.batches import Batch
from progdistill.training.few_step_student import few_step_student
from progdistill.training.metrics_log import MetricsLog
from progdistill.training.noise_batches import NoiseBatches
from progdistill.training.optimizer import learning_rate
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


def unet(**description):
    return Denoiser(models.randomise(UNet(tiny.NETWORK)), sample_shape=(1, 8, 8), **description)


def quick(teacher, folder, **settings):
    options = {"steps": 3, "iterations": 4, "learning_rate": 1e-3, "checkpointing_steps": 4}
    return finetune_trajectory(teacher, output_dir=str(folder), **{**options, **QUICK, **settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def lines(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2, "ema_decay": 0.9}, {"steps": (1, 2), "iterations": 8}]
)
@pytest.mark.parametrize("writes", [2, 4])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, settings, writes):
    """Checkpoints are asked for after 4 and 8 updates, and made after 6 and 9: where iterations of 3 end."""
    whole = quick(unet(), tmp_path / "whole", **settings)
    count, original = iter(range(100)), MetricsLog.write

    def write(self, record):
        if next(count) >= writes:
            raise InterruptedError
        original(self, record)

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "write", write)
        with pytest.raises(InterruptedError):
            quick(unet(), tmp_path / "parts", **settings)
    names = [path.name for path in (tmp_path / "parts" / "checkpoints").glob("*")]
    assert sorted(names) == (["round-00-update-00000006", "round-00-update-00000009"] if writes == 4 else []), names
    resumed = quick(unet(), tmp_path / "parts", **settings)
    assert torch.equal(weights(whole), weights(resumed))
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")
    again = quick(unet(), tmp_path / "parts", **settings)
    assert torch.equal(weights(again), weights(whole)) and again.sampling_plans == whole.sampling_plans


def test_sigterm_waits_for_the_end_of_the_iteration(tmp_path, monkeypatch):
    from progdistill.training.stopping import RunInterrupted, StopRequest

    whole = quick(unet(), tmp_path / "whole")
    monkeypatch.setattr(StopRequest, "pending", lambda self: True)
    with pytest.raises(RunInterrupted, match="after update 0 of 12"):
        quick(unet(), tmp_path / "parts")
    asked = iter([False, True])
    monkeypatch.setattr(StopRequest, "pending", lambda self: next(asked))
    with pytest.raises(RunInterrupted, match="after update 3 of 12"):
        quick(unet(), tmp_path / "parts")
    monkeypatch.undo()
    assert torch.equal(weights(quick(unet(), tmp_path / "parts")), weights(whole))


def test_accumulation_equals_the_whole_batch(tmp_path):
    one = quick(unet(), tmp_path / "one", learning_rate=1e-4)
    two = quick(unet(), tmp_path / "two", learning_rate=1e-4, gradient_accumulation_steps=4)
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", [CosineSchedule(), EDMSchedule()])
def test_a_saved_student_samples_along_its_own_steps(tmp_path, schedule):
    student = quick(unet(schedule=schedule), tmp_path, iterations=1)
    loaded = progdistill.load(tmp_path)
    plan = loaded.sampling_plans[3]
    assert loaded.sampling_plans == student.sampling_plans and loaded.valid_steps == (3,)
    z = normal(torch.arange(4), 0, Stream.LATENT, (1, 8, 8))
    state = plan.first_factor * z
    state = ddim(loaded, state, torch.tensor(plan.phis[1:], dtype=torch.float64)) / math.cos(plan.phis[-1])
    expected = (state.clamp(-1, 1) + 1) / 2
    got = progdistill.sample(loaded, 3, batch_size=4, output_type="pt")
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    fixed = progdistill.Sampler(loaded, steps=3, dtype=torch.float32)(batch_size=4)
    torch.testing.assert_close(fixed, expected, rtol=0, atol=1e-5)
    exported = progdistill.sampling.UnrolledSampler(loaded, 3)
    torch.testing.assert_close(exported(z), state.clamp(-1, 1), rtol=0, atol=1e-5)
    assert not (tmp_path / "model" / "model_index.json").exists()
    with pytest.raises(ValueError, match="steps of its own"):
        progdistill.export_diffusers(loaded, tmp_path / "exported")
    with pytest.raises(ValueError, match="angles of its own"):
        progdistill.sample(loaded, 3, sampler="stochastic")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "SFD" in card and "progressive distillation" not in card


def test_a_student_of_the_schedules_own_steps_is_any_other_student(tmp_path):
    student = quick(unet(), tmp_path, steps=2, iterations=1, analytic_first_step=False)
    assert student.sampling_plans == {} and (tmp_path / "model" / "model_index.json").exists()


def test_class_conditional_students_can_be_guided_if_their_teacher_can(tmp_path):
    network = UNet(tiny.dataclasses.replace(tiny.NETWORK, num_class_embeds=4))
    teacher = Denoiser(network, sample_shape=(1, 8, 8), num_classes=3, unconditional_label=3)
    student = quick(teacher, tmp_path, iterations=1)
    assert student.unconditional_label == 3
    images = progdistill.sample(student, 3, class_labels=[0, 1], guidance_scale=3.0, output_type="pt")
    assert images.shape == (2, 1, 8, 8)


def test_the_second_stage_follows_a_students_own_steps(tmp_path):
    """5 calls in 6 steps (N = 7) to 1 in 2: every third of the angles, and the student's own samples as targets."""
    first = quick(unet(schedule=EDMSchedule()), tmp_path / "first", steps=5, iterations=1)
    second = quick(first, tmp_path / "second", steps=1, iterations=60, learning_rate=3e-3)
    phis = first.sampling_plans[5].phis
    assert second.sampling_plans == {1: SamplingPlan(phis[::3], analytic_first_step=True)}
    assert sigmas(second.sampling_plans[1].phis).tolist() == pytest.approx([80, 3.1071, 0.006], rel=1e-4)
    target, own = (progdistill.sample(m, n, batch_size=32, output_type="pt") for m, n in ((first, 5), (second, 1)))
    before = progdistill.sample(
        first.with_network(first.network, valid_steps=(1,), sampling_plans=second.sampling_plans),
        1,
        batch_size=32,
        output_type="pt",
    )
    assert (own - target).square().mean() < 0.8 * (before - target).square().mean()


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


def test_one_model_for_several_step_counts(tmp_path):
    teacher = unet()
    student = quick(teacher, tmp_path / "v", steps=(3, 2, 5), iterations=6)
    assert student.valid_steps == (5, 3, 2) and sorted(student.sampling_plans) == [2, 3, 5]
    assert student.network.step_embedding.linear_2.weight.abs().max() > 0
    loaded = progdistill.load(tmp_path / "v")
    assert loaded.step_conditioned and loaded.sampling_plans == student.sampling_plans
    z = normal(torch.arange(3), 0, Stream.LATENT, (1, 8, 8))
    drawn = {}
    for steps in (2, 3, 5):
        plan, told = loaded.plan(steps), loaded.for_steps(steps)
        drawn[steps] = (follow_plan(told, z, plan).clamp(-1, 1) + 1) / 2
        got = progdistill.sample(loaded, steps, batch_size=3, output_type="pt")
        torch.testing.assert_close(got, drawn[steps], rtol=0, atol=1e-6)
        fixed = progdistill.Sampler(loaded, steps=steps, dtype=torch.float32)(batch_size=3)
        torch.testing.assert_close(fixed, drawn[steps], rtol=0, atol=1e-5)
        exported = progdistill.sampling.UnrolledSampler(loaded, steps)
        torch.testing.assert_close((exported(z) + 1) / 2, drawn[steps], rtol=0, atol=1e-5)
    wrong = (follow_plan(loaded.for_steps(2), z, loaded.plan(5)).clamp(-1, 1) + 1) / 2
    assert (wrong - drawn[5]).abs().max() > 1e-5
    with pytest.raises(ValueError, match="not 4: elsewhere"):
        progdistill.sample(loaded, 4)
    with pytest.raises(ValueError, match="told the number of steps"):
        progdistill.export_diffusers(loaded, tmp_path / "exported")
    second = quick(loaded, tmp_path / "second", steps=1, iterations=1)
    assert second.sampling_plans[1].phis == loaded.sampling_plans[5].phis[::3] and second.step_conditioned
    again = quick(unet(), tmp_path / "v", steps=(3, 2, 5), iterations=6)
    assert torch.equal(weights(again), weights(student))


def test_the_step_input_starts_without_effect():
    teacher = unet()
    student = few_step_student(teacher, {n: SamplingPlan((1.5, 1.0, 0.0)[: n + 1]) for n in (1, 2)})
    z, phi = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 1.2], dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(student.for_steps(2).raw(z, phi), teacher.raw(z, phi))
    with pytest.raises(ValueError, match="no step_count given"):
        student.network(z, phi)
    with pytest.raises(ValueError, match="takes none"):
        teacher.network(z, phi, step_count=2)
    with pytest.raises(ValueError, match="one student for each"):
        few_step_student(Denoiser(Affine(), sample_shape=SHAPE), student.sampling_plans)


class Correctable(nn.Module):
    """The ideal v of a mixture, plus a small network that begins at nothing: its copy can learn, and it is exact."""

    def __init__(self, ideal):
        super().__init__()
        self.ideal = ideal
        self.inner = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))
        nn.init.zeros_(self.inner[-1].weight)
        nn.init.zeros_(self.inner[-1].bias)

    def forward(self, z, time):
        phi = self.ideal.schedule.angle((time.double() + 1) / 1024)
        told = phi.float().reshape(-1, *(1,) * (z.dim() - 1)).expand_as(z)
        return self.ideal.raw(z, phi) + self.inner(torch.stack([z, told], dim=-1)).squeeze(-1)


@pytest.mark.parametrize(("schedule", "steps"), [(CosineSchedule(), 2), (EDMSchedule(), 1), (EDMSchedule(), 2)])
def test_fine_tuning_brings_the_student_to_the_exact_trajectory(tmp_path, schedule, steps):
    torch.manual_seed(1)
    ideal = MixtureDenoiser([-0.6, 0.5], [0.1, 0.25], [0.4, 0.6], sample_shape=SHAPE, schedule=schedule)
    teacher = Denoiser(Correctable(ideal), sample_shape=SHAPE, schedule=schedule)
    long = {"iterations": 120 // steps, "train_batch_size": 32, "learning_rate": 1e-2, "logging_steps": 100}
    student = quick(teacher, tmp_path, steps=steps, **long)
    plan = student.plan(steps)
    z = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    fine = torch.linspace(0, 1, 400, dtype=torch.float64)
    low, high = plan.phis[-1], plan.phis[0]
    exact = ddim(ideal, z, high - (high - low) * fine) / math.cos(low)
    with torch.no_grad():
        own, before = (follow_plan(m, z.float(), plan).double() for m in (student, teacher))
    error, first = ((found - exact).square().mean().sqrt().item() for found in (own, before))
    assert error < 0.7 * first, (error, first)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "steps are \\(0,\\)"),
        ({"steps": (2, 3), "iterations": 3}, "a multiple of 2 iterations"),
        ({"iterations": 0}, "iterations is 0"),
        ({"teacher_solver": "euler_a"}, "teacher_solver is 'euler_a'"),
        ({"grid": "linspace"}, "unknown grid"),
        ({"sigma_min": 0.0}, "sigma_min is 0.0"),
        ({"weighting": "snr"}, "weighting is 'snr'"),
        ({"random_flip": True}, "random_flip True"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_teachers_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="4 calls in 4 steps"):
        quick(unet(valid_steps=(4,)), tmp_path / "student", steps=2)
    with pytest.raises(ValueError, match="leave teacher_solver out"):
        quick(unet(valid_steps=(4,)), tmp_path / "student", steps=1, teacher_solver="ddim")
    with pytest.raises(ValueError, match="no parameters"):
        quick(Denoiser(lambda z, time: z, sample_shape=SHAPE), tmp_path / "function")
    with pytest.raises(ValueError, match="epsilon, which says nothing"):
        quick(unet(prediction_type="epsilon"), tmp_path / "epsilon")
    with pytest.raises(ValueError, match="output_dir is missing"):
        finetune_trajectory(unet())
    quick(unet(prediction_type="epsilon"), tmp_path / "polynomial", grid="polynomial", iterations=1)


def test_no_graph_holds_what_the_host_leads(monkeypatch):
    from progdistill.training import update_graph

    monkeypatch.setattr(update_graph, "_obstacle", lambda *_: None)
    make = lambda mode: update_graph.UpdateGraph(None, None, None, torch.device("cpu"), mode, "the host leads")  # noqa: E731
    with pytest.raises(ValueError, match="the host leads; use 'auto'"):
        make("require")
    assert not make("auto").wanted


def test_the_command_makes_a_student_that_the_command_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    progdistill.save(unet(), tmp_path / "teacher")
    small = ["--iterations", "2", "--train-batch-size", "4", "--validation-images", "2", "--device", "cpu"]
    assert main(["sfd", "--teacher", "teacher", "--output-dir", "out", "--steps", "2", *small]) == 0
    assert "the student for 2 steps is in out/model" in capsys.readouterr().out
    report = (tmp_path / "out" / "report.html").read_text()
    assert "student in 2 to teacher in 12 calls" in report
    assert main(["sample", "--model", "out/model", "--steps", "2", "--num-images", "2", "--output", "a.npz"]) == 0
    assert main(["sample", "--model", "out/model", "--steps", "3", "--num-images", "2", "--output", "b.npz"]) == 2
