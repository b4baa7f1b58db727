"""A model's fingerprint changes with whatever changes its images, and with nothing else."""

import copy

import pytest
import torch
from torch import nn

from progdistill.core import CosineSchedule, Denoiser, TimeMap
from progdistill.core.fingerprint import model_fingerprint
from progdistill.core.sampling_plan import SamplingPlan


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 4))
        self.gain = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("table", torch.arange(3))


MODEL = Denoiser(Network(), sample_shape=(1, 4, 4))


def changed(change):
    network = copy.deepcopy(MODEL.network)
    with torch.no_grad():
        change(network)
    return MODEL.with_network(network)


DIFFERENT = {
    "one bit of a weight": lambda: changed(lambda n: n.weight[2, 3].copy_(torch.nextafter(n.weight[2, 3], n.gain))),
    "a scalar": lambda: changed(lambda n: n.gain.fill_(3)),
    "a buffer": lambda: changed(lambda n: n.table.fill_(3)),
    "precision": lambda: changed(lambda n: n.bfloat16()),
    "a shape": lambda: changed(lambda n: setattr(n, "weight", nn.Parameter(n.weight.reshape(4, 3)))),
    "a name": lambda: changed(lambda n: (setattr(n, "other", n.gain), delattr(n, "gain"))),
    "prediction type": lambda: MODEL.with_network(MODEL.network, prediction_type="sample"),
    "schedule": lambda: MODEL.with_network(MODEL.network, schedule=CosineSchedule(20.0), time_map=MODEL.time_map),
    "time map": lambda: MODEL.with_network(MODEL.network, time_map=TimeMap(MODEL.schedule, scale=1000.0)),
    "classes": lambda: MODEL.with_network(MODEL.network, num_classes=3),
    "unconditional label": lambda: MODEL.with_network(MODEL.network, unconditional_label=3),
    "guidance scales": lambda: MODEL.with_network(MODEL.network, guidance_range=(1.0, 5.0)),
    "sampling plans": lambda: MODEL.with_network(MODEL.network, sampling_plans={1: SamplingPlan((1.5, 0.0))}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_changes_it(name):
    assert model_fingerprint(DIFFERENT[name]()) != model_fingerprint(MODEL)


def test_what_does_not():
    same = changed(lambda n: setattr(n, "weight", nn.Parameter(n.weight.T.contiguous().T)))
    assert model_fingerprint(same) == model_fingerprint(MODEL)
    assert model_fingerprint(MODEL.with_network(MODEL.network, provenance={"a": 1})) == model_fingerprint(MODEL)
    assert len(model_fingerprint(MODEL)) == 32
