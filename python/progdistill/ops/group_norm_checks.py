"""What group_norm_silu asks of its arguments, and the errors that say so."""

from __future__ import annotations

from torch import Tensor

from progdistill.ops.images import check_channel_values, check_first_image, check_image


def check_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    skip: Tensor | None,
    shift: Tensor | None,
    scale_shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Everything that group_norm_silu asks of its arguments, but for what a backend does."""
    check_first_image("x", x)
    samples, channels = x.shape[:2]
    if residual is not None:
        check_image("residual", residual, x)
    normalised = channels
    if skip is not None:
        check_image("skip", skip, x, own_channels=True)
        normalised += skip.shape[1]
    if groups < 1 or normalised % groups != 0:
        raise ValueError(f"groups is {groups}, which does not divide the {normalised} channels; use a divisor")
    if not eps > 0:
        raise ValueError(f"eps is {eps}; use a positive number such as 1e-6")
    for name, values, shapes in (
        ("weight", weight, ((normalised,),)),
        ("bias", bias, ((normalised,),)),
        ("shift", shift, ((samples, channels), (1, channels), (channels,))),
        ("scale_shift", scale_shift, ((samples, 2 * normalised), (1, 2 * normalised))),
    ):
        if values is not None:
            check_channel_values(name, values, shapes, x)
