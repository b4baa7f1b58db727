"""Thousands of damaged files: a data set or a documented error that names the file, never anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SEEDS = 190
PEAK = 2**30


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory limit needs Linux")
def test_damaged_files_end_in_a_data_set_or_a_documented_error(tmp_path):
    """In a process of its own: a crash of a decoder, a hang and memory by a header's claim show as well."""
    paths = [str(HERE.parents[1] / "python"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, HERE / "mutated_files.py", tmp_path, "0", str(SEEDS)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = child.stdout.splitlines()
    current = (tmp_path / "current").read_text() if (tmp_path / "current").exists() else "the good files"
    assert lines[-1:] == ["done"], f"crashed or hung at {current}: {child.returncode}\n{child.stderr[-3000:]}"
    *problems, peak = map(json.loads, lines[:-1])
    assert not problems
    assert peak["peak"] < PEAK
