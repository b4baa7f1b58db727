"""Where a run computes."""

from __future__ import annotations

import torch

from progdistill.core.processes import process_count


def choose_device(name: str | None) -> torch.device:
    """The named device, or cuda if there is one, else cpu; in one of several processes, its own GPU.

    Raises:
        ValueError: a device that this machine does not have.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees no GPU; use --device cpu")
    if device.type == "cuda" and process_count() > 1:
        return torch.device("cuda", torch.cuda.current_device())
    return device
