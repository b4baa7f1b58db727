"""Settings of the quickstart."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(kw_only=True)
class QuickstartConfig:
    """Train a teacher on handwritten digits, distil it to one step, measure both, write a report.

    Needs no file and no network access: the images are scikit-learn's scans of handwritten digits.
    """

    output_dir: str = "out"
    """Folder for teacher, students, final model, classifier.safetensors, metrics.json, the picture and report.html."""
    rounds: int = 5
    """The teacher's 2 ** rounds steps are halved to 1."""
    teacher_updates: int = 2500
    """Updates of the teacher."""
    updates_per_round: int = 270
    """Updates of the 4-step student; those of 8 steps and more get half, those of 2 and 1 twice as many."""
    evaluation_images: int = 1000
    """Generated images for one Frechet distance."""
    evaluation_seeds: int = 3
    """Disjoint sets of image seeds; their spread is the error bar."""
    seed: int = 0
    """Everything random follows from it."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""
    overwrite: bool = False
    """Start anew where a quickstart already is, instead of resuming it."""
    progress: bool = True
    """Show progress bars."""

    def __post_init__(self) -> None:
        for name in ("rounds", "teacher_updates", "updates_per_round", "evaluation_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a positive whole number")
        if self.evaluation_images < 2:
            raise ValueError(f"evaluation_images is {self.evaluation_images}; a distance needs at least 2")
