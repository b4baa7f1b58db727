"""Standard errors of statistics that have no formula for theirs."""

from __future__ import annotations

import torch
from torch import Tensor

GROUPS = 10


def random_groups(count: int, groups: int = GROUPS, *, seed: int = 0) -> list[Tensor]:
    """Indices 0 ... count - 1 dealt at random into `groups` groups of equal size to within one.

    At random, because images may come sorted. ValueError unless 2 <= groups <= count.
    """
    if not 2 <= groups <= count:
        raise ValueError(f"groups is {groups}: with {count} images it must be between 2 and {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return list(order.tensor_split(groups))


def jackknife_error(values: list[float]) -> float:
    """Standard error of a statistic, from its values with each of G random groups of the images taken out in turn:

        sqrt((G - 1) / G sum_g (value_g - mean)^2)

    the delete-a-group jackknife (Shao and Tu 1995, section 2.3). A bias that depends on the count is common to all
    groups and drops out. ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a jackknife needs the values of at least 2 groups, got {len(values)}")
    return float(((len(values) - 1) * torch.tensor(values, dtype=torch.float64).var(correction=0)).sqrt())
