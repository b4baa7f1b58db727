"""Where the members of a tar file lie, grouped into webdataset's samples."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

# webdataset's rules: "dir/0001.seg.png" is the part "seg.png" of the sample "dir/0001"; "__meta__" is no sample.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


class Span(NamedTuple):
    """Bytes of a file."""

    offset: int
    size: int


class Sample(NamedTuple):
    """`parts`: the contents of the members that share a name, by the rest of their names in lower case."""

    file: Path
    name: str
    parts: dict[str, Span]

    def __str__(self) -> str:
        return f"sample {self.name!r} in {self.file}"


def tar_samples(file: Path) -> Iterator[Sample]:
    """The samples of an uncompressed tar file, in order, from its headers alone.

    Raises:
        ValueError: no such file, a damaged or truncated one, or a sample with two parts of one name.
    """
    sample: Sample | None = None
    for member, span in _members(file):
        match = _NAME.fullmatch(member)
        if match is None or _META.match(member):
            continue
        name, part = match[1], match[2].lower()
        if sample is None or name != sample.name:
            if sample is not None:
                yield sample
            sample = Sample(file, name, {})
        if part in sample.parts:
            raise ValueError(f"{sample} has two parts {part!r}; give every sample a name of its own")
        sample.parts[part] = span
    if sample is not None:
        yield sample


def open_span(file: Path, span: Span) -> BinaryIO:
    """A stream of the bytes of `file` at `span`, from which only what is asked for is read.

    Raises:
        OSError: the file cannot be opened.
    """
    return io.BufferedReader(_Window(file, span))


def _members(file: Path) -> Iterator[tuple[str, Span]]:
    """Names and places of the regular files in a tar file."""
    before = -1
    with _Bounded(file) as stream:
        _refuse_compressed(file, stream)
        try:
            archive = tarfile.TarFile(fileobj=stream)
        except Exception as error:
            raise _unreadable(file, error) from error
        while True:
            try:
                member = archive.next()
            except Exception as error:  # damaged headers raise many kinds
                raise _unreadable(file, error) from error
            if member is None:
                break
            archive.members.clear()  # it would keep every member, a kilobyte each
            end = member.offset_data + member.size
            if member.size < 0 or end > stream.total or archive.offset <= before or member.issparse():
                raise _unreadable(file, f"member {member.name!r} is sparse, or it does not lie in the file")
            before = archive.offset
            if member.isreg():
                yield member.name, Span(member.offset_data, member.size)
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a damaged header for the end
            raise _unreadable(file, f"there is no header at byte {archive.offset}")


def _refuse_compressed(file: Path, stream: BinaryIO) -> None:
    kind = _COMPRESSED.get(stream.read(2))
    stream.seek(0)
    if kind is not None:
        raise ValueError(
            f"{file} is compressed ({kind}); training reads images in any order, which needs a plain .tar: "
            "decompress it, for example with gunzip (the images in it are compressed themselves)"
        )


def _unreadable(file: Path, reason: object) -> ValueError:
    return ValueError(f"cannot read the tar file {file}: {reason}; it is damaged or incomplete, write it again")


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than there is: Python sets aside what is asked for."""

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file))
        self.total = file.stat().st_size

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.total - self.tell())
        return super().read(left if size < 0 else min(size, left))


class _Window(io.RawIOBase):
    def __init__(self, file: Path, span: Span) -> None:
        self._file = file.open("rb", buffering=0)
        self._span, self._position = span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._span.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        count = max(0, min(len(buffer), self._span.size - self._position))
        self._file.seek(self._span.offset + self._position)
        count = self._file.readinto(memoryview(buffer)[:count])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
