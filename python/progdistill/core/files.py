"""Writing files so that a reader, or a restart after a crash, finds the old or the new, never a half."""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Context manager: the body writes a file under the yielded temporary path, which then replaces `path`.

    On success the file is flushed to the disk, renamed onto `path`, and the folder flushed. If the body, the
    flush or the rename fails, the temporary file is removed, the old file is as it was, and the exception
    goes on. Missing parent folders are made. The temporary path lies in the folder of `path` and ends in
    ".tmp": a writer that goes by the suffix must be told the format.

    Raises IsADirectoryError if `path` is a folder, FileNotFoundError if the body wrote nothing, and OSError
    as the disk gives it.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "cannot replace a folder by a file, name a file inside it", str(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".progdistill-{os.getpid()}-{secrets.token_hex(6)}.tmp"
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(
                errno.ENOENT, f"nothing was written to the temporary file for {target}", str(temporary)
            )
        flush_file(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(target.parent)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` as the whole content of `path` through `replace_atomic`."""
    with replace_atomic(path) as temporary:
        temporary.write_bytes(data)


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` as UTF-8, line ends as they are, through `replace_atomic`."""
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json_atomic(path: str | os.PathLike[str], obj: object) -> None:
    """Writes `obj` as JSON (ASCII, indent 2, trailing newline) through `replace_atomic`.

    Only what reads back equal is written: dict with string keys, list, tuple (read back as a list), str, int,
    float, bool and None. Raises ValueError for NaN and infinity and TypeError for anything else, both with
    the place in `obj`.
    """
    _require_json(obj, "")
    write_text_atomic(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def _require_json(value: object, place: str) -> None:
    where = place or "the top level"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} at {where} cannot be written: JSON has neither NaN nor infinity; use None instead")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(
                    f"the key {key!r} at {where} is a {type(key).__name__}: JSON keys are strings, use str()"
                )
            _require_json(item, f"{place}.{key}" if place else key)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _require_json(item, f"{place}[{index}]")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise TypeError(
            f"{type(value).__name__} at {where} cannot be written as JSON: "
            "convert it to a dict, list, str, int, float, bool or None"
        )


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_file(path: Path) -> None:
    """Makes a file's content last through a power failure."""
    _flush(path, os.O_RDWR)


def flush_folder(folder: Path) -> None:
    """Makes a rename last through a power failure, where the system can.

    Windows opens no folders, some network file systems refuse to flush them.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        _flush(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise
