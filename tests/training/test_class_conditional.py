"""Labels from end to end: data, training, distillation, sampling, evaluation, what is saved."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import progdistill
import tiny
from analytic import LINEAR, foreign_teacher
from interop import models
from progdistill.cli import main
from progdistill.core import Denoiser
from progdistill.evaluation import QualityMeter, rows_by_class
from progdistill.metrics import PixelFeatures, frechet_distance, statistics_of
from progdistill.nets.unet import UNet
from progdistill.training import distill, train

CLASSES = 3
QUICK = {"train_batch_size": 16, "progress": False, "device": "cpu", "validation_images": 6, "ema_decay": 0.9}
NETWORK = dataclasses.replace(tiny.NETWORK, block_out_channels=(16,))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Dark, middling and bright images."""
    monkeypatch.chdir(tmp_path)
    labels = np.arange(96) % CLASSES
    noise = np.random.default_rng(0).integers(-20, 21, (96, 8, 8))
    images = (30 + 98 * labels[:, None, None] + noise).clip(0, 255).astype(np.uint8)
    np.savez("labelled.npz", images=images, labels=labels)
    return "labelled.npz"


def test_from_labelled_images_to_a_students_images(data, tmp_path):
    """Train, distil, sample and evaluate by class; the student's folder knows its classes."""
    settings = {k: v for k, v in QUICK.items() if k != "validation_images"}
    teacher = train(
        data,
        "teacher",
        network=NETWORK,
        class_conditional=True,
        max_train_steps=300,
        learning_rate=1e-2,
        lr_warmup_steps=10,
        lr_scheduler="linear",
        **settings,
    )
    student = distill("teacher", rounds=2, output_dir="run", updates_per_round=40, learning_rate=3e-3, **QUICK)
    assert teacher.num_classes == student.num_classes == student.students[2]().num_classes == CLASSES
    for model, steps in ((teacher, 8), (student, 1), (progdistill.load("run"), 2)):
        images = progdistill.sample(model, steps=steps, class_labels=[0, 1, 2] * 8, output_type="pt")
        means = images.reshape(8, 3, -1).mean((0, 2))
        assert means[0] < 0.3 and 0.35 < means[1] < 0.65 and means[2] > 0.7, (steps, means)

    index = json.loads((tmp_path / "run" / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "ConsistencyModelPipeline"
    assert main(["sample", "--model", "run", "--class-labels", "2", "0", "--num-images", "5", "--output", "a.npz"]) == 0
    with np.load("a.npz") as made:
        assert made["labels"].tolist() == [2, 0, 2, 0, 2]
        assert made["arr_0"][::2].mean() > made["arr_0"][1::2].mean() + 100

    evaluate = ["evaluate", "--model", "run", "--data", data, "--features", "pixels", "--num-images", "30"]
    assert main([*evaluate, "--seeds", "2", "--steps", "1", "--per-class", "--output", "quality.json"]) == 0
    quality = json.loads((tmp_path / "quality.json").read_text())
    assert set(quality["classes"]["1"]) == {"0", "1", "2"} and "frechet" in quality["steps"]["1"]


def test_figures_of_a_class_are_those_of_its_images_alone(data):
    """Against the distance of each class's pictures, taken one by one."""
    dataset = progdistill.data.open_dataset(data)
    model = Denoiser(
        models.randomise(UNet(dataclasses.replace(tiny.NETWORK, num_class_embeds=CLASSES))),
        sample_shape=(1, 8, 8),
        num_classes=CLASSES,
    )
    meter = QualityMeter(PixelFeatures(), dataset, num_images=50, seeds=2, per_class=True)
    overall, by_class = meter.measure_classes(model, 2)
    assert overall == meter.measure_all(model, 2) and sorted(by_class) == [0, 1, 2]
    for label, figures in by_class.items():
        real = statistics_of(PixelFeatures(), dataset.images()[dataset.labels == label])
        for k, value in enumerate(figures["frechet"].values):
            seeds = torch.arange(50 * k, 50 * (k + 1))[label::CLASSES]
            images = progdistill.sample(model, steps=2, seed=seeds, class_labels=label, output_type="uint8")
            expected = frechet_distance(real, statistics_of(PixelFeatures(), images.movedim(-1, 1)))
            assert value == pytest.approx(expected, rel=1e-3)


def test_an_epsilon_teacher_with_classes_is_converted_with_them(data, tmp_path):
    network = models.randomise(UNet(dataclasses.replace(tiny.NETWORK, num_class_embeds=CLASSES)))
    teacher = foreign_teacher(network, schedule=LINEAR, sample_shape=(1, 8, 8), num_classes=CLASSES)
    student = distill(teacher, rounds=1, data=data, output_dir="run", updates_per_round=3, **QUICK)
    assert student.num_classes == progdistill.load("run/converted").num_classes == CLASSES
    assert progdistill.sample(student, steps=1, class_labels=[0, 2], output_type="pt").isfinite().all()


def test_rows_of_pictures_by_class():
    images = torch.arange(7).reshape(7, 1, 1, 1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    rows = [("teacher", images), ("student", 10 + images)]
    found = [(name, own.flatten().tolist()) for name, own in rows_by_class(rows, labels, 2)]
    assert found[:3] == [("class 0: teacher", [0, 3]), ("class 0: student", [10, 13]), ("class 1: teacher", [1, 4])]
    assert len(found) == 6
    assert [own.flatten().tolist() for _, own in rows_by_class(rows, None, 3)] == [[0, 1, 2], [10, 11, 12]]
    assert [name for name, _ in rows_by_class([("", torch.zeros(40, 1, 1, 1))], torch.arange(40) % 20, 2)] == [
        f"class {k}" for k in range(10)
    ]


def test_data_that_do_not_fit_the_classes(data, tmp_path):
    network = dataclasses.replace(tiny.NETWORK, num_class_embeds=2)
    teacher = Denoiser(UNet(network), sample_shape=(1, 8, 8), num_classes=2)
    with pytest.raises(ValueError, match=r"conditioned on 2 classes, but .*labelled.npz.* has 3 classes"):
        distill(teacher, rounds=1, data=data, output_dir="run", **QUICK)
    with pytest.raises(ValueError, match=r"conditioned on 2 classes, but .* has no labels"):
        distill(teacher, rounds=1, data=tiny.IMAGES, output_dir="run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_what_has_no_classes_to_measure(data):
    labelled, plain = (progdistill.data.open_dataset(source) for source in (data, tiny.IMAGES))
    model = Denoiser(models.randomise(UNet(tiny.NETWORK)), sample_shape=(1, 8, 8))
    with pytest.raises(ValueError, match="has no labels"):
        QualityMeter(PixelFeatures(), plain, num_images=10, per_class=True)
    with pytest.raises(ValueError, match="says nothing of a single one"):
        QualityMeter(PixelFeatures(), labelled, num_images=10, metrics=["inception_score"], per_class=True)
    with pytest.raises(ValueError, match="per_class=True"):
        QualityMeter(PixelFeatures(), labelled, num_images=10).measure_classes(model, 1)
    meter = QualityMeter(PixelFeatures(), labelled, num_images=10, per_class=True)
    with pytest.raises(ValueError, match="knows no classes"):
        meter.measure_classes(model, 1)
    many = Denoiser(UNet(dataclasses.replace(tiny.NETWORK, num_class_embeds=9)), sample_shape=(1, 8, 8), num_classes=9)
    with pytest.raises(ValueError, match="num_images is 10.*use 18 or more"):
        meter.measure_classes(many, 1)
    meter = QualityMeter(PixelFeatures(), labelled, num_images=18, per_class=True)
    with pytest.raises(ValueError, match="has 0 images of class 3"):
        meter.measure_classes(many, 1)
    assert main(["evaluate", "--images", data, "--data", data, "--per-class", "--features", "pixels"]) == 2
