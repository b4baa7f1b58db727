"""What to do with a saved model in plain diffusers, in a line for people."""

from __future__ import annotations

import os
from pathlib import Path

from progdistill.interop.folders import MANIFEST, SCHEDULER, SCHEDULER_CONFIG, read_json

_MOST_STEPS = 64


def diffusers_verdict(path: str | os.PathLike[str]) -> str:
    """The line of Python that samples a model folder of ours in plain diffusers, or why there is none.

    In the student's smallest step count; of a model for any, in the largest up to 64 that diffusers reaches.
    """
    folder = Path(path)
    manifest = read_json(folder / MANIFEST)
    verdict = manifest["diffusers"]
    if not verdict["loadable"]:
        # The reason was written before the folder had its name.
        reason = verdict["reason"].replace("--teacher FOLDER", f"--teacher {folder}")
        return f"plain diffusers cannot sample it: {reason}"
    levels = read_json(folder / SCHEDULER / SCHEDULER_CONFIG)["num_train_timesteps"]
    steps = min(manifest["valid_steps"] or (max(n for n in range(1, _MOST_STEPS + 1) if levels % n == 0),))
    classes = manifest["num_classes"]
    images = "batch_size=4" if classes is None else f"batch_size=2, class_labels=[0, {classes - 1}]"
    return (
        f'in plain diffusers: diffusers.DiffusionPipeline.from_pretrained("{folder.as_posix()}")'
        f"({images}, num_inference_steps={steps}).images"
    )
