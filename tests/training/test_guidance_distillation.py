"""Guidance distillation: guidance enters once, in stage one, and is never applied again."""

import dataclasses

import numpy as np
import pytest
import torch

import literal
import progdistill
import tiny
import tiny_models
from interrupted_runs import Interrupted, interrupt_at, lines
from progdistill.core import Condition, CosineSchedule
from progdistill.core.random import Stream, uniform
from progdistill.ops import diffuse_seeded
from progdistill.training import DistillConfig, convert, distill, train, update_graph
from progdistill.training.batches import Batch
from progdistill.training.conversion_objective import ConversionObjective
from progdistill.training.distill import DistillationObjective
from progdistill.training.guidance import GuidanceObjective, guided_student, with_drawn_guidance
from progdistill.training.run_fingerprint import fingerprint
from recorded_graph import CpuRecorder

QUICK = {"train_batch_size": 8, "progress": False, "device": "cpu", "logging_steps": 2, "checkpointing_steps": 3}
QUICK |= {"validation_images": 4, "ema_decay": 0.9}
RANGE = (1.0, 4.0)


def guidable(prediction_type="v_prediction", **description):
    """Classes 0 and 1, and label 2 for none."""
    model = tiny_models.model(prediction_type, classes=3, **description)
    return model.with_network(model.network, num_classes=2, unconditional_label=2)


def with_scales(teacher):
    """A network that takes a scale, and makes something of it."""
    guided = guided_student(teacher, RANGE)
    torch.nn.init.normal_(guided.network.guidance_embedding.projection.weight)
    return guided


def batch(count=64, update=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, 8, 8, generator=generator) * 2 - 1
    return Batch(x, torch.arange(count), update, Condition(torch.arange(count) % 2))


def config(**settings):
    options = {"output_dir": "nowhere", "weighting": "snr_plus_one", "rounds": 3, "end_steps": 1, **settings}
    return DistillConfig(**options)


class Calls:
    """Counts the samples of each call of a network."""

    def __init__(self, model):
        self.sizes = []
        model.network.register_forward_pre_hook(lambda module, inputs: self.sizes.append(len(inputs[0])))


def test_drawn_scales_fill_the_range_and_are_each_samples_own():
    student = with_scales(guidable())
    scales = with_drawn_guidance(batch(4096), student).guidance_scale
    assert scales.dtype == torch.float32 and 1 <= scales.min() < 1.01 and 3.99 < scales.max() <= 4
    assert abs(scales.mean() - 2.5) < 0.05 and abs(scales.std() - 3 / 12**0.5) < 0.05
    alone = dataclasses.replace(batch(4096), x=batch(2).x, seeds=torch.tensor([7, 11]), cond=Condition(torch.ones(2)))
    assert torch.equal(with_drawn_guidance(alone, student).guidance_scale, scales[[7, 11]])
    later = with_drawn_guidance(batch(4096, update=torch.tensor(4)), student).guidance_scale
    assert not torch.equal(later, scales)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "sample_epsilon"])
def test_stage_one_is_the_error_against_the_guided_prediction(prediction_type):
    """||v_student(z, w, c) - ((1 + w) v_c - w v_u)||^2, literally, in float64."""
    teacher, given = guidable(prediction_type), batch()
    student = with_scales(guidable(prediction_type))
    calls = Calls(teacher)
    loss = GuidanceObjective(teacher, config())(student, given, 1.0)
    assert calls.sizes == [128]
    phi = student.schedule.angle(uniform(given.seeds, given.update, Stream.TIME))
    z = diffuse_seeded(given.x, given.seeds, given.update, Stream.NOISE, phi)
    cond = with_drawn_guidance(given, student)
    w = literal.expand(cond.guidance_scale.double() - 1, z)
    nothing = Condition(torch.full_like(cond.class_labels, 2))
    v_c, v_u = (teacher.v(z, phi, asked).double() for asked in (given.cond, nothing))
    expected = (student.v(z, phi, cond).double() - ((1 + w) * v_c - w * v_u)).square().flatten(1).mean(1)
    torch.testing.assert_close(loss.loss.double(), expected, rtol=1e-4, atol=1e-6)


def two_steps(teacher, z, phis, cond):
    """The literal DDIM steps of a network that is told the scale, and is called once for each."""
    network = teacher.network.double()
    for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
        out = network(z.double(), teacher.time_map(phi), cond.class_labels, cond.guidance_scale - 1)
        z = literal.ddim(z.double(), out, phi, phi_next, teacher.prediction_type)
    network.float()
    return z


