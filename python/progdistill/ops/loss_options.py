"""What both losses are told beside their tensors, as one value: backends take it whole, the operators' schemas flat."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from progdistill.ops import checks, rotation
from progdistill.ops.names import (
    LOSS_TYPES,
    PREDICTION_TYPES,
    WEIGHTINGS,
    canonical_loss_type,
    canonical_prediction_type,
    canonical_weighting,
)


class LossOptions(NamedTuple):
    """How an error is weighed and what the loss makes of it; names are canonical."""

    prediction_type: str
    weighting: str
    min_snr_gamma: float
    loss_type: str
    huber_c: float
    grad_scale: float
    need_grad: bool

    def for_extension(self) -> tuple[int, int, float, int, float, float]:
        """What the C++ kernels take; whether they compute a gradient, its buffer tells them."""
        return (
            PREDICTION_TYPES.index(self.prediction_type),
            WEIGHTINGS.index(self.weighting),
            self.min_snr_gamma,
            LOSS_TYPES.index(self.loss_type),
            self.huber_c,
            self.grad_scale,
        )


OPTIONS_SCHEMA = (
    "str prediction_type, str weighting, float min_snr_gamma, str loss_type, float huber_c, float grad_scale,"
    " bool need_grad"
)


def checked_options(
    prediction_type: str,
    weighting: str,
    min_snr_gamma: float,
    loss_type: str,
    huber_c: float,
    grad_scale: float,
    need_grad: bool,
) -> LossOptions:
    """Options with canonical names.

    Raises:
        ValueError: an unknown name, or a number out of range.
    """
    checks.check_min_snr_gamma(min_snr_gamma)
    checks.check_huber_c(huber_c)
    return LossOptions(
        canonical_prediction_type(prediction_type),
        canonical_weighting(weighting),
        min_snr_gamma,
        canonical_loss_type(loss_type),
        huber_c,
        grad_scale,
        need_grad,
    )


def check_scale_values(phi: Tensor, options: LossOptions) -> None:
    """Refuses an infinite weight; no-op for tensors that are not on the CPU."""
    if phi.device.type != "cpu":
        return
    scale, _ = rotation.loss_scale(options.prediction_type, options.weighting, phi, options.min_snr_gamma)
    checks.check_finite((scale,), f"weighting {options.weighting!r} of a {options.prediction_type!r} prediction", phi)
