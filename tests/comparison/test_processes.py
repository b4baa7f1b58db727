"""`progdistill compare` in two processes: one voice, each file written by one of them, the figures of one process."""

import json
from pathlib import Path

import pytest

from progdistill.comparison import compare
from small_comparisons import SMALL, settings
from torchrun import torchrun

SCRIPT = Path(__file__).parent / "two_comparers.py"
METHODS = ("ddim", "d_ode", "sfd", "pd")


def test_two_processes_compare_as_one(folder, tmp_path, measured):
    output = tmp_path / "out"
    arguments = [str(folder / "teacher"), "--data", str(folder / "images.npz"), "--output-dir", str(output)]
    arguments += [
        *(flag for flag in SMALL if flag != "--no-progress"),
        "--methods",
        ",".join(METHODS),
        "--steps",
        "2,3",
    ]
    done = torchrun(2, SCRIPT, "--", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    for line in ("ddim, 2 calls: ", "d_ode, 3 calls, trained in", "pd, 3 steps: left out", "look at "):
        assert said.count(line) == 2, said  # two runs, each with one voice
    assert said.count("(measured before)") == 6
    assert not list(tmp_path.glob("measured-*"))
    written = [(tmp_path / f"written-{rank}.txt") for rank in (0, 1)]
    first = written[0].read_text()
    assert not written[1].exists() and first.count("metrics.json\n") == 1 and first.count("/figures/") == 6

    found = json.loads((output / "metrics.json").read_text())
    own = settings(folder, output_dir=str(output), methods=METHODS, steps=(2, 3), features=None)
    # What two processes have trained one process does not train again, nor measure.
    alone = compare(**{**own, "methods": ("ddim", "d_ode")})
    assert measured == [] and all(alone["methods"][name] == found["methods"][name] for name in ("ddim", "d_ode"))
    fresh = {**own, "output_dir": str(tmp_path / "alone"), "features": str(output / "classifier.safetensors")}
    for name, entry in compare(**{**fresh, "methods": ("ddim", "d_ode")})["methods"].items():
        for steps, point in entry["steps"].items():
            values = point["figures"]["frechet"]["values"]
            assert found["methods"][name]["steps"][steps]["figures"]["frechet"]["values"] == pytest.approx(values, 1e-4)
