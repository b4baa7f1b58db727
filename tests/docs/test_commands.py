"""Every command of the docs runs: on tiny data, with a tiny network and as few updates as there can be."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

import tiny
from page_commands import DOCS, ROOT, commands, run
from progdistill.report import save_png

# What the pages call by its name on the hub is a folder of that name in the tests.
HUB_ID = "google/ddpm-cifar10-32"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if commands(path.read_text()))


def test_there_are_pages_with_commands():
    assert {
        "bring-your-own-teacher.md",
        "options.md",
        "guidance.md",
        "checkpoints.md",
        "multi-gpu.md",
        "reproducing.md",
    } <= set(PAGES)


@pytest.fixture
def workplace(tmp_path, monkeypatch, page):
    """A folder with what the docs take for granted: images and the CIFAR-10 table, both tiny and made up."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0)
    for folder, side in (("images", 8), ("photos", 20)):
        for k in range(12):
            image = Image.fromarray(pixels.integers(0, 256, (side, side + k % 3 * (side > 8), 3), dtype=np.uint8))
            save_png(image, tmp_path / folder / f"{'ab'[k % 2]}" / f"{k}.png")
    table = pytest.importorskip("pyarrow")
    files = [(tmp_path / "images" / "ab"[k % 2] / f"{k}.png").read_bytes() for k in range(12)]
    rows = {"img": [{"bytes": data, "path": None} for data in files], "label": [*range(10), 0, 1]}
    import pyarrow.parquet

    pyarrow.parquet.write_table(table.table(rows), tmp_path / "cifar10.parquet")
    network = dataclasses.replace(tiny.NETWORK, in_channels=3, out_channels=3)
    if page == "bring-your-own-teacher.md":
        pytest.importorskip("diffusers")
        from interop import diffusers_models

        diffusers_models.pipeline(tmp_path / HUB_ID, network=diffusers_models.unet(sample_size=8))
    (tmp_path / "tiny.json").write_text(json.dumps(network.to_dict()))
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page, workplace):
    for line in commands((DOCS / page).read_text()):
        run(line)


def test_links_between_pages_lead_somewhere():
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