def test_stage_two_never_guides_again():
    """Two rounds: in each the target is two of the teacher's own steps at the sample's own scale, no extrapolation.

    In the second the teacher is a student of the first; at a scale of 4 a guidance that compounds would be 16.
    """
    teacher, given = with_scales(guidable()), batch()
    for steps in (4, 2):
        objective = DistillationObjective(teacher, steps, config())
        student = with_scales(guidable())
        calls, own = Calls(teacher), Calls(student)
        loss = objective(student, given, 1.0)
        assert calls.sizes == [64, 64] and own.sizes == [64], "a doubled batch is guidance"

        cond = with_drawn_guidance(given, student)
        phi = loss.phi
        phi_next = student.schedule.angle(student.schedule.time(phi) - 1 / steps).clamp(min=0)
        middle = student.schedule.angle(student.schedule.time(phi) - 0.5 / steps)
        z = diffuse_seeded(given.x, given.seeds, given.update, Stream.NOISE, phi)
        with torch.no_grad():
            goal = two_steps(teacher, z, (phi, middle, phi_next), cond)
            out = student.raw(z, phi, cond).double()
        # One step of the student's v would go to cos(d) z - sin(d) v: what v would have gone to the goal?
        angle = literal.expand(phi - phi_next, z)
        target = (torch.cos(angle) * z.double() - goal) / torch.sin(angle)
        expected = (out - target).square().flatten(1).mean(1)
        torch.testing.assert_close(loss.loss.double(), expected, rtol=1e-4, atol=1e-5)
        teacher = student.with_network(student.network, valid_steps=(steps,))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def quick_distill(teacher, folder, **settings):
    labelled = {"data": list(zip(torch.from_numpy(tiny.IMAGES) / 127.5 - 1, np.arange(24) % 2, strict=True))}
    options = {"rounds": 2, "updates_per_round": 5, "guidance_range": RANGE, "guidance_updates": 7, **labelled, **QUICK}
    return distill(teacher, output_dir=str(folder), **{**options, **settings})


def test_a_run_guides_first_and_resumes_bit_for_bit(tmp_path, capsys, monkeypatch):
    student = quick_distill(guidable(), tmp_path / "run")
    assert (
        "round 0 makes the guidance scale an input of the network first, 1 to 4 (7 updates)" in capsys.readouterr().out
    )
    assert student.guidance_range == RANGE and student.unconditional_label is None and student.valid_steps == (1,)
    guided = progdistill.load(tmp_path / "run" / "guided")
    assert guided.guidance_range == RANGE and guided.valid_steps is None and guided.provenance["recipe"] == "guidance"
    ends = [line for line in lines(tmp_path / "run") if line["event"] == "round_end"]
    assert [(end["round"], end["updates"]) for end in ends] == [(0, 7), (1, 5), (2, 5)]
    assert ends[0]["label"] == "guidance 1 to 4" and ends[0]["sampling_steps"] == 4 and "guidance_distance" in ends[0]
    assert student.provenance["teacher"]["teacher"]["recipe"] == "guidance"
    assert (tmp_path / "run" / "samples" / "guided-update-0000007.png").exists()
    assert "guidance 1 to 4" in (tmp_path / "run" / "report.html").read_text()

    interrupt_at(monkeypatch, 3, 8)
    for _ in range(2):
        with pytest.raises(Interrupted):
            quick_distill(guidable(), tmp_path / "again")
    again = quick_distill(guidable(), tmp_path / "again")
    assert torch.equal(weights(again), weights(student)) and lines(tmp_path / "again") == lines(tmp_path / "run")
    assert torch.equal(weights(quick_distill(guidable(), tmp_path / "run")), weights(student))

    # A guided student can be distilled further, as what it is.
    more = quick_distill(guided, tmp_path / "more", rounds=1, guidance_range=None, guidance_updates=None)
    assert more.guidance_range == RANGE


def test_an_epsilon_teacher_is_converted_and_can_still_be_guided(tmp_path):
    schedule = CosineSchedule(-10, 9)
    teacher = guidable("epsilon", schedule=schedule)
    seen = []
    teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[2]))
    ConversionObjective(teacher, config(zero_snr="finetune"))(guidable(schedule=schedule), batch(512), 1.0)
    assert 0.05 < (seen[0] == 2).float().mean() < 0.15, "no labels are dropped"
    student = quick_distill(guidable("epsilon", schedule=schedule), tmp_path, conversion_updates=2)
    ends = [line["label"] for line in lines(tmp_path) if line["event"] == "round_end"]
    assert ends == ["epsilon -> v_prediction", "guidance 1 to 4", "4 -> 2 steps", "2 -> 1 steps"]
    assert progdistill.load(tmp_path / "converted").unconditional_label == 2
    assert student.guidance_range == RANGE and student.students[2]().guidance_range == RANGE


def test_a_two_headed_student_that_takes_a_scale_is_converted_at_scales_of_its_range(tmp_path):
    student = with_scales(guidable("sample_epsilon"))
    data = list(zip(torch.from_numpy(tiny.IMAGES) / 127.5 - 1, np.arange(24) % 2, strict=True))
    seen = []
    student.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    converted = convert(student, data=data, output_dir=str(tmp_path), updates=2, **QUICK)
    assert converted.guidance_range == RANGE and converted.prediction_type == "v_prediction"
    assert seen[0].std() > 0.3 and seen[0].min() >= 0 and seen[0].max() <= 3
    progdistill.sample(progdistill.load(tmp_path), 2, class_labels=1, guidance_scale=4.0)


