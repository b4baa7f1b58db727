"""The FID's Inception on random weights: its real ones cannot be had here. Written a second time as plain functions."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from progdistill.metrics import (
    InceptionFeatures,
    TorchScriptInception,
    extract_features,
    load_inception,
    metric_names,
    open_features,
)
from progdistill.metrics.inception import resize_like_tensorflow


def random_weights() -> dict[str, Tensor]:
    """He initialisation, and batch statistics near 0 and 1, so that activations neither vanish nor explode."""
    network, generator = InceptionFeatures(), torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in network.state_dict().items():
        if tensor.ndim >= 2:
            weights[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("bn.weight", "running_var")):
            weights[name] = 0.8 + 0.4 * torch.rand(tensor.shape, generator=generator)
        elif not name.endswith("num_batches_tracked"):
            weights[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
    return weights


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def network(weights, tmp_path_factory) -> InceptionFeatures:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(weights, path)
    return load_inception(path)


def some_images(count: int = 2, channels: int = 3, size: tuple[int, int] = (20, 28)) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, *size), dtype=torch.uint8, generator=generator)


def literal_features(w: dict[str, Tensor], images: Tensor) -> Tensor:
    """Szegedy et al. (2016), figures 5, 6, 7 and 10, with the FID variant's pooling, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}

    def conv(x, name, stride=1, padding=0):
        y = F.conv2d(x, w[f"{name}.conv.weight"], stride=stride, padding=padding)
        column = lambda part: w[f"{name}.bn.{part}"][None, :, None, None]  # noqa: E731
        scaled = (y - column("running_mean")) / (column("running_var") + 0.001).sqrt()
        return (scaled * column("weight") + column("bias")).clamp(min=0)

    def mean_of_neighbours(x):
        window = torch.ones(1, 1, 3, 3, dtype=x.dtype)
        sums = F.conv2d(x.flatten(0, 1)[:, None], window, padding=1).view_as(x)
        return sums / F.conv2d(torch.ones_like(x[:1, :1]), window, padding=1)

    def five(x, n):
        b = f"{n}.branch3x3dbl_"
        return torch.cat(
            [
                conv(x, f"{n}.branch1x1"),
                conv(conv(x, f"{n}.branch5x5_1"), f"{n}.branch5x5_2", padding=2),
                conv(conv(conv(x, b + "1"), b + "2", padding=1), b + "3", padding=1),
                conv(mean_of_neighbours(x), f"{n}.branch_pool"),
            ],
            1,
        )

    def seven(x, n):
        y, z = conv(x, f"{n}.branch7x7_1"), conv(x, f"{n}.branch7x7dbl_1")
        y = conv(conv(y, f"{n}.branch7x7_2", padding=(0, 3)), f"{n}.branch7x7_3", padding=(3, 0))
        for i, padding in zip((2, 3, 4, 5), ((3, 0), (0, 3), (3, 0), (0, 3)), strict=True):
            z = conv(z, f"{n}.branch7x7dbl_{i}", padding=padding)
        return torch.cat([conv(x, f"{n}.branch1x1"), y, z, conv(mean_of_neighbours(x), f"{n}.branch_pool")], 1)

    def eight(x, n, pooled):
        y = conv(x, f"{n}.branch3x3_1")
        z = conv(conv(x, f"{n}.branch3x3dbl_1"), f"{n}.branch3x3dbl_2", padding=1)
        parts = [conv(x, f"{n}.branch1x1")]
        for v, stem in ((y, "branch3x3_2"), (z, "branch3x3dbl_3")):
            parts += [conv(v, f"{n}.{stem}a", padding=(0, 1)), conv(v, f"{n}.{stem}b", padding=(1, 0))]
        return torch.cat([*parts, conv(pooled, f"{n}.branch_pool")], 1)

    x = literal_resize(images.double(), 299) / 128 - 1
    x = conv(conv(conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
    x = conv(conv(F.max_pool2d(x, 3, 2), "Conv2d_3b_1x1"), "Conv2d_4a_3x3")
    x = F.max_pool2d(x, 3, 2)
    for n in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = five(x, n)
    b = "Mixed_6a.branch3x3dbl_"
    y = conv(conv(conv(x, b + "1"), b + "2", padding=1), b + "3", 2)
    x = torch.cat([conv(x, "Mixed_6a.branch3x3", 2), y, F.max_pool2d(x, 3, 2)], 1)
    for n in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = seven(x, n)
    b = "Mixed_7a.branch7x7x3_"
    y = conv(conv(conv(conv(x, b + "1"), b + "2", padding=(0, 3)), b + "3", padding=(3, 0)), b + "4", 2)
    x = torch.cat([conv(conv(x, "Mixed_7a.branch3x3_1"), "Mixed_7a.branch3x3_2", 2), y, F.max_pool2d(x, 3, 2)], 1)
    x = eight(x, "Mixed_7b", mean_of_neighbours(x))
    x = eight(x, "Mixed_7c", F.max_pool2d(x, 3, 1, 1))
    return x.mean((2, 3))


def literal_resize(x: Tensor, side: int) -> Tensor:
    rows, columns = x.shape[2:]
    out = torch.empty(*x.shape[:2], side, side, dtype=torch.float64)
    for i in range(side):
        u = i * rows / side
        top, bottom = x[:, :, int(u)], x[:, :, min(int(u) + 1, rows - 1)]
        line = top + (bottom - top) * (u - int(u))
        position = torch.arange(side, dtype=torch.float64) * columns / side
        left = position.long()
        right = (left + 1).clamp(max=columns - 1)
        out[:, :, i] = line[..., left] + (line[..., right] - line[..., left]) * (position - left)
    return out


def test_features_are_those_of_the_literal_functions(network, weights) -> None:
    images = some_images()
    expected = literal_features(weights, images)
    found = extract_features(network, images)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_layout_is_that_of_the_published_weights(network) -> None:
    """torchvision documents 27,161,264 parameters with the auxiliary classifier, 3,326,696, and 1000 classes."""
    assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 + 8 * 2049
    weights = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert weights["fc.weight"] == (1008, 2048)
    assert weights["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert weights["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert weights["Mixed_6c.branch7x7dbl_5.conv.weight"] == (192, 160, 1, 7)
    assert weights["Mixed_7a.branch7x7x3_4.bn.running_var"] == (192,)
    assert weights["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert sum(name.endswith(".conv.weight") for name in weights) == 94 and len(weights) == 94 * 6 + 2


@pytest.mark.parametrize(("size", "side"), [((2, 2), 4), ((32, 20), 299), ((40, 31), 17), ((7, 7), 7)])
def test_resize_is_tensorflows(size, side) -> None:
    images = some_images(size=size).double()
    torch.testing.assert_close(resize_like_tensorflow(images, side), literal_resize(images, side), atol=2e-3, rtol=0)


def test_resize_by_hand() -> None:
    found = resize_like_tensorflow(torch.tensor([0.0, 4.0]).view(1, 1, 1, 2), 4)[0, 0, 0]
    assert found.tolist() == [0.0, 2.0, 4.0, 4.0], "source positions 0, 0.5, 1, 1.5; no half-pixel offset"


def test_deterministic_batch_invariant_grey_and_logits_without_bias(network, weights) -> None:
    images = some_images(3, 1)
    features = extract_features(network, images)
    assert torch.equal(features, extract_features(network, images))
    torch.testing.assert_close(features, extract_features(network, images, batch_size=1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features[:1], extract_features(network, images[:1].repeat(1, 3, 1, 1)))
    again, logits = network.features_and_logits(images[:1])
    torch.testing.assert_close(logits, again @ weights["fc.weight"].T)
    assert not network.training


def test_names_are_the_literatures_for_inception_only(network) -> None:
    names = metric_names(network)
    assert (names["frechet"], names["kernel"], names["inception_score"]) == ("FID", "KID", "Inception score")
    others = metric_names(open_features("pixels"))
    assert not any(word in " ".join(others.values()) for word in ("FID", "KID", "Inception"))


def test_weights_files(weights, tmp_path) -> None:
    path = tmp_path / "pt_inception.pth"
    counted = {**weights, "Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    torch.save(counted, path)
    loaded = open_features(f"inception:{path}")
    assert torch.equal(loaded.Mixed_7c.branch1x1.conv.weight, weights["Mixed_7c.branch1x1.conv.weight"])
    incomplete = {name: tensor for name, tensor in weights.items() if name != "fc.bias"}
    save_file(incomplete, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"1 names or shapes differ, such as 'fc.bias'"):
        load_inception(tmp_path / "short.safetensors")
    save_file({**weights, "fc.bias": torch.zeros(1000)}, tmp_path / "classes.safetensors")
    with pytest.raises(ValueError, match=r"'fc.bias'"):
        load_inception(tmp_path / "classes.safetensors")
    with pytest.raises(ValueError, match=r"\.pth or \.safetensors"):
        load_inception(path.rename(tmp_path / "weights.bin"))
    with pytest.raises(FileNotFoundError, match="no Inception weights"):
        open_features("inception:nowhere.pth")


class Dangerous:
    def __reduce__(self):
        return (print, ("code from a weights file ran",))


def test_code_in_a_weights_file_does_not_run(tmp_path, capsys) -> None:
    torch.save({"fc.weight": Dangerous()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="evil.pth holds no table of tensors"):
        load_inception(tmp_path / "evil.pth")
    assert "ran" not in capsys.readouterr().out


class LikeNvidias(nn.Module):
    """The signature of NVIDIA's TorchScript, in small."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(6, 4)

    def forward(self, img: Tensor, return_features: bool = False, no_output_bias: bool = False) -> Tensor:
        assert img.dtype == torch.uint8 and img.shape[1] == 3
        features = img.flatten(2).float().mean(2).repeat(1, 2) / 100
        if return_features:
            return features
        logits = features @ self.output.weight.t()
        if not no_output_bias:
            logits = logits + self.output.bias
        return torch.softmax(logits, 1)


@pytest.mark.parametrize("frozen", [False, True])
def test_nvidias_torchscript(frozen: bool, tmp_path) -> None:
    module = LikeNvidias().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(module)
        (torch.jit.freeze(script) if frozen else script).save(tmp_path / "inception.pt")
    opened = open_features(f"inception:{tmp_path / 'inception.pt'}")
    assert isinstance(opened, TorchScriptInception) and opened.description == "FID"
    images = some_images(5, 1)
    features = extract_features(opened, images, batch_size=2)
    torch.testing.assert_close(features, module(images.repeat(1, 3, 1, 1), return_features=True))
    _, logits = opened.features_and_logits(images)
    expected = module(images.repeat(1, 3, 1, 1), no_output_bias=True)
    torch.testing.assert_close(torch.softmax(logits, 1), expected)
