"""Classifier-free guidance against the literal formula: (1 + w) x_c - w x_u, the scale being 1 + w."""

import copy

import pytest
import torch

import literal
import tiny_models
from progdistill import sample
from progdistill.core import Condition, CosineSchedule
from progdistill.interop import load, save
from progdistill.sampling import Sampler

LABELS = torch.tensor([0, 1, 1])
SCALES = torch.tensor([1.0, 2.5, 4.0])


def guidable(prediction_type="v_prediction"):
    """Classes 0 and 1, and label 2 for none."""
    model = tiny_models.model(prediction_type, classes=3, schedule=CosineSchedule(-20, 20))
    return model.with_network(model.network, num_classes=2, unconditional_label=2)


@torch.no_grad()
def truth(model, z, steps):
    """Guided x in float64, step by step, and eq. 8."""
    network, z, phis = copy.deepcopy(model.network).eval().double(), z.double(), model.schedule.grid(steps)
    for phi, phi_next in zip(phis[:-1], phis[1:], strict=True):
        phi, phi_next = phi.expand(len(z)), phi_next.expand(len(z))
        alpha, sigma = literal.alpha_and_sigma(phi, z)
        nothing = torch.full_like(LABELS, 2)
        with_label, without = (
            literal.x_of(z, network(z, model.time_map(phi), label), alpha, sigma, model.prediction_type)
            for label in (LABELS, nothing)
        )
        w = literal.expand(SCALES.double() - 1, z)
        x = (1 + w) * with_label - w * without
        eps = (z - alpha * x) / sigma
        z = literal.expand(torch.cos(phi_next), z) * x + literal.expand(torch.sin(phi_next), z) * eps
    return z.clamp(-1, 1)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon", "sample_epsilon"])
def test_a_guided_teacher_draws_what_the_formula_says(prediction_type):
    model = guidable(prediction_type)
    latents = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    # A network of random weights predicts x of any size, which an epsilon prediction magnifies by 1 / alpha.
    steps, bound = (2, 1e-2) if prediction_type == "epsilon" else (3, 1e-5)
    expected = truth(model, latents, steps)
    given = {"class_labels": LABELS, "guidance_scale": SCALES, "latents": latents}
    got = sample(model, steps, output_type="pt", **given)
    torch.testing.assert_close(2 * got.double() - 1, expected, rtol=0, atol=bound)
    ready = Sampler(model, steps, dtype=torch.float32)
    torch.testing.assert_close(ready(**given), got, rtol=0, atol=bound)
    # Per image: each is what it is alone.
    alone = sample(model, steps, output_type="pt", class_labels=1, guidance_scale=4.0, latents=latents[2:])
    torch.testing.assert_close(alone, got[2:], rtol=0, atol=bound)


def test_scale_1_is_no_guidance():
    model = guidable()
    given = {"seed": [1, 2], "class_labels": 1, "output_type": "pt"}
    plain, guided = sample(model, 2, **given), sample(model, 2, guidance_scale=1, **given)
    torch.testing.assert_close(guided, plain, rtol=0, atol=1e-6)
    assert not torch.equal(sample(model, 2, class_labels=1, guidance_scale=3, output_type="pt"), plain[:1])


def test_guidance_extrapolates_in_float32():
    """Differences of bfloat16 outputs are exact there; times a scale they would be rounded again."""
    model = guidable()
    low = model.with_network(copy.deepcopy(model.network).bfloat16())
    z, phi = torch.randn(3, 1, 8, 8), torch.full((3,), 0.7, dtype=torch.float64)
    assert low.raw(z, phi, Condition(LABELS)).dtype == torch.bfloat16
    assert low.raw(z, phi, Condition(LABELS, SCALES)).dtype == torch.float32


def test_what_cannot_be_guided_says_so():
    labelled = tiny_models.model(classes=3)
    with pytest.raises(ValueError, match="cannot be guided.*label_dropout"):
        sample(labelled, 1, class_labels=0, guidance_scale=2.0)
    for scale in (0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"guidance_scale is .*1 \(none\) and above"):
            sample(guidable(), 1, class_labels=0, guidance_scale=scale)
    with pytest.raises(ValueError, match="one for each, or one for all"):
        sample(guidable(), 1, batch_size=2, class_labels=0, guidance_scale=[1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="class label 2 is out of range"):
        sample(guidable(), 1, class_labels=2)


def test_the_unconditional_label_is_kept(tmp_path):
    model = guidable()
    again = load(save(model, tmp_path / "model"))
    assert (again.num_classes, again.unconditional_label) == (2, 2)
    given = {"class_labels": [0, 1], "guidance_scale": 2.0, "output_type": "pt"}
    assert torch.equal(sample(again, 2, **given), sample(model, 2, **given))
