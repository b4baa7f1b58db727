"""What to do with a saved model in plain diffusers, in a few lines for people."""

from __future__ import annotations

import os
from pathlib import Path

from progdistill.interop.folders import MANIFEST, read_json


def diffusers_verdict(path: str | os.PathLike[str]) -> str:
    """The line of Python that samples a model folder of ours in plain diffusers, or why there is none."""
    folder = Path(path)
    manifest = read_json(folder / MANIFEST)
    verdict = manifest["diffusers"]
    if not verdict["loadable"]:
        # The message of a folder that does not know its own name yet.
        return f"plain diffusers cannot sample it: {verdict['reason']}".replace(
            "--teacher FOLDER", f"--teacher {folder}"
        )
    steps, classes = manifest["valid_steps"], manifest["num_classes"]
    count = f"num_inference_steps={min(steps) if steps else 64}"
    images = "batch_size=4" if classes is None else f"batch_size=2, class_labels=[0, {classes - 1}]"
    return (
        "in plain diffusers: "
        f'diffusers.DiffusionPipeline.from_pretrained("{folder.as_posix()}")({images}, {count}).images'
    )
