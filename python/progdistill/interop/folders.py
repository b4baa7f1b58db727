"""What a model folder holds, reading its JSON, and replacing it as a whole."""

from __future__ import annotations

import errno
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from progdistill.core.files import flush_folder

MANIFEST = "progdistill.json"
MODEL_INDEX = "model_index.json"
UNET, UNET_RAW, SCHEDULER = "unet", "unet_raw", "scheduler"
UNET_CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER_CONFIG = "scheduler_config.json"
MODEL_CARD = "README.md"
CARD_MARK = "Written by progdistill, which replaces this file when it saves the model again, unless this line is gone."

_WRITTEN = (MANIFEST, MODEL_INDEX, UNET, UNET_RAW, SCHEDULER)


@contextmanager
def replace_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager that yields an empty folder beside `path` and puts it in the place of `path` when all went well.

    A model folder that is already there is moved aside, replaced and then deleted, except for files that this package
    does not write (samples, say, or a model card that somebody has made their own), which move to the new folder. If
    the body or a rename fails, the old folder is as it was and the exception goes on. A symbolic link is followed, not
    replaced.

    Raises FileExistsError if `path` is something other than a model folder or an empty folder, OSError from the disk.
    """
    target = Path(path).resolve()
    _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = f"{target.name}-{os.getpid()}-{secrets.token_hex(6)}"
    temporary, aside = target.parent / f".tmp-{suffix}", target.parent / f".old-{suffix}"
    try:
        temporary.mkdir()
        yield temporary
        _swap(temporary, target, aside)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if aside.exists():
        for entry in list(aside.iterdir()):
            if not _is_ours(entry):
                entry.replace(target / entry.name)
        # What a reader still holds open may refuse to go (network file systems); the new model is in place anyway.
        shutil.rmtree(aside, ignore_errors=True)


def interrupted_replacements(path: Path) -> list[Path]:
    """Folders that a `replace_folder` killed between its two renames left of what was at `path`."""
    path = path.resolve()
    return sorted(path.parent.glob(f".old-{glob.escape(path.name)}-*/{MANIFEST}")) if path.parent.is_dir() else []


@contextmanager
def blaming(file: Path | str, fix: str) -> Iterator[None]:
    """Turns what a malformed description raises into a ValueError that names the file and the fix."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{file}: the field {error} is missing; {fix}") from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{file}: {error}; {fix}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or ValueError for anything but a JSON object in UTF-8."""
    content = file.read_bytes()
    with blaming(file, "it is damaged or no JSON: copy or download the folder again"):
        values = json.loads(content.decode("utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, found a {type(values).__name__}")
    return values


def _is_ours(entry: Path) -> bool:
    if entry.name == MODEL_CARD and entry.is_file():
        return CARD_MARK.encode() in entry.read_bytes()
    return entry.name in _WRITTEN


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(
            errno.EEXIST, "a model is saved as a folder, but this is a file: choose another path", str(target)
        )
    if not (target / MANIFEST).is_file() and any(target.iterdir()):
        raise FileExistsError(
            errno.EEXIST,
            f"this folder holds other things than a model of ours (it has no {MANIFEST}) and is not replaced: "
            "choose another path, or empty it",
            str(target),
        )


def _swap(temporary: Path, target: Path, aside: Path) -> None:
    existed = target.exists()
    if existed:
        target.rename(aside)
    try:
        temporary.rename(target)
    except BaseException:
        if existed:
            aside.rename(target)
        raise
    flush_folder(target.parent)
