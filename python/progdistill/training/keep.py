"""Keeping the teacher or every student of a run, whatever its network is."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.core.files import replace_atomic, write_json_atomic
from progdistill.interop import load, save
from progdistill.nets.unet import UNet
from progdistill.training.round_state import copy_network

_MARK = "progdistill.json"
_WEIGHTS = {"ema": "network.safetensors", "raw": "network_raw.safetensors"}


def keep(
    student: Denoiser, folder: Path, raw_state_dict: dict[str, Tensor], siblings: dict[int, str] | None = None
) -> None:
    """Writes a model: a model folder for a `UNet`, the bare weights for a network of the user's own.

    `progdistill.json` is written last (or with the whole folder at once): where it is, the model is complete.
    """
    if isinstance(student.network, UNet):
        save(student, folder, raw_state_dict=raw_state_dict, students=siblings or {})
        return
    for name, state in (("ema", student.network.state_dict()), ("raw", raw_state_dict)):
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        with replace_atomic(folder / _WEIGHTS[name]) as temporary:
            save_file(tensors, temporary)
    write_json_atomic(folder / _MARK, {"network": type(student.network).__name__, "provenance": student.provenance})


def is_kept(folder: Path) -> bool:
    """Whether a complete model is there."""
    return (folder / _MARK).exists()


def recall(folder: Path, like: Denoiser, steps: int | None, weights: str = "ema") -> Denoiser:
    """Reads the averaged ("ema") or "raw" weights of a student for `steps` steps, or of a teacher (None).

    A network of the user's own is read into a copy of `like`'s.
    """
    if isinstance(like.network, UNet):
        return load(folder, device=like.device, weights=weights)
    network = copy_network(like.network)
    network.load_state_dict(load_file(folder / _WEIGHTS[weights]))
    student = like.with_network(network.eval(), valid_steps=None if steps is None else (steps,))
    student.provenance = json.loads((folder / _MARK).read_text())["provenance"]
    return student


def with_students(student: Denoiser, folders: dict[int, Path]) -> Denoiser:
    """The student, able to find the others of its run by step count."""
    student.students = {n: partial(recall, folder, student, n) for n, folder in folders.items()}
    return student
