"""All metrics of one set of images against a reference, from features that were computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from progdistill.metrics.density_coverage import density_coverage
from progdistill.metrics.feature_bank import FeatureBank
from progdistill.metrics.features import features_name, module_device
from progdistill.metrics.frechet import frechet_distance
from progdistill.metrics.frechet_error import frechet_standard_error
from progdistill.metrics.inception import InceptionFeatures
from progdistill.metrics.kernel_distance import kernel_distance
from progdistill.metrics.precision_recall import precision_recall
from progdistill.metrics.reference_statistics import ReferenceStatistics
from progdistill.metrics.sliced_wasserstein import sliced_wasserstein
from progdistill.metrics.torchscript import TorchScriptInception

METRICS = ("frechet", "kernel", "precision_recall", "density_coverage", "sliced_wasserstein", "inception_score")
SCORE_SPLITS = 10


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One figure, its standard error (None if there is no estimate of it), and what else belongs to it."""

    value: float
    standard_error: float | None = None
    details: dict[str, float | int] = dataclasses.field(default_factory=dict)

    def record(self) -> dict:
        """JSON-ready."""
        return dataclasses.asdict(self)


def checked_metrics(metrics: Sequence[str]) -> tuple[str, ...]:
    """`metrics` without repetitions. ValueError for none, or one that is not in `METRICS`."""
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics is {list(metrics)!r}; use one or more of {', '.join(METRICS)}")
    return tuple(dict.fromkeys(metrics))


def needs_features(metrics: Sequence[str]) -> bool:
    """Whether any of `metrics` needs the feature vectors of both sets, not only statistics."""
    return bool(set(metrics) - {"frechet", "inception_score"})


def needs_reference(metrics: Sequence[str]) -> bool:
    """Whether any of `metrics` compares with a data set."""
    return set(metrics) != {"inception_score"}


def arithmetic_device(module: nn.Module) -> torch.device:
    """Where to compute kernels and neighbours: with the feature module if that is a GPU with float64, else the CPU."""
    device = module_device(module)
    return device if device.type == "cuda" else torch.device("cpu")


def bank_for(
    module: nn.Module, capacity: int, metrics: Sequence[str], *, errors: bool = False, batch_size: int = 256
) -> FeatureBank:
    """An empty bank for `capacity` images that keeps just what `compare` needs for `metrics`."""
    splits = min(SCORE_SPLITS, capacity) if "inception_score" in metrics else None
    keep = needs_features(metrics) or (errors and "frechet" in metrics)
    return FeatureBank(module, capacity, keep_features=keep, splits=splits, batch_size=batch_size)


def compare(
    bank: FeatureBank,
    reference: ReferenceStatistics | None,
    metrics: Sequence[str],
    *,
    errors: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, Measurement]:
    """The figures of the images in `bank` against `reference`.

    Args:
        bank: made by `bank_for` for these metrics, and filled.
        reference: of the same feature module; with feature vectors if `needs_features(metrics)`; None is enough for
            "inception_score".
        metrics: names from `METRICS`.
        errors: also estimate the Frechet distance's standard error from this one set, at the cost of ten more.
        device: where kernels and neighbours are computed.

    Returns:
        By name: "frechet", "kernel", "precision", "recall", "density", "coverage", "sliced_wasserstein",
        "inception_score", as far as asked for. Only "kernel" has an expectation that does not depend on the counts;
        the docstring of each metric states its bias.

    Raises:
        ValueError: unknown metrics, a reference that is missing or lacks vectors, too few images for a metric.
    """
    metrics = checked_metrics(metrics)
    if reference is None and needs_reference(metrics):
        raise ValueError(f"{', '.join(metrics)} need reference statistics; only inception_score does without")
    if needs_features(metrics) and reference.features is None:
        raise ValueError(f"the reference statistics hold no feature vectors, which {', '.join(metrics)} need")
    found: dict[str, Measurement] = {}
    for metric in metrics:
        if metric == "frechet":
            error = frechet_standard_error(bank.features, reference.statistics) if errors else None
            found["frechet"] = Measurement(frechet_distance(reference.statistics, bank.statistics), error)
        elif metric == "kernel":
            value, error, *rest = kernel_distance(bank.features, reference.features, device=device)
            names = ("subset_mean", "subset_deviation", "subset_size", "subsets")
            found["kernel"] = Measurement(value, error, dict(zip(names, rest, strict=True)))
        elif metric == "precision_recall":
            shares = precision_recall(reference.features, bank.features, device=device)
            found["precision"] = Measurement(shares.precision, shares.precision_error)
            found["recall"] = Measurement(shares.recall, shares.recall_error)
        elif metric == "density_coverage":
            crowd = density_coverage(reference.features, bank.features, device=device)
            found["density"] = Measurement(crowd.density, crowd.density_error)
            found["coverage"] = Measurement(crowd.coverage, crowd.coverage_error)
        elif metric == "sliced_wasserstein":
            sliced = sliced_wasserstein(bank.features, reference.features, device=device)
            details = {"projection_error": sliced.projection_error}
            found[metric] = Measurement(sliced.value, sliced.standard_error, details)
        else:
            mean, deviation, splits = bank.class_score
            # The splits are disjoint, so their deviation gives the error of their mean.
            error = deviation / splits**0.5 if splits > 1 else None
            found[metric] = Measurement(mean, error, {"split_deviation": deviation, "splits": splits})
    return found


def metric_names(module: nn.Module) -> dict[str, str]:
    """What to call each figure that is measured with `module`: the names of the literature for Inception's alone."""
    inception = isinstance(module, (InceptionFeatures, TorchScriptInception))
    of = features_name(module)
    names = {
        "frechet": getattr(module, "description", None) or f"Frechet distance ({of})",
        "kernel": "KID" if inception else f"kernel distance ({of})",
        "inception_score": "Inception score" if inception else f"class score exp(KL) ({of})",
    }
    others = ("precision", "recall", "density", "coverage", "sliced_wasserstein")
    return names | {name: f"{name.replace('_', ' ')} ({of})" for name in others}
