"""benchmarks/machine.py: what is recorded of the machine."""

import subprocess
import sys

import pytest
import torch

import machine
from machine import ROOT, commit, describe, free_bytes, gpu_state, one_line


def test_commit_and_changed_files(monkeypatch):
    said = {"rev-parse": "abc123", "status": " M a.py\n M b.py"}
    monkeypatch.setattr(machine, "_said_by", lambda program, *words: said[words[2]])
    assert commit() == {"commit": "abc123", "changed_files": 2}
    monkeypatch.setattr(machine, "_said_by", lambda *words: None)
    monkeypatch.setenv("PROGDISTILL_COMMIT", "def456")
    assert commit() == {"commit": "def456", "changed_files": None}


def test_what_nvidia_smi_says(monkeypatch):
    line = "580.159.03, 1980 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 41, 120.5 W"
    monkeypatch.setattr(machine, "_said_by", lambda *words: line)
    assert gpu_state()["driver"] == "580.159.03"
    assert gpu_state()["gpu_state"]["clocks.mem"] == "3201 MHz"
    monkeypatch.setattr(machine, "_said_by", lambda *words: None)
    assert gpu_state() == {}


def test_description_on_one_line(monkeypatch):
    about = describe("cpu")
    assert about["torch"] == torch.__version__ and torch.__version__ in one_line(about)
    assert one_line({**about, "commit": "0123456789abcdef", "changed_files": 0}).endswith("commit 0123456789")
    assert one_line({**about, "commit": None, "changed_files": None}).endswith("commit unknown")


def test_free_memory():
    free = free_bytes("cpu")
    assert free is None or 2**20 < free < 2**50


def test_torch_and_numpy_are_enough():
    """On a machine that has nothing else of what the package asks for."""
    code = (
        "import importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'tyro', 'diffusers', 'safetensors', 'PIL', 'tqdm', 'yaml', 'sklearn'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"sys.path[:0] = [{str(ROOT / 'python')!r}, {str(ROOT / 'benchmarks')!r}]\n"
        "import kernels, launch_cost, machine, on_gpu, progdistill.ops, progdistill.cli.doctor\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_description_of_a_gpu():
    about = describe("cuda")
    assert about["l2_bytes"] > 0 and about["gpu"] in one_line(about)
    assert 0 < free_bytes("cuda") <= about["memory_bytes"]
