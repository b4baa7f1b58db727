"""Training: one loop, and the recipes that give it a loss."""

from progdistill.training.config import DistillConfig, TrainConfig
from progdistill.training.distill import distill
from progdistill.training.train import train

__all__ = ["DistillConfig", "TrainConfig", "distill", "train"]
