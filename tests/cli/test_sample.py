"""`progdistill sample`: what it writes, what it refuses, and how it goes on."""

import json
import os
import re
import resource
import signal
import sys
import time
import weakref
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import progdistill
from progdistill.cli import main
from progdistill.cli import sample as command
from progdistill.data import open_dataset, parted_output
from progdistill.report import image_grid

sys.path.insert(0, str(Path(__file__).parent))
from sampling_runs import before_part, interrupt, model, save_model, terminate

OUTPUTS = ("images.npz", "images.zip", "images", "grid.png")
COUNT, BATCH, SEED = 22, 8, 95


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with a model `grey`; one thread, for equal bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    save_model("grey")
    yield tmp_path
    torch.set_num_threads(before)


def arguments(output, *more, model="grey"):
    """A command line; of an option that is given twice the last one counts."""
    options = {"--model": model, "--output": output, "--num-images": COUNT, "--max-batch-size": BATCH, "--seed": SEED}
    options |= {"--steps": 2, "--device": "cpu"} | dict(zip(more[::2], more[1::2], strict=True))
    return ["sample", *(str(word) for option in options.items() for word in option)]


def sample(output, *more, flags=(), **options):
    return main([*arguments(output, *more, **options), *flags])


def expected(model, labels=None):
    """(N, H, W, C), from the library: PIL images, part by part."""
    pictures = []
    for first in range(0, COUNT, BATCH):
        seeds = torch.arange(first, min(first + BATCH, COUNT)) + SEED
        part = None if labels is None else labels[first : first + BATCH]
        pictures += progdistill.sample(model, 2, seed=seeds, class_labels=part)
    return np.stack([np.asarray(picture).reshape(8, 8, -1) for picture in pictures])


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


