"""How often the host launches something on the GPU in a call, and how many kernels and copies run there."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import profile, supported_activities

# What torch.profiler calls the work of a GPU in its traces.
ON_THE_GPU = {"kernel", "gpu_memcpy", "gpu_memset"}


def launches(call: Callable[[], object]) -> dict[str, int]:
    """{"launches": by the host, "kernels": on the GPU, copies included} of one call; zeros without a GPU.

    What `trace_of` says of the profiler holds here too.
    """
    return counted(trace_of(call))


def trace_of(call: Callable[[], object]) -> list[dict[str, Any]]:
    """The events of torch.profiler's trace of one call, until the GPU is done with it.

    A profiler may slow down what the process launches later, and older drivers do not bear graphs that were captured
    before it: use it in a process that times nothing, and once before anything is captured.
    """
    with profile(activities=supported_activities()) as found:
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        found.export_chrome_trace(str(trace))
        return json.loads(trace.read_text())["traceEvents"]


def counted(events: Iterable[dict[str, Any]]) -> dict[str, int]:
    """The counts from the events of a trace. All that one launch of a graph runs has that launch's correlation."""
    correlations = [event["args"]["correlation"] for event in events if event.get("cat") in ON_THE_GPU]
    return {"launches": len(set(correlations)), "kernels": len(correlations)}


def counted_elsewhere(program: Path, options: list[str]) -> tuple[list[dict[str, Any]], str | None]:
    """The "cells" that a benchmark run with these options writes to its --output, and what it said if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "launches.json"
        command = [sys.executable, str(program.resolve()), *options, "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True)
        cells = json.loads(output.read_text())["cells"] if output.exists() else []
    return cells, None if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]


def enter(
    counts: list[dict[str, Any]], cells: list[dict[str, Any]], figures: tuple[str, ...] = ("launches", "kernels")
) -> None:
    """Gives the records of `cells` these figures of the same batch size, steps and contender; None if not counted."""
    places = ("batch_size", "steps")
    by_size = {tuple(cell[place] for place in places): cell["records"] for cell in counts}
    for cell in cells:
        counted = {r["contender"]: r for r in by_size.get(tuple(cell[place] for place in places), [])}
        for record in cell["records"]:
            record |= {key: counted.get(record["contender"], {}).get(key) for key in figures}
