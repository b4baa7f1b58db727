"""From a folder of diffusers to images of plain diffusers, by the page's own commands and lines; and the README's."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import page_commands
import progdistill
import tiny
from page_commands import DOCS, ROOT, commands, run
from progdistill.nets import presets
from progdistill.report import save_png

pytest.importorskip("diffusers")

from interop import diffusers_models as theirs

PAGE = (DOCS / "bring-your-own-teacher.md").read_text().split("\n## Teachers in")[0]
# Of the page's images: the student's folder, its steps and its labels.
DRAWN = {
    "one_step": ("runs/try/model", 1, None),
    "four_steps": ("runs/try/students/steps-0004", 4, None),
    "two_classes": ("runs/classes-student/students/steps-0002", 2, [0, 1]),
    "one_of_classes": ("runs/classes-student/model", 1, [0, 1]),
    "four_of_classes": ("runs/classes-student/students/steps-0004", 4, [0, 1]),
}
# What the page says once, for other step counts.
MORE_LINES = """
for name, folder, steps in (("one_of_classes", "model", 1), ("four_of_classes", "students/steps-0004", 4)):
    pipeline = DiffusionPipeline.from_pretrained(f"runs/classes-student/{folder}")
    noise = torch.Generator().manual_seed(0)
    globals()[name] = pipeline(class_labels=[0, 1], batch_size=2, num_inference_steps=steps, generator=noise).images
"""
WITH_DIFFUSERS_ALONE = """import sys

sys.modules["progdistill"] = None
import numpy as np

{lines}
np.savez("drawn.npz", **{{name: globals()[name] for name in {names}}})
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of two classes, and google/ddpm-cifar10-32's look-alike as a folder of that name."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0)
    for k in range(8):
        image = Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        save_png(image, tmp_path / "images" / "ab"[k % 2] / f"{k}.png")
    theirs.pipeline(tmp_path / "google" / "ddpm-cifar10-32")
    network = dataclasses.replace(tiny.NETWORK, in_channels=3, out_channels=3)
    (tmp_path / "tiny.json").write_text(json.dumps(network.to_dict()))
    return tmp_path


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def our_images(folder, steps, labels):
    return progdistill.sample(
        progdistill.load(folder),
        steps,
        batch_size=4 if labels is None else len(labels),
        class_labels=labels,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )


def test_from_diffusers_to_diffusers(folder, capsys, monkeypatch):
    monkeypatch.setattr(page_commands, "MOST_ROUNDS", 3)
    for line in commands(PAGE):
        run(line)
    said = capsys.readouterr().out
    assert "the teacher predicts epsilon" in said and "round 0 converts it" in said
    assert 'DiffusionPipeline.from_pretrained("runs/try/model")(batch_size=4, num_inference_steps=1)' in said
    assert said.count("plain diffusers cannot sample it") == 1  # two heads

    lines = "\n".join(block for block in blocks(PAGE) if "import progdistill" not in block) + MORE_LINES
    # PIL's images are rounded to 8 bits.
    script = WITH_DIFFUSERS_ALONE.format(lines=lines, names=list(DRAWN)).replace(
        "num_inference_steps=", 'output_type="np", num_inference_steps='
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    with np.load("drawn.npz") as drawn:
        assert sorted(drawn) == sorted(DRAWN)
        for name, of in DRAWN.items():
            ours = our_images(*of)
            assert ((ours > 0) & (ours < 1)).mean() > 0.3, "saturated pixels would agree whatever happened"
            np.testing.assert_allclose(drawn[name], ours, rtol=0, atol=1e-5, err_msg=name)


def test_the_same_in_python(folder, monkeypatch):
    settings = {"updates_per_round": 1, "train_batch_size": 4, "validation_images": 2, "progress": False}
    distill = progdistill.distill
    monkeypatch.setattr(progdistill, "distill", lambda *given, **named: distill(*given, **{**named, **settings}))
    (block,) = [block for block in blocks(PAGE) if "import progdistill" in block]
    names = {}
    exec(compile(block, "bring-your-own-teacher.md", "exec"), names)
    assert max(names["published"].deviations.values()) < 1e-5 and len(names["images"]) == 4


def test_the_readme(folder, monkeypatch):
    """Its Python, with tiny settings; its commands install, and run the quickstart and these tests."""
    text = (ROOT / "README.md").read_text()
    assert [line.split("&&")[-1].strip() for line in commands(text)] == [
        "progdistill quickstart --output-dir out",
        "pytest -n 2 --dist worksteal",
    ]
    network = dataclasses.replace(tiny.NETWORK, sample_size=16, in_channels=3, out_channels=3)
    monkeypatch.setitem(presets.PRESETS, "cifar10", network)
    small = {
        '"cifar10.parquet"': '"images"',
        "max_train_steps=800_000": "max_train_steps=2, train_batch_size=4",
        "rounds=10": "rounds=2, updates_per_round=1, train_batch_size=4, validation_images=2",
        "steps=4": "steps=2",
    }
    names = {}
    for block in blocks(text):
        for large, value in small.items():
            block = block.replace(large, value)
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["images"]) == 16 and len(names["four_steps"]) == 64
