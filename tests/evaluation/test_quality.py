"""Models against a data set: numbers, streaming, seeds shared out, reference statistics in a file."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from analytic import MixtureDenoiser
from progdistill.core import Denoiser
from progdistill.data import open_dataset, to_uint8
from progdistill.evaluation import Quality, QualityMeter, features_of_seeds, measure_dataset, reference_statistics
from progdistill.evaluation.reference import dataset_fingerprint
from progdistill.metrics import (
    METRICS,
    FeatureBank,
    FeatureClassifier,
    PixelFeatures,
    extract_features,
    frechet_distance,
    kernel_distance,
    load_reference_statistics,
    precision_recall,
    statistics_of,
)
from progdistill.sampling import generate

SHAPE = (1, 8, 8)


class Model(MixtureDenoiser):
    """Pixels around -0.5 and 0.5; counts the images of each call."""

    def __init__(self) -> None:
        super().__init__([-0.5, 0.5], [0.1, 0.2], sample_shape=SHAPE)
        self.calls: list[int] = []

    def raw(self, z: Tensor, phi: Tensor, cond=None) -> Tensor:
        self.calls.append(len(z))
        return super().raw(z, phi, cond)


@pytest.fixture(scope="module")
def dataset():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, *SHAPE), dtype=torch.uint8, generator=generator)
    return open_dataset(images)


@pytest.fixture(scope="module")
def classifier() -> FeatureClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureClassifier(1, (8, 8), 4).eval()


def set_of(model: Denoiser, count: int, k: int, steps: int = 2) -> Tensor:
    return to_uint8(generate(model, steps, seeds=torch.arange(k * count, (k + 1) * count)).cpu())


def test_frechet_distances_are_those_of_whole_sets_bit_for_bit(classifier, dataset) -> None:
    """More images than a batch: streaming changes nothing."""
    meter = QualityMeter(classifier, dataset, num_images=300, seeds=2)
    found = meter.measure(Model(), 2)
    reference = statistics_of(classifier, dataset.images())
    expected = [frechet_distance(reference, statistics_of(classifier, set_of(Model(), 300, k))) for k in range(2)]
    assert list(found.values) == expected
    assert found.mean == pytest.approx(sum(expected) / 2) and found.deviation == pytest.approx(
        abs(expected[0] - expected[1]) / 2**0.5
    )
    assert meter.distance(set_of(Model(), 300, 0)) == expected[0]
    assert set(found.record()) == {"mean", "deviation", "values"}


def test_all_metrics_come_from_one_pass(classifier, dataset) -> None:
    model = Model()
    meter = QualityMeter(classifier, dataset, num_images=260, seeds=2, metrics=METRICS)
    found = meter.measure_all(model, 2)
    assert model.calls == [256, 256, 4, 4] * 2, "each image is generated once, 256 at a time"
    assert len(found) == 8 and all(len(quality.values) == 2 for quality in found.values())
    assert found["frechet"].values == meter.measure(Model(), 2).values
    fake, real = extract_features(classifier, set_of(Model(), 260, 1)), extract_features(classifier, dataset.images())
    kernel, shares = kernel_distance(fake, real), precision_recall(real, fake)
    assert found["kernel"].values[1] == pytest.approx(kernel.value, rel=1e-9)
    assert found["kernel"].standard_errors[1] == pytest.approx(kernel.standard_error, rel=1e-9)
    assert (found["precision"].values[1], found["recall"].values[1]) == (shares.precision, shares.recall)
    assert found["frechet"].standard_errors == ()


def test_seeds_may_be_shared_out_among_processes(classifier) -> None:
    """Two shares, joined in order, are the whole set: equal to the rounding of smaller batches."""
    bank, whole = FeatureBank(classifier, 300, splits=3), FeatureBank(classifier, 300, splits=3)
    for share in torch.arange(300).split(150):
        for batch in features_of_seeds(Model(), 2, share, classifier, with_logits=True):
            bank.add_features(*batch)
    whole.add(set_of(Model(), 300, 0))
    torch.testing.assert_close(bank.features, whole.features, rtol=1e-5, atol=1e-5)
    assert bank.class_score.mean == pytest.approx(whole.class_score.mean, rel=1e-6)


class Labelled(Denoiser):
    """Predicts v so that one step from pure noise gives the constant image of the label."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), sample_shape=SHAPE, num_classes=5)

    def raw(self, z: Tensor, phi: Tensor, cond=None) -> Tensor:
        return -(cond.class_labels.view(-1, 1, 1, 1) / 4 - 0.5).expand_as(z).to(z.dtype)


