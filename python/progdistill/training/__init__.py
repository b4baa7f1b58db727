"""Training: one loop, and the recipes that give it a loss."""

from progdistill.training.adamw_ema import AdamWEma
from progdistill.training.config import ConvertConfig, DistillConfig, TrainConfig
from progdistill.training.convert import convert
from progdistill.training.distill import distill
from progdistill.training.finetune_trajectory import finetune_trajectory
from progdistill.training.train import train
from progdistill.training.trajectory_config import TrajectoryConfig

__all__ = [
    "AdamWEma",
    "ConvertConfig",
    "DistillConfig",
    "TrainConfig",
    "TrajectoryConfig",
    "convert",
    "distill",
    "finetune_trajectory",
    "train",
]
