"""Everything that needs a GPU, in one command: build from source, GPU tests, sanitizers, benchmarks.

    python benchmarks/on_gpu.py --output on_gpu.json
    python benchmarks/on_gpu.py --stages build tests kernels-128 --output on_gpu.json

It needs Python, torch, triton, numpy, pytest, cmake, ninja, pybind11, setuptools and nvcc, and no network. The package
is installed in editable mode for the Python that runs this, or, with --venv, into an environment of its own that sees
that Python's packages. Stages run one after the other whatever became of the earlier ones. The record is written after
every stage, its logs and tables beside it in a folder *.files; a table ends the output. The exit status is 1 if a stage
failed or ran out of time.
"""

from __future__ import annotations

import argparse
import os
import signal
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from stages import Stage, chosen, run_stages

ROOT = Path(__file__).resolve().parents[1]
PYTEST = ("{python}", "-m", "pytest", "-m", "gpu", "-q", "-rs", "-p", "gpu_test_run", "--test-record", "{results}")
# Sanitizers slow a kernel down a hundred times: a few cases of each test.
SANITIZER = ("compute-sanitizer", "--error-exitcode", "99", "--tool")
SUBSET = (*PYTEST, "--cases-per-test", "2", "{root}/tests/ops")
KERNELS = ("{python}", "{root}/benchmarks/kernels.py", "--device", "cuda", "--output", "{results}", "--csv")
SAMPLING = ("{python}", "{root}/benchmarks/sampling.py", "--device", "cuda", "--output", "{results}", "--csv")
CONVOLUTIONS = ("{python}", "{root}/benchmarks/convolutions.py", "--device", "cuda", "--output", "{results}")
UPSAMPLING = ("{python}", "{root}/benchmarks/upsampling.py", "--device", "cuda", "--output", "{results}")
TRAIN_STEP = ("{python}", "{root}/benchmarks/train_step.py", "--device", "cuda", "--output", "{results}")
PRECISION = ("{python}", "{root}/benchmarks/precision.py", "--device", "cuda", "--output", "{results}")

