"""Tensors in files, known by name, shape and dtype before any of them is read."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

FLOATS = ("F64", "F32", "F16", "BF16")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_TORCH_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_NUMPY_NAMES = {"<f8": "F64", "<f4": "F32", "<f2": "F16"}
_FIX = "copy or download it again"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file. `read` returns it in the file's own dtype, perhaps in the file's own memory."""

    shape: tuple[int, ...]
    dtype: str
    file: Path
    read: Callable[[], Tensor]

    def float32(self) -> Tensor:
        """A contiguous float32 copy that does not depend on the file."""
        return self.read().to(torch.float32, copy=True).contiguous()

    def changed(self, shape: Sequence[int], change: Callable[[Tensor], Tensor]) -> Stored:
        """The tensor `change` makes of it, which has this shape."""
        return dataclasses.replace(self, shape=tuple(shape), read=lambda: change(self.read()))


StoredTensors = Mapping[str, Stored]


@contextmanager
def open_tensors(files: Sequence[Path]) -> Iterator[dict[str, Stored]]:
    """All tensors in some files by name, to be read while the context lasts.

    .safetensors and .npz are read tensor by tensor. .bin, .pt, .pth and .ckpt are pickles and are read by
    torch.load(weights_only=True), which builds nothing but tensors and plain containers, at once.

    Raises:
        ValueError: a damaged file, another kind of file, a name in two files, a pickle of anything but one flat
            dictionary of tensors.
        FileNotFoundError: a file that is not there.
    """
    tensors: dict[str, Stored] = {}
    with ExitStack() as stack:
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"no weights {file}")
            for name, stored in stack.enter_context(_opened(file)).items():
                if name in tensors:
                    raise ValueError(f"{name} is in {tensors[name].file} and in {file}; keep the files of one model")
                tensors[name] = stored
        yield tensors


def _opened(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return _safetensors(file)
    if file.suffix == ".npz":
        return _npz(file)
    if file.suffix in PICKLES:
        return _pickled(file)
    raise ValueError(f"{file} is of no known kind; use .safetensors, .npz or one of {', '.join(PICKLES)}")


@contextmanager
def _safetensors(file: Path) -> Iterator[dict[str, Stored]]:
    try:
        with safe_open(file, framework="pt", device="cpu") as stored:
            headers = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118 (safe_open is no mapping)
            yield {
                name: Stored(
                    tuple(header.get_shape()), header.get_dtype(), file, lambda name=name: stored.get_tensor(name)
                )
                for name, header in headers.items()
            }
    except SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is truncated, damaged or not safetensors: {error}; {_FIX}"
        ) from error


@contextmanager
def _pickled(file: Path) -> Iterator[dict[str, Stored]]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for a damaged file
        raise ValueError(
            f"{file} is a pickle, which can run code when it is read, so that nothing but tensors is read from it; "
            f"this one holds something else or is damaged ({type(error).__name__}: {str(error)[:200]}). Write its "
            "tensors with safetensors.torch.save_file where you trust it"
        ) from error
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{file} holds a {type(content).__name__}, not a state dict; save the network's state_dict()")
    wrong = [name for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if wrong:
        shown = ", ".join(f"{name} ({type(content[name]).__name__})" for name in wrong[:3])
        raise ValueError(
            f"{file} is no flat state dict: {shown}. Save the dictionary of the network's tensors alone, with "
            "safetensors.torch.save_file"
        )
    # A tensor can repeat its memory, and so be larger than anything that was read.
    if sum(value.numel() * value.element_size() for value in content.values()) > file.stat().st_size:
        raise ValueError(f"the tensors of {file} are larger than the file; {_FIX}")
    yield {
        name: Stored(
            tuple(value.shape), _TORCH_NAMES.get(value.dtype, str(value.dtype)), file, lambda value=value: value
        )
        for name, value in content.items()
    }


@contextmanager
def _npz(file: Path) -> Iterator[dict[str, Stored]]:
    with _unpacking(file):
        archive = zipfile.ZipFile(file)
    with archive:
        yield {
            info.filename.removesuffix(".npy"): _array(archive, info, file)
            for info in archive.infolist()
            if not info.is_dir()
        }


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> Stored:
    with _unpacking(file), archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = header[version](stream)
        if dtype.hasobject or stream.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} is no array of numbers of the size that it says")

    def read() -> Tensor:
        with _unpacking(file), archive.open(info) as stream:
            return torch.from_numpy(np.lib.format.read_array(stream, allow_pickle=False))

    return Stored(tuple(shape), _NUMPY_NAMES.get(dtype.str, dtype.str), file, read)


@contextmanager
def _unpacking(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # zipfile and numpy raise nearly anything for a damaged file
        raise ValueError(f"{file} is truncated, damaged or no .npz: {error}; {_FIX}") from error
