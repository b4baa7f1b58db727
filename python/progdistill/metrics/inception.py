"""The Inception-v3 network of the FID, for a weights file that the user brings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from progdistill.metrics.features import require_uint8_images

_SIDE = 299
_AT_ONCE = 32  # images: their widest activations take 0.7 GB
_CLASSES = 1008


class InceptionFeatures(nn.Module):
    """Inception-v3 as ported to TensorFlow on 2015-12-05: the features (B, 2048) in which a Frechet distance is an FID.

    It differs from the published Inception-v3 (Szegedy et al. 2016) as the network of Heusel et al. (2017) does: 1008
    classes; average pooling that leaves the padding out of the mean; maximum instead of average pooling in the last
    block. Images of any size are resized as that graph does it, bilinearly from source position i * size / 299, without
    half-pixel offset and without smoothing, and scaled by (x - 128) / 128; pytorch-fid resizes with half-pixel
    offset and divides by 127.5, which shifts an FID a little. Grey images become RGB. The layers' names are those of
    torchvision and of pytorch-fid's weights file.

    The weights are not part of this package and could not be had where it was written: structure and arithmetic are
    tested with random weights only. Before you publish an FID, reproduce a known one.
    """

    num_features = 2048
    features_name = "Inception-v3 2015-12-05 features"
    description = "FID"

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = _grid_35(192, 32)
        self.Mixed_5c = _grid_35(256, 64)
        self.Mixed_5d = _grid_35(288, 64)
        self.Mixed_6a = _to_grid_17(288)
        self.Mixed_6b = _grid_17(768, 128)
        self.Mixed_6c = _grid_17(768, 160)
        self.Mixed_6d = _grid_17(768, 160)
        self.Mixed_6e = _grid_17(768, 192)
        self.Mixed_7a = _to_grid_8(768)
        self.Mixed_7b = _grid_8(1280, _average)
        self.Mixed_7c = _grid_8(2048, _maximum)
        self.fc = nn.Linear(2048, _CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of uint8 images (B, 1 or 3, H, W). TypeError, ValueError for anything else."""
        images = as_rgb(images)
        return torch.cat([self._pooled(part) for part in images.split(_AT_ONCE)])

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features as `forward`, and the logits (B, 1008) of the Inception score: without the bias, as its code has."""
        features = self(images)
        return features, features @ self.fc.weight.T

    def _pooled(self, images: Tensor) -> Tensor:
        x = resize_like_tensorflow(images.to(self.fc.weight.dtype), _SIDE)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x = block(x)
        return x.mean(dim=(2, 3))


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Any, *, stride: int = 1, padding: Any = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Chains of layers beside each other, their outputs joined along the channels, the pooled input's chain last.

    `chains` name layers; a tuple in the last place of a chain is a fork whose outputs are joined.
    """

    def __init__(self, layers: dict[str, ConvNorm], chains: list[list[str | tuple[str, str]]], pool: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.chains = chains
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for chain in self.chains:
            y = x
            for step in chain:
                if isinstance(step, tuple):
                    y = torch.cat([getattr(self, name)(y) for name in step], dim=1)
                else:
                    y = getattr(self, step)(y)
            outputs.append(y)
        pooled = self.pool(x)
        outputs.append(self.branch_pool(pooled) if hasattr(self, "branch_pool") else pooled)
        return torch.cat(outputs, dim=1)


def load_inception(path: str | os.PathLike[str]) -> InceptionFeatures:
    """The network in evaluation mode with the weights of a file, on the CPU.

    `path`: pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, read by torch.load(weights_only=True), which builds
    tensors and nothing else, or the same tensors as .safetensors. Counters of batch normalisation are left out.

    Raises FileNotFoundError, ValueError for another suffix or a file whose names, shapes or types do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no Inception weights at {path}")
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"Inception weights must be a .pth or .safetensors file, got {path}")
    try:
        tensors_only = {"map_location": "cpu", "weights_only": True}
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, **tensors_only)
    except Exception as error:  # what torch.load raises is a class of the pickle module, which is not imported here
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} holds no table of tensors ({reason}): get the file anew") from None
    with torch.device("meta"):
        network = InceptionFeatures()
    expected = {name: tensor for name, tensor in network.state_dict().items() if _is_weight(name)}
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(f"{path} holds no table of tensors by name")
    weights = {name: tensor for name, tensor in weights.items() if _is_weight(name)}
    wrong = sorted(set(weights) ^ set(expected)) or [
        name for name, tensor in expected.items() if weights[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(
            f"{path} does not hold the FID's Inception weights in pytorch-fid's layout: {len(wrong)} names or shapes "
            f"differ, such as {wrong[0]!r}"
        )
    weights = {name: tensor.float().contiguous() for name, tensor in weights.items()}
    counters = {name: torch.zeros((), dtype=torch.int64) for name in network.state_dict() if not _is_weight(name)}
    network.load_state_dict(weights | counters, assign=True)
    return network.requires_grad_(False).eval()


def as_rgb(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) of uint8 images with 1 or 3 channels. TypeError, ValueError for anything else."""
    require_uint8_images(images)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"Inception takes grey or RGB images, got {images.shape[1]} channels")
    return images.expand(-1, 3, -1, -1)


