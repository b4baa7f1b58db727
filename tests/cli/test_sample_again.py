"""`progdistill sample` on an output that is there or begun: it goes on, leaves it alone, or refuses."""

import resource
import signal
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from progdistill.cli import sample as command
from progdistill.data import parted_output

sys.path.insert(0, str(Path(__file__).parent))
from sampling_runs import OUTPUTS, before_part, content, expected, interrupt, model, sample, save_model, terminate

pytestmark = pytest.mark.usefixtures("place")


@contextmanager
def file_size_limit(size):
    """No file may grow beyond `size` bytes: what a full disk does to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_finished_output_is_left_alone(output, capsys, monkeypatch):
    assert sample(output) == 0
    before = content(output)
    # Killed between the last rename and the removal of the parts.
    Path(f"{output}.parts").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(command, "sample_parts", None)
        assert sample(output) == 0
    assert "holds these 22 images already" in capsys.readouterr().out
    assert content(output) == before and not Path(f"{output}.parts").exists()


CHANGES = {
    "--steps": (3, "steps was 2, is 3"),
    "--seed": (96, "seed was 95, is 96"),
    "--num-images": (23, "num_images was 22, is 23"),
    "--sampler": ("stochastic", "sampler was 'ddim', is 'stochastic'"),
    "--clip": (1.0, "clip was None, is 1.0"),
    "--mixed-precision": ("bf16", "dtype was 'float32', is 'bfloat16'"),
    "--model": ("other", "model was '"),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_another_command_on_the_same_output_is_refused(output, capsys):
    """Whether it is finished or only begun; and --overwrite begins anew."""
    save_model("other", seed=1)
    changes = CHANGES.items() if output == "images.npz" else [("--seed", CHANGES["--seed"])]
    with before_part(1, terminate), pytest.raises(SystemExit):
        sample(output)
    for where in (f"{output}.parts", output):
        before = content(where)
        for option, (value, difference) in changes:
            assert sample(output, option, value) == 2
            message = capsys.readouterr().err
            assert difference in message and where in message and "--overwrite" in message
        assert content(where) == before
        assert sample(output) == 0
    assert sample(output, "--steps", 3, flags=["--overwrite"]) == 0
    assert sample("fresh" + Path(output).suffix, "--steps", 3) == 0
    assert content(output) == content("fresh" + Path(output).suffix)


def test_overwrite_discards_what_was_begun():
    with before_part(1, terminate), pytest.raises(SystemExit):
        sample("images.npz")
    assert sample("images.npz", "--steps", 3, flags=["--overwrite"]) == 0
    assert sample("fresh.npz", "--steps", 3) == 0
    assert content("images.npz") == content("fresh.npz")


def test_an_empty_folder_and_a_foreign_folder_of_parts(capsys):
    Path("images").mkdir()
    assert sample("images") == 0
    Path("new.npz.parts").mkdir()
    Path("new.npz.parts", "thesis.tex").write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert sample("new.npz", flags=flags) == 2
        assert "holds ['thesis.tex']" in capsys.readouterr().err
    assert Path("new.npz.parts", "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("how", [terminate, interrupt])
def test_signals_finish_the_part_and_the_same_command_goes_on(output, how, capsys):
    before = signal.getsignal(signal.SIGINT)  # a shell's background jobs ignore it
    with before_part(1, how):
        if how is terminate:
            with pytest.raises(SystemExit) as stopped:
                sample(output)
            assert stopped.value.code == 0
        else:
            assert sample(output) == 130
    assert "stopped after 16 of 22 images; the same command makes the others" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before
    assert not Path(output).exists()
    made = []
    with pytest.MonkeyPatch.context() as patched:
        original = command.sample_parts
        patched.setattr(command, "sample_parts", lambda *a, **o: made.extend(a[2]) or original(*a, **o))
        assert sample(output) == 0
    assert made == [range(16, 22)]
    assert "16 of 22 images are there from before" in capsys.readouterr().out
    whole = Path("whole" + Path(output).suffix)
    assert sample(whole) == 0
    assert content(output) == content(whole)


def test_another_batch_size_goes_on_and_says_so(capsys):
    """Memory may be short: parts stay those of the first command, in smaller batches."""
    with before_part(1, terminate), pytest.raises(SystemExit):
        sample("images.npz")
    capsys.readouterr()
    assert sample("images.npz", "--max-batch-size", 3) == 0
    assert "max_batch_size was 8, is 3: the images made now may differ in rounding" in capsys.readouterr().out
    with np.load("images.npz") as arrays:
        assert abs(arrays["arr_0"].astype(int) - expected(model())).max() <= 1


@pytest.mark.parametrize("output", OUTPUTS)
def test_full_disk_while_parts_are_written(output, capsys):
    """It is said, nothing half written is kept, and the run goes on where it was."""
    assert sample("whole" + Path(output).suffix) == 0
    with before_part(1, terminate), pytest.raises(SystemExit):
        sample(output)
    before = content(f"{output}.parts")
    with file_size_limit(60):
        assert sample(output) == 2
    message = capsys.readouterr().err
    assert "images 16 to 21 could not be written" in message and "File too large" in message
    assert "make room on that disk and run the same command again" in message
    left = content(f"{output}.parts")
    assert {name: left[name] for name in before} == before and not Path(output).exists()
    assert sample(output) == 0
    assert content(output) == content("whole" + Path(output).suffix)


@pytest.mark.parametrize("output", ["images.npz", "images.zip", "grid.png"])
def test_full_disk_while_the_parts_are_put_together(output, capsys):
    assert sample("whole" + Path(output).suffix) == 0
    largest = max(map(len, content("whole" + Path(output).suffix).values()))
    with file_size_limit(largest - 1):
        assert sample(output) == 2
    message = capsys.readouterr().err
    assert f"{output} could not be put together" in message and "are complete: make room" in message
    assert not Path(output).exists() and not Path(f"{output}.parts", "whole").exists()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(command, "sample_parts", lambda *_, **__: iter(()))
        assert sample(output) == 0
    assert content(output) == content("whole" + Path(output).suffix)


def test_a_part_that_disappears_while_others_are_made(capsys):
    def remove():
        Path("images.npz.parts", "part-000000000-000000008.rows").unlink()

    with before_part(1, terminate), pytest.raises(SystemExit):
        sample("images.npz")
    with before_part(0, remove):
        assert sample("images.npz") == 2
    assert "parts have disappeared" in capsys.readouterr().err
    assert sample("images.npz") == 0 and sample("whole.npz") == 0
    assert content("images.npz") == content("whole.npz")


def test_record_of_another_version(capsys, monkeypatch):
    monkeypatch.setattr(parted_output, "FORMAT_VERSION", 2)
    assert sample("images.npz") == 0
    monkeypatch.setattr(parted_output, "FORMAT_VERSION", 1)
    assert sample("images.npz") == 2
    assert "format 2, this one writes 1" in capsys.readouterr().err
