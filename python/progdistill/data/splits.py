"""The splits of a data set that lie beside each other as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_SPLIT = re.compile(r"(?:^|[^a-z])(train|test|validation|valid|val|dev|eval)(?=[^a-z]|$)")


def check_one_split(files: Sequence[Path], name: str) -> None:
    """Refuses files that, by their names, belong to different splits.

    Raises:
        ValueError: they do.
    """
    splits = {file: tuple(_SPLIT.findall(file.stem.lower())[-1:]) for file in files}
    if len(set(splits.values())) > 1:
        one_of_each = {split: file.name for file, split in splits.items()}
        raise ValueError(
            f"{name} mixes the splits of a data set ({', '.join(sorted(one_of_each.values()))}); "
            f'name one file, or a pattern such as "folder/train-*{files[0].suffix}"'
        )
