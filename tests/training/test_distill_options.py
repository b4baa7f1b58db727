"""Options of a distillation: teacher sub-steps, aDDIM teachers, which weights teach next, loss types, min-SNR."""

import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import literal
import progdistill
from analytic import MixtureDenoiser
from progdistill import ops
from progdistill.core import Denoiser
from progdistill.core.random import Stream
from progdistill.training import DistillConfig, TrainConfig, distill, train
from progdistill.training.batches import Batch
from progdistill.training.distill import DistillationObjective
from progdistill.training.metrics_log import MetricsLog
from progdistill.training.train import DenoisingObjective

SHAPE = (1, 4, 4)
TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
QUICK = {"train_batch_size": 8, "progress": False, "device": "cpu", "logging_steps": 2, "validation_images": 2}


class Scaled(nn.Module):
    """A network of a few parameters: scale * z for each head, and the time in it."""

    def __init__(self, heads=1):
        super().__init__()
        self.heads = heads
        self.scale = nn.Parameter(torch.tensor([0.3, 0.2]))

    def forward(self, z, time):
        value = self.scale[0] * z + self.scale[1] * (time / 1024).reshape(-1, 1, 1, 1)
        return torch.cat([value] * self.heads, dim=1)


def data(count=16):
    return list(torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def batch(count=64):
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, *SHAPE, generator=generator) * 2 - 1
    return Batch(x, torch.arange(count), 5, None)


def state_of(batch, phi):
    """The state that an objective makes of a batch, in float64."""
    noise = ops.normal(batch.seeds, batch.update, Stream.NOISE, SHAPE)
    return ops.diffuse(batch.x, noise, phi).double()


@pytest.mark.parametrize("substeps", [2, 3, 4])
@pytest.mark.parametrize(
    "settings", [{}, {"teacher_sampler": "addim"}, {"teacher_sampler": "addim", "addim_eta": None}]
)
@pytest.mark.parametrize("loss_type", ["l2", "l1"])
def test_the_loss_is_that_of_the_literal_composition(substeps, settings, loss_type):
    """K literal (a)DDIM steps in float64 from the objective's own states, inverted by eq. 43."""
    steps, given = 5, batch()
    config = DistillConfig(
        output_dir="x", rounds=1, end_steps=steps, teacher_substeps=substeps, loss_type=loss_type, **settings
    )
    teacher = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7], sample_shape=SHAPE)
    student = Denoiser(Scaled(), sample_shape=SHAPE)
    got = DistillationObjective(teacher, steps, config)(student, given, 1.0)

    index = (got.phi / (torch.pi / 2) * steps).round() - 1
    assert sorted(set(index.tolist())) == list(range(steps))
    phis = literal.cosine_grid(steps, index, substeps)
    z = state = state_of(given, phis[0])
    known = None if config.addim_eta is None else given.x.double()
    for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
        out = teacher.raw(state, phi)
        if settings:
            state = literal.addim(state, out, phi, phi_next, "v_prediction", known)
        else:
            state = literal.ddim(state, out, phi, phi_next, "v_prediction")
    x_star = literal.one_step_x(z, state, phis[0], phis[-1])
    pred = student.raw(z.float(), phis[0]).double()
    given = (pred, z, x_star, phis[0], "v_prediction", "truncated_snr")
    expected = literal.loss(*given) if loss_type == "l2" else literal.robust_loss(*given, "l1", None)
    torch.testing.assert_close(got.loss.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["sample", "sample_epsilon"])
def test_addim_teachers_of_other_prediction_types(prediction_type, tmp_path):
    teacher = Denoiser(Scaled(ops.names.heads(prediction_type)), sample_shape=SHAPE, prediction_type=prediction_type)
    student = distill(
        teacher,
        rounds=1,
        end_steps=4,
        data=data(),
        output_dir=str(tmp_path),
        updates_per_round=3,
        teacher_sampler="addim",
        **QUICK,
    )
    assert student.prediction_type == prediction_type
    assert torch.isfinite(student.network.scale).all()


def test_addim_stops_where_ddim_is_better():
    teacher, given = MixtureDenoiser([0.0], [0.5], sample_shape=SHAPE), batch()
    student = Denoiser(Scaled(), sample_shape=SHAPE)

    def loss(steps, **settings):
        config = DistillConfig(output_dir="x", rounds=2, end_steps=steps, **settings)
        return DistillationObjective(teacher, steps, config)(student, given, 1.0).loss

    addim = {"teacher_sampler": "addim"}
    assert torch.equal(loss(2), loss(2, **addim)) and not torch.equal(loss(4), loss(4, **addim))
    assert not torch.equal(loss(2), loss(2, addim_min_steps=2, **addim))
    assert torch.equal(loss(4), loss(4, addim_eta=0.0, **addim))


