"""The forms in which generated images are written: .npz, .zip of PNGs, folder of PNGs, one picture.

Each writes parts, which are whole or not there, and puts them together. Nothing in a file depends on the time or on how
the work was shared out, so equal images give equal bytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from progdistill.core.files import flush_file, flush_folder, replace_atomic, write_bytes_atomic
from progdistill.data.tree import LABEL_FILE
from progdistill.data.workers import map_indices

_CHUNK = 1 << 20
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows
_RECORD_FILE = "sampling.json"
_RECORD_KEY = "progdistill"


class ImageSet(NamedTuple):
    """What is to be written: images 0 ... count - 1 of one shape; image i has seed `first_seed + i`."""

    count: int
    shape: tuple[int, int, int]
    """(H, W, C)"""
    first_seed: int
    labels: Tensor | None
    """(count,) int64, or None."""


class OutputFormat(ABC):
    """How an `ImageSet` is written in parts, which lie in the folder `work` until they are put together.

    Several processes may write different parts at once, one of them puts them together.
    """

    def __init__(self, images: ImageSet, work: Path) -> None:
        self.images = images
        self.work = work

    @abstractmethod
    def write_part(self, part: range, pixels: Tensor) -> None:
        """Keeps uint8 (len(part), H, W, C) images; after a crash the part is whole or not there."""

    @abstractmethod
    def has_part(self, part: range) -> bool:
        """Whether the part is there."""

    @abstractmethod
    def assemble(self, parts: Sequence[range], record: str) -> Path:
        """Puts all parts, in order, and the record together; returns the file or folder, which lies in `work`."""

    @staticmethod
    @abstractmethod
    def read_record(path: Path) -> str | None:
        """The record in a finished output; None where there is none, for it was made by something else."""

    def _part_path(self, part: range, suffix: str) -> Path:
        return self.work / f"part-{part.start:09d}-{part.stop:09d}{suffix}"

    @property
    def _whole(self) -> Path:
        return self.work / "whole"

    def _png_names(self, part: range) -> list[str]:
        return [f"{self.images.first_seed + number:06d}.png" for number in part]

    def _label_file(self) -> str | None:
        """EDM's dataset.json, by which a data set without sub-folders has classes."""
        if self.images.labels is None:
            return None
        names = self._png_names(range(self.images.count))
        return json.dumps({"labels": list(zip(names, self.images.labels.tolist(), strict=True))})


class _RowsFormat(OutputFormat):
    """Parts are files of plain bytes, image after image."""

    def write_part(self, part: range, pixels: Tensor) -> None:
        write_bytes_atomic(self._part_path(part, ".rows"), pixels.numpy().tobytes())

    def has_part(self, part: range) -> bool:
        path = self._part_path(part, ".rows")
        return path.is_file() and path.stat().st_size == len(part) * int(np.prod(self.images.shape))

    def _copy_rows(self, parts: Sequence[range], stream: BinaryIO) -> None:
        for part in parts:
            with self._part_path(part, ".rows").open("rb") as rows:
                shutil.copyfileobj(rows, stream, _CHUNK)


