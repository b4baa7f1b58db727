from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from progdistill.metrics import (
    FeatureClassifier,
    extract_features,
    frechet_distance,
    load_classifier,
    save_classifier,
    statistics_of,
    train_classifier,
)


def stripes(count: int, height: int = 8, width: int = 8, channels: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy images of two classes: a bright left half, a bright top half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    images = torch.randint(0, 100, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    images[labels == 0, :, :, : width // 2] += 120
    images[labels == 1, :, : height // 2] += 120
    return images, labels


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = datasets.load_digits()
    images = (torch.tensor(bunch.images) * (255 / 16)).round().to(torch.uint8)[:, None]
    return images, torch.tensor(bunch.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> tuple[FeatureClassifier, dict]:
    return train_classifier(*digits, data_name="digits")


def test_digits_are_classified_on_the_held_out_part(
    digits: tuple[Tensor, Tensor], trained: tuple[FeatureClassifier, dict]
) -> None:
    classifier, report = trained
    assert report["accuracy"] >= 0.98
    assert (report["train_size"], report["held_out_size"]) == (1617, 180)
    images, labels = digits
    with torch.no_grad():
        whole = (classifier.logits(images).argmax(1) == labels).float().mean()
    assert whole > 0.99
    assert not classifier.training
    assert classifier.description == "Frechet distance (digits classifier features)"


def test_features_tell_digits_from_noise_and_halves_of_the_data_apart(
    digits: tuple[Tensor, Tensor], trained: tuple[FeatureClassifier, dict]
) -> None:
    images, classifier = digits[0], trained[0]
    even, odd = statistics_of(classifier, images[::2]), statistics_of(classifier, images[1::2])
    noisy = images[1::2].float() + 60 * torch.randn(898, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    corrupted = statistics_of(classifier, noisy.round().clamp(0, 255).to(torch.uint8))
    assert frechet_distance(even, corrupted) > 5 * frechet_distance(even, odd)


def test_features_do_not_depend_on_the_other_images_of_a_batch(
    trained: tuple[FeatureClassifier, dict],
) -> None:
    images, _ = stripes(9)
    together = extract_features(trained[0], images)
    apart = extract_features(trained[0], images, batch_size=1)
    assert together.shape == (9, FeatureClassifier.num_features)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


def test_torchmetrics_takes_the_classifier(trained: tuple[FeatureClassifier, dict]) -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    # A copy: set_dtype converts the feature network as well.
    classifier = copy.deepcopy(trained[0])
    metric = fid.FrechetInceptionDistance(feature=classifier, normalize=False).set_dtype(torch.float64)
    a, b = stripes(200)[0], stripes(200, seed=1)[0].flip(1)
    with torch.no_grad():
        metric.update(a, real=True)
        metric.update(b, real=False)
    expected = float(metric.compute())
    found = frechet_distance(statistics_of(trained[0], a), statistics_of(trained[0], b))
    assert found == pytest.approx(expected, rel=1e-5)


def same_weights(a: FeatureClassifier, b: FeatureClassifier) -> bool:
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone() -> None:
    images, labels = stripes(100)
    torch.manual_seed(1)
    first, report = train_classifier(images, labels, max_updates=12)
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    again, report_again = train_classifier(images, labels, max_updates=12)
    other, _ = train_classifier(images, labels, max_updates=12, seed=1)
    assert same_weights(first, again) and report == report_again
    assert not same_weights(first, other)


def test_trains_under_no_grad_and_number_of_updates_is_capped() -> None:
    images, labels = stripes(60)
    with torch.no_grad():
        once, _ = train_classifier(images, labels, max_updates=1)
        twice, _ = train_classifier(images, labels, max_updates=2)
    assert not same_weights(once, twice)


@pytest.mark.parametrize(("height", "width", "turns"), [(8, 8, 4), (8, 12, 2)])
def test_without_labels_it_learns_how_far_an_image_was_turned(height: int, width: int, turns: int) -> None:
    images, _ = stripes(200, height, width)
    images[:, :, height // 2 :] //= 4
    classifier, report = train_classifier(images, None, data_name="stripes", held_out=0.2)
    assert classifier.num_classes == turns
    assert report["accuracy"] > 0.9
    assert report["held_out_size"] == 40
    assert classifier.description == "Frechet distance (stripes rotation classifier features)"
    with torch.no_grad():
        for turn in range(turns):
            turned = images.rot90(turn * (4 // turns), dims=(2, 3))
            assert (classifier.logits(turned).argmax(1) == turn).float().mean() > 0.9


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 32, 32), (4, 9, 17), (2, 8, 64)])
def test_image_sizes(channels: int, height: int, width: int) -> None:
    images, labels = stripes(30, height, width, channels)
    classifier, _ = train_classifier(images, labels, max_updates=2, num_classes=5)
    assert extract_features(classifier, images).shape == (30, 64)
    assert classifier.logits(images).shape == (30, 5)


def test_saved_and_loaded_is_the_same_classifier(tmp_path: Path, trained: tuple[FeatureClassifier, dict]) -> None:
    classifier = trained[0]
    path = tmp_path / "deeper" / "classifier.safetensors"
    save_classifier(classifier, path)
    torch.manual_seed(3)
    loaded = load_classifier(path)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    images, _ = stripes(5)
    assert torch.equal(loaded(images), classifier(images))
    assert loaded.description == classifier.description and loaded.image_size == (8, 8)
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    assert set(load_file(path)) == set(classifier.state_dict())
    assert [entry.name for entry in path.parent.iterdir()] == ["classifier.safetensors"]


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not written by save_classifier"):
        load_classifier(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError):
        load_classifier(tmp_path / "missing.safetensors")


def test_nameless_data() -> None:
    assert FeatureClassifier(1, (8, 8), 2).description == "Frechet distance (classifier features)"


IMAGES, LABELS = stripes(20)


@pytest.mark.parametrize(
    ("images", "labels", "options", "error", "message"),
    [
        (IMAGES.float(), LABELS, {}, TypeError, "float32"),
        (IMAGES[:, :, :7], LABELS, {}, ValueError, "at least 8 x 8"),
        (IMAGES, LABELS.float(), {}, TypeError, "integers"),
        (IMAGES, LABELS[:5], {}, ValueError, r"\(20,\)"),
        (IMAGES, LABELS - 1, {"num_classes": 3}, ValueError, r"-1\.\.0"),
        (IMAGES, LABELS + 1, {"num_classes": 2}, ValueError, r"0\.\.1 \(num_classes=2\), got 1\.\.2"),
        (IMAGES, LABELS * 0, {}, ValueError, "at least 2 classes, got 1.*labels=None"),
        (IMAGES, None, {"num_classes": 3}, ValueError, "4 rotations"),
        (IMAGES, LABELS, {"held_out": 0.0}, ValueError, "held_out=0.0"),
        (IMAGES, LABELS, {"held_out": 1.0}, ValueError, "held_out=1.0"),
        (IMAGES, LABELS, {"max_updates": 0}, ValueError, "max_updates"),
    ],
)
def test_bad_input_is_named(
    images: Tensor, labels: Tensor | None, options: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_classifier(images, labels, **options)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), got \(1, 8, 9\)"):
        FeatureClassifier(1, (8, 8), 2)(torch.zeros(2, 1, 8, 9, dtype=torch.uint8))
