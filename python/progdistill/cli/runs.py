"""`progdistill runs`."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import tyro

from progdistill.cli.arguments import parse
from progdistill.training.progress import STATUS, duration

# A run on another machine that has written nothing for so long is taken for dead.
_SILENCE = 1800.0


@dataclasses.dataclass(kw_only=True)
class RunsConfig:
    """List the runs below a folder: what they are, how far they have come, and whether they are alive."""

    folder: tyro.conf.Positional[str] = "."
    """Where to look, sub-folders included."""
    json: bool = False
    """Print JSON instead of a table."""


def run(arguments: list[str]) -> None:
    """Parses and prints."""
    config = parse(RunsConfig, arguments, "runs")
    root = Path(config.folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is no folder; name the one that holds your runs")
    found = [description for path in sorted(root.rglob("config.json")) if (description := describe(path.parent))]
    if config.json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print(f"no runs below {root.resolve()}")
        return
    rows = [("run", "command", "state", "done", "at", "loss", "left", "last sign of life")]
    rows += [_row(description, root) for description in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for description in found:
        if description.get("message"):
            print(f"{description['folder']}: {description['message']}")


def describe(folder: Path) -> dict[str, Any] | None:
    """What a folder's config.json and status.json say of a run; None if it holds none."""
    settings = _read(folder / "config.json")
    if settings is None or "command" not in settings or "settings" not in settings:
        return None
    status = _read(folder / STATUS) or {"state": "started"}
    if status["state"] == "running" and not _alive(status):
        status["state"] = "died"
    return {"folder": str(folder), "command": settings["command"], **status}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _alive(status: dict[str, Any]) -> bool:
    if status.get("host") == socket.gethostname() and isinstance(status.get("process"), int):
        try:
            os.kill(status["process"], 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True
    return time.time() - status.get("time", 0.0) < _SILENCE


def _row(description: dict[str, Any], root: Path) -> tuple[str, ...]:
    done, total = description.get("done_updates"), description.get("total_updates")
    loss, left, seen = description.get("loss"), description.get("seconds_left"), description.get("time")
    running = description["state"] == "running"
    return (
        os.path.relpath(description["folder"], root),
        description["command"],
        description["state"],
        f"{done}/{total} ({done / total:.0%})" if done is not None and total else "-",
        description.get("label", "-"),
        "-" if loss is None else f"{loss:.4g}",
        duration(left) if running and left is not None else "-",
        "-" if seen is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seen)),
    )
