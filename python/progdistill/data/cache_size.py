"""How many bytes of decoded images are kept, and where."""

from __future__ import annotations

import os

import torch

CACHE_VARIABLE = "PROGDISTILL_DATA_CACHE_BYTES"
DEVICE_CACHE_VARIABLE = "PROGDISTILL_DEVICE_CACHE_BYTES"
_DEFAULT = 2 * 2**30
_DEVICE_DEFAULT = 8 * 2**30


def cache_bytes() -> int:
    """How many bytes of decoded images are kept in memory: $PROGDISTILL_DATA_CACHE_BYTES or 2 GiB.

    Raises:
        ValueError: the variable is not a whole number from 0 on.
    """
    given = _from_environment(CACHE_VARIABLE)
    return _DEFAULT if given is None else given


def device_cache_bytes(device: torch.device) -> int:
    """How many bytes of decoded images are kept on a GPU: $PROGDISTILL_DEVICE_CACHE_BYTES, or a quarter of what is
    free now but at most 8 GiB.

    Raises:
        ValueError: the variable is not a whole number from 0 on.
    """
    given = _from_environment(DEVICE_CACHE_VARIABLE)
    return min(_DEVICE_DEFAULT, torch.cuda.mem_get_info(device)[0] // 4) if given is None else given


def _from_environment(variable: str) -> int | None:
    text = os.environ.get(variable, "").strip()
    if text and not text.isdecimal():
        raise ValueError(f"{variable} must be a number of bytes, 0 or more, not {text!r}")
    return int(text) if text else None
