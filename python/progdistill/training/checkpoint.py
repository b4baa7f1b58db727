"""Checkpoints: safetensors by parameter name plus JSON, complete or not there at all."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from progdistill.core.files import flush_file, flush_folder

_FILES = ("student", "ema", "optimizer")


@dataclasses.dataclass
class Checkpoint:
    """The state of a round after `update` updates."""

    round_index: int
    update: int
    tensors: dict[str, dict[str, Tensor]]
    """By file: "student" and "ema" by parameter name, "optimizer" by moment and parameter name."""
    facts: dict[str, Any]
    """JSON-ready: the settings' fingerprint, the length of metrics.jsonl, threads, versions."""


class CheckpointFolder:
    """The checkpoints of a run, the newest `limit` of them kept."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes beside, flushes, renames; then removes the oldest beyond the limit."""
        name = f"round-{checkpoint.round_index:02d}-update-{checkpoint.update:08d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            for file in _FILES:
                tensors = {k: t.detach().cpu().contiguous() for k, t in checkpoint.tensors[file].items()}
                save_file(tensors, temporary / f"{file}.safetensors")
            state = {"round_index": checkpoint.round_index, "update": checkpoint.update, **checkpoint.facts}
            (temporary / "state.json").write_text(json.dumps(state, indent=2))
            for path in temporary.iterdir():
                flush_file(path)
            flush_folder(temporary)
            final = self.folder / name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            flush_folder(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in self.paths()[: -self.limit]:
            shutil.rmtree(old)

    def paths(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(self.folder.glob("round-*-update-*")) if self.folder.is_dir() else []

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None.

        Raises:
            ValueError: it cannot be read; the message names it and what to do.
        """
        paths = self.paths()
        return _read(paths[-1]) if paths else None


def _read(path: Path) -> Checkpoint:
    try:
        state = json.loads((path / "state.json").read_text())
        tensors = {file: load_file(path / f"{file}.safetensors") for file in _FILES}
        return Checkpoint(state.pop("round_index"), state.pop("update"), tensors, state)
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({error}); delete this folder to resume from the one before it"
        ) from error


def environment() -> dict[str, Any]:
    """What bitwise equality of a resumed run depends on besides the settings."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}
