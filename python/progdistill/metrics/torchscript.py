"""Feature networks in TorchScript files."""

from __future__ import annotations

import hashlib
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from progdistill.metrics.inception import as_rgb


class TorchScriptFeatures(nn.Module):
    """A TorchScript file as a feature module: uint8 images (B, C, H, W) to features (B, F).

    TorchScript is code: what is in the file runs when it is called. Open files that you trust only. Files that
    torch.save wrote are refused, never unpickled.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises FileNotFoundError, or ValueError if the file is no TorchScript."""
        super().__init__()
        self._path = Path(path)
        if not self._path.is_file():
            raise FileNotFoundError(f"no TorchScript file at {self._path}")
        # Frozen scripts have neither parameters nor modes, so the script is no submodule: this buffer, moved by
        # .to(), says where the images will be, and the script is loaded there.
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self._loaded: tuple[torch.device, torch.jit.ScriptModule] = (torch.device("cpu"), self._load("cpu"))
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
        self.fingerprint = digest.hexdigest()[:32]
        self.features_name = f"{self._path.name} features"

    def forward(self, images: Tensor) -> Tensor:
        """Whatever the script returns for the images."""
        return self._on(images.device)(images)

    def _on(self, device: torch.device) -> torch.jit.ScriptModule:
        if self._loaded[0] != device:
            self._loaded = (device, self._load(device))
        return self._loaded[1]

    def _load(self, device: torch.device | str) -> torch.jit.ScriptModule:
        try:
            with warnings.catch_warnings():
                # torch deprecates writing and reading TorchScript; the FID's networks exist in no other form.
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(str(self._path), map_location=device).eval()
        except RuntimeError as error:
            raise ValueError(
                f"{self._path} is no TorchScript file ({str(error).splitlines()[0]}); write one with "
                "torch.jit.trace(module.eval(), images).save(path), or load the module yourself and pass it"
            ) from None


class TorchScriptInception(TorchScriptFeatures):
    """NVIDIA's `inception-2015-12-05.pt` (StyleGAN, EDM), which resizes and scales the images itself.

    It is called as that code does: `script(images, return_features=True)` for the features (B, 2048), and
    `script(images, no_output_bias=True)` for the class probabilities of the Inception score, a second pass. Grey images
    become RGB. The file could not be had where this was written: tested with scripts of the same signature only.
    """

    num_features = 2048
    description = "FID"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.features_name = "Inception-v3 2015-12-05 features (TorchScript)"

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of uint8 images (B, 1 or 3, H, W). TypeError, ValueError for anything else."""
        return self._on(images.device)(as_rgb(images).contiguous(), return_features=True)

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features as `forward`, and log-probabilities (B, 1008), which serve as logits."""
        probabilities = self._on(images.device)(as_rgb(images).contiguous(), no_output_bias=True)
        return self(images), probabilities.log()