class NpzFormat(_RowsFormat):
    """NumPy's .npz, not compressed: `arr_0` uint8 (N, H, W, C) as FID tools expect it, `labels` int64 (N,)."""

    def assemble(self, parts: Sequence[range], record: str) -> Path:
        with zipfile.ZipFile(self._whole, "w") as archive:
            archive.comment = record.encode()
            header = {"descr": "|u1", "fortran_order": False, "shape": (self.images.count, *self.images.shape)}
            # Streamed, so its size is not known before: the 64-bit form is needed beyond 2 GiB.
            with archive.open(_zip_entry("arr_0.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array_header_1_0(stream, header)
                self._copy_rows(parts, stream)
            if self.images.labels is not None:
                with archive.open(_zip_entry("labels.npy"), "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, self.images.labels.numpy(), version=(1, 0))
        return self._whole

    @staticmethod
    def read_record(path: Path) -> str | None:
        return _zip_comment(path)


class PictureFormat(_RowsFormat):
    """All images in one PNG; `draw` makes it of uint8 (N, C, H, W), so all of them are in memory at the end."""

    def __init__(self, images: ImageSet, work: Path, draw: Callable[[Tensor], Image.Image]) -> None:
        _require_picture(images)
        super().__init__(images, work)
        self._draw = draw

    def assemble(self, parts: Sequence[range], record: str) -> Path:
        rows = io.BytesIO()
        self._copy_rows(parts, rows)
        pixels = torch.frombuffer(rows.getbuffer(), dtype=torch.uint8)
        pixels = pixels.view(self.images.count, *self.images.shape).movedim(-1, 1)
        text = PngImagePlugin.PngInfo()
        text.add_text(_RECORD_KEY, record)
        self._draw(pixels).save(self._whole, format="PNG", pnginfo=text)
        return self._whole

    @staticmethod
    def read_record(path: Path) -> str | None:
        try:
            with Image.open(path, formats=("PNG",)) as image:
                return image.info.get(_RECORD_KEY)
        except Exception:  # of a file that is something else Pillow raises many kinds
            return None


class ZipFormat(OutputFormat):
    """A .zip of PNGs named by their seeds, stored, for PNG is compressed; `dataset.json` with the labels."""

    def __init__(self, images: ImageSet, work: Path) -> None:
        _require_picture(images)
        super().__init__(images, work)

    def write_part(self, part: range, pixels: Tensor) -> None:
        with (
            replace_atomic(self._part_path(part, ".zip")) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):
            for name, content in zip(self._png_names(part), _encoded(pixels), strict=True):
                archive.writestr(_zip_entry(name), content)

    def has_part(self, part: range) -> bool:
        return self._part_path(part, ".zip").is_file()

    def assemble(self, parts: Sequence[range], record: str) -> Path:
        with zipfile.ZipFile(self._whole, "w") as archive:
            archive.comment = record.encode()
            for part in parts:
                with zipfile.ZipFile(self._part_path(part, ".zip")) as images:
                    for name in self._png_names(part):
                        archive.writestr(_zip_entry(name), images.read(name))
            labels = self._label_file()
            if labels is not None:
                archive.writestr(_zip_entry(LABEL_FILE), labels)
        return self._whole

    @staticmethod
    def read_record(path: Path) -> str | None:
        return _zip_comment(path)


class FolderFormat(OutputFormat):
    """A folder of PNGs named by their seeds, `dataset.json` with the labels, and the record in sampling.json."""

    def __init__(self, images: ImageSet, work: Path) -> None:
        _require_picture(images)
        super().__init__(images, work)
        self._folder = work / "images"

    def write_part(self, part: range, pixels: Tensor) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        names, files = self._png_names(part), pixels.numpy()
        for _ in map_indices(lambda i: self._write_png(names[i], files[i]), range(len(part))):
            pass
        flush_folder(self._folder)
        # Only now, when every image is on the disk, the part counts.
        write_bytes_atomic(self._part_path(part, ".done"), b"")

    def has_part(self, part: range) -> bool:
        return self._part_path(part, ".done").is_file()

    def assemble(self, parts: Sequence[range], record: str) -> Path:
        there = set(os.listdir(self._folder))
        lost = [name for part in parts for name in self._png_names(part) if name not in there]
        if lost:
            raise FileNotFoundError(f"{len(lost)} images are gone from {self._folder}, such as {lost[0]}")
        labels = self._label_file()
        if labels is not None:
            self._write_text(LABEL_FILE, labels)
        self._write_text(_RECORD_FILE, record)
        flush_folder(self._folder)
        return self._folder

    @staticmethod
    def read_record(path: Path) -> str | None:
        file = path / _RECORD_FILE
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def _write_png(self, name: str, pixels: np.ndarray) -> None:
        # One name for every attempt: a killed one leaves nothing in this folder that the next does not replace.
        temporary = self._folder / f".{name}.tmp"
        temporary.write_bytes(_png(pixels))
        flush_file(temporary)
        os.replace(temporary, self._folder / name)

    def _write_text(self, name: str, text: str) -> None:
        # Half of it may be left outside of the folder that becomes the output, not inside.
        self._whole.write_text(text, encoding="utf-8")
        flush_file(self._whole)
        os.replace(self._whole, self._folder / name)


def _require_picture(images: ImageSet) -> None:
    if images.shape[2] not in (1, 3):
        raise ValueError(
            f"images with {images.shape[2]} channels are neither grey nor RGB and cannot be PNG; use an .npz output"
        )


def _encoded(pixels: Tensor) -> Iterator[bytes]:
    arrays = pixels.numpy()
    return map_indices(lambda index: _png(arrays[index]), range(len(arrays)))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(stream, format="PNG")
    return stream.getvalue()


def _zip_entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _ZIP_TIME)
    entry.external_attr = 0o644 << 16
    return entry


def _zip_comment(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment.decode("utf-8") or None
    except (zipfile.BadZipFile, UnicodeDecodeError):
        return None