@pytest.mark.parametrize(
    ("settings", "teacher_steps"), [({"step_factor": 4, "teacher_substeps": 4}, (16, 4)), ({}, (8, 4, 2))]
)
def test_students_are_compared_with_the_steps_that_they_imitate(settings, teacher_steps, tmp_path):
    teacher = Denoiser(Scaled(), sample_shape=SHAPE)
    rounds = len(teacher_steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distill(teacher, rounds=rounds, data=data(), output_dir=str(tmp_path), updates_per_round=2, **settings, **QUICK)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    ends = [record for record in records if record["event"] == "round_end"]
    factor = settings.get("step_factor", 2)
    assert [record["teacher_steps"] for record in ends] == list(teacher_steps)
    assert [record["steps"] for record in ends] == [n // factor for n in teacher_steps]
    assert [record["label"] for record in ends] == [f"{n} -> {n // factor} steps" for n in teacher_steps]
    report = (tmp_path / "report.html").read_text()
    assert f"student at N to teacher at {factor}N" in report


def test_the_shortcut_of_appendix_i_is_said(tmp_path):
    teacher = Denoiser(Scaled(), sample_shape=SHAPE)
    options = {"step_factor": 4, "data": data(), "updates_per_round": 2, **QUICK}
    with pytest.warns(UserWarning, match="steps 2 times as long.*appendix I.*teacher_substeps = 4"):
        student = distill(teacher, rounds=2, end_steps=2, output_dir=str(tmp_path / "a"), **options)
    ends = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [end["teacher_steps"] for end in ends if end["event"] == "round_end"] == [16, 4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distill(teacher, rounds=1, output_dir=str(tmp_path / "b"), **options)  # a first teacher knows all times
    with pytest.raises(ValueError, match=r"teacher_substeps is 4.*distilled for 2 steps.*divisor of step_factor = 2"):
        options |= {"step_factor": 2, "teacher_substeps": 4}
        distill(student, rounds=1, output_dir=str(tmp_path / "c"), **options)


def test_a_first_teacher_may_take_any_number_of_steps(tmp_path):
    teacher = Denoiser(Scaled(), sample_shape=SHAPE)
    options = {"teacher_substeps": 5, "data": data(), "updates_per_round": 2, "output_dir": str(tmp_path), **QUICK}
    distill(teacher, rounds=1, end_steps=3, **options)
    with pytest.raises(ValueError, match="teacher_substeps is 5, which does not divide step_factor = 2.*rounds = 1"):
        distill(teacher, rounds=2, end_steps=3, overwrite=True, **options)


def test_more_steps_of_the_first_teacher_only(tmp_path):
    teacher = Denoiser(Scaled(), sample_shape=SHAPE)
    options = {"first_teacher_substeps": 5, "data": data(), "updates_per_round": 2, **QUICK}
    student = distill(teacher, rounds=3, output_dir=str(tmp_path / "a"), **options)
    ends = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [end["teacher_steps"] for end in ends if end["event"] == "round_end"] == [20, 4, 2]
    with pytest.raises(ValueError, match="first_teacher_substeps is 5, but the teacher was itself distilled for 4"):
        distill(student.students[4](), rounds=2, output_dir=str(tmp_path / "b"), **options)
    with pytest.raises(ValueError, match="first_teacher_substeps is 17; the teacher takes 2 to 16"):
        DistillConfig(output_dir="x", first_teacher_substeps=17)


@pytest.fixture
def teachers(monkeypatch):
    """The weights of the teacher of every round that is begun."""
    seen, original = [], DistillationObjective.__init__

    def init(self, teacher, steps, config):
        seen.append([p.detach().clone() for p in teacher.network.parameters()])
        original(self, teacher, steps, config)

    monkeypatch.setattr(DistillationObjective, "__init__", init)
    return seen


def same(parameters, others):
    return all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))


@pytest.mark.parametrize("own_network", [False, True])
@pytest.mark.parametrize("next_teacher", ["ema", "raw"])
def test_which_weights_teach_next(own_network, next_teacher, teachers, tmp_path):
    """The kept model is the average either way."""
    if own_network:
        network = Scaled()
    else:
        network = "digits8"
        np.savez(tmp_path / "images.npz", images=np.arange(24 * 64).reshape(24, 8, 8).astype(np.uint8))
    images = data() if own_network else str(tmp_path / "images.npz")
    quick = {k: v for k, v in QUICK.items() if k != "validation_images"}
    teacher = train(images, str(tmp_path / "teacher"), network=network, max_train_steps=2, lr_warmup_steps=0, **quick)
    options = {"next_teacher": next_teacher, "ema_decay": 0.9, "updates_per_round": 4, "learning_rate": 1e-2, **QUICK}
    student = distill(teacher, rounds=2, data=images, output_dir=str(tmp_path / "run"), **options)
    kept = student.students[2]().network.parameters()
    assert same(teachers[1], kept) == (next_teacher == "ema")
    if not own_network:
        folder = tmp_path / "run" / "students" / "steps-0002"
        averaged, raw = (progdistill.load(folder, weights=weights).network.parameters() for weights in ("ema", "raw"))
        assert same(teachers[1], raw if next_teacher == "raw" else averaged)
        assert same(student.network.parameters(), progdistill.load(tmp_path / "run").network.parameters())


@pytest.mark.parametrize("writes", [3, 4])
def test_raw_teachers_and_resuming(writes, tmp_path, monkeypatch):
    """Stopped at the end of the first round, and within the second."""
    teacher = Denoiser(Scaled(), sample_shape=SHAPE)
    options = {"next_teacher": "raw", "ema_decay": 0.9, "updates_per_round": 4, "checkpointing_steps": 2, **QUICK}
    run = lambda folder: distill(teacher, rounds=2, data=data(), output_dir=str(tmp_path / folder), **options)  # noqa: E731
    whole, original, count = run("whole"), MetricsLog.write, iter(range(100))

    def write(self, record):
        if next(count) == writes:
            raise KeyboardInterrupt
        original(self, record)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MetricsLog, "write", write)
        run("resumed")
    assert same(whole.network.parameters(), run("resumed").network.parameters())


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("loss_type", ["l2", "pseudo_huber"])
def test_min_snr_when_training_a_teacher(prediction_type, loss_type, tmp_path):
    """Hang et al. 2023: min(SNR, k) on x, min(SNR, k) / SNR on eps, min(SNR, k) / (SNR + 1) on v."""
    config = TrainConfig(
        output_dir="x", weighting="min_snr", min_snr_gamma=3.0, loss_type=loss_type, huber_c=0.1, prediction_type="v"
    )
    network = Scaled(ops.names.heads(prediction_type))
    student, given = Denoiser(network, sample_shape=SHAPE, prediction_type=prediction_type), batch()
    got = DenoisingObjective(config)(student, given, 1.0)

    noise = ops.normal(given.seeds, given.update, Stream.NOISE, SHAPE).double()
    z, x, alpha, sigma = state_of(given, got.phi), given.x.double(), torch.cos(got.phi), torch.sin(got.phi)
    snr = (alpha / sigma) ** 2
    bounded = snr.clamp(max=3.0)
    wide = lambda t: literal.expand(t, x)  # noqa: E731
    out = student.raw(z.float(), got.phi).double()
    factor, error = {
        "sample": lambda: (bounded, out - x),
        "epsilon": lambda: (bounded / snr, out - noise),
        "v_prediction": lambda: (bounded / (snr + 1), out - wide(alpha) * noise + wide(sigma) * x),
        "sample_epsilon": lambda: (bounded, literal.x_and_eps(z, out, got.phi, prediction_type)[0] - x),
    }[prediction_type]()
    square = wide(factor) * error**2
    value = square if loss_type == "l2" else torch.sqrt(square + 0.1**2) - 0.1
    torch.testing.assert_close(got.loss.double(), value.flatten(1).mean(1), rtol=1e-4, atol=1e-6)

    quick = {k: v for k, v in QUICK.items() if k != "validation_images"}
    settings = {"weighting": "min_snr", "loss_type": loss_type, "prediction_type": prediction_type, "logsnr_min": -20.0}
    teacher = train(data(), str(tmp_path), network=network, max_train_steps=3, **settings, **quick)
    assert torch.isfinite(teacher.network.scale).all()


