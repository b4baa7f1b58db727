"""Every command of the docs runs: on tiny data, with a tiny network and as few updates as there can be."""

import dataclasses
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from progdistill.cli.main import main
from progdistill.report import save_png

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# What makes a command small. A flag that is not there is added if its command always takes it.
SMALL = {
    "--network": "tiny.json",
    "--max-train-steps": "2",
    "--train-batch-size": "4",
    "--updates-per-round": "1",
    "--updates": "1",
    "--iterations": "4",
    "--guidance-updates": "1",
    "--validation-images": "2",
    "--num-images": "8",
    "--sfd-iterations": "1",
    "--pd-updates-per-round": "1",
    "--nproc_per_node": "2",
}
ALWAYS = {
    "train": ("--network", "--max-train-steps", "--train-batch-size"),
    "convert": ("--train-batch-size", "--updates", "--validation-images"),
    "distill": ("--train-batch-size", "--updates-per-round", "--validation-images"),
    "sfd": ("--train-batch-size", "--iterations", "--validation-images"),
    "compare": ("--train-batch-size", "--num-images", "--sfd-iterations", "--pd-updates-per-round"),
}
MOST_ROUNDS = 2


def commands(page):
    """The lines of a page's shell blocks."""
    text = (DOCS / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


PAGES = sorted(path.name for path in DOCS.glob("*.md") if commands(path.name))


def test_there_are_pages_with_commands():
    assert {"options.md", "guidance.md", "checkpoints.md", "multi-gpu.md", "reproducing.md"} <= set(PAGES)


def small(arguments, command):
    """The command line with the values of SMALL."""
    arguments = [a if "=" not in a or not a.startswith("--") else a.split("=", 1)[0] + "=" for a in arguments]
    for i, argument in enumerate(arguments):
        if argument.rstrip("=") in SMALL:
            flag = argument.rstrip("=")
            if argument.endswith("="):
                arguments[i] = f"{flag}={SMALL[flag]}"
            else:
                arguments[i + 1] = SMALL[flag]
        elif argument == "--rounds":
            arguments[i + 1] = str(min(MOST_ROUNDS, int(arguments[i + 1])))
        elif argument == "--config":
            arguments[i + 1] = str(ROOT / arguments[i + 1])
    for flag in ALWAYS.get(command, ()):
        if flag not in arguments:
            arguments += [flag, SMALL[flag]]
    if command == "distill" and "--rounds" not in arguments:
        arguments += ["--rounds", str(MOST_ROUNDS), "--updates-at.2", "1", "--updates-at.1", "1"]
    return arguments


@pytest.fixture
def workplace(tmp_path, monkeypatch):
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
    (tmp_path / "tiny.json").write_text(json.dumps(network.to_dict()))
    return tmp_path


def run(line):
    words = shlex.split(line)
    if words[0] == "torchrun":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = words.index("progdistill")
        torchrun, arguments = small(words[1:place], None), small(words[place + 2 :], words[place + 1])
        command = [sys.executable, "-m", "torch.distributed.run", f"--master_port={port}", *torchrun]
        command += ["progdistill", words[place + 1], *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    else:
        assert words[0] == "progdistill", f"neither progdistill nor torchrun: {line}"
        assert main([words[1], *small(words[2:], words[1])]) == 0, line


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page, workplace):
    for line in commands(page):
        run(line)


def test_links_between_pages_lead_somewhere():
    for path in [*DOCS.glob("*.md"), ROOT / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if "://" not in target:
                assert (path.parent / target).exists(), f"{path.name}: {target}"