def test_without_a_range_students_are_unguided(tmp_path, capsys):
    student = quick_distill(guidable(), tmp_path, guidance_range=None, guidance_updates=None)
    assert "its students will be unguided" in capsys.readouterr().out
    assert student.guidance_range is None and student.unconditional_label is None
    with pytest.raises(ValueError, match="cannot be guided"):
        progdistill.sample(student, 1, class_labels=0, guidance_scale=2.0)


def test_graphs_do_guided_rounds_with_the_bits_of_eager_updates(tmp_path, monkeypatch):
    """Label dropout, scales and conversion are functions of device memory: no look at a value by the host."""
    recorded = []
    monkeypatch.setattr(update_graph, "CudaRecorder", lambda device: recorded.append(device) or CpuRecorder(device))
    monkeypatch.setattr(update_graph, "_obstacle", lambda *_: None)
    teacher = guidable("epsilon", schedule=CosineSchedule(-10, 9))
    settings = {"rounds": 1, "conversion_updates": 3, "guidance_updates": 3, "updates_per_round": 3}
    settings |= {"zero_snr": "finetune", "mixed_precision": "bf16", "next_teacher": "raw"}
    eager = quick_distill(teacher, tmp_path / "eager", cuda_graph=False, **settings)
    assert not recorded
    graphs = quick_distill(teacher, tmp_path / "graphs", **settings)
    assert len(recorded) == 3 and torch.equal(weights(eager), weights(graphs))
    assert lines(tmp_path / "eager") == lines(tmp_path / "graphs")


def brightness(model, steps, scale):
    """How far images of class 1 are above, and those of class 0 below, the middle, of a range of 1."""
    labels = torch.arange(64) % 2
    images = progdistill.sample(
        model, steps, seed=range(64), class_labels=labels, guidance_scale=scale, output_type="pt"
    )
    return float(((2 * images - 1).mean((1, 2, 3)) * (2 * labels - 1)).mean())


def test_from_label_dropout_to_a_student_that_is_guided_once(tmp_path):
    """Dark and bright images that overlap: guidance drives them apart, by as much after two rounds as before."""
    random = np.random.default_rng(0)
    labels = np.arange(256) % 2
    level = np.where(labels == 0, -0.3, 0.3) + 0.25 * random.standard_normal(256)
    images = (level[:, None, None] + 0.03 * random.standard_normal((256, 8, 8))).clip(-1, 1)
    np.savez(tmp_path / "data.npz", images=(images * 127.5 + 127.5).round().astype(np.uint8), labels=labels)
    settings = {**QUICK, "train_batch_size": 32, "logging_steps": 100, "checkpointing_steps": 1000}
    images = settings.pop("validation_images")
    teacher = train(
        str(tmp_path / "data.npz"),
        str(tmp_path / "teacher"),
        network=dataclasses.replace(tiny.NETWORK, block_out_channels=(16,)),
        class_conditional=True,
        label_dropout=0.2,
        max_train_steps=300,
        learning_rate=1e-2,
        lr_warmup_steps=10,
        lr_scheduler="linear",
        **settings,
    )
    assert (teacher.num_classes, teacher.unconditional_label, teacher.network.config.num_class_embeds) == (2, 2, 3)
    options = {"rounds": 2, "end_steps": 2, "guidance_range": RANGE, "guidance_updates": 250, "updates_per_round": 60}
    options |= {"learning_rate": 5e-3, "validation_images": images}
    student = distill(str(tmp_path / "teacher"), output_dir=str(tmp_path / "run"), **options, **settings)
    told = {scale: brightness(teacher, 8, scale) for scale in (1.0, 2.0, 3.0)}
    assert told[2.0] - told[1.0] > 0.12 and told[3.0] - told[2.0] > 0.08, "guidance does not matter"
    for scale, expected in told.items():
        assert abs(brightness(student.students[4](), 4, scale) - expected) < 0.07
        assert abs(brightness(student, 2, scale) - expected) < 0.07


def test_what_cannot_be_guided_is_refused_before_anything_is_written(tmp_path):
    labelled = tiny_models.model(classes=2)
    student = with_scales(guidable())
    distilled = guidable().with_network(guidable().network, num_classes=2, unconditional_label=2, valid_steps=(4,))
    cases = (
        (labelled, {}, "train it with class_conditional and label_dropout"),
        (student, {}, r"takes a guidance scale \(1 to 4\) already"),
        (distilled, {}, "start from the teacher that it was distilled from"),
        (guidable(), {"guidance_range": (0.5, 2)}, "guidance_range is .*1 being no"),
        (guidable(), {"guidance_range": (3, 2)}, "the lowest and the highest scale"),
        (guidable(), {"guidance_range": None}, "guidance_updates is 7, but there is no guidance_range"),
        (guidable(), {"teacher_sampler": "addim", "end_steps": 4}, "a guided prediction is meant to differ"),
    )
    for teacher, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            quick_distill(teacher, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_runs_from_before_there_was_guidance_resume():
    assert not {"guidance_range", "guidance_updates"} & set(fingerprint(config()))
    assert fingerprint(config(guidance_range=[1, 5]))["guidance_range"] == (1.0, 5.0)
    assert "label_dropout" not in fingerprint(progdistill.training.TrainConfig(output_dir="nowhere"))
