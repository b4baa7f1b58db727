"""Training: one loop, and the recipes that give it a loss."""

from progdistill.training.adamw_ema import AdamWEma
from progdistill.training.config import ConvertConfig, DistillConfig, TrainConfig
from progdistill.training.convert import convert
from progdistill.training.distill import distill
from progdistill.training.train import train

__all__ = ["AdamWEma", "ConvertConfig", "DistillConfig", "TrainConfig", "convert", "distill", "train"]
