"""What the Triton backend would launch on an H100 or H200, compiled without a GPU.

The launches are the backend's own: a stand-in for the driver names the target, and what would have been launched is
compiled and kept instead. So the hints, constants and warps looked at are those that a GPU would get.
"""

import re
from typing import NamedTuple


class Launch(NamedTuple):
    """A kernel that would have been launched."""

    name: str
    ptx: str
    machine_code: bytes

    def accesses(self, kind):
        """Widths of its global loads ("ld") or stores ("st") in PTX, such as "v4.b32"; tables of constants left out."""
        return re.findall(rf"\b{kind}\.global\.((?:v\d\.)?b\d+)", self.ptx)


def split(accesses):
    """Those of 16 bytes, and the others."""
    whole = [width for width in accesses if width in ("v4.b32", "v2.b64")]
    return whole, [width for width in accesses if width not in whole]


def keep(monkeypatch, cache) -> list[Launch]:
    """The list of all that is launched from here on, compiled for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class Sm90:
        """As much of a driver as the way to a launch asks for."""

        get_current_device = staticmethod(lambda: -1)  # no GPU of this machine finds these kernels
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))

    kept = []
    run = JITFunction.run

    def compile_only(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        kept.append(Launch(self.fn.__name__, kernel.asm["ptx"], kernel.asm["cubin"]))
        return kernel

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", Sm90())
    monkeypatch.setattr(triton.knobs.cache, "dir", str(cache))
    return kept
