from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from progdistill.metrics import extract_features, statistics_of


class Recorder(nn.Module):
    """Returns mean and maximum of each image, and notes how it was called."""

    def __init__(self, *, trailing_axes: bool = False) -> None:
        super().__init__()
        self.inner = nn.Dropout()
        self.trailing_axes = trailing_axes
        self.calls: list[tuple[int, bool, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8
        self.calls.append((len(images), self.training or self.inner.training, torch.is_grad_enabled()))
        flat = images.flatten(1).double()
        features = torch.stack([flat.mean(1), flat.amax(1)], dim=1)
        return features[..., None, None] if self.trailing_axes else features


def some_images(count: int = 10) -> Tensor:
    return torch.randint(0, 256, (count, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("trailing_axes", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_features_come_in_order_as_float32(trailing_axes: bool, batch_size: int) -> None:
    images = some_images()
    module = Recorder(trailing_axes=trailing_axes)
    features = extract_features(module, images, batch_size=batch_size)
    assert features.dtype == torch.float32 and features.shape == (10, 2)
    assert torch.equal(features[:, 1], images.flatten(1).amax(1).float())
    assert max(count for count, _, _ in module.calls) <= batch_size


def test_runs_in_evaluation_mode_without_gradients_and_restores_every_mode() -> None:
    module = Recorder()
    module.train()
    module.inner.eval()
    extract_features(module, some_images())
    assert module.calls == [(10, False, False)]
    assert module.training and not module.inner.training
    assert torch.is_grad_enabled()


def test_modes_are_restored_when_the_module_fails() -> None:
    class Failing(Recorder):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("broken")

    module = Failing()
    with pytest.raises(RuntimeError, match="broken"):
        statistics_of(module, some_images())
    assert module.training and module.inner.training


def test_gradients_stay_on_for_the_caller_while_statistics_are_gathered() -> None:
    weight = torch.ones(2, requires_grad=True)
    statistics_of(Recorder(), some_images(), batch_size=3)
    (weight * 2).sum().backward()
    assert weight.grad is not None


def test_statistics_are_those_of_the_features() -> None:
    images = some_images(50)
    features = extract_features(Recorder(), images).double()
    statistics = statistics_of(Recorder(), images, batch_size=7)
    assert statistics.count == 50
    torch.testing.assert_close(statistics.mean, features.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.covariance, torch.cov(features.T), rtol=1e-12, atol=1e-10)


def test_device_argument_moves_module_and_images() -> None:
    class OnMeta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            assert images.device == self.weight.device == torch.device("meta")
            return torch.zeros(len(images), 2)

    assert extract_features(OnMeta(), some_images(), device="meta").shape == (10, 2)
    assert extract_features(OnMeta().to("meta"), some_images()).shape == (10, 2)


class Returning(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> object:
        return self.value


@pytest.mark.parametrize(
    ("module", "images", "error", "message"),
    [
        (Recorder(), some_images().float(), TypeError, "uint8.*float32"),
        (Recorder(), [1, 2], TypeError, "list"),
        (Recorder(), some_images()[0], ValueError, r"\(1, 4, 6\)"),
        (Recorder(), some_images()[:0], ValueError, r"\(0, 1, 4, 6\)"),
        (Returning("text"), some_images(), TypeError, "str"),
        (Returning(torch.zeros(10, 2, dtype=torch.uint8)), some_images(), TypeError, "uint8"),
        (Returning(torch.zeros(9, 2)), some_images(), ValueError, r"\(10, F\).*\(9, 2\)"),
        (Returning(torch.zeros(10, 2, 3, 3)), some_images(), ValueError, r"\(10, 2, 3, 3\)"),
        (Returning(torch.full((10, 2), float("inf"))), some_images(), ValueError, "10 of 10"),
    ],
)
def test_bad_input_is_named(module: nn.Module, images: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        statistics_of(module, images)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="got 0"):
        extract_features(Recorder(), some_images(), batch_size=0)
