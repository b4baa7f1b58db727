"""`FixedSteps` of every kind of model as a graph's stand-in records them: no look at a value, all inputs followed."""

import pytest
import torch

from analytic import MixtureDenoiser
from progdistill.core import Denoiser, TableSchedule
from progdistill.sampling.fixed_steps import FixedSteps
from recorded_graph import RecordedGraph
from small_students import student

CLASSES = {"num_class_embeds": 5}


class Foreign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, time):
        return self.conv(z) * torch.cos(1e-3 * time)[:, None, None, None]


def described(model, **description):
    return model.with_network(model.network, **description)


MODELS = {
    "unconditional": student,
    "two heads": lambda: student(prediction_type="sample_epsilon", out_channels=2),
    "table": lambda: described(student(), schedule=TableSchedule.from_betas(torch.linspace(1e-4, 0.02, 1000))),
    "classes": lambda: student(**CLASSES),
    "guided teacher": lambda: described(student(**CLASSES), unconditional_label=4),
    "guided student": lambda: described(student(guidance_embed_dim=8, **CLASSES), guidance_range=(1.0, 4.0)),
    "told the steps": lambda: described(student(step_embed_dim=8), step_conditioned=True, step_count=3),
    "of one's own": lambda: MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], sample_shape=(1, 8, 8)),
    "foreign": lambda: Denoiser(Foreign(), sample_shape=(1, 8, 8)),
}


@pytest.mark.parametrize("form", ["samples", "uint8"])
@pytest.mark.parametrize("from_seeds", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_recording_follows_its_inputs(name, from_seeds, form):
    model = MODELS[name]()
    guided = name.startswith("guided")
    program = FixedSteps(model, 3, torch.float32 if name in ("of one's own", "foreign") else torch.bfloat16, clip=1.5)
    inputs = [
        torch.arange(4) if from_seeds else torch.randn(4, 1, 8, 8),
        None if model.num_classes is None else torch.tensor([0, 1, 2, 3]),
        torch.full((4,), 2.0) if guided else None,
    ]
    constants, recorded = program.constants(4), {}
    program.run(constants, *inputs, form)
    graph = RecordedGraph(lambda: recorded.update(images=program.run(constants, *inputs, form)))
    before = program.run(constants, *inputs, form)
    for given, values in zip(inputs, (inputs[0].flip(0), torch.tensor([3, 3, 0, 1]), torch.tensor(3.0)), strict=True):
        if given is not None:
            given.copy_(values)
    graph.replay()
    after = program.run(constants, *inputs, form)
    assert torch.equal(recorded["images"], after) and not torch.equal(after, before)
