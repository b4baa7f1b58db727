"""The operations of diffusion distillation and its optimizer: formula, reference, dispatch and registration."""

from progdistill.ops.adamw_ema import adamw_ema
from progdistill.ops.ddim_step import ddim_step, ddim_step_and_input
from progdistill.ops.diffuse import diffuse
from progdistill.ops.diffuse_seeded import diffuse_seeded
from progdistill.ops.distillation_loss import distillation_loss, distillation_loss_and_grad
from progdistill.ops.distillation_target import distillation_target
from progdistill.ops.draws import integers, random_bits, uniform
from progdistill.ops.gradient_norm import gradient_norm
from progdistill.ops.group_norm_silu import group_norm_silu
from progdistill.ops.linear_combination import linear_combination
from progdistill.ops.normal import normal
from progdistill.ops.padded_sum import padded_sum
from progdistill.ops.prediction_loss import prediction_loss, prediction_loss_and_grad

__all__ = [
    "adamw_ema",
    "ddim_step",
    "ddim_step_and_input",
    "diffuse",
    "diffuse_seeded",
    "distillation_loss",
    "distillation_loss_and_grad",
    "distillation_target",
    "gradient_norm",
    "group_norm_silu",
    "integers",
    "linear_combination",
    "normal",
    "padded_sum",
    "prediction_loss",
    "prediction_loss_and_grad",
    "random_bits",
    "uniform",
]
