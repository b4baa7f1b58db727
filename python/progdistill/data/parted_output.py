"""An output made in parts: what is written stays, whatever happens to the process that makes the rest."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from progdistill.core.files import flush_file, flush_folder, write_json_atomic
from progdistill.data.output_formats import ImageSet, OutputFormat

FORMAT_VERSION = 1
_VERSION_KEY = "progdistill_sample"
_JOB = "job.json"
_OWN = (_JOB, "images", "whole", "old")


class Plan(NamedTuple):
    """What there is to do."""

    parts: list[range]
    """All parts, in order: ranges of image numbers."""
    missing: list[range]
    """Those that are not written yet; none if the output is finished."""
    finished: bool
    """Whether the output was finished before."""
    changes: dict[str, tuple[Any, Any]]
    """What is different since the first part, of the things that only rounding depends on: before and now."""


class PartedOutput:
    """A file or folder that appears when all its parts are there, and not before.

    The parts lie in a folder beside it, OUTPUT.parts, with the settings they were made with; the finished output
    carries the settings in itself. One process opens and finishes, any number of them write.

    Args:
        path: the output. A link is followed.
        make_format: (images, folder of the parts) -> the form it is written in.
        images: what is written.
        settings: JSON-ready, by name: all that the images depend on.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        make_format: Callable[[ImageSet, Path], OutputFormat],
        images: ImageSet,
        settings: Mapping[str, Any],
    ) -> None:
        self.name = os.fspath(path)
        self.path = Path(os.path.realpath(path))
        self.work = self.path.with_name(f"{self.path.name}.parts")
        self.images = images
        self._format = make_format(images, self.work)
        self._record = json.loads(json.dumps({_VERSION_KEY: FORMAT_VERSION, "settings": dict(settings)}))

    def open(self, part_size: int, environment: Mapping[str, Any], *, overwrite: bool = False) -> Plan:
        """Finds out what is there, and makes the folder of the parts if nothing is.

        Args:
            part_size: images in a part (the last may have fewer); an output that was begun keeps its own.
            environment: JSON-ready: what the last bit of a pixel depends on besides the settings.
            overwrite: begin anew whatever is there.

        Raises:
            ValueError: there are images of other settings (the message lists the differences), or things that this
                class did not write.
            OSError: as the disk gives it.
        """
        if overwrite:
            self._remove()
        if self._there():
            self._require_same(self._finished_record(), self.name)
            shutil.rmtree(self.work, ignore_errors=True)  # left by a process that was killed after its last rename
            return Plan(self._parts(part_size), [], True, {})
        job = self._begun()
        if job is not None:
            parts = self._parts(job["part_size"])
            missing = [part for part in parts if not self._format.has_part(part)]
            # Settings that have produced nothing bind nobody: a typing error may be corrected.
            if len(missing) < len(parts):
                self._require_same({key: job.get(key) for key in self._record}, str(self.work))
                before = job["environment"]
                changes = {k: (before.get(k), now) for k, now in environment.items() if before.get(k) != now}
                return Plan(parts, missing, False, changes)
        self._empty_work()
        self.work.mkdir(parents=True)
        write_json_atomic(self.work / _JOB, {**self._record, "part_size": part_size, "environment": dict(environment)})
        return Plan(self._parts(part_size), self._parts(part_size), False, {})

    def write(self, part: range, pixels: Tensor) -> None:
        """Keeps the uint8 (len(part), H, W, C) images of a part.

        Raises:
            OSError: they could not be written (the disk is full, say); the parts before it are as they were.
        """
        try:
            self._format.write_part(part, pixels)
        except OSError as error:
            raise OSError(
                f"images {part.start} to {part.stop - 1} could not be written to {self.work} ({error}); make room on "
                "that disk and run the same command again, which makes only what is missing"
            ) from error

    def finish(self, parts: list[range]) -> None:
        """Puts the parts together, in the place of the output, and removes them.

        Raises:
            OSError: the output could not be written, or a part is gone; all other parts are still there.
        """
        lost = [part for part in parts if not self._format.has_part(part)]
        if lost:
            raise FileNotFoundError(
                f"{len(lost)} parts have disappeared from {self.work}, the first with images {lost[0].start} to "
                f"{lost[0].stop - 1}; run the same command again, which makes them anew"
            )
        try:
            whole = self._format.assemble(parts, json.dumps(self._record, sort_keys=True))
            if whole.is_file():
                flush_file(whole)
            if self.path.is_dir():
                self.path.rmdir()
            os.replace(whole, self.path)
            flush_folder(self.path.parent)
        except OSError as error:
            (self.work / "whole").unlink(missing_ok=True)
            raise OSError(
                f"{self.name} could not be put together ({error}); its parts in {self.work} are complete: make room on "
                "that disk and run the same command again"
            ) from error
        shutil.rmtree(self.work, ignore_errors=True)

    def discard_if_empty(self) -> None:
        """Removes the folder of the parts if there is none in it: the settings were refused, say."""
        job = self._begun()
        if job is not None and not any(map(self._format.has_part, self._parts(job["part_size"]))):
            self._empty_work()

    def _parts(self, size: int) -> list[range]:
        return [range(first, min(first + size, self.images.count)) for first in range(0, self.images.count, size)]

    def _there(self) -> bool:
        return any(self.path.iterdir()) if self.path.is_dir() else self.path.exists()

    def _finished_record(self) -> dict[str, Any]:
        text = self._format.read_record(self.path)
        try:
            record = json.loads(text or "")
        except ValueError:
            record = None
        if not isinstance(record, dict) or _VERSION_KEY not in record:
            raise ValueError(
                f"{self.name} exists and was not made by `progdistill sample`; use another --output"
                + ("" if self.path.is_dir() else ", or --overwrite to replace it")
            )
        return record

    def _begun(self) -> dict[str, Any] | None:
        try:
            text = (self.work / _JOB).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        try:
            job = json.loads(text)
            return {"part_size": int(job["part_size"]), "environment": dict(job["environment"]), **job}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.work / _JOB} is damaged ({error!r}); use --overwrite to begin anew") from error

    def _require_same(self, record: dict[str, Any], where: str) -> None:
        version = record.get(_VERSION_KEY)
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{where} was written by another version of progdistill (format {version!r}, this one writes "
                f"{FORMAT_VERSION}); use another --output, or --overwrite to begin anew"
            )
        before, now = record["settings"], self._record["settings"]
        changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
        if changed:
            differences = "; ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed)
            raise ValueError(
                f"{where} holds images of another command: {differences}; use the same options to go on with it, "
                "another --output, or --overwrite to begin anew"
            )

    def _remove(self) -> None:
        self._empty_work()
        if self.path.is_dir() and self._there():
            self._finished_record()  # only a folder that was made here is removed
            # Renamed first, so that a process killed while it deletes leaves no half folder in the output's place.
            self.work.mkdir(parents=True)
            self.path.rename(self.work / "old")
            shutil.rmtree(self.work)
        elif self.path.is_file():
            self.path.unlink()

    def _empty_work(self) -> None:
        """Removes the folder of the parts, unless somebody else has put something there."""
        if not self.work.exists():
            return
        strangers = [] if self.work.is_dir() else [self.work.name]
        strangers = strangers or [entry.name for entry in self.work.iterdir() if not _is_own(entry.name)]
        if strangers:
            raise ValueError(
                f"{self.work} is where the parts of {self.name} would lie, but it holds {sorted(strangers)[:3]}; move "
                "them, or use another --output"
            )
        shutil.rmtree(self.work)


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith(("part-", ".progdistill-"))