STAGES = (
    Stage(
        "build",
        ("{python}", "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-v", "-e", "{root}"),
        470,
        environment={"PROGDISTILL_CUDA": "ON"},
    ),
    Stage("machine", ("{python}", "{root}/benchmarks/machine.py", "--output", "{results}"), 60),
    Stage("doctor", ("{python}", "-m", "progdistill", "doctor"), 60),
    # Triton compiles some five hundred variants of its kernels for the operations' tests.
    Stage("tests", (*PYTEST, "--ignore", "{root}/tests/ops", "{root}/tests"), 470),
    Stage("tests-ops-cuda", (*PYTEST, "-k", "not triton", "{root}/tests/ops"), 470),
    Stage("tests-ops-triton", (*PYTEST, "-k", "triton", "{root}/tests/ops"), 470),
    # Without the caching allocator every tensor is an allocation of its own, and a read beyond its end is seen; a graph
    # cannot be captured without it.
    Stage(
        "sanitizer-memcheck",
        (*SANITIZER, "memcheck", *SUBSET, "-k", "not graph and not captured"),
        470,
        needs=("compute-sanitizer",),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
    Stage("sanitizer-racecheck", (*SANITIZER, "racecheck", *SUBSET), 470, needs=("compute-sanitizer",)),
    Stage(
        "launch-cost",
        ("{python}", "{root}/benchmarks/launch_cost.py", "--device", "cuda", "--output", "{results}"),
        120,
    ),
    *(
        Stage(f"kernels-{shape}", (*KERNELS, f"{{files}}/kernels-{shape}.csv", "--shapes", shape), 470)
        for shape in ("128x3x32x32", "2048x3x64x64", "512x3x128x128", "64x4x64x64", "cifar10")
    ),
    # torch.compile apart, since it takes minutes; progdistill's best is in both.
    *(
        Stage(
            f"sampling-{kind}{size}",
            (*SAMPLING, f"{{files}}/sampling-{kind}{size}.csv", "--batch-sizes", str(size), *options),
            470,
        )
        for kind, options in (("", ("--no-compile",)), ("compile-", ("--contenders", "Sampler, bfloat16", "compile")))
        for size in (1, 8, 64, 512)
    ),
    *(
        Stage(f"convolutions-{network}", (*CONVOLUTIONS, "--network", network, "--batch-size", str(batch)), 470)
        for network, batch in (("ddpm-cifar10-32", 128), ("cifar10", 128), ("imagenet64", 64))
    ),
    *(
        Stage(f"upsampling-{network}-{batch}", (*UPSAMPLING, "--network", network, "--batch-size", str(batch)), 120)
        for network, batch in (("ddpm-cifar10-32", 128), ("ddpm-cifar10-32", 1), ("cifar10", 128), ("imagenet64", 64))
    ),
    # Each memory format that torch.compile takes minutes for is a stage of its own; progdistill is in all. Losses are
    # compared over 200 updates where that fits.
    *(
        Stage(
            f"train-step-{network}-{batch}{name}",
            (*TRAIN_STEP, "--network", network, "--batch-size", str(batch), "--curve-updates", updates, *options),
            470,
        )
        for network, batch, updates in (
            ("ddpm-cifar10-32", 128, "200"),
            ("ddpm-cifar10-32", 32, "50"),
            ("ddpm-cifar10-32", 512, "20"),
            ("cifar10", 128, "20"),
            ("imagenet64", 64, "10"),
        )
        for name, options in (
            ("", ("--contenders", "progdistill", "eager", "NCHW")),
            ("-channels-last", ("--contenders", "progdistill", "channels_last")),
        )
    ),
    Stage("precision-steps", (*PRECISION, "--train-updates", "2000", "--rounds"), 470),
    *(
        Stage(
            f"precision-rounds-{steps}", (*PRECISION, "--teacher-steps", "8", "--images", "64", "--rounds", steps), 470
        )
        for steps in ("16", "64", "256")
    ),
)


def python_of(folder: Path) -> str:
    """The Python of a virtual environment in `folder`, made if need be, that sees the packages of the one running this.

    `--system-site-packages` would not do: it shows those of the Python that a virtual environment was made from.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, system_site_packages=True, with_pip=False, symlinks=True)
        purelib = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        here = {*site.getsitepackages(), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (Path(purelib) / "packages_of_the_python_that_made_this.pth").write_text("\n".join(sorted(here)) + "\n")
    return str(python)


def listing() -> str:
    """The stages with their limits and commands."""
    width = max(len(stage.name) for stage in STAGES)
    return "\n".join(f"{stage.name:<{width}}  {stage.seconds:>4.0f} s  {' '.join(stage.command)}" for stage in STAGES)


def main(words: list[str] | None = None) -> int:
    """Runs the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stages", nargs="+", default=[], metavar="NAME", help="names or their beginnings; default: all"
    )
    parser.add_argument("--list", action="store_true", help="list the stages and do nothing")
    parser.add_argument("--output", type=Path, default=Path("on_gpu.json"), help="the record (default: on_gpu.json)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older record of that name")
    parser.add_argument("--venv", type=Path, metavar="FOLDER", help="install into a virtual environment there")
    parser.add_argument("--commit", help="what to record as the commit where there is no git")
    arguments = parser.parse_args(words)
    if arguments.list:
        print(listing())
        return 0
    try:
        stages = chosen(STAGES, arguments.stages)
    except ValueError as error:
        parser.error(str(error))
    if arguments.output.exists() and not arguments.overwrite:
        parser.error(f"{arguments.output} exists; name another file with --output, or replace it with --overwrite")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    python = python_of(arguments.venv.resolve()) if arguments.venv else sys.executable
    # This checkout, whatever else is installed; the editable build puts the extension beside its Python files.
    paths = [str(ROOT / room) for room in ("python", "benchmarks")]
    # compute-sanitizer is often there but not on PATH.
    environment = {
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
        "PYTHONPATH": os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
    }
    if arguments.commit:
        environment["PROGDISTILL_COMMIT"] = arguments.commit
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the running stage ends, too
    try:
        return run_stages(stages, arguments.output, {"python": python, "root": str(ROOT)}, environment)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main())
