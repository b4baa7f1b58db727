"""What a tree of file names says about a data set; the rule is the same for folders and archives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import BinaryIO

from progdistill.data.labels import Labels, class_labels

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LABEL_FILE = "dataset.json"
_MAX_LABEL_FILE_BYTES = 256 * 2**20


def visible(names: Iterable[str]) -> list[str]:
    """Relative POSIX names without hidden files and folders and without what macOS adds to archives."""
    return [name for name in names if not any(map(_is_hidden, PurePosixPath(name).parts))]


def image_names(names: Iterable[str]) -> list[str]:
    """The images among `names`, sorted."""
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def label_file_of(names: Iterable[str], images: Sequence[str]) -> str | None:
    """The `dataset.json` in a folder that holds all of `images`, the outermost if there are several."""
    shared = _shared_folder(images)
    found = [name for name in names if PurePosixPath(name).name == LABEL_FILE]
    above = [name for name in found if shared[: len(_folders(name))] == _folders(name)]
    return min(above, key=lambda name: len(_folders(name)), default=None)


def labels_from_json(stream: BinaryIO, label_file: str, images: Sequence[str], where: str) -> Labels | None:
    """Labels of `images` by a `dataset.json` as EDM writes it: {"labels": [[name, label], ...]}, or null for
    none.

    Raises:
        ValueError: the file is no such JSON, or an image is not listed.
        TypeError: the labels are not integers.
    """
    text = stream.read(_MAX_LABEL_FILE_BYTES + 1)
    if len(text) > _MAX_LABEL_FILE_BYTES:
        raise ValueError(f"{label_file} of {where} is larger than {_MAX_LABEL_FILE_BYTES} bytes")
    try:
        pairs = json.loads(text)["labels"]
        listed = {name.replace("\\", "/"): label for name, label in pairs or []}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{label_file} of {where} must hold {{"labels": [[name, label], ...]}} or {{"labels": null}} ({error!r})'
        ) from error
    if not listed:
        return None
    skipped = len(label_file) - len(LABEL_FILE)
    missing = [name for name in images if name[skipped:] not in listed]
    if missing:
        raise ValueError(f"{label_file} of {where} has no label for {len(missing)} images, such as {missing[0]!r}")
    return class_labels([listed[name[skipped:]] for name in images], len(images), f"{label_file} of {where}")


def labels_from_folders(images: Sequence[str], where: str) -> Labels | None:
    """Labels by the sub-folder below the folder that all images share, names sorted; None if all lie in that
    one.

    Raises:
        ValueError: some images lie in sub-folders and some beside them.
    """
    depth = len(_shared_folder(images))
    classes = [_folders(name)[depth : depth + 1] for name in images]
    if not any(classes):
        return None
    if not all(classes):
        flat = images[classes.index(())]
        nested = next(name for name, folders in zip(images, classes, strict=True) if folders)
        raise ValueError(
            f"{where} holds images beside class sub-folders ({flat!r} and {nested!r}): move every image into "
            f"a sub-folder, one a class, or all into one folder for no labels, or write a {LABEL_FILE}"
        )
    return class_labels([name for (name,) in classes], len(images), where)


def summary(names: Iterable[str]) -> str:
    """What kinds of files `names` are: "3 x .txt, 1 x .gif"."""
    kinds = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(8)) or "nothing"


def _folders(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts[:-1]


def _shared_folder(names: Sequence[str]) -> tuple[str, ...]:
    # Every other tuple lies between the smallest and the largest, so these two share what all share.
    low, high = _folders(min(names, key=_folders)), _folders(max(names, key=_folders))
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[:length]


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"
