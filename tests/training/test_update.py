"""An update on the meta device, where there is nothing to read: no look at values, nothing copied from the host."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from progdistill.core import Denoiser
from progdistill.nets.unet import UNet
from progdistill.training import DistillConfig, TrainConfig, round_state
from progdistill.training.batches import BatchInputs, Microbatch
from progdistill.training.compute_network import ComputeNetwork, computing_teacher
from progdistill.training.distill import DistillationObjective
from progdistill.training.round_state import RoundState
from progdistill.training.train import DenoisingObjective
from progdistill.training.update import Updates

META = torch.device("meta")
NETWORK = dataclasses.replace(
    tiny.WITH_DROPOUT,
    num_class_embeds=3,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)


class NothingFromTheHost(TorchDispatchMode):
    """Refuses copies between devices; single numbers of the host are arguments of a kernel."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        given = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
        devices = {tensor.device for tensor in given if tensor.dim() or tensor.device == META}
        result = function(*arguments, **(options or {}))
        if function._schema.name in ("aten::copy_", "aten::_to_copy") and devices:
            devices |= {leaf.device for leaf in tree_leaves(result)}
        assert len(devices) <= 1, f"{function} of tensors on {devices}"
        return result


class Launches(TorchDispatchMode):
    """Counts what a GPU would launch, reckoning a kernel an operation: all but views, memory and questions."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function._schema.name
        free = function.is_view or "empty" in name or name == "aten::promote_types" or name.startswith("profiler::")
        self.names += [] if free else [name]
        return result


def denoiser(network=None):
    network = (network or UNet(NETWORK)).to(META)
    return Denoiser(network, sample_shape=(1, 8, 8), num_classes=3)


@pytest.fixture
def rates_on_meta(monkeypatch):
    """Torch looks at a learning rate once, when an optimizer is made."""
    make = round_state.make_optimizer

    def make_on_cpu(network, config, device, twins):
        optimizer = make(network, config, torch.device("cpu"), twins)
        for group in optimizer.param_groups:
            group["lr"] = group["lr"].to(META)
        return optimizer

    monkeypatch.setattr(round_state, "make_optimizer", make_on_cpu)


def updates(student, objective, config, precision):
    compute = ComputeNetwork(student.network, precision, META)
    state = RoundState(student.network, config, META, compute)
    made = Updates(student, objective, state, SimpleNamespace(device=META), config, dropout=True)
    labels, pixels = (
        torch.zeros(4, dtype=torch.int64, device=META),
        torch.zeros(4, 1, 8, 8, dtype=torch.uint8, device=META),
    )
    microbatch = Microbatch(pixels, labels, torch.arange(4), torch.ones(4, dtype=torch.bool), 7, 7)
    made._inputs = BatchInputs(microbatch, META, compute.memory_format)
    made._inputs.write(microbatch)
    return made


OBJECTIVES = {
    "train": TrainConfig(output_dir=""),
    "ddim": DistillConfig(output_dir="", rounds=1),
    "addim": DistillConfig(output_dir="", end_steps=4, rounds=1, teacher_sampler="addim"),
    "accumulated": DistillConfig(output_dir="", rounds=1, gradient_accumulation_steps=2, ema_decay=0.0),
}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_update_takes_nothing_from_the_host_and_gives_it_nothing(config, precision, rates_on_meta):
    if isinstance(config, TrainConfig):
        objective = DenoisingObjective(config)
    else:
        objective = DistillationObjective(computing_teacher(denoiser(), precision), config.end_steps, config)
    made = updates(denoiser(), objective, config, precision)
    with NothingFromTheHost():
        for last in (False, True, False, True):
            made._microbatch(last)


class Scaling(nn.Module):
    """One launch a call, and two for its gradient."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, z, time, label):
        return z * self.scale


@pytest.mark.parametrize(("name", "most"), [("train", 40), ("ddim", 50)])
def test_an_update_launches_little_beside_its_networks(name, most, rates_on_meta):
    config = OBJECTIVES[name]
    if name == "train":
        objective = DenoisingObjective(config)
    else:
        objective = DistillationObjective(denoiser(Scaling()), config.end_steps, config)
    made = updates(denoiser(Scaling()), objective, config, torch.float32)
    with Launches():
        made._microbatch(True)  # makes the optimizer's state
    with Launches() as launches:
        made._microbatch(True)
    assert launches.names.count("progdistill::draw") == 1
    assert len(launches.names) <= most, launches.names


class Reading(nn.Module):
    def __init__(self, look):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.look = look

    def forward(self, z, time, label):
        return z * self.scale * self.look(time)


@pytest.mark.parametrize(
    ("look", "error"),
    [
        (lambda time: float(time.mean()), RuntimeError),
        (lambda time: torch.arange(4.0).to(time.device).view(-1, 1, 1, 1), AssertionError),
    ],
)
def test_what_such_a_look_is_seen_by(look, error, rates_on_meta):
    config = TrainConfig(output_dir="")
    made = updates(denoiser(Reading(look)), DenoisingObjective(config), config, torch.float32)
    with pytest.raises(error), NothingFromTheHost():
        made._microbatch(True)
