"""The C++ generator: published integers, and the same normals as the PyTorch reference."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from progdistill.ops import native, normal

# Random123's known answers for philox4x32 with 10 rounds: counter, key, result.
KNOWN = [
    "00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1",
]
PROGRAM = """
#include <cstdio>
#include "philox.h"
int main() {
  uint32_t c[4], k[2];
  while (std::scanf("%x %x %x %x %x %x", c, c + 1, c + 2, c + 3, k, k + 1) == 6) {
    progdistill::philox_4x32_10(c[0], c[1], c[2], c[3], k[0], k[1]);
    std::printf("%08x %08x %08x %08x\\n", c[0], c[1], c[2], c[3]);
  }
}
"""
INCLUDE = Path(__file__).parents[2] / "kernels" / "include"

needs_extension = pytest.mark.skipif(native._C is None, reason=f"the extension was not built: {native.import_error}")


def test_known_answers_of_the_header(tmp_path):
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler on PATH")
    program = tmp_path / "known"
    command = [compiler, "-std=c++17", f"-I{INCLUDE}", "-x", "c++", "-", "-o", str(program)]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    questions = "\n".join(" ".join(line.split()[:6]) for line in KNOWN)
    answers = subprocess.run([program], input=questions, text=True, check=True, capture_output=True).stdout
    assert answers.splitlines() == [" ".join(line.split()[6:]) for line in KNOWN]


@needs_extension
def test_first_normals_are_box_muller_of_the_known_words():
    words = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=torch.float64)
    uniform = (words + 0.5) / 2**32
    radius, angle = (-2 * uniform[::2].log()).sqrt(), 2 * torch.pi * uniform[1::2]
    expected = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).flatten()
    got = normal(torch.tensor([0]), 0, 0, (4,), backend="cpu")[0]
    assert torch.equal(got, expected.float())


@needs_extension
@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (5,), (4097,), (3, 5, 7), (0, 3), ()])
def test_odd_sizes(shape):
    seeds = torch.tensor([3, -1, 2**63 - 1, -(2**63)])
    for step in (0, -1, 2**40 + 3):
        expected = normal(seeds, step, 2**32 - 1, shape, backend="reference")
        assert torch.equal(normal(seeds, step, 2**32 - 1, shape, backend="cpu"), expected)


@needs_extension
def test_agrees_with_the_reference_but_for_one_in_a_million():
    seeds = torch.arange(40) * 1_000_003 - 7
    mine = normal(seeds, 11, 5, (50_000,), backend="cpu")
    reference = normal(seeds, 11, 5, (50_000,), backend="reference")
    steps = (mine.view(torch.int32) - reference.view(torch.int32)).abs()
    assert steps.max() <= 1
    assert (steps > 0).sum() <= 1e-6 * mine.numel()


@needs_extension
def test_no_samples():
    assert normal(torch.empty(0, dtype=torch.int64), 0, 0, (3, 4), backend="cpu").shape == (0, 3, 4)
