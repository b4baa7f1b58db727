"""Checkpoints: safetensors by parameter name plus JSON, complete and undamaged or not used."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from progdistill.core.files import flush_file, flush_folder

_STATE = "state.json"
_CHECKSUMS = "SHA256SUMS"
_TEMPORARY = ".tmp-"


@dataclasses.dataclass
class Checkpoint:
    """The state of a round after `update` updates."""

    round_index: int
    update: int
    tensors: dict[str, dict[str, Tensor]]
    """By file: "student" and "ema" by parameter name, "optimizer" by moment and parameter name, "running_loss"."""
    facts: dict[str, Any]
    """JSON-ready: the length of metrics.jsonl, seconds, and what equality of a resumed run depends on."""


class CheckpointFolder:
    """The checkpoints of a run, the newest `limit` of them kept.

    A checkpoint is a folder round-RR-update-UUUUUUUU with state.json, safetensors files and SHA256SUMS, which
    `sha256sum -c SHA256SUMS` checks too.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes beside, flushes, renames; then removes the oldest beyond the limit.

        Raises:
            OSError: it could not be written (the disk is full, say); the checkpoints before it are as they were.
        """
        final = self.folder / f"round-{checkpoint.round_index:02d}-update-{checkpoint.update:08d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            temporary.mkdir()
            _write(temporary, checkpoint)
            if final.exists():  # an earlier attempt at the same update, damaged; it goes only now
                self._remove(final)
            os.replace(temporary, final)
            flush_folder(self.folder)
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = [path.name for path in self.paths()]
            raise OSError(
                f"checkpoint {final} could not be written ({error}); make room on that disk and run the same command "
                f"again, which resumes from {kept[-1] if kept else 'the start of the round'}"
            ) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        for old in self.paths()[: -self.limit]:
            self._remove(old)

    def paths(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(self.folder.glob("round-*-update-*")) if self.folder.is_dir() else []

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is undamaged, or None if there is none at all.

        A damaged one is named in a warning and left where it is; the one before it is used.

        Raises:
            ValueError: there are checkpoints, and all of them are damaged.
        """
        paths = self.paths()
        for path in reversed(paths):
            try:
                return _read(path)
            except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
                warnings.warn(f"checkpoint {path} is damaged ({error}); trying the one before it", stacklevel=2)
        if paths:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged ({', '.join(path.name for path in paths)}); "
                "delete that folder to begin the round anew, or copy the checkpoints again"
            )
        return None

    def clear(self) -> None:
        """Removes all of them: the round is complete."""
        for path in self.paths():
            self._remove(path)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        # Renamed first, so that a process killed while it deletes leaves no damaged checkpoint.
        aside = self.folder / f"{_TEMPORARY}old-{path.name}"
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.tensors.items():
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        save_file(on_cpu, folder / f"{name}.safetensors")
    state = {"round_index": checkpoint.round_index, "update": checkpoint.update, **checkpoint.facts}
    (folder / _STATE).write_text(json.dumps(state, indent=2))
    sums = {path.name: _checksum(path) for path in sorted(folder.iterdir())}
    (folder / _CHECKSUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    for path in folder.iterdir():
        flush_file(path)
    flush_folder(folder)


def _read(folder: Path) -> Checkpoint:
    lines = (folder / _CHECKSUMS).read_text().splitlines()
    sums = dict(reversed(line.split("  ", 1)) for line in lines)
    if _STATE not in sums:
        raise ValueError(f"{_CHECKSUMS} does not list {_STATE}")
    for name, digest in sums.items():
        if _checksum(folder / name) != digest:
            raise ValueError(f"{name} has another checksum than when it was written")
    state = json.loads((folder / _STATE).read_text())
    names = [Path(name).stem for name in sums if name.endswith(".safetensors")]
    tensors = {name: load_file(folder / f"{name}.safetensors") for name in names}
    return Checkpoint(state.pop("round_index"), state.pop("update"), tensors, state)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
