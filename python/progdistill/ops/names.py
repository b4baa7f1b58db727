"""The names that operations take as strings: prediction types, weightings, loss types, and their canonical spelling."""

from __future__ import annotations

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")
WEIGHTINGS = ("constant", "snr", "truncated_snr", "snr_plus_one", "min_snr")
LOSS_TYPES = ("l2", "l1", "pseudo_huber")

_PREDICTION_ALIASES = {"eps": "epsilon", "x": "sample", "x0": "sample", "v": "v_prediction", "both": "sample_epsilon"}
_WEIGHTING_ALIASES = {"snr_trunc": "truncated_snr", "snr+1": "snr_plus_one", "v_mse": "snr_plus_one"}
_LOSS_ALIASES = {"huber": "pseudo_huber"}


def canonical_prediction_type(name: str) -> str:
    """The canonical prediction type for a name or alias.

    "epsilon" (eps), "sample" (x, x0) and "v_prediction" (v) are diffusers' names; "sample_epsilon" (both) is the
    two-headed network of Salimans & Ho section 4, whose output has 2C channels, x first.
    """
    return _canonical(name, PREDICTION_TYPES, _PREDICTION_ALIASES, "prediction type")


def canonical_weighting(name: str) -> str:
    """The canonical name of a loss weighting (Salimans & Ho section 4; min_snr: Hang et al. 2023)."""
    return _canonical(name, WEIGHTINGS, _WEIGHTING_ALIASES, "weighting")


def canonical_loss_type(name: str) -> str:
    """The canonical name of what a loss makes of the weighted residual; "huber" is what diffusers' scripts call it."""
    return _canonical(name, LOSS_TYPES, _LOSS_ALIASES, "loss type")


def heads(prediction_type: str) -> int:
    """How many images side by side a network's output holds: 2 for "sample_epsilon", else 1."""
    return 2 if prediction_type == "sample_epsilon" else 1


def _canonical(name: str, allowed: tuple[str, ...], aliases: dict[str, str], what: str) -> str:
    if name in allowed:
        return name
    resolved = aliases.get(name) if isinstance(name, str) else None
    if resolved is not None:
        return resolved
    short = ", ".join(f"{alias} = {full}" for alias, full in aliases.items())
    raise ValueError(f"unknown {what} {name!r}; use one of {', '.join(allowed)} (short forms: {short})")
