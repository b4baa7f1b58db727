"""The machine code of the CUDA kernels, looked at without a GPU: 128-bit accesses, registers, spills, no atomics."""

import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

KERNELS = Path(__file__).parents[2] / "kernels"
# As in CMakeLists.txt.
OPTIONS = ["-std=c++17", "-O3", "--fmad=false", f"-I{KERNELS / 'include'}"]


class Kernel(NamedTuple):
    """What the assembler says of a kernel, and its instructions."""

    registers: int
    spilled: int
    code: str

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.code))


def disassembler() -> str | None:
    """nvdisasm on PATH, beside nvcc, or in a Triton installation."""
    places = [Path(found).resolve().parent for found in [shutil.which("nvcc")] if found]
    places += [Path("/usr/local/cuda/bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        places += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"]
    candidates = [shutil.which("nvdisasm"), *(shutil.which("nvdisasm", path=str(place)) for place in places)]
    return next((candidate for candidate in candidates if candidate), None)


def compiled(nvcc: str, tool: str, source: Path, folder: Path) -> dict[str, Kernel]:
    """Kernels of one source for the H100 and H200, by mangled name."""
    cubin = folder / f"{source.stem}.cubin"
    command = [nvcc, *OPTIONS, "-cubin", "-arch=sm_90", "-Xptxas", "-v", str(source), "-o", str(cubin)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    notes = re.split(r"Compiling entry function '(\S+)'", done.stdout + done.stderr)
    text = subprocess.run([tool, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
    sections = re.split(r"^\.text\.(\S+):", text, flags=re.MULTILINE)
    codes = dict(zip(sections[1::2], sections[2::2], strict=True))
    return {
        name: Kernel(
            int(re.search(r"Used (\d+) registers", note)[1]),
            int(re.search(r"(\d+) bytes spill stores", note)[1]),  # of the kernel itself: it comes first
            codes[name],
        )
        for name, note in zip(notes[1::2], notes[2::2], strict=True)
    }


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> dict[str, Kernel]:
    """Every kernel of kernels/cuda."""
    nvcc, tool = shutil.which("nvcc"), disassembler()
    if nvcc is None or tool is None:
        pytest.skip(f"needs nvcc (found: {nvcc}) and nvdisasm (found: {tool})")
    folder, sources = tmp_path_factory.mktemp("cuda"), sorted((KERNELS / "cuda").glob("*.cu"))
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda source: compiled(nvcc, tool, source, folder), sources)
    return {name: kernel for of_source in found for name, kernel in of_source.items()}


def select(kernels: dict[str, Kernel], mark: str) -> list[Kernel]:
    """The kernels whose mangled name holds `mark`; there must be some."""
    chosen = [kernel for name, kernel in kernels.items() if mark in name]
    assert chosen, sorted(kernels)
    return chosen


# Operation -> its kernels for float states and whole vectors, as the compiler mangles them, and how many tensors they
# read: each may come as two vectors of float or one of bfloat16.
WIDE = {
    "diffuse": ("diffuse_kernelIfLi8E", 2),
    "ddim_step": ("ddim_step_kernelIfLi8E", 3),
    "linear_combination": ("linear_combination_kernelIfLi8E", 4),
    "distillation_target": ("distillation_target_kernelILb0EfLi8E", 2),
    "distillation_target, clipped": ("distillation_target_kernelILb1EfLi8E", 3),
    "distillation_loss": ("distillation_loss_kernelILb0EfLi8E", 4),
    "distillation_loss, clipped": ("distillation_loss_kernelILb1EfLi8E", 5),
    "prediction_loss": ("prediction_loss_kernelIfLi8E", 4),
}


@pytest.mark.parametrize("operation", WIDE)
def test_whole_vectors_move_by_16_bytes(kernels, operation):
    mark, tensors = WIDE[operation]
    for kernel in select(kernels, mark):
        assert kernel.count(r"\bLDG\.E\.128") >= 3 * tensors
        assert kernel.count(r"\bSTG\.E\.128") >= 3
        assert kernel.registers <= 64, "four blocks shall fit on a multiprocessor"
        assert kernel.spilled <= 8, "a word or two may be, not what the loops work on"


# Kernels of group normalisation, bfloat16 and float32 -> 16-byte loads (in flight together) and stores of a thread, and
# registers that leave as many blocks of 256 threads on a multiprocessor as their bytes in flight need.
NORM = {
    "group_moments_kernelI{}Li8E": (8, 2, 128),
    "group_norm_apply_kernelI{}Li8E": (4, 4, 85),
    "group_norm_sums_kernelI{}Li8E": (4, 0, 128),
    "group_norm_gradient_kernelI{}Li8E": (6, 2, 128),
}


@pytest.mark.parametrize("element", ["t", "f"])
@pytest.mark.parametrize("mark", NORM)
def test_images_of_a_norm_move_by_16_bytes(kernels, mark, element):
    loads, stores, registers = NORM[mark]
    for kernel in select(kernels, mark.format(element)):
        assert kernel.count(r"\bLDG\.E\S*\.128") >= loads
        assert kernel.count(r"\bSTG\.E\S*\.128") == stores
        assert not kernel.count(r"\b(LD|ST)\.E"), "accesses that do not know that they go to the device's memory"
        assert kernel.registers <= registers
        assert kernel.spilled == 0


# Kernels of whole groups -> 16-byte loads and stores of a thread (those of residual, sum and bypasses among them) and
# its 16-byte copies to shared memory, of which each stands for as many as a thread has pixels.
TILES = {
    "group_norm_once_kernelI{}Li8E": (4, 5, 1),
    "group_norm_gradient_once_kernelI{}Li8E": (2, 2, 2),
}


@pytest.mark.parametrize("element", ["t", "f"])
@pytest.mark.parametrize("mark", TILES)
def test_tiles_of_a_norm_are_copied_by_16_bytes(kernels, mark, element):
    loads, stores, copies = TILES[mark]
    for kernel in select(kernels, mark.format(element)):
        assert kernel.count(r"\bLDG\.E\S*\.128") >= loads
        assert kernel.count(r"\bSTG\.E\S*\.128") >= stores
        assert kernel.count(r"\bLDGSTS\S*\.128") >= copies * (2 if element == "f" else 1)
        assert kernel.count(r"\bLDGSTS\b") == kernel.count(r"\bLDGSTS\S*\.128")
        assert not kernel.count(r"\b(LD|ST)\.E"), "accesses that do not know that they go to the device's memory"
        assert kernel.registers <= 80, "three blocks shall fit on a multiprocessor"
        assert kernel.spilled == 0


# Kernels of padded sums -> 16-byte loads that a thread has under way before it waits for one, and its stores.
PADDED_SUMS = {"padded_sum_kernelI{}Li8E": (8, 8), "padded_sum_gradient_kernelI{}Li8E": (8, 4)}


@pytest.mark.parametrize("element", ["t", "f"])
@pytest.mark.parametrize("mark", PADDED_SUMS)
def test_padded_sums_move_by_16_bytes(kernels, mark, element):
    loads, stores = PADDED_SUMS[mark]
    for kernel in select(kernels, mark.format(element)):
        assert len(re.findall(r"\bLDG\.E\S*\.128", kernel.code.split("STG", 1)[0])) >= loads
        assert kernel.count(r"\bSTG\.E") == kernel.count(r"\bSTG\.E\S*\.128") == stores
        assert not kernel.count(r"\b(LD|ST)\.E"), "accesses that do not know that they go to the device's memory"
        assert kernel.registers <= 80, "three blocks shall fit on a multiprocessor"
        assert kernel.spilled == 0
    for kernel in select(kernels, mark.format(element).replace("Li8E", "Li1E")):
        assert kernel.count(r"\bSTG\.E") and not kernel.count(r"\bSTG\S*\.128|\bLDG\S*\.128")


@pytest.mark.parametrize("mark", ["normal_kernelILb1E", "diffuse_seeded_kernelIfLb1E"])
def test_drawn_noise_is_stored_by_16_bytes(kernels, mark):
    for kernel in select(kernels, mark):
        stores = Counter(re.findall(r"\bSTG\.E\S*", kernel.code))
        assert all(".128" in store for store in stores) and stores.total() == 1
        assert kernel.spilled == 0


@pytest.mark.parametrize("mark", ["draw_kernelId", "draw_kernelIl", "random_bits_kernel"])
def test_a_number_a_sample_needs_no_memory_but_its_own(kernels, mark):
    for kernel in select(kernels, mark):
        assert kernel.count(r"\bSTG\.E\.64") == 1 and kernel.count(r"\bLDG\S*\.64") == 1 + mark.startswith("draw")
        assert kernel.registers <= 40 and kernel.spilled == 0


@pytest.mark.parametrize("mark", [mark.replace("Li8E", "Li1E") for mark, _ in WIDE.values()])
def test_odd_samples_have_kernels_of_their_own(kernels, mark):
    for kernel in select(kernels, mark):
        assert kernel.count(r"\bSTG\.E ") and not kernel.count(r"\bSTG\S*\.128|\bLDG\S*\.128")


def test_nothing_is_summed_by_atomics(kernels):
    assert not [name for name, kernel in kernels.items() if kernel.count(r"\b(ATOM|ATOMG|ATOMS|RED)\b")]
