from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from progdistill.metrics import inception_score
from progdistill.metrics.inception_score import ScoreSums


def some_logits(count: int = 50, classes: int = 7) -> torch.Tensor:
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(0)) * 3


def literal(logits: torch.Tensor) -> float:
    p = torch.softmax(logits.double(), 1)
    return math.exp(float((p * (p.log() - p.mean(0).log())).sum(1).mean()))


@pytest.mark.parametrize(("count", "splits"), [(50, 1), (50, 5), (47, 5), (9, 9)])
def test_score_is_the_definition_in_each_run_of_images(count: int, splits: int) -> None:
    logits = some_logits(count)
    found = inception_score(logits, splits=splits)
    number = torch.arange(count) * splits // count
    values = torch.tensor([literal(logits[number == s]) for s in range(splits)], dtype=torch.float64)
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-12)
    assert found.deviation == pytest.approx(float(values.std()) if splits > 1 else 0.0, rel=1e-9)


def test_extremes_by_hand() -> None:
    sure = torch.eye(4).repeat(5, 1) * 1e4
    assert inception_score(sure, splits=1).mean == pytest.approx(4, rel=1e-12), "certain and even: the class count"
    assert inception_score(torch.zeros(20, 4), splits=2).mean == pytest.approx(1, rel=1e-12), "undecided: 1"
    never = torch.tensor([[0.0, -torch.inf], [0.0, -torch.inf]])
    assert inception_score(never, splits=1).mean == pytest.approx(1, rel=1e-12), "a class that never occurs"


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_streaming_gives_what_one_call_gives(batch: int) -> None:
    logits = some_logits()
    sums = ScoreSums(50, 4)
    for part in logits.split(batch):
        sums.update(part)
    assert sums.score().mean == pytest.approx(inception_score(logits, splits=4).mean, rel=1e-13)


class Logits(nn.Module):
    num_features = 9

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double() / 40


def test_agrees_with_torchmetrics() -> None:
    inception = pytest.importorskip("torchmetrics.image.inception")
    images = torch.randint(0, 256, (60, 1, 3, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    metric = inception.InceptionScore(feature=Logits(), splits=6).set_dtype(torch.float64)
    metric.update(images)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        order = torch.randperm(60)
        torch.manual_seed(5)
        mean, deviation = metric.compute()
    found = inception_score(Logits()(images)[order], splits=6)
    assert found.mean == pytest.approx(float(mean), rel=1e-10)
    assert found.deviation == pytest.approx(float(deviation), rel=1e-8)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="splits is 10: with 5 images"):
        inception_score(some_logits(5))
    with pytest.raises(ValueError, match=r"float32 \(5, 1\)"):
        inception_score(torch.zeros(5, 1), splits=1)
    with pytest.raises(ValueError, match="1 of 2 rows"):
        inception_score(torch.tensor([[0.0, float("nan")], [0.0, 0.0]]), splits=1)
    sums = ScoreSums(4, 2)
    sums.update(torch.zeros(3, 2))
    with pytest.raises(ValueError, match="got 3 of 4"):
        sums.score()
    with pytest.raises(ValueError, match="5 images for sums that were made for 4"):
        sums.update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="got 3 classes after 2"):
        sums.update(torch.zeros(1, 3))
