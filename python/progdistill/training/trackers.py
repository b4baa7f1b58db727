"""TensorBoard and Weights & Biases, beside metrics.jsonl and only on request."""

from __future__ import annotations

import importlib.util
import secrets
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

TRACKERS = ("tensorboard", "wandb")


class Tracker(Protocol):
    """Where scalars and pictures go; `step` counts updates through all rounds."""

    def scalars(self, values: dict[str, float], step: int) -> None: ...

    def picture(self, name: str, image: Image.Image, step: int) -> None: ...

    def close(self) -> None: ...


def require_trackers(names: tuple[str, ...]) -> None:
    """Raises ImportError, which says how to install it, if the package of a tracker is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"report_to {name} needs the package {name}: pip install 'progdistill[log]'")


def open_trackers(names: tuple[str, ...], folder: Path, settings: dict[str, Any], first_step: int) -> list[Tracker]:
    """The trackers asked for.

    Args:
        names: of `TRACKERS`.
        folder: the run's; TensorBoard writes into its `logs`, W&B names its run by it.
        settings: the run's configuration, JSON-ready.
        first_step: what was logged from this step on, before an interruption, is replaced.
    """
    made = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
    return [made[name](folder, settings, first_step) for name in names]


class _TensorBoard:
    def __init__(self, folder: Path, settings: dict[str, Any], first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "logs"), purge_step=first_step)

    def scalars(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, settings: dict[str, Any], first_step: int) -> None:
        import wandb

        self._wandb = wandb
        # The same run again after an interruption: W&B finds it by its id, kept beside the run.
        mark = folder / "wandb-id.txt"
        if not mark.exists():
            mark.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            project="progdistill",
            name=folder.name,
            id=mark.read_text().strip(),
            resume="allow",
            dir=str(folder),
            config=settings,
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: dict[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def picture(self, name: str, image: Image.Image, step: int) -> None:
        self._run.log({name: self._wandb.Image(image), "step": step})

    def close(self) -> None:
        self._run.finish()
