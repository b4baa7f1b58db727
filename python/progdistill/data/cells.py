"""Encoded images copied out of a table: in memory while they are few, else in a temporary file."""

from __future__ import annotations

import bisect
import io
import mmap
import tempfile
from pathlib import Path
from typing import BinaryIO


class Cells:
    """The bytes of N images end to end; append all, `seal`, then read from any thread."""

    def __init__(self, memory_limit: int) -> None:
        """`memory_limit`: the number of bytes above which a temporary file takes them."""
        self._memory_limit = memory_limit
        self._storage: BinaryIO = io.BytesIO()
        self._ends = [0]
        self._files: list[Path] = []
        self._first_rows: list[int] = []

    def __len__(self) -> int:
        return len(self._ends) - 1

    def start_file(self, file: Path) -> None:
        """What is appended from here on are the rows of `file`, the first one numbered 0."""
        self._files.append(file)
        self._first_rows.append(len(self))

    def append(self, encoded: bytes | None) -> None:
        """Adds one row's image.

        Raises:
            ValueError: the row has no bytes, or the temporary file does not fit its disk.
        """
        if not encoded:
            where = self.describe(len(self))
            raise ValueError(
                f"{where} holds no image bytes; a row that has only a path must be saved again with its image embedded"
            )
        end = self._ends[-1] + len(encoded)
        try:
            if end > self._memory_limit and isinstance(self._storage, io.BytesIO):
                self._move_to_disk()
            self._storage.write(encoded)
        except OSError as error:
            raise ValueError(
                f"cannot keep {end} bytes of images of {self._files[-1]} in a temporary file in "
                f"{tempfile.gettempdir()}: {error}; set TMPDIR to a folder with room"
            ) from error
        self._ends.append(end)

    def seal(self) -> None:
        """Ends appending and makes the images readable."""
        if isinstance(self._storage, io.BytesIO):
            self._bytes = self._storage.getbuffer()
        else:
            self._storage.flush()
            self._bytes = memoryview(mmap.mmap(self._storage.fileno(), 0, access=mmap.ACCESS_READ))
            self._storage.close()  # the mapping keeps the file alive

    def open(self, index: int) -> BinaryIO:
        return io.BytesIO(self._bytes[self._ends[index] : self._ends[index + 1]])

    def describe(self, index: int) -> str:
        file = bisect.bisect_right(self._first_rows, index) - 1
        return f"row {index - self._first_rows[file]} (the first is 0) of {self._files[file]}"

    def _move_to_disk(self) -> None:
        disk = tempfile.TemporaryFile(prefix="progdistill-")  # noqa: SIM115, closed by seal()
        disk.write(self._storage.getbuffer())
        self._storage = disk
