"""A model as a folder that plain diffusers samples as we do, compared with it before it is there."""

from __future__ import annotations

import dataclasses
import os
import warnings
from pathlib import Path

import torch

from progdistill.core.denoiser import Denoiser
from progdistill.core.files import write_json_atomic, write_text_atomic
from progdistill.interop.card_text import public
from progdistill.interop.ddim_config import level_count
from progdistill.interop.folders import MANIFEST, MODEL_CARD, MODEL_INDEX, replace_folder
from progdistill.interop.manifest import manifest_of
from progdistill.interop.model_card import model_card
from progdistill.interop.own_time import own_time_of
from progdistill.interop.plain_diffusers import diffusers_obstacle, for_diffusers
from progdistill.interop.save import config_of, model_index, write_model
from progdistill.interop.verify import deviations

# Largest deviation of an image, whose values lie in [0, 1]: other float32 kernels differ by 1e-6, weights rounded to
# float16 by less than a tenth of what is allowed here, two and a half grey levels.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 1e-2}
# diffusers divides an epsilon prediction by alpha in float32 (where most noise is by 157, on google/ddpm-cifar10-32's
# schedule), we do not.
EPSILON_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ExportedFolder:
    """A folder for plain diffusers.

    path: the folder. deviations: by step count, the largest deviation of diffusers' images from ours, in [0, 1]; None:
    not compared. levels: T of the scheduler, which a step count must divide.
    """

    path: Path
    deviations: dict[int, float] | None
    levels: int


def export_diffusers(
    denoiser: Denoiser,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    verify: bool = True,
    tolerance: float | None = None,
    repo_id: str | None = None,
) -> ExportedFolder:
    """Writes a folder from which `DiffusionPipeline.from_pretrained(path)` draws the images that `sample` draws.

    The folder is what `save` writes, without students for other step counts, weights before averaging and paths of
    this machine, for publishing; a model that diffusers cannot sample is refused. Needs no diffusers; where it is
    installed the folder is read back with it and compared, on the CPU in float32, before it takes its place.

    Args:
        denoiser: a model whose network is a `progdistill.nets.unet.UNet`.
        path: the folder to write. A model folder that is there is replaced once the new one is complete.
        dtype: of the weights, torch.float32 or torch.float16.
        verify: whether to compare.
        tolerance: largest deviation of an image, whose values lie in [0, 1]; None: 1e-5, 1e-4 for models that predict
            epsilon, 1e-2 for float16.
        repo_id: the model's name on the Hugging Face hub, for its card; nothing is uploaded.

    Raises:
        ValueError: a model that diffusers cannot sample, with the reason and the remedy; another dtype; weights too
            large for it.
        RuntimeError: images beyond the tolerance. Nothing is written then, and an older folder is as it was.
        FileExistsError: `path` is there and is no model folder.
        OSError: from the disk.

    Warns:
        UserWarning: diffusers is not installed, so that nothing was compared.
    """
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; use a number above 0, or None")
    if dtype not in TOLERANCES:
        raise ValueError(
            f"dtype is {dtype}; use torch.float32 or torch.float16 (NumPy, which diffusers hands its images to, knows "
            "no bfloat16)"
        )
    config_of(denoiser)  # refuses other networks
    student = for_diffusers(denoiser)
    student = student.with_network(student.network, provenance=public(student.provenance))
    config = config_of(student)
    obstacle = diffusers_obstacle(student, config)
    if obstacle is not None:
        raise ValueError(
            f"plain diffusers cannot sample this model: {obstacle}. `save` keeps it in a folder without "
            f"{MODEL_INDEX}, which diffusers refuses"
        )
    _check_range(student, dtype)
    levels = level_count(student)
    manifest = manifest_of(student, None, None, own_time_of(denoiser, student))
    card = model_card(student, None, repo_id=repo_id, dtype=dtype)
    with replace_folder(path) as folder:
        write_model(folder, student, config, dtype)
        write_json_atomic(folder / MODEL_INDEX, model_index(student))
        write_text_atomic(folder / MODEL_CARD, card)
        write_json_atomic(folder / MANIFEST, manifest)
        found = _compared(folder, denoiser, levels, tolerance or _tolerance(denoiser, dtype)) if verify else None
    return ExportedFolder(Path(path), found, levels)


def _tolerance(denoiser: Denoiser, dtype: torch.dtype) -> float:
    return max(TOLERANCES[dtype], EPSILON_TOLERANCE * (denoiser.prediction_type == "epsilon"))


def _check_range(denoiser: Denoiser, dtype: torch.dtype) -> None:
    for name, tensor in denoiser.network.state_dict().items():
        if not torch.isfinite(tensor.to(dtype)).all():
            raise ValueError(
                f"{name} has values that are not finite in {dtype}; "
                + ("the model is damaged" if not torch.isfinite(tensor).all() else "use dtype=torch.float32")
            )


def _compared(folder: Path, denoiser: Denoiser, levels: int, tolerance: float) -> dict[int, float] | None:
    found = deviations(folder, denoiser, levels)
    if found is None:
        warnings.warn(
            "diffusers is not installed: its images of the folder were not compared with ours. `pip install diffusers` "
            "and export again, or pass verify=False",
            stacklevel=3,
        )
        return None
    for steps, deviation in found.items():
        # NaN is no deviation within any bound.
        if not deviation <= tolerance:
            raise RuntimeError(
                f"diffusers' images of {steps} steps deviate from ours by {deviation:.2g} of their range, more than "
                f"the tolerance of {tolerance:g}; nothing was written. Weights that float16 rounds too coarsely: use "
                "float32. Else please report it"
            )
    return found
