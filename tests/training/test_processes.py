"""Several processes under torchrun: the same training as one process, and one voice."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tiny
from interrupted_runs import lines
from progdistill.cli import main
from torchrun import run_forked, torchrun
from training import two_processes

SCRIPT = Path(two_processes.__file__)
TRAINING = two_processes.main


def weights(folder):
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{name}": value for name, value in load_file(path).items()}
    assert len(found) > 100
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    done = torchrun(2, SCRIPT, root / "two", 1)
    assert done.returncode == 0, done.stdout + done.stderr
    output = {
        "two": done.stdout + done.stderr,
        "accumulated": run_forked(1, TRAINING, root / "accumulated", 2),
        "whole": run_forked(1, TRAINING, root / "whole", 1),
    }
    return root, output


def test_two_processes_equal_one_that_accumulates_two_microbatches(runs):
    root, _ = runs
    two, one = weights(root / "two"), weights(root / "accumulated")
    assert two.keys() == one.keys()
    assert all(torch.equal(two[name], one[name]) for name in two)
    for part in ("teacher", "student"):
        for ours, theirs in zip(lines(root / "two" / part), lines(root / "accumulated" / part), strict=True):
            if ours["event"] == "update":  # sums of float64 losses in another order; everything else is equal
                assert losses(ours) == pytest.approx(losses(theirs), rel=1e-12, nan_ok=True)
            assert ours == theirs


def losses(record):
    return [record.pop("loss"), *(math.nan if x is None else x for x in record.pop("loss_by_noise_level"))]


def test_two_processes_equal_the_whole_batch_but_for_rounding(tmp_path):
    """Without dropout, whose masks depend on the split: sums in another order, 12 + 16 updates of AdamW at 1e-3.

    AdamW divides by the gradient's size, so a rounding difference of 1e-7 in a gradient that is nearly zero may turn a
    step of up to 1e-3; in the mean the weights must agree to 1e-5.
    """
    for count, folder in ((2, "two"), (1, "whole")):
        run_forked(count, TRAINING, tmp_path / folder, 1, None, tiny.NETWORK)
    two, whole = weights(tmp_path / "two"), weights(tmp_path / "whole")
    difference = torch.cat([(two[name] - whole[name]).abs().flatten() for name in two])
    assert difference.mean() < 1e-5 and difference.max() < 5e-3
    for ours, theirs in zip(lines(tmp_path / "two" / "teacher"), lines(tmp_path / "whole" / "teacher"), strict=True):
        if ours["event"] == "update":
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


def test_gradients_of_bfloat16_networks_are_summed_in_float32(tmp_path):
    """Two processes equal one that accumulates, bit for bit; four microbatches in two of them, but for rounding."""
    for count, folder, microbatches in ((2, "two", 1), (1, "one", 2), (2, "four", 2), (1, "alone", 4)):
        run_forked(count, TRAINING, tmp_path / folder, microbatches, None, tiny.WITH_DROPOUT, "bf16")
    two, one = weights(tmp_path / "two"), weights(tmp_path / "one")
    assert all(torch.equal(two[name], one[name]) for name in two)
    assert {line["precision"] for line in lines(tmp_path / "two" / "student") if "learning_rate" in line} == {
        "bfloat16"
    }
    four, alone = weights(tmp_path / "four"), weights(tmp_path / "alone")
    assert torch.cat([(four[name] - alone[name]).abs().flatten() for name in four]).mean() < 2e-4


def test_only_the_first_process_speaks(runs):
    """One progress bar, one set of files."""
    root, output = runs
    assert output["two"].count("teacher:   0%") == output["whole"].count("teacher:   0%") == 1
    names = lambda folder: sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))  # noqa: E731
    assert names(root / "two") == names(root / "whole")


def test_a_run_of_one_process_goes_on_in_two_and_says_that_bits_differ(runs, tmp_path):
    root, _ = runs
    stopped = tmp_path / "run"
    run_forked(1, TRAINING, stopped, 1, 9)
    assert list((stopped / "teacher" / "checkpoints").iterdir())
    said = run_forked(2, TRAINING, stopped, 1)
    assert said.count("processes was 1, is 2") == 1 and "will not equal" in said
    assert [r.get("update") for r in lines(stopped / "teacher")] == [
        r.get("update") for r in lines(root / "whole/teacher")
    ]


def test_sampling_is_shared_out(runs, tmp_path):
    """The images of one process, each made once: as single files, and in one grid."""
    root, _ = runs
    model = root / "two" / "student" / "model"
    command = ["sample", "--model", str(model), "--num-images", "11", "--seed", "3", "--output"]
    for output in ("folder", "grid.png"):
        assert main([*command, str(tmp_path / "alone" / output)]) == 0
    done = torchrun(2, "-m", "progdistill", *command, tmp_path / "two" / "folder")
    assert done.returncode == 0 and done.stdout.count("11 images in") == 1, done.stdout + done.stderr
    assert run_forked(2, main, [*command, str(tmp_path / "two" / "grid.png")]).count("11 images in") == 1
    files = sorted(p.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").rglob("*.png"))
    assert len(files) == 12
    for file in files:
        ours, theirs = (np.asarray(Image.open(tmp_path / who / file), dtype=int) for who in ("two", "alone"))
        # Pixels agree to 1e-5 whatever the batch; that may be a different rounding to 8 bits.
        assert abs(ours - theirs).max() <= 1


def test_distances_are_those_of_one_process(runs, tmp_path):
    """45 images in two shares; features differ by the rounding of other batches only."""
    root, _ = runs
    pixels = np.random.default_rng(1).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    command = ["evaluate", "--model", str(root / "two" / "student" / "model"), "--num-images", "45"]
    command += ["--data", str(tmp_path / "images.npz"), "--features", "pixels", "--steps", "1", "2", "--seeds", "2"]
    command += ["--metrics", "frechet", "precision_recall", "--output"]
    assert main([*command, str(tmp_path / "alone.json")]) == 0
    assert run_forked(2, main, [*command, str(tmp_path / "two.json")]).count("45 images") == 1
    ours, theirs = (json.loads((tmp_path / f"{who}.json").read_text())["steps"] for who in ("two", "alone"))
    for steps in ("1", "2"):
        for figure in theirs[steps]:
            assert ours[steps][figure]["values"] == pytest.approx(theirs[steps][figure]["values"], rel=1e-4)
