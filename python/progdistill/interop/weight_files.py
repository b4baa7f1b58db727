"""Which files of a folder hold a network's weights, as diffusers names them."""

from __future__ import annotations

import re
from pathlib import Path

from progdistill.interop.folders import blaming, read_json
from progdistill.interop.stored_tensors import PICKLES
from progdistill.interop.weights import shortened

KINDS = ("safetensors", "bin")
_STEM = "diffusion_pytorch_model"
_VARIANT = re.compile(rf"{_STEM}\.(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The file with the weights in `folder`, or its parts; safetensors before pickles.

    Args:
        folder: of the network, with its config.json.
        variant: as diffusers takes it: "fp16" is diffusion_pytorch_model.fp16.safetensors.

    Raises:
        FileNotFoundError: no weights of that variant; the message lists what is there.
        ValueError: weights in files that diffusers would not read either; a damaged list of parts.
    """
    for kind in KINDS:
        for name in _single_and_lists(kind, variant):
            if (folder / name).is_file():
                return [folder / name] if name.endswith(f".{kind}") else _parts(folder / name)
    raise _not_there(folder, variant)


def weight_patterns(kind: str, variant: str | None) -> list[str]:
    """Globs of the names that weights of one kind have."""
    parts = [f"{_STEM}-*-of-*.{kind}"]
    if variant:
        parts = [f"{_STEM}.{variant}-*-of-*.{kind}", f"{_STEM}-*-of-*.{variant}.{kind}"]
    return [*_single_and_lists(kind, variant), *parts]


def _single_and_lists(kind: str, variant: str | None) -> list[str]:
    """The name of a file with all weights, and of a list of parts: that of today, that of before diffusers 0.29."""
    if not variant:
        return [f"{_STEM}.{kind}", f"{_STEM}.{kind}.index.json"]
    return [
        f"{_STEM}.{variant}.{kind}",
        f"{_STEM}.{kind}.index.{variant}.json",
        f"{_STEM}.{variant}.{kind}.index.json",
    ]


def _parts(index: Path) -> list[Path]:
    with blaming(index, "it is no list of a network's parts: copy or download the folder again"):
        names = sorted(set(read_json(index)["weight_map"].values()))
        foreign = [name for name in names if Path(name).name != name or name in ("", ".", "..")]
        if foreign or not names:
            raise ValueError(f"weight_map names {foreign or 'no files'}; parts are files beside the list")
    return [index.parent / name for name in names]


def _not_there(folder: Path, variant: str | None) -> Exception:
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    variants = sorted({match[1] for match in map(_VARIANT.fullmatch, held) if match and match[1] != "index"})
    wanted, *_ = _single_and_lists(KINDS[0], variant)
    message = f"no weights {folder / wanted}; its folder holds {shortened(held) or 'nothing'}. "
    others = [name for name in held if name.endswith(PICKLES)]
    if variants:
        return FileNotFoundError(message + f"Pass variant={variants[0]!r}")
    if variant and any((folder / f"{_STEM}.{kind}").is_file() for kind in KINDS):
        return FileNotFoundError(message + f"Leave out variant={variant!r}")
    if others:
        return ValueError(
            message + f"{others[0]} is not by a name that diffusers reads: convert it where you trust it, "
            "UNet2DModel(...).load_state_dict(...) and save_pretrained(folder)"
        )
    return FileNotFoundError(message + "Save the network with UNet2DModel.save_pretrained(folder)")