def test_min_snr_at_snr_zero_is_the_limit():
    """At pure noise x and v errors weigh nothing (Hang et al.'s code puts a 1 there), eps errors 1."""
    z, error, phi = torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([torch.pi / 2], dtype=torch.float64)
    for kind, expected in (("sample", 0.0), ("v_prediction", 0.0), ("epsilon", 1.0)):
        types = {"prediction_type": kind, "target_type": kind, "weighting": "min_snr"}
        assert abs(float(ops.prediction_loss(error, z, z, phi, **types)) - expected) < 1e-30


def test_an_epsilon_teacher_needs_a_schedule_that_it_can_be_sampled_on():
    with pytest.raises(ValueError, match="says nothing about x at SNR 0.*logsnr_min"):
        TrainConfig(output_dir="x", prediction_type="eps")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_substeps": 1}, "teacher_substeps is 1; the teacher takes 2 to 16"),
        ({"teacher_substeps": 17}, "teacher_substeps is 17; the teacher takes 2 to 16"),
        ({"teacher_substeps": 3}, "teacher_substeps is 3, which does not divide step_factor = 2"),
        ({"teacher_sampler": "heun"}, "unknown teacher_sampler 'heun'; use ddim or addim"),
        ({"next_teacher": "best"}, "unknown next_teacher 'best'; use ema or raw"),
        ({"addim_eta": -1.0}, "addim_eta is -1.0"),
        ({"addim_min_steps": 0}, "addim_min_steps is 0"),
        ({"teacher_sampler": "addim", "rounds": 2}, r"addim_min_steps = 4 no round.*students have \[2, 1\] steps"),
        ({"loss_type": "l3"}, "unknown loss type 'l3'; use one of l2, l1, pseudo_huber"),
        ({"huber_c": 0.0}, "huber_c is 0.0; use a number between 1e-9 and 1e9"),
        ({"min_snr_gamma": -5.0}, "min_snr_gamma is -5.0; use a positive number"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(output_dir="x", **settings)
