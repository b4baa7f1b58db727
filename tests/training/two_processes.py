"""What tests/training/test_processes.py starts under torchrun, and once more in a single process.

    torchrun --nproc_per_node=2 tests/training/two_processes.py FOLDER ACCUMULATION [STOP_AT]

Trains a teacher and distils it in FOLDER; with STOP_AT, the teacher's run ends after that many updates. Where nothing
depends on torchrun itself, the tests call `main` in processes of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import progdistill
from progdistill.core.processes import end_process
from progdistill.training.running_loss import RunningLoss
from progdistill.training.stopping import RunInterrupted

sys.path.insert(0, str(Path(__file__).parents[1]))
import tiny


def main(folder: Path, accumulation: int, stop_at=None, network=tiny.WITH_DROPOUT, mixed_precision="no") -> None:
    """Both recipes."""
    torch.set_num_threads(1)
    common = {"train_batch_size": 8, "gradient_accumulation_steps": accumulation, "device": "cpu", "progress": True}
    common |= {"ema_decay": 0.9, "learning_rate": 1e-3, "logging_steps": 5, "checkpointing_steps": 4}
    common["mixed_precision"] = mixed_precision
    if stop_at is not None:
        original = RunningLoss.add

        def add(self, update, loss, phi):
            original(self, update, loss, phi)
            if update == stop_at:
                raise RunInterrupted("in the test")

        RunningLoss.add = add
    teacher = progdistill.train(
        tiny.IMAGES, str(folder / "teacher"), network=network, max_train_steps=12, lr_warmup_steps=2, **common
    )
    progdistill.distill(
        teacher,
        rounds=2,
        data=tiny.IMAGES,
        output_dir=str(folder / "student"),
        updates_per_round=8,
        validation_images=4,
        **common,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
    end_process(0)
