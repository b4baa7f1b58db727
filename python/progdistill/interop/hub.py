"""Models on the Hugging Face hub, in the cache that all its tools share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from progdistill.interop.diffusers_folder import check_pipeline, network_folders
from progdistill.interop.folders import MANIFEST, UNET, UNET_RAW
from progdistill.interop.weight_files import KINDS, weight_patterns

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_PREFIX = "hf-hub:"
_DESCRIPTIONS = ["*.json"]


def hub_id(given: str, revision: str | None = None) -> tuple[str, str | None] | None:
    """(repository, revision or None) if `given`, which is no path here, is a hub id: ORGANISATION/NAME, perhaps with
    @REVISION behind it.

    With hf-hub: before it, it is one even where a folder ORGANISATION is here, which else makes it a misspelt path.
    Raises ValueError for two revisions.
    """
    repository, _, at = given.removeprefix(_PREFIX).partition("@")
    if not _ID.fullmatch(repository) or (repository == given and Path(given).parent.is_dir()):
        return None
    if at and revision and at != revision:
        raise ValueError(f"{given} names the revision {at!r}, the argument {revision!r}; leave one of them out")
    return repository, at or revision


def download(
    repository: str,
    revision: str | None = None,
    *,
    weights: str = "ema",
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """(the local folder of a hub model, where it came from): its descriptions and the weights that will be read.

    What is in the cache (HF_HOME, or `cache_dir`) is not downloaded again; with `local_files_only`, or HF_HUB_OFFLINE
    set, nothing is.

    Raises:
        FileNotFoundError: no such repository or revision, no access, no connection and not in the cache; or
            huggingface_hub is not installed.
        ValueError: a pipeline that cannot be represented, before its weights are downloaded.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise FileNotFoundError(
            f"no folder {repository!r} here, and the Hugging Face hub cannot be asked without huggingface_hub: "
            "pip install progdistill[hub], or download the model and pass its folder"
        ) from error

    def fetch(patterns: list[str]) -> Path:
        try:
            return Path(
                snapshot_download(
                    repository,
                    revision=revision,
                    cache_dir=cache_dir,
                    local_files_only=local_files_only,
                    allow_patterns=patterns,
                )
            )
        except (OSError, ValueError) as error:
            at = f" at revision {revision!r}" if revision else ""
            raise FileNotFoundError(
                f"no folder {repository!r} here, and the Hugging Face hub gives no such model{at}: {error} Check the "
                "name and the connection, log in with `hf auth login` if the model is private, or download it "
                "elsewhere and pass its folder"
            ) from error

    folder = fetch(_DESCRIPTIONS)
    check_pipeline(folder)
    place = _read_from(folder, weights)
    for kind in KINDS:
        fetch([*_DESCRIPTIONS, *(f"{place}{name}" for name in weight_patterns(kind, variant))])
        if any((folder / place).glob(f"*.{kind}")):
            break
    return folder, {"source": repository, "revision": folder.name}


def _read_from(folder: Path, weights: str) -> str:
    """The sub-folder whose weights will be read, with a slash; "" for the top."""
    if (folder / MANIFEST).is_file():
        return f"{UNET if weights == 'ema' else UNET_RAW}/"
    places = network_folders(folder)
    if weights == "raw":
        places = places[1:] or places
    return "" if places[:1] in ([], [folder]) else f"{places[0].name}/"