def resize_like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) as (B, C, side, side), as TensorFlow 1's resize_bilinear with align_corners=False does.

    Output i lies at i * size / side of the input; beyond the last pixel its value continues.
    """
    for axis in (2, 3):
        size = images.shape[axis]
        position = torch.arange(side, dtype=torch.float32, device=images.device) * (size / side)
        low = position.long().clamp(max=size - 1)
        high = (low + 1).clamp(max=size - 1)
        weight = (position - low).to(images.dtype).view([-1, 1] if axis == 2 else [-1])
        first = images.index_select(axis, low)
        images = first + (images.index_select(axis, high) - first) * weight
    return images


def _is_weight(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _halving(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _grid_35(channels: int, pooled: int) -> Branches:
    layers = {
        "branch1x1": ConvNorm(channels, 64, 1),
        "branch5x5_1": ConvNorm(channels, 48, 1),
        "branch5x5_2": ConvNorm(48, 64, 5, padding=2),
        "branch3x3dbl_1": ConvNorm(channels, 64, 1),
        "branch3x3dbl_2": ConvNorm(64, 96, 3, padding=1),
        "branch3x3dbl_3": ConvNorm(96, 96, 3, padding=1),
        "branch_pool": ConvNorm(channels, pooled, 1),
    }
    chains = [["branch1x1"], ["branch5x5_1", "branch5x5_2"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]]
    return Branches(layers, chains, _average)


def _to_grid_17(channels: int) -> Branches:
    layers = {
        "branch3x3": ConvNorm(channels, 384, 3, stride=2),
        "branch3x3dbl_1": ConvNorm(channels, 64, 1),
        "branch3x3dbl_2": ConvNorm(64, 96, 3, padding=1),
        "branch3x3dbl_3": ConvNorm(96, 96, 3, stride=2),
    }
    return Branches(layers, [["branch3x3"], ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]], _halving)


def _grid_17(channels: int, inner: int) -> Branches:
    wide, tall = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
    layers = {
        "branch1x1": ConvNorm(channels, 192, 1),
        "branch7x7_1": ConvNorm(channels, inner, 1),
        "branch7x7_2": ConvNorm(inner, inner, **wide),
        "branch7x7_3": ConvNorm(inner, 192, **tall),
        "branch7x7dbl_1": ConvNorm(channels, inner, 1),
        "branch7x7dbl_2": ConvNorm(inner, inner, **tall),
        "branch7x7dbl_3": ConvNorm(inner, inner, **wide),
        "branch7x7dbl_4": ConvNorm(inner, inner, **tall),
        "branch7x7dbl_5": ConvNorm(inner, 192, **wide),
        "branch_pool": ConvNorm(channels, 192, 1),
    }
    chains = [
        ["branch1x1"],
        [f"branch7x7_{i}" for i in (1, 2, 3)],
        [f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)],
    ]
    return Branches(layers, chains, _average)


def _to_grid_8(channels: int) -> Branches:
    layers = {
        "branch3x3_1": ConvNorm(channels, 192, 1),
        "branch3x3_2": ConvNorm(192, 320, 3, stride=2),
        "branch7x7x3_1": ConvNorm(channels, 192, 1),
        "branch7x7x3_2": ConvNorm(192, 192, (1, 7), padding=(0, 3)),
        "branch7x7x3_3": ConvNorm(192, 192, (7, 1), padding=(3, 0)),
        "branch7x7x3_4": ConvNorm(192, 192, 3, stride=2),
    }
    chains = [["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)]]
    return Branches(layers, chains, _halving)


def _grid_8(channels: int, pool: Any) -> Branches:
    wide, tall = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
    layers = {
        "branch1x1": ConvNorm(channels, 320, 1),
        "branch3x3_1": ConvNorm(channels, 384, 1),
        "branch3x3_2a": ConvNorm(384, 384, **wide),
        "branch3x3_2b": ConvNorm(384, 384, **tall),
        "branch3x3dbl_1": ConvNorm(channels, 448, 1),
        "branch3x3dbl_2": ConvNorm(448, 384, 3, padding=1),
        "branch3x3dbl_3a": ConvNorm(384, 384, **wide),
        "branch3x3dbl_3b": ConvNorm(384, 384, **tall),
        "branch_pool": ConvNorm(channels, 192, 1),
    }
    chains: list[list[str | tuple[str, str]]] = [
        ["branch1x1"],
        ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")],
        ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")],
    ]
    return Branches(layers, chains, pool)