def test_labels_and_latents_follow_their_images_through_the_batches() -> None:
    labels = torch.arange(300) % 5
    batches = features_of_seeds(Labelled(), 1, torch.arange(300), PixelFeatures(), class_labels=labels)
    found = torch.cat([features for features, _ in batches])
    torch.testing.assert_close(found[:, 0], labels / 4 - 0.5, atol=5e-3, rtol=0)
    latents = torch.randn(300, *SHAPE, generator=torch.Generator().manual_seed(1))
    batches = features_of_seeds(Model(), 1, torch.arange(300), PixelFeatures(), latents=latents)
    found = torch.cat([features for features, _ in batches])
    expected = generate(Model(), 1, seeds=torch.arange(300), latents=latents).flatten(1)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_a_kept_student_is_read_once(classifier) -> None:
    teacher, read = Model(), []
    student = Model()
    student.valid_steps = (4,)

    def load() -> Model:
        read.append(1)
        return teacher

    student.students[2] = load
    assert len(list(features_of_seeds(student, 2, torch.arange(600), classifier))) == 3
    assert len(read) == 1


def test_reference_statistics_are_made_then_reused(classifier, dataset, tmp_path) -> None:
    path = tmp_path / "ref.safetensors"
    first = QualityMeter(classifier, dataset, num_images=50, seeds=1, reference_file=path)
    made = path.stat()
    assert load_reference_statistics(path).features is None
    for data in (dataset, None):
        again = QualityMeter(classifier, data, num_images=50, seeds=1, reference_file=path)
        assert again.measure(Model(), 1) == first.measure(Model(), 1)
    assert path.stat().st_mtime_ns == made.st_mtime_ns
    with pytest.raises(ValueError, match="holds no feature vectors.*name the data set too"):
        QualityMeter(classifier, None, num_images=50, metrics=["kernel"], reference_file=path)
    QualityMeter(classifier, dataset, num_images=50, metrics=["kernel"], reference_file=path)
    torch.testing.assert_close(load_reference_statistics(path).features, extract_features(classifier, dataset.images()))
    with pytest.raises(ValueError, match="classifier features .* there, pixels .* here"):
        QualityMeter(PixelFeatures(), dataset, num_images=50, reference_file=path)
    fewer = open_dataset(dataset.images()[:200])
    with pytest.raises(ValueError, match=r"300 images\) there, .*200 images\) here"):
        QualityMeter(classifier, fewer, num_images=50, reference_file=path)
    changed = dataset.images().clone()
    changed[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="cannot be used: data"):
        QualityMeter(classifier, open_dataset(changed), num_images=50, reference_file=path)
    with pytest.raises(FileNotFoundError, match="no reference statistics at .*nowhere"):
        reference_statistics(classifier, None, tmp_path / "nowhere")


def test_a_data_set_is_read_batch_by_batch(classifier, tmp_path, monkeypatch) -> None:
    import numpy as np

    monkeypatch.setenv("PROGDISTILL_DATA_CACHE_BYTES", "0")
    images = torch.randint(0, 256, (600, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    np.save(tmp_path / "images.npy", images.numpy())
    dataset = open_dataset(tmp_path / "images.npy")
    sizes, take = [], dataset.batch
    monkeypatch.setattr(dataset, "batch", lambda indices: (sizes.append(len(indices)), take(indices))[1])
    monkeypatch.setattr(dataset, "images", lambda: pytest.fail("all images at once"))
    found = measure_dataset(classifier, dataset)
    assert max(sizes) == 256
    assert torch.equal(found.statistics.covariance, statistics_of(classifier, images).covariance)


def test_fingerprint_of_a_data_set_is_that_of_its_images(dataset) -> None:
    images = dataset.images()
    assert dataset_fingerprint(open_dataset(images.numpy())) == dataset_fingerprint(dataset)
    assert dataset_fingerprint(open_dataset(images.flip(0))) != dataset_fingerprint(dataset)
    assert len(dataset_fingerprint(open_dataset(images[:3]))) == 32


def test_without_a_reference(classifier) -> None:
    meter = QualityMeter(classifier, None, num_images=50, seeds=1, metrics=["inception_score"])
    assert isinstance(meter.measure_all(Model(), 1)["inception_score"], Quality)
    with pytest.raises(ValueError, match="no reference"):
        _ = meter.reference
    with pytest.raises(FileNotFoundError, match="no data set to measure"):
        QualityMeter(classifier, None, num_images=50)


def test_bad_settings(classifier, dataset) -> None:
    with pytest.raises(ValueError, match="got 0 and 3"):
        QualityMeter(classifier, dataset, num_images=0)
    with pytest.raises(ValueError, match="use one or more of"):
        QualityMeter(classifier, dataset, num_images=10, metrics=["lpips"])
