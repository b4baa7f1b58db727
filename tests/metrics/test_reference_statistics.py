from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from progdistill.metrics import (
    FeatureClassifier,
    GaussianStatistics,
    PixelFeatures,
    ReferenceStatistics,
    features_fingerprint,
    frechet_distance,
    load_reference_statistics,
    save_reference_statistics,
)


def reference(with_features: bool = True) -> ReferenceStatistics:
    features = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)) * 3 + 100
    statistics = GaussianStatistics(5)
    for batch in features.split(13):
        statistics.update(batch)
    kept = features if with_features else None
    return ReferenceStatistics(statistics, kept, "our features", "abc123", "our data", (3, 8, 8), "f00d")


SAME = {"features_name": "our features", "features_fingerprint": "abc123"}


def test_what_is_read_back_gives_the_same_distances_bit_for_bit(tmp_path) -> None:
    before = reference()
    save_reference_statistics(before, tmp_path / "ref.safetensors")
    after = load_reference_statistics(tmp_path / "ref.safetensors")
    other = GaussianStatistics(5)
    other.update(torch.rand(30, 5, generator=torch.Generator().manual_seed(1)))
    assert frechet_distance(after.statistics, other) == frechet_distance(before.statistics, other)
    assert torch.equal(after.features, before.features) and after.count == 60
    assert load_reference_statistics(tmp_path / "ref.safetensors", with_features=False).features is None
    for field in ("features_name", "features_fingerprint", "data_name", "image_shape", "data_fingerprint"):
        assert getattr(after, field) == getattr(before, field)
    after.statistics.merge(other)
    before.statistics.merge(other)
    torch.testing.assert_close(after.statistics.covariance, before.statistics.covariance, rtol=1e-12, atol=1e-12)


def test_without_vectors(tmp_path) -> None:
    save_reference_statistics(reference(with_features=False), tmp_path / "ref.safetensors")
    assert load_reference_statistics(tmp_path / "ref.safetensors").features is None


def test_a_mismatch_names_both_sides() -> None:
    stored = reference()
    stored.require(**SAME)
    stored.require(**SAME, data_name="moved", count=60, image_shape=(3, 8, 8), data_fingerprint="f00d")
    with pytest.raises(ValueError, match=r"our features \(weights abc123\) there, pixels \(weights 77\) here"):
        stored.require(features_name="pixels", features_fingerprint="77")
    with pytest.raises(ValueError, match="weights abc123.*weights def"):
        stored.require(features_name="our features", features_fingerprint="def")
    with pytest.raises(ValueError, match=r"our data \(60 images\) there, our data \(61 images\) here"):
        stored.require(**SAME, data_name="our data", count=61)
    with pytest.raises(ValueError, match="our data .* there, other"):
        stored.require(**SAME, data_name="other")
    with pytest.raises(ValueError, match="our data .* there, our data"):
        stored.require(**SAME, data_name="our data", data_fingerprint="beef")
    with pytest.raises(ValueError, match=r"x cannot be used: .*\(3, 8, 8\) there, \(1, 8, 8\)"):
        stored.require(**SAME, image_shape=(1, 8, 8), where="x")


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "ref.safetensors"
    save_reference_statistics(reference(), path)
    content = path.read_bytes()
    bad = dataclasses.replace(reference(), data_name=object())
    with pytest.raises(TypeError):
        save_reference_statistics(bad, path)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["ref.safetensors"]


def test_foreign_and_damaged_files_are_refused(tmp_path) -> None:
    path = tmp_path / "ref.safetensors"
    with pytest.raises(FileNotFoundError):
        load_reference_statistics(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="holds no reference statistics"):
        load_reference_statistics(path)
    save_file({"mean": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="has no 'progdistill_reference_statistics'"):
        load_reference_statistics(path)
    save_reference_statistics(reference(), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="holds no reference statistics"):
        load_reference_statistics(path)
    wrong = dataclasses.replace(reference(), features=torch.zeros(59, 5))
    save_reference_statistics(wrong, path)
    with pytest.raises(ValueError, match=r"damaged.*\(59, 5\)"):
        load_reference_statistics(path)
    broken = reference()
    broken.statistics.scatter[1, 1] = -1.0
    save_reference_statistics(broken, path)
    with pytest.raises(ValueError, match="negative variance"):
        load_reference_statistics(path)


def test_fingerprint_follows_the_weights() -> None:
    module = FeatureClassifier(1, (8, 8), 3)
    before = features_fingerprint(module)
    assert before == features_fingerprint(module) and len(before) == 32
    with torch.no_grad():
        module.hidden.bias[0] += 1e-6
    assert features_fingerprint(module) != before
    assert features_fingerprint(PixelFeatures()) == features_fingerprint(PixelFeatures())
