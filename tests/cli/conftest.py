"""The place of the tests of `progdistill sample`."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from sampling_runs import save_model


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model `grey`; one thread, for equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    save_model("grey")
    yield tmp_path
    torch.set_num_threads(before)
