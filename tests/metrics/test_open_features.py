from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from progdistill.metrics import (
    FeatureClassifier,
    extract_features,
    features_fingerprint,
    features_name,
    open_features,
    save_classifier,
)


def some_images(count: int = 4) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(64, 5), nn.Dropout(0.5))

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.flatten(1).float() / 255)


def test_a_module_is_returned_as_it_is_in_evaluation_mode() -> None:
    module = Network()
    assert open_features(module) is module and not module.training
    assert features_name(module) == "Network features"


def test_a_classifiers_file(tmp_path) -> None:
    classifier = FeatureClassifier(1, (8, 8), 3, data_name="stripes").eval()
    save_classifier(classifier, tmp_path / "c.safetensors")
    opened = open_features(tmp_path / "c.safetensors")
    assert torch.equal(opened(some_images()), classifier(some_images()))
    assert features_name(opened) == "stripes classifier features"
    assert features_fingerprint(opened) == features_fingerprint(classifier)


@pytest.mark.parametrize("suffix", [".ts", ".pt"])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_torchscript_file(suffix: str, frozen: bool, tmp_path) -> None:
    module, path = Network().eval(), tmp_path / f"features{suffix}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(module, some_images())
        (torch.jit.freeze(script) if frozen else script).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = open_features(path)
    torch.testing.assert_close(extract_features(opened, some_images(), batch_size=3), module(some_images()))
    assert features_name(opened) == f"features{suffix} features"
    assert features_fingerprint(opened) == features_fingerprint(open_features(path))
    with torch.no_grad():
        module.inner[0].bias += 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(module, some_images()).save(path)
    assert features_fingerprint(opened) != features_fingerprint(open_features(path))


def test_pixels() -> None:
    images = torch.tensor([[[[0, 255], [51, 204]]]], dtype=torch.uint8)
    torch.testing.assert_close(open_features("pixels")(images), torch.tensor([[-1.0, 1.0, -0.6, 0.6]]))


class Dangerous:
    def __reduce__(self):
        return (print, ("code from a pickle ran",))


def test_pickles_are_refused_without_being_read(tmp_path, capsys) -> None:
    torch.save(Dangerous(), tmp_path / "module.pt")
    with pytest.raises(ValueError, match="module.pt is no TorchScript file"):
        open_features(tmp_path / "module.pt")
    assert "ran" not in capsys.readouterr().out


def test_other_sources_are_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"cannot open features 'inception'; allowed are \"pixels\""):
        open_features("inception")
    with pytest.raises(FileNotFoundError, match="no feature network at .*nowhere.ts"):
        open_features(tmp_path / "nowhere.ts")
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="x.safetensors"):
        open_features(tmp_path / "x.safetensors")