def content(path):
    """All bytes of a file or folder, by name."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.mark.parametrize("classes", [None, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("output", OUTPUTS[:3])
def test_our_readers_read_what_is_written(output, channels, classes):
    save_model("model", channels=channels, num_classes=classes)
    assert sample(output, model="model") == 0
    labels = None if classes is None else torch.arange(COUNT) % classes
    truth = expected(model(channels, classes), labels)
    found = open_dataset(output)
    # Files are read in the order of their names, and "000095" to "000116" is that of the seeds.
    assert torch.equal(found.images().movedim(1, -1), torch.from_numpy(truth))
    assert found.labels is None if classes is None else torch.equal(found.labels, labels)
    assert not list(Path().glob("*.parts")) and not list(Path().glob(".*"))


def test_npz_is_what_fid_tools_read():
    """One array arr_0, uint8 NHWC, format version 1.0, not compressed; labels beside it."""
    save_model("model", channels=3, num_classes=3)
    assert sample("images.npz", "--class-labels", 1, model="model") == 0
    with np.load("images.npz") as arrays:
        assert sorted(arrays) == ["arr_0", "labels"]
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (COUNT, 8, 8, 3)
        assert arrays["labels"].dtype == np.int64 and arrays["labels"].tolist() == [1] * COUNT
    with zipfile.ZipFile("images.npz") as archive, archive.open("arr_0.npy") as stream:
        assert archive.testzip() is None
        assert archive.getinfo("arr_0.npy").compress_type == zipfile.ZIP_STORED
        assert np.lib.format.read_magic(stream) == (1, 0)


def test_npz_beyond_the_limit_of_plain_zip(monkeypatch):
    """The 64-bit form, with its limit brought down to what a test can write."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    assert sample("images.npz") == 0
    with np.load("images.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], expected(model()))


def test_pngs_are_stored_and_named_by_seed():
    assert sample("images.zip") == 0 and sample("images") == 0
    names = [f"{seed:06d}.png" for seed in range(SEED, SEED + COUNT)]
    with zipfile.ZipFile("images.zip") as archive:
        assert archive.namelist() == names
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        for name in names:
            assert archive.read(name) == Path("images", name).read_bytes()
    with Image.open(f"images/{names[0]}") as image:
        assert image.mode == "L"


def test_precision():
    assert sample("images.npz", "--mixed-precision", "bf16") == 0
    pixels = [
        progdistill.sample(model(), 2, seed=seeds, dtype=torch.bfloat16, output_type="uint8")
        for seeds in (torch.arange(COUNT) + SEED).split(BATCH)
    ]
    with np.load("images.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], torch.cat(pixels).numpy())
        assert not np.array_equal(arrays["arr_0"], expected(model()))


def test_grid():
    assert sample("grid.png", "--columns", 5) == 0
    pixels = torch.from_numpy(expected(model())).movedim(-1, 1)
    with Image.open("grid.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(image_grid(pixels, columns=5)))


def test_progress_says_how_fast_and_how_long(capsys):
    assert sample("images.npz") == 0
    shown = capsys.readouterr()
    assert "images/s" in shown.err and "0/22" in shown.err
    assert shown.out == f"{COUNT} images in images.npz\n"


def test_few_parts_are_held_at_once(monkeypatch):
    """However slow the disk is: the one being written, two that wait, one being made."""
    alive, most = weakref.WeakSet(), []
    make, write = command.sample_parts, command.PartedOutput.write

    def counted(*arguments, **options):
        for part, pixels in make(*arguments, **options):
            alive.add(pixels)
            most.append(len(alive))
            yield part, pixels

    def slowly(self, part, pixels):
        time.sleep(0.02)
        write(self, part, pixels)

    monkeypatch.setattr(command, "sample_parts", counted)
    monkeypatch.setattr(command.PartedOutput, "write", slowly)
    assert sample("images.npz", "--max-batch-size", 1) == 0
    assert len(most) == COUNT and 2 <= max(most) <= 4


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


@pytest.mark.parametrize("output", OUTPUTS)
def test_what_something_else_made_is_not_touched(output, capsys):
    if Path(output).suffix:
        np.savez("strange.npz", np.zeros(3))
        os.rename("strange.npz", output)
    else:
        Path(output).mkdir()
        Path(output, "000095.png").write_bytes(b"mine")
    before = content(output)
    assert sample(output) == 2
    assert "was not made by `progdistill sample`" in capsys.readouterr().err
    assert content(output) == before and not Path(f"{output}.parts").exists()
    if Path(output).is_dir():  # --overwrite may replace a file that is named, not delete a folder full of others
        assert sample(output, flags=["--overwrite"]) == 2
        assert content(output) == before
    else:
        assert sample(output, flags=["--overwrite"]) == 0


def test_an_empty_folder_and_a_foreign_folder_of_parts(capsys):
    Path("images").mkdir()
    assert sample("images") == 0
    Path("new.npz.parts").mkdir()
    Path("new.npz.parts", "thesis.tex").write_text("mine")
    for flags in ([], ["--overwrite"]):
        assert sample("new.npz", flags=flags) == 2
        assert "holds ['thesis.tex']" in capsys.readouterr().err
    assert Path("new.npz.parts", "thesis.tex").read_text() == "mine"


def test_settings_that_have_made_nothing_bind_nobody(capsys):
    assert sample("images.npz", "--sampler", "euler") == 2
    assert "unknown sampler 'euler'" in capsys.readouterr().err
    assert not Path("images.npz.parts").exists()
    assert sample("images.npz") == 0


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("how", [terminate, interrupt])
def test_signals_finish_the_part_and_the_same_command_goes_on(output, how, capsys):
    with before_part(1, how):
        if how is terminate:
            with pytest.raises(SystemExit) as stopped:
                sample(output)
            assert stopped.value.code == 0
        else:
            assert sample(output) == 130
    assert "stopped after 16 of 22 images; the same command makes the others" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
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


def test_weights_that_are_not_finite(capsys):
    broken = model()
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("nan"))
    progdistill.save(broken, "broken")
    assert sample("images.npz", model="broken") == 2
    assert "not finite for 8 images, the first has seed 95" in capsys.readouterr().err
    assert not Path("images.npz").exists() and not Path("images.npz.parts").exists()


def test_record_of_another_version(capsys, monkeypatch):
    monkeypatch.setattr(parted_output, "FORMAT_VERSION", 2)
    assert sample("images.npz") == 0
    monkeypatch.setattr(parted_output, "FORMAT_VERSION", 1)
    assert sample("images.npz") == 2
    assert "format 2, this one writes 1" in capsys.readouterr().err


def test_the_record_of_a_folder():
    """What the images are, by the options' names; nothing of when, where or how many at once."""
    assert sample("images") == 0
    record = json.loads(Path("images", "sampling.json").read_text())
    options = {"steps": 2, "num_images": COUNT, "seed": SEED, "class_labels": [], "sampler": "ddim", "clip": None}
    fingerprint = record["settings"].pop("model")
    assert record["settings"] == {**options, "dtype": "float32"} and len(fingerprint) == 32


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--num-images", 0), "--num-images is 0; use a number from 1 up"),
        (("--max-batch-size", 0), "--max-batch-size is 0"),
        (("--output", "images.npy"), "ends in .npy, which is not written; use a .png"),
        (("--class-labels", 1), "--class-labels 1 was given, but this model knows no classes"),
        (("--class-labels", 3, "--model", "labelled"), "--class-labels has 3; this model has classes 0 to 2"),
        (("--model", "four", "--output", "images.zip"), "4 channels are neither grey nor RGB.*npz"),
    ],
)
def test_bad_options(more, message, capsys, place):
    save_model("labelled", num_classes=3)
    save_model("four", channels=4)
    before = sorted(place.rglob("*"))
    assert sample("images.npz", *more) == 2
    assert re.search(message, capsys.readouterr().err)
    assert sorted(place.rglob("*")) == before


def test_more_than_three_channels_in_npz():
    save_model("four", channels=4)
    assert sample("images.npz", model="four") == 0
    with np.load("images.npz") as arrays:
        assert arrays["arr_0"].shape == (COUNT, 8, 8, 4)
