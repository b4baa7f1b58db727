"""What is written into a network's time path, against the network that was told it at every call."""

import pytest
import torch

from interop import models
from progdistill.core import Condition, CosineSchedule, FlowMatchingSchedule, TableSchedule, TimeMap
from progdistill.interop.baking import with_added_embedding, with_time_table

LINEAR = TableSchedule.from_diffusers({})
TEACHERS_TIMES = TimeMap(LINEAR, scale=1000.0, offset=-1.0, minimum=0.0, maximum=999.0)
STRAIGHT_TIMES = TimeMap(FlowMatchingSchedule(), scale=1.0, offset=0.0)
ARCHITECTURES = [{}, {"flip_sin_to_cos": False, "freq_shift": 1}, {"num_class_embeds": 4}]


def inputs(network, count, seed=0):
    z = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return z, None if network.config.num_class_embeds is None else Condition(torch.arange(count) % 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("times", [TEACHERS_TIMES, STRAIGHT_TIMES], ids=["teacher", "straight"])
def test_a_table_says_at_every_level_what_the_time_map_said(architecture, times):
    network = models.unet(**architecture)
    classes = architecture.get("num_class_embeds")
    model = models.denoiser(
        network=network, schedule=CosineSchedule(-10.118, 9.21), time_map=times, num_classes=classes
    )
    baked = with_time_table(model, 1024)
    assert baked.network.time_proj.weight.shape == (1024, 8)
    assert baked.network.config.time_embedding_type == "learned"
    levels = torch.tensor([1, 2, 3, 128, 500, 777, 1023, 1024], dtype=torch.float64)
    phi = model.schedule.angle(levels / 1024)
    z, cond = inputs(network, len(phi))
    torch.testing.assert_close(baked.time_map(phi), (levels - 1).float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(baked.raw(z, phi, cond), model.raw(z, phi, cond), rtol=0, atol=1e-6)
    assert (model.raw(z, phi, cond) - model.raw(z, phi.flip(0), cond)).abs().max() > 1e-3, "time does not matter"
    assert baked.schedule == model.schedule and network.config.time_embedding_type == "positional"


def test_a_table_of_a_table():
    network = models.unet(time_embedding_type="learned", num_train_timesteps=1000)
    model = models.denoiser(network=network, schedule=LINEAR, time_map=TEACHERS_TIMES)
    rows = with_time_table(model, 500).network.time_proj.weight
    assert torch.equal(rows, network.time_proj.weight[1::2])
    with pytest.raises(ValueError, match="rows 0 to 999 of its own table, but the schedule has levels between"):
        with_time_table(model, 1024)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_a_constant_embedding_becomes_a_bias(architecture):
    network = models.unet(**architecture).requires_grad_(False)
    constant = torch.randn(network.config.time_embed_dim, generator=torch.Generator().manual_seed(1))
    baked = with_added_embedding(network, constant)
    z, cond = inputs(network, 5)
    arguments = (z, torch.tensor([-1.0, 0.5, 3.0, 400.0, 1023.0]), *(() if cond is None else (cond.class_labels,)))
    without = network(*arguments)
    network.time_embedding.register_forward_hook(lambda module, given, embedding: embedding + constant)
    torch.testing.assert_close(baked(*arguments), network(*arguments), rtol=0, atol=1e-5)
    assert (baked(*arguments) - without).abs().max() > 0.01


def test_what_embedded_the_constant_can_be_left_out():
    network = models.unet(num_class_embeds=4).requires_grad_(False)
    always_two = with_added_embedding(network, network.class_embedding.weight[2], num_class_embeds=None)
    assert not any(name.startswith("class_embedding") for name in always_two.state_dict())
    z, time = inputs(network, 3)[0], torch.tensor([10.0, 20.0, 900.0])
    torch.testing.assert_close(always_two(z, time), network(z, time, torch.tensor([2, 2, 2])), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"shape \(3,\); this network's time embedding \(32,\)"):
        with_added_embedding(network, torch.zeros(3))
