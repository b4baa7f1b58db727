"""Several files by one name: "train-*.tar", "train-{000..009}.tar"."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_MAX_FILES = 1_000_000


def is_pattern(path: Path) -> bool:
    """Whether `path` is not a file itself but has a star or braces."""
    return ("*" in path.name or _BRACES.search(str(path)) is not None) and not path.exists()


def matching(pattern: Path) -> list[Path]:
    """The files that a pattern names: braces in the order written, stars sorted.

    Braces are a range of numbers, padded as its beginning is ("{000..009}"), or alternatives ("{a,b}").

    Raises:
        FileNotFoundError: a name in braces, or the whole pattern, fits no file.
        ValueError: a range of more than a million files.
    """
    files = []
    for name in _expanded(str(pattern)):
        found = sorted(glob.glob(name)) if "*" in Path(name).name else [name] * os.path.exists(name)
        if not found:
            raise FileNotFoundError(f"no file matches {name}; {beside(Path(name))}")
        files += map(Path, found)
    return files


def beside(path: Path) -> str:
    """What there is in the nearest folder above `path` that exists, to show a mistyped name."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(os.listdir(folder))
    return f"{folder} holds " + (", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing")


def _expanded(name: str) -> list[str]:
    match = _BRACES.search(name)
    if match is None:
        return [name]
    if match[3] is not None:
        choices = match[3].split(",")
    else:
        first, last, digits = int(match[1]), int(match[2]), len(match[1])
        if abs(last - first) >= _MAX_FILES:
            raise ValueError(f"{match[0]} in {name} names more than {_MAX_FILES} files")
        step = 1 if first <= last else -1
        choices = [str(number).zfill(digits) for number in range(first, last + step, step)]
    before, after = name[: match.start()], name[match.end() :]
    return [before + choice + rest for choice in choices for rest in _expanded(after)]
