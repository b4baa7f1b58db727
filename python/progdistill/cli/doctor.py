"""`progdistill doctor`."""

from __future__ import annotations

import importlib.util
import platform
import sys

import torch

import progdistill
from progdistill import ops  # noqa: F401  (declares the operations)
from progdistill.ops import native
from progdistill.ops.backends import BACKENDS, best, declared, unavailable

_EXTRAS = {
    "sklearn": ("quickstart", "the quickstart's images"),
    "pyarrow": ("data", "parquet data sets"),
    "datasets": ("data", "data sets of Hugging Face's library and hub"),
    "huggingface_hub": ("hub", "models of the Hugging Face hub by their ids"),
    "onnx": ("onnx", "writing ONNX files"),
    "onnxscript": ("onnx", "writing ONNX files"),
    "onnxruntime": ("onnx", "comparing an ONNX file's images with ours"),
    "diffusers": ("test", "only the tests; exported students need nothing of ours"),
}


def run(arguments: list[str]) -> None:
    """Prints the report."""
    if arguments:
        raise ValueError(f"doctor takes no options, got {' '.join(arguments)}")
    print("\n".join(report()))


def report() -> list[str]:
    """What was built, what is used where, and how to mend what is missing."""
    return [
        f"progdistill {progdistill.__version__} in {progdistill.__path__[0]}",
        f"python {platform.python_version()} ({sys.executable}), torch {torch.__version__}",
        "",
        *_extension(),
        "",
        *_operations(),
        "",
        *_devices(),
        *_extras(),
    ]


def _extension() -> list[str]:
    if native._C is None:
        return [
            "C++ extension: missing",
            f"  why:  {native.import_error}",
            "  mend: install a C++17 compiler and run `pip install .` (or `pip install -e .`) again",
        ]
    lines = ["C++ extension: built"]
    lines += [f"  {key.replace('_', ' ')}: {_shown(value)}" for key, value in native._C.build_info().items()]
    return lines


def _operations() -> list[str]:
    lines = ["operations, and the backend that serves them:"]
    for operation, implementations in sorted(declared().items()):
        chosen = ", ".join(f"{device}: {best(operation, device)}" for device in ("cpu", "cuda"))
        lines.append(f"  {operation:<20} {chosen}   (has {', '.join(implementations)})")
    for backend in BACKENDS:
        reason = unavailable(backend)
        if reason is not None:
            lines.append(f"  backend {backend} cannot be used: {reason}")
    return lines


def _devices() -> list[str]:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return [f"GPU: {', '.join(names)}"]
    if torch.version.cuda is None:
        return ["GPU: none used, this torch is a CPU build; install a CUDA build of torch to use one"]
    return ["GPU: torch sees none; check nvidia-smi and CUDA_VISIBLE_DEVICES"]


def _extras() -> list[str]:
    lines = []
    for module, (extra, purpose) in _EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            lines.append(f'missing: {module} ({purpose}); pip install "progdistill[{extra}]"')
    return lines


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
