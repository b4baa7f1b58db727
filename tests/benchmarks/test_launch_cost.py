"""benchmarks/launch_cost.py on tiny tensors."""

import json

import pytest
import torch

import launch_cost
from launch_cost import AND_GRAD, GRAD_MODE, NO_GRAD, calls, main, measure
from progdistill.ops import native


def test_quick_on_the_cpu(tmp_path, capsys):
    output = tmp_path / "launch_cost.json"
    assert main(["--device", "cpu", "--quick", "--threads", str(torch.get_num_threads()), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    rows = {(record["operation"], record["backend"], record["mode"]) for record in found["records"]}
    backend = "cpu" if native._C is not None else "reference"
    assert ("torch.add", "torch", NO_GRAD) in rows and ("torch.add", "torch", GRAD_MODE) in rows
    assert {("distillation_loss", backend, mode) for mode in (NO_GRAD, GRAD_MODE, AND_GRAD)} <= rows
    assert ("ddim_step, clip", backend, GRAD_MODE) in rows and ("normal", backend, NO_GRAD) in rows
    printed = capsys.readouterr().out
    assert printed.splitlines()[-len(found["summary"]) :] == found["summary"]


def test_grad_mode_makes_results_that_can_be_differentiated():
    every = calls("cpu")
    for operation in ("torch.add", "diffuse", "ddim_step", "distillation_loss", "prediction_loss"):
        backend = "torch" if operation == "torch.add" else "reference"
        assert every[operation, backend, GRAD_MODE]().requires_grad, operation


def test_calls_run_in_their_grad_mode(monkeypatch):
    seen = {}

    def watched(device):
        return {
            ("f", "b", mode): lambda mode=mode: seen.update({mode: torch.is_grad_enabled()})
            for mode in launch_cost.COLUMNS
        }

    monkeypatch.setattr(launch_cost, "calls", watched)
    measure("cpu", repetitions=1, seconds_per_turn=1e-6)
    assert seen == {NO_GRAD: False, GRAD_MODE: True, AND_GRAD: True}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_quick_on_a_gpu():
    assert main(["--device", "cuda", "--quick"]) == 0
