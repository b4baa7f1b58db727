"""One function for every kind of feature network."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from progdistill.metrics.classifier import load_classifier
from progdistill.metrics.features import PixelFeatures
from progdistill.metrics.inception import load_inception
from progdistill.metrics.torchscript import TorchScriptFeatures, TorchScriptInception

_KINDS = (
    '"pixels", a .safetensors file of save_classifier, a TorchScript file (.ts or .pt, which runs as code: only one '
    'that you trust), or "inception:FILE" with the weights as .pth or .safetensors (pytorch-fid\'s names) or as '
    "NVIDIA's TorchScript .pt"
)


def open_features(source: str | os.PathLike[str] | nn.Module, *, device: torch.device | str | None = None) -> nn.Module:
    """A feature module (see `FeatureModule`) in evaluation mode.

    Args:
        source: one of
            - "pixels": the pixels themselves (`PixelFeatures`);
            - a .safetensors file that `save_classifier` wrote;
            - a .ts or .pt file of TorchScript, which takes uint8 images. It is code that runs when it is called: name
              only files that you trust;
            - "inception:FILE": Inception-v3, the only features in which a Frechet distance is called FID. FILE is
              pytorch-fid's `pt_inception-2015-12-05-6726825d.pth`, the same tensors as .safetensors, or NVIDIA's
              TorchScript `inception-2015-12-05.pt`;
            - a module, returned as it is.
        device: where to put it; default: a file's module on the CPU, a module where it is.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another kind of source, or a file that holds something else than its suffix says.
    """
    module = source if isinstance(source, nn.Module) else _open(os.fspath(source))
    return (module if device is None else module.to(device)).eval()


def _open(source: str) -> nn.Module:
    if source == "pixels":
        return PixelFeatures()
    if source.startswith("inception:"):
        path = Path(source.removeprefix("inception:")).expanduser()
        return TorchScriptInception(path) if path.suffix in (".pt", ".ts") else load_inception(path)
    path = Path(source).expanduser()
    if path.suffix not in (".safetensors", ".ts", ".pt"):
        raise ValueError(f"cannot open features {source!r}; allowed are {_KINDS}")
    if not path.is_file():
        raise FileNotFoundError(f"no feature network at {path}; allowed are {_KINDS}")
    return load_classifier(path) if path.suffix == ".safetensors" else TorchScriptFeatures(path)
