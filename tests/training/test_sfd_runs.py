"""Runs of SFD: that they resume, what they keep, and what a student gains."""

import math

import pytest
import torch
from torch import nn

import progdistill
import tiny
from analytic import MixtureDenoiser
from interop import models
from interrupted_runs import Interrupted, interrupt_at, lines
from progdistill.cli.main import main
from progdistill.core import CosineSchedule, Denoiser, EDMSchedule, SamplingPlan
from progdistill.core.random import Stream
from progdistill.nets.unet import UNet
from progdistill.ops import normal
from progdistill.sampling.ddim import ddim, follow_plan
from progdistill.training import TrajectoryConfig, finetune_trajectory
from progdistill.training.few_step_student import few_step_student

SHAPE = (1, 3, 3)
QUICK = {"train_batch_size": 8, "progress": False, "device": "cpu", "logging_steps": 2, "validation_images": 4}


def config(**settings):
    return TrajectoryConfig(output_dir="x", **settings)


def unet(**description):
    return Denoiser(models.randomise(UNet(tiny.NETWORK)), sample_shape=(1, 8, 8), **description)


def quick(teacher, folder, **settings):
    options = {"steps": 3, "iterations": 4, "learning_rate": 1e-3, "checkpointing_steps": 4}
    return finetune_trajectory(teacher, output_dir=str(folder), **{**options, **QUICK, **settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_accumulation_steps": 2, "ema_decay": 0.9}, {"steps": (1, 2), "iterations": 8}]
)
@pytest.mark.parametrize("writes", [2, 4])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, monkeypatch, settings, writes):
    """Checkpoints are asked for after 4 and 8 updates, and made after 6 and 9: where iterations of 3 end."""
    whole = quick(unet(), tmp_path / "whole", **settings)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, writes + 1)
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
    assert [math.tan(phi) for phi in second.sampling_plans[1].phis] == pytest.approx([80, 3.1071, 0.006], rel=1e-4)
    target, own = (progdistill.sample(m, n, batch_size=32, output_type="pt") for m, n in ((first, 5), (second, 1)))
    before = progdistill.sample(
        first.with_network(first.network, valid_steps=(1,), sampling_plans=second.sampling_plans),
        1,
        batch_size=32,
        output_type="pt",
    )
    assert (own - target).square().mean() < 0.8 * (before - target).square().mean()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_a_perceptual_network_is_a_file_that_a_resumed_run_must_share(tmp_path):
    teacher, script = unet(), tmp_path / "features.pt"
    options = {"steps": 1, "iterations": 1, "learning_rate": 1e-3, "perceptual": str(script)}
    with pytest.raises(FileNotFoundError, match="features.pt"):
        quick(teacher, tmp_path / "run", **options)
    torch.jit.trace(nn.Conv2d(1, 4, 3), torch.zeros(2, 1, 8, 8)).save(script)
    student = quick(teacher, tmp_path / "run", **options, perceptual_weight=5.0)
    assert student.provenance["perceptual_weight"] == 5.0
    plain = quick(teacher, tmp_path / "plain", steps=1, iterations=1, learning_rate=1e-3)
    assert not torch.equal(weights(student), weights(plain)) and "perceptual_weight" not in plain.provenance
    torch.jit.trace(nn.Conv2d(1, 4, 5), torch.zeros(2, 1, 8, 8)).save(script)
    with pytest.raises(ValueError, match="perceptual"):
        quick(teacher, tmp_path / "run", **options, perceptual_weight=5.0)


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
        few_step_student(Denoiser(nn.Conv2d(1, 1, 1), sample_shape=SHAPE), student.sampling_plans)


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
