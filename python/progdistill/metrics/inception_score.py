"""The formula of the Inception score, for the class probabilities of any classifier."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ClassScore(NamedTuple):
    """Mean and standard deviation over the splits."""

    mean: float
    deviation: float
    splits: int


class ScoreSums:
    """Sums of class probabilities, gathered batch by batch in float64: memory (splits, classes), not (N, classes).

    Image number i, in the order of the calls, belongs to split floor(i splits / total), so the splits are runs of
    consecutive images of equal counts to within one.
    """

    def __init__(self, total: int, splits: int = 10) -> None:
        """`total` is how many images will come. ValueError unless 1 <= splits <= total."""
        if not 1 <= splits <= total:
            raise ValueError(f"splits is {splits}: with {total} images it must be between 1 and {total}")
        self.total = total
        self.splits = splits
        self._seen = 0
        self._counts = torch.zeros(splits, dtype=torch.float64)
        self._negative_entropy = torch.zeros(splits, dtype=torch.float64)
        self._probabilities: Tensor | None = None

    def update(self, logits: Tensor) -> None:
        """Adds a batch of logits (B, K), floating point, K >= 2; log-probabilities are logits too.

        Raises ValueError for another shape, values that are NaN or +infinity, or more images than `total`.
        """
        if logits.ndim != 2 or logits.shape[1] < 2 or not logits.is_floating_point():
            raise ValueError(f"logits must be floating point (B, K), K >= 2, got {logits.dtype} {tuple(logits.shape)}")
        if self._seen + len(logits) > self.total:
            raise ValueError(f"{self._seen + len(logits)} images for sums that were made for {self.total}")
        logs = F.log_softmax(logits.detach().to("cpu", torch.float64), dim=1)
        if logs.isnan().any():
            raise ValueError(f"{int(logs.isnan().any(1).sum())} of {len(logs)} rows of logits hold NaN or infinity")
        if self._probabilities is None:
            self._probabilities = torch.zeros(self.splits, logits.shape[1], dtype=torch.float64)
        if self._probabilities.shape[1] != logits.shape[1]:
            raise ValueError(f"got {logits.shape[1]} classes after {self._probabilities.shape[1]}")
        split = (self._seen + torch.arange(len(logs))) * self.splits // self.total
        probabilities = logs.exp()
        # A class of probability 0 adds nothing: the limit of p log p.
        self._negative_entropy.index_add_(0, split, torch.xlogy(probabilities, probabilities).sum(1))
        self._probabilities.index_add_(0, split, probabilities)
        self._counts += torch.bincount(split, minlength=self.splits)
        self._seen += len(logs)

    def score(self) -> ClassScore:
        """The score of the images so far. ValueError unless all `total` images have come."""
        if self._seen != self.total or self._probabilities is None:
            raise ValueError(f"got {self._seen} of {self.total} images: call update() with the rest")
        marginal = self._probabilities / self._counts[:, None]
        divergence = self._negative_entropy / self._counts - torch.xlogy(marginal, marginal).sum(1)
        values = divergence.exp()
        deviation = float(values.std()) if self.splits > 1 else 0.0
        return ClassScore(float(values.mean()), deviation, self.splits)


def inception_score(logits: Tensor, *, splits: int = 10) -> ClassScore:
    """exp of the mean divergence KL(p(y | image) || p(y)) in each split, as mean and deviation over the splits.

    (Salimans et al., NeurIPS 2016.) `logits` (N, K) are any classifier's; the result is an Inception score only with
    Inception's, else name the classifier. It lies between 1 and K, knows nothing of the real data, and is biased
    downwards in small splits, for p(y) is estimated within one: compare equal counts and splits only (the literature:
    50,000 images in 10 splits). The splits are consecutive images: shuffle images that come sorted by class.

    Raises ValueError as `ScoreSums` does.
    """
    sums = ScoreSums(len(logits), splits)
    sums.update(logits)
    return sums.score()
