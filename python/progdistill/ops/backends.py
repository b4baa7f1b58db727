"""Which implementation of an operation runs, and why.

Every operation declares its implementations by backend name. Without a wish the best one for the tensor's device is
taken; `backend=` or the environment variable PROGDISTILL_BACKEND forces one, and a forced backend that cannot
serve is an error, never a silent fallback.

Triton is imported when its backend is first considered. With TRITON_INTERPRET=1 in the environment from the start its
interpreter runs the kernels, slowly, and then on CPU tensors too.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping

from progdistill.ops import native

BACKENDS = ("reference", "cpu", "cuda", "triton")
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_DEVICE = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}
_OLDEST_TRITON = (3, 6)
_implementations: dict[str, Mapping[str, Callable]] = {}


def declare(operation: str, implementations: Mapping[str, Callable]) -> None:
    """Names an operation's implementations, "reference" among them."""
    _implementations[operation] = implementations


def declared() -> Mapping[str, Mapping[str, Callable]]:
    """The implementations of every operation."""
    return _implementations


@functools.cache
def unavailable(backend: str) -> str | None:
    """Why a backend cannot be used on this installation, or None if it can."""
    if backend == "cpu" and native._C is None:
        return f"the C++ extension is missing ({native.import_error}); reinstall with a C++17 compiler: pip install ."
    if backend == "cuda" and (native._C is None or not native._C.build_info()["cuda"]):
        return "the extension was built without CUDA kernels; put nvcc on PATH and reinstall: pip install ."
    return _unavailable_triton() if backend == "triton" else None


def _unavailable_triton() -> str | None:
    if importlib.util.find_spec("progdistill.ops.triton_kernels") is None:
        return "its kernels were not installed with the package; reinstall: pip install ."
    mend = "it comes with CUDA builds of torch; else: pip install 'triton>=3.6' (Linux)"
    try:
        from triton import __version__ as version
    except ImportError as error:
        return f"Triton cannot be imported ({error}); {mend}"
    if tuple(map(int, version.split(".")[:2])) < _OLDEST_TRITON:
        return f"Triton {version} is too old; {mend}"
    return None


def best(operation: str, device: str) -> str:
    """The backend that serves an operation on a device type ("cpu", "cuda", ...) when none is forced."""
    for name in _PREFERENCE.get(device, ()):
        if name in _implementations[operation] and unavailable(name) is None:
            return name
    return "reference"


def choose(operation: str, device: str, backend: str | None) -> Callable:
    """The implementation of an operation for a device type.

    Raises:
        ValueError: the forced backend is unknown, works on another device, or lacks this operation.
        RuntimeError: the forced backend is not available on this installation.
    """
    implementations = _implementations[operation]
    forced = backend or os.environ.get("PROGDISTILL_BACKEND") or None
    if forced is None:
        return implementations[best(operation, device)]
    if forced not in BACKENDS:
        raise ValueError(
            f"unknown backend {forced!r}; use one of {', '.join(BACKENDS)}, or none for the best available"
        )
    reason = unavailable(forced)
    if reason is not None:
        raise RuntimeError(f"backend {forced!r} was asked for {operation}, but {reason}")
    if forced not in implementations:
        raise ValueError(f"backend {forced!r} does not implement {operation}; it has: {', '.join(implementations)}")
    interpreted = forced == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if _DEVICE.get(forced, device) != device and not interpreted:
        raise ValueError(f"backend {forced!r} works on {_DEVICE[forced]} tensors; {operation} got {device} tensors")
    return implementations[forced]
