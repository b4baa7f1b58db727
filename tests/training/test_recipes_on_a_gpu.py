"""Every recipe on a GPU: the losses of the CPU in float32, and updates that a graph holds wherever one may."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import tiny
import tiny_models
from interrupted_runs import lines
from progdistill.core import Denoiser
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet
from progdistill.training import convert, distill, finetune_trajectory, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]

COMMON = {"train_batch_size": 8, "progress": False, "logging_steps": 1, "ema_decay": 0.9}


def epsilon_teacher(**description) -> Denoiser:
    return tiny_models.model("epsilon", schedule=tiny_models.MILD, **description)


def guidable() -> Denoiser:
    model = tiny_models.model(classes=3)
    return model.with_network(model.network, num_classes=2, unconditional_label=2)


def resampling() -> UNet:
    """With a level to go down to and up from, which `tiny.NETWORK` has not."""
    torch.manual_seed(0)
    return UNet(dataclasses.replace(preset("digits8"), dropout=0.0))


def with_output(network: UNet) -> Denoiser:
    torch.nn.init.normal_(network.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return Denoiser(network, sample_shape=(1, 8, 8))


def run_train(**options):
    train(tiny.IMAGES, network=resampling(), max_train_steps=4, **options)


def run_accumulating(**options):
    train(tiny.IMAGES, network=tiny.NETWORK, max_train_steps=4, gradient_accumulation_steps=2, **options)


def run_muon(**options):
    train(tiny.IMAGES, network=tiny.NETWORK, max_train_steps=4, optimizer="muon", **options)


def run_convert(**options):
    convert(epsilon_teacher(), updates=4, data=tiny.IMAGES, **options)


def run_distill(**options):
    distill(with_output(resampling()), rounds=2, updates_per_round=3, data=tiny.IMAGES, **options)


def run_distill_after_conversion(**options):
    rounds = {"rounds": 1, "updates_per_round": 3, "conversion_updates": 3}
    distill(epsilon_teacher(), data=tiny.IMAGES, **rounds, **options)


def run_guidance(**options):
    labelled = list(zip(torch.from_numpy(tiny.IMAGES) / 127.5 - 1, np.arange(24) % 2, strict=True))
    rounds = {"rounds": 1, "updates_per_round": 3, "guidance_range": (1.0, 4.0), "guidance_updates": 3}
    distill(guidable(), data=labelled, **rounds, **options)


CAPTURED = [run_train, run_accumulating, run_muon, run_convert, run_distill, run_distill_after_conversion, run_guidance]


def losses(folder) -> list[float]:
    return [line["loss"] for line in lines(folder) if "loss" in line]


def check(recipe, folder, precision: str, rel: float, **on_a_gpu) -> None:
    for device, options in (("cpu", {"mixed_precision": "no"}), ("cuda", {"mixed_precision": precision, **on_a_gpu})):
        recipe(output_dir=str(folder / device), device=device, **COMMON, **options)
    found, expected = losses(folder / "cuda"), losses(folder / "cpu")
    assert len(expected) >= 3 and found == pytest.approx(expected, rel=rel, abs=1e-5)


PRECISIONS = pytest.mark.parametrize(("precision", "rel"), [("no", 2e-3), ("bf16", 0.1)])


@PRECISIONS
@pytest.mark.parametrize("recipe", CAPTURED, ids=lambda recipe: recipe.__name__)
def test_updates_are_captured_and_compute_the_same(recipe, precision, rel, tmp_path):
    check(recipe, tmp_path, precision, rel, cuda_graph="require")


def run_trajectory(**options):
    finetune_trajectory(with_output(resampling()), steps=2, iterations=3, **options)


@PRECISIONS
def test_fine_tuning_on_a_trajectory_computes_the_same(precision, rel, tmp_path):
    """Its host leads each update, so no graph may hold it."""
    check(run_trajectory, tmp_path, precision, rel)
