"""`progdistill sample`: what it writes, and what it refuses."""

import json
import os
import re
import sys
import time
import weakref
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import progdistill
from progdistill.cli import sample as command
from progdistill.data import open_dataset
from progdistill.report import image_grid

sys.path.insert(0, str(Path(__file__).parent))
from sampling_runs import BATCH, COUNT, OUTPUTS, SEED, content, expected, model, sample, save_model

pytestmark = pytest.mark.usefixtures("place")


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


def test_settings_that_have_made_nothing_bind_nobody(capsys):
    assert sample("images.npz", "--sampler", "euler") == 2
    assert "unknown sampler 'euler'" in capsys.readouterr().err
    assert not Path("images.npz.parts").exists()
    assert sample("images.npz") == 0


def test_weights_that_are_not_finite(capsys):
    broken = model()
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("nan"))
    progdistill.save(broken, "broken")
    assert sample("images.npz", model="broken") == 2
    assert "not finite for 8 images, the first has seed 95" in capsys.readouterr().err
    assert not Path("images.npz").exists() and not Path("images.npz.parts").exists()


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
