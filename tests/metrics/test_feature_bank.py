from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from progdistill.metrics import (
    METRICS,
    FeatureBank,
    FeatureClassifier,
    PixelFeatures,
    ReferenceStatistics,
    compare,
    density_coverage,
    extract_features,
    frechet_distance,
    frechet_standard_error,
    inception_score,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
    statistics_of,
)
from progdistill.metrics.compare import bank_for, checked_metrics


def some_images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256 - 60 * seed, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def module() -> FeatureClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureClassifier(1, (8, 8), 4).eval()


@pytest.fixture(scope="module")
def reference(module) -> ReferenceStatistics:
    images = some_images(80)
    return ReferenceStatistics(
        statistics_of(module, images), extract_features(module, images), "c", "f", "data", (1, 8, 8)
    )


@pytest.mark.parametrize("batch", [1, 13, 50])
def test_streaming_gives_what_one_pass_over_all_images_gives(module, batch: int) -> None:
    """Features to the rounding of the convolutions, 1e-6 relative."""
    images = some_images(50)
    bank = FeatureBank(module, 50, splits=5)
    for part in images.split(batch):
        bank.add(part)
    assert len(bank) == 50 and bank.image_shape == (1, 8, 8)
    features = extract_features(module, images)
    torch.testing.assert_close(bank.features, features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bank.statistics.covariance, torch.cov(features.double().T), rtol=1e-4, atol=1e-5)
    expected = inception_score(module.logits(images), splits=5)
    assert bank.class_score.mean == pytest.approx(expected.mean, rel=1e-5)


def test_equal_batches_give_equal_bits(module) -> None:
    images = some_images(50)
    bank = FeatureBank(module, 50, batch_size=20)
    bank.add(images)
    assert torch.equal(bank.features, extract_features(module, images, batch_size=20))
    assert torch.equal(bank.statistics.covariance, statistics_of(module, images, batch_size=20).covariance)


def test_features_of_other_processes_join_in_order(module) -> None:
    """Two halves computed apart, put together: the same bank."""
    images = some_images(40)
    whole, joined = FeatureBank(module, 40, splits=2), FeatureBank(module, 40, splits=2)
    whole.add(images[:20])
    whole.add(images[20:])
    for half in images.split(20):
        joined.add_features(*(part.detach() for part in module.features_and_logits(half)))
    assert torch.equal(whole.features, joined.features) and whole.class_score == joined.class_score
    assert torch.equal(whole.statistics.scatter, joined.statistics.scatter)


@pytest.mark.parametrize("batch", [7, 60])
def test_compare_gives_what_each_metric_gives(module, reference, batch: int) -> None:
    images = some_images(60, 1)
    bank = bank_for(module, 60, METRICS, errors=True)
    for part in images.split(batch):
        bank.add(part)
    found = compare(bank, reference, METRICS, errors=True)
    real, fake = reference.features, extract_features(module, images)
    expected = {
        "frechet": (frechet_distance(reference.statistics, statistics_of(module, images)),),
        "kernel": kernel_distance(fake, real)[:2],
        "precision": precision_recall(real, fake)[::2],
        "recall": precision_recall(real, fake)[1::2],
        "density": density_coverage(real, fake)[::2],
        "coverage": density_coverage(real, fake)[1::2],
        "sliced_wasserstein": sliced_wasserstein(fake, real)[:2],
        "inception_score": (inception_score(module.logits(images)).mean,),
    }
    assert set(found) == set(expected)
    for name, (value, *error) in expected.items():
        assert found[name].value == pytest.approx(value, rel=1e-4), name
        if error:
            assert found[name].standard_error == pytest.approx(error[0], rel=1e-3), name
    assert found["frechet"].standard_error == pytest.approx(
        frechet_standard_error(fake, reference.statistics), rel=1e-3
    )
    assert found["kernel"].details["subset_size"] == 60


def test_what_is_not_asked_for_is_not_kept(module, reference) -> None:
    bank = bank_for(module, 10, ("frechet",))
    bank.add(some_images(10))
    with pytest.raises(ValueError, match="no feature vectors"):
        _ = bank.features
    with pytest.raises(ValueError, match="did not look at classes"):
        _ = bank.class_score
    assert list(compare(bank, reference, ("frechet",))) == ["frechet"]
    scored = bank_for(module, 10, ("inception_score",))
    scored.add(some_images(10))
    assert list(compare(scored, None, ("inception_score",))) == ["inception_score"]


def test_bad_input_is_named(module, reference) -> None:
    bank = FeatureBank(module, 10)
    with pytest.raises(ValueError, match="empty"):
        _ = bank.statistics
    with pytest.raises(TypeError, match="float32"):
        bank.add(some_images(2).float())
    bank.add(some_images(8))
    with pytest.raises(ValueError, match="11 images for a bank of 10"):
        bank.add(some_images(3))
    assert len(bank) == 8
    with pytest.raises(ValueError, match=r"\(1, 9, 9\) after .*\(1, 8, 8\)"):
        bank.add(torch.zeros(1, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(ValueError, match="PixelFeatures has no classes"):
        FeatureBank(PixelFeatures(), 10, splits=2)
    with pytest.raises(ValueError, match="use one or more of frechet, kernel"):
        checked_metrics(["fid"])
    with pytest.raises(ValueError, match="need reference statistics"):
        compare(bank, None, ("frechet",))
    bare = ReferenceStatistics(reference.statistics, None, "c", "f", "data", (1, 8, 8))
    with pytest.raises(ValueError, match="hold no feature vectors"):
        compare(bank, bare, ("kernel",))


# 50,000 x 2048: vectors 400 MB, the reference's the same, statistics 4 x 2048^2 x 8 = 134 MB, blocks of the kernel and
# the neighbours 160 MB; measured once, 1.4 GB with torch and the projections. Here 1/500 of the work: 6,000 x 512 are
# 12.3 MB a set and 2 MB a statistics matrix; blocks of 1024 x 4096 and their rows and columns in float64 take 54 MB,
# and selecting in them as much again. Held images would be 74 MB a set, all pairs at once 6,000^2 x 8 = 288 MB.
_CHILD = """
import torch
from progdistill.metrics import FeatureBank, density_coverage

class Wide(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :512].float() / 255

def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def filled(seed, count=6000):
    generator = torch.Generator().manual_seed(seed)
    bank = FeatureBank(Wide(), count)
    for start in range(0, count, 250):
        bank.add(torch.randint(0, 256, (250, 3, 64, 64), dtype=torch.uint8, generator=generator))
    return bank

warm = filled(0, 250)
density_coverage(warm.features, warm.features)
before = peak()
real, fake = filled(0), filled(1)
streamed = peak()
density_coverage(real.features, fake.features)
print(streamed - before, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_features_and_blocks_never_images_or_all_pairs() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    streamed, whole = map(float, done.stdout.split())
    assert 20 < streamed < 60, "two sets of features and their statistics, MB"
    assert whole < 250
