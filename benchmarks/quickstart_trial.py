"""The quickstart's yardstick: the same experiment in plain PyTorch, with the settings that one would try first.

    python benchmarks/quickstart_trial.py --output quickstart-trial.json

A U-Net of 343,409 parameters predicts v under truncated SNR weighting: batch 64, AdamW at 1e-3 for 3000 teacher updates
and at 5e-4, falling to 0 within each round, for 32 -> 1 with 400 updates a round and 800 for 2 and 1 steps, averages of
the weights with decay 0.995. Losses, sampling and targets are PyTorch calls on float32 angles. The distances are the
quickstart's: same features, same reference images, as many images, in as many sets. Nothing else is shared but the
U-Net's modules, which are plain PyTorch as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from progdistill.core.machine import machine
from progdistill.data import ImageDataset, open_dataset, to_float, to_uint8
from progdistill.evaluation import QualityMeter
from progdistill.metrics import train_classifier
from progdistill.nets.config import UNetConfig
from progdistill.nets.unet import UNet
from progdistill.quickstart import QuickstartConfig

BATCH = 64
EMA_DECAY = 0.995
NETWORK = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(16, 64),
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    mid_block_type=None,
    layers_per_block=1,
    norm_num_groups=8,
)


def rotation(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the cosine schedule, shaped for images."""
    phi = (math.pi / 2 * t)[:, None, None, None]
    return phi.cos(), phi.sin()


def ddim(network: nn.Module, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """One DDIM step from time t to time s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = rotation(t), rotation(s)
    v = network(z, 1024 * t - 1)
    return alpha_s * (alpha_t * z - sigma_t * v) + sigma_s * (sigma_t * z + alpha_t * v)


@torch.no_grad()
def sample(network: nn.Module, steps: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` images in `steps` DDIM steps."""
    z = torch.randn(count, 1, 8, 8, generator=generator)
    for i in range(steps, 0, -1):
        z = ddim(network, z, torch.full((count,), i / steps), torch.full((count,), (i - 1) / steps))
    return z.clamp(-1, 1)


def fit(network: nn.Module, images: Tensor, updates: int, rate: float, anneal: bool, draw) -> nn.Module:
    """Trains in place on what `draw(x)` returns: z, time, the wanted v. Returns the averaged network."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    average = copy.deepcopy(network)
    for update in range(updates):
        if anneal:
            optimizer.param_groups[0]["lr"] = rate * (1 - update / updates)
        x = images[torch.randint(len(images), (BATCH,))]
        z, t, v = draw(x)
        alpha, sigma = rotation(t)
        weight = torch.maximum(alpha**2, sigma**2)
        loss = (weight * (network(z, 1024 * t - 1) - v) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + update) / (10 + update))
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - decay)
    return average.eval().requires_grad_(False)


def from_data(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Algorithm 1: uniform time, v of the image and its noise."""
    t, noise = torch.rand(len(x)), torch.randn_like(x)
    alpha, sigma = rotation(t)
    return alpha * x + sigma * noise, t, alpha * noise - sigma * x


def from_teacher(teacher: nn.Module, steps: int):
    """Algorithm 2: the teacher's two steps as the student's one."""

    @torch.no_grad()
    def draw(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        i = torch.randint(1, steps + 1, (len(x),))
        t, middle, s = i / steps, (i - 0.5) / steps, (i - 1) / steps
        alpha, sigma = rotation(t)
        z = alpha * x + sigma * torch.randn_like(x)
        end = ddim(teacher, ddim(teacher, z, t, middle), middle, s)
        # z_s = cos(h) z - sin(h) v with h = phi_t - phi_s, solved for v.
        h = (math.pi / 2 * (t - s))[:, None, None, None]
        return z, t, (h.cos() * z - end) / h.sin()

    return draw


def main() -> None:
    """Runs the trial and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("quickstart-trial.json"))
    parser.add_argument("--teacher-updates", type=int, default=3000)
    parser.add_argument("--updates-per-round", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    dataset = open_dataset("digits")
    images = to_float(dataset.images())

    started = time.perf_counter()
    teacher = fit(UNet(NETWORK), images, arguments.teacher_updates, 1e-3, False, from_data)
    seconds = {"train": round(time.perf_counter() - started, 1)}
    print(f"teacher: {seconds['train']} s")

    students, started = {32: teacher}, time.perf_counter()
    for steps in (16, 8, 4, 2, 1):
        student = copy.deepcopy(students[2 * steps]).train().requires_grad_(True)
        updates = arguments.updates_per_round * (2 if steps <= 2 else 1)
        students[steps] = fit(student, images, updates, 5e-4, True, from_teacher(students[2 * steps], steps))
    seconds["distill"] = round(time.perf_counter() - started, 1)
    print(f"students: {seconds['distill']} s")

    record = {
        "parameters": sum(p.numel() for p in teacher.parameters()),
        "seconds": seconds,
        "steps": measured(dataset, teacher, students),
        "machine": machine(),
    }
    for steps, entry in record["steps"].items():
        print(steps, entry)
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


def measured(dataset: ImageDataset, teacher: nn.Module, students: dict[int, nn.Module]) -> dict[str, dict]:
    """Distances as the quickstart measures them: its classifier, its numbers of images and sets."""
    settings = QuickstartConfig()
    classifier, _ = train_classifier(dataset.images(), dataset.labels, seed=settings.seed, data_name="digits")
    meter = QualityMeter(classifier, dataset, num_images=settings.evaluation_images, seeds=settings.evaluation_seeds)
    entries = {}
    for steps in (1, 2, 4, 8, 16, 32):
        entry = {}
        for who, network in (("student", students[steps]), ("teacher_ddim", teacher)):
            draws = [torch.Generator().manual_seed(k) for k in range(settings.evaluation_seeds)]
            values = [
                meter.distance(to_uint8(sample(network, steps, settings.evaluation_images, draw))) for draw in draws
            ]
            entry[who] = {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}
        entries[str(steps)] = entry
    return entries


if __name__ == "__main__":
    main()
