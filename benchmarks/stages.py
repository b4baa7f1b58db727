"""Runs commands one after the other, each within its time, and keeps a record that a killed run has as well.

A stage that fails or runs out of time does not keep the later ones from running; the exit status says it at the end.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LAST_LINES = 25
PASSED, FAILED, TIMED_OUT, SKIPPED = "passed", "failed", "timed out", "skipped"
# Between the request to end and the order to: a benchmark may be writing a file.
GRACE_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Stage:
    """A command and its limit.

    In the command and the environment {name} stands for a value that the runner is given, {files} for a folder for what
    the stage writes, {results} for a JSON file there. What the command leaves in that file goes into the record; its
    "summary", a list of lines, is printed at the end.
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    needs: tuple[str, ...] = ()  # programs without which the stage is skipped
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def chosen(stages: Iterable[Stage], wishes: list[str]) -> list[Stage]:
    """The stages that are wished for by the beginnings of their names, in their own order; all without a wish.

    Raises:
        ValueError: a wish that begins no name.
    """
    stages = list(stages)
    for wish in wishes:
        if not any(stage.name.startswith(wish) for stage in stages):
            raise ValueError(f"no stage begins with {wish!r}; there are: {', '.join(stage.name for stage in stages)}")
    return [stage for stage in stages if not wishes or any(stage.name.startswith(wish) for wish in wishes)]


def run_stages(
    stages: list[Stage], output: Path, values: Mapping[str, str], environment: Mapping[str, str] | None = None
) -> int:
    """Runs the stages, writes `output` after each, prints a table last; 1 if one failed or ran out of time."""
    files = output.with_suffix(".files").resolve()
    files.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()), **values, "stages": []}
    for stage in stages:
        own = {**values, "files": str(files), "results": str(files / f"{stage.name}.json")}
        base = {**os.environ, **(environment or {})}
        record["stages"].append(_run(stage, own, base, files / f"{stage.name}.log"))
        _write(output, record)
    print("\n".join(["", *report(record["stages"])]), flush=True)
    return int(any(entry["status"] in (FAILED, TIMED_OUT) for entry in record["stages"]))


def _run(stage: Stage, values: Mapping[str, str], environment: Mapping[str, str], log: Path) -> dict[str, Any]:
    command = [_filled(word, values) for word in stage.command]
    entry: dict[str, Any] = {"name": stage.name, "command": command, "limit_seconds": stage.seconds}
    print(f"\n== {stage.name} (at most {stage.seconds:.0f} s): {' '.join(command)}", flush=True)
    path = environment.get("PATH")
    missing = [program for program in stage.needs if shutil.which(program, path=path) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} not found")
        return {**entry, "status": SKIPPED, "seconds": 0.0, "last_lines": [f"not found: {', '.join(missing)}"]}
    results = Path(values["results"])
    results.unlink(missing_ok=True)
    environment = {**environment, **{name: _filled(value, values) for name, value in stage.environment.items()}}
    started = time.monotonic()
    try:
        exit_status, lines = _run_command(command, environment, stage.seconds, log)
    except OSError as error:
        exit_status, lines = 127, [str(error)]
    entry |= {"seconds": round(time.monotonic() - started, 1), "exit_status": exit_status, "last_lines": lines}
    entry["status"] = TIMED_OUT if exit_status is None else PASSED if exit_status == 0 else FAILED
    return _with_results(entry, results)


def _filled(word: str, values: Mapping[str, str]) -> str:
    # Not str.format: other braces are the command's own.
    for name, value in values.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def _with_results(entry: dict[str, Any], results: Path) -> dict[str, Any]:
    if not results.exists():
        return {**entry, "results": None}
    try:
        return {**entry, "results": json.loads(results.read_text())}
    except ValueError as error:  # killed while it wrote
        return {**entry, "results": None, "results_error": f"{results.name} is not JSON: {error}"}


def _run_command(
    command: list[str], environment: Mapping[str, str], seconds: float, log: Path
) -> tuple[int | None, list[str]]:
    """(exit status, or None for out of time; the last lines), all output to the console and to `log`."""
    lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
    with log.open("w") as copy:
        # A group of its own, so that what the command has started ends with it.
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )

        def read() -> None:
            for line in process.stdout:
                lines.append(line.rstrip("\n"))
                copy.write(line)
                sys.stdout.write(line)
                sys.stdout.flush()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            exit_status: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            exit_status = None
        finally:
            _end_group(process)
            reader.join(timeout=GRACE_SECONDS)
    return exit_status, list(lines)


def _end_group(process: subprocess.Popen) -> None:
    for wanted, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, wanted)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _write(path: Path, record: dict[str, Any]) -> None:
    # Not with the package's own writer: the record must be there if the package cannot be built.
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(temporary, path)


def report(entries: list[dict[str, Any]]) -> list[str]:
    """What the stages say of themselves, the last lines of those that failed, and the table of all."""
    lines = []
    for entry in entries:
        summary = (entry.get("results") or {}).get("summary") or []
        if summary:
            lines += [f"-- {entry['name']}", *summary]
        if entry["status"] in (FAILED, TIMED_OUT):
            lines += [f"-- {entry['name']} {entry['status']}, its last lines:", *entry["last_lines"]]
    width = max(len(entry["name"]) for entry in entries) if entries else 0
    lines.append(f"{'stage':<{width}}  {'status':<10}{'seconds':>9}")
    for entry in entries:
        remark = f"  {entry['last_lines'][-1]}" if entry["status"] != PASSED and entry["last_lines"] else ""
        lines.append(f"{entry['name']:<{width}}  {entry['status']:<10}{entry['seconds']:>9.1f}{remark[:100]}".rstrip())
    return lines
