"""`progdistill sample` in real processes: under torchrun, and killed."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from progdistill.cli import main
from torchrun import torchrun

sys.path.insert(0, str(Path(__file__).parent))
from sampling_runs import before_part, save_model, terminate

HERE = Path(__file__).parent
OPTIONS = ["--steps", "2", "--num-images", "45", "--max-batch-size", "4", "--device", "cpu"]
OUTPUTS = ("images.npz", "images.zip", "images", "begun.npz")
PARTS = [(first, min(first + 4, 45)) for first in range(0, 45, 4)]


def two_processes(place, folder, *arguments):
    return torchrun(2, HERE / "two_samplers.py", *arguments, "--", *OPTIONS, "--model", place / "model", cwd=folder)


def one_process(place, output):
    """In this one."""
    return main(["sample", *OPTIONS, "--model", str(place / "model"), "--output", str(output)])


def content(path):
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def made(folder, rank):
    return [tuple(map(int, line.split())) for line in (folder / f"made-{rank}.txt").read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, and its images by one process in `one`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sampling")
    save_model(folder / "model", channels=3, num_classes=4)
    for output in OUTPUTS[:3]:
        assert one_process(folder, folder / "one" / output) == 0
    yield folder
    torch.set_num_threads(before)


def test_two_processes_make_the_files_of_one(place):
    """Byte for byte, and each part once; what one process began, two finish; SIGTERM to one stops both."""
    with before_part(2, terminate), pytest.raises(SystemExit):
        one_process(place, place / "begun.npz")
    begun = [path.name.split("-")[1:] for path in place.glob("begun.npz.parts/part-*")]
    assert len(begun) == 3
    done = two_processes(place, place, "stopped", *OUTPUTS)
    assert done.returncode == 0, done.stdout + done.stderr
    for output in OUTPUTS[:3]:
        assert content(place / output) == content(place / "one" / output), output
    assert content(place / "begun.npz") == content(place / "one" / "images.npz")
    shares = [Counter(made(place, rank)) for rank in (0, 1)]
    there = Counter((int(first), int(stop.removesuffix(".rows"))) for first, stop in begun)
    assert shares[0] + shares[1] + there == Counter(PARTS * 4)
    assert abs(shares[0].total() - shares[1].total()) <= len(OUTPUTS)
    assert done.stdout.count("stopped after 16 of 45 images") == 2
    assert not list(place.glob("*.parts"))


def test_a_process_that_fails_ends_all_and_the_rest_is_made_later(place, tmp_path, capsys):
    done = two_processes(place, tmp_path, "full-disk", "images.npz")
    assert done.returncode != 0
    assert "could not be written" in done.stderr and "No space left on device" in done.stderr
    assert not (tmp_path / "images.npz").exists()
    left = len(list((tmp_path / "images.npz.parts").glob("part-*")))
    assert 0 < left < len(PARTS)
    assert one_process(place, tmp_path / "images.npz") == 0
    assert "of 45 images are there from before" in capsys.readouterr().out
    assert content(tmp_path / "images.npz") == content(place / "one" / "images.npz")


def test_runs_killed_at_any_moment_go_on_byte_for_byte():
    """16 kills here, in real processes; `kill_sampling.py --kills 100` by hand."""
    done = subprocess.run([sys.executable, HERE / "kill_sampling.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 kills" in done.stdout and "0 wrong" in done.stdout
    assert "while a part is written" in done.stdout
