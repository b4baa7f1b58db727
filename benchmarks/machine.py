"""What a benchmark was measured on, as far as this machine tells.

python benchmarks/machine.py --output machine.json
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

import progdistill
from progdistill.core.machine import machine
from progdistill.ops import native

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("numpy", "triton", "diffusers")
GPU_STATE = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw")


def describe(device: str) -> dict[str, Any]:
    """Machine, versions, build and commit; of the GPU too if `device` is "cuda"."""
    about = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **machine(),
        "logical_cores": os.cpu_count(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "progdistill": _measured_package(),
        "extension": native._C.build_info() if native._C is not None else f"missing: {native.import_error}",
        **commit(),
    }
    if device == "cuda":
        about |= _gpu()
    return about


def _gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        **gpu_state(),
    }


def gpu_state() -> dict[str, Any]:
    """The driver, and clocks, temperature and power at this moment, as nvidia-smi tells them; {} without it."""
    fields = ("driver_version", *GPU_STATE)
    told = _said_by("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0")
    values = [value.strip() for value in (told or "").split(",")]
    if len(values) != len(fields):
        return {}
    return {"driver": values[0], "gpu_state": dict(zip(GPU_STATE, values[1:], strict=True))}


def _measured_package() -> str:
    # Records are published, so no folder of a machine is in them.
    folder = Path(progdistill.__file__).resolve().parent
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else "an installed copy"


def commit() -> dict[str, Any]:
    """The commit of the checkout, and whether files differ from it; PROGDISTILL_COMMIT where there is no git."""
    named = _said_by("git", "-C", str(ROOT), "rev-parse", "HEAD")
    if named is None:
        return {"commit": os.environ.get("PROGDISTILL_COMMIT"), "changed_files": None}
    changed = _said_by("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no") or ""
    return {"commit": named, "changed_files": len(changed.splitlines())}


def free_bytes(device: str) -> int | None:
    """Memory that can still be had on "cpu" or "cuda"; None if the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    told = Path("/proc/meminfo")
    for line in told.read_text().splitlines() if told.exists() else []:
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return None


def one_line(about: dict[str, Any]) -> str:
    """The most important of it."""
    compute = about["gpu"] if "l2_bytes" in about else f"{about['processor']}, {about['threads']} threads"
    tail = "" if not about["changed_files"] else f" + {about['changed_files']} changed files"
    driver = f", driver {about['driver']}" if "driver" in about else ""
    return f"{compute}{driver}, torch {about['torch']}, commit {(about['commit'] or 'unknown')[:10]}{tail}"


def columns(about: dict[str, Any]) -> dict[str, Any]:
    """What tells apart the machines of a spreadsheet's lines."""
    return {
        "machine": about["gpu"] if "l2_bytes" in about else about["processor"],
        **{key: about[key] for key in ("threads", "torch", "commit")},
    }


def _version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _said_by(program: str, *arguments: str) -> str | None:
    if shutil.which(program) is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    """Prints the description, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write it to this JSON file")
    arguments = parser.parse_args()
    about = describe("cuda" if torch.cuda.is_available() else "cpu")
    print(one_line(about))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
