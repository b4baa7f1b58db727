"""Muon beside AdamW: against a literal float64 formula and torch's own, its checkpoints, what it makes of rounds."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet
from progdistill.training import DistillConfig, TrainConfig, distill, train
from progdistill.training.muon_ema import MuonEma, muon_groups, orthogonalised
from progdistill.training.round_state import RoundState, copy_network
from progdistill.training.run_fingerprint import fingerprint

MU, LR, DECAY = 0.9, 0.02, 0.8


def small_network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 6, 1), nn.Flatten(), nn.Linear(96, 8)]
    return nn.Sequential(*layers, nn.Linear(8, 2))


def give_gradients(network, update, factor=1.0):
    generator = torch.Generator().manual_seed(update)
    for parameter in network.parameters():
        parameter.grad = factor * torch.randn(parameter.shape, generator=generator)


def literal_direction(matrix):
    """Five times x <- (a I + b x x^T + c (x x^T)^2) x on the singular values of a matrix over its Frobenius norm."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def test_groups():
    groups = muon_groups(small_network())
    assert [name for name, _ in groups[0]["params"]] == ["1.weight", "2.weight", "4.weight"] and groups[0]["muon"]
    assert {name for name, _ in groups[1]["params"]} >= {"0.weight", "5.weight", "1.bias"}
    net = UNet(dataclasses.replace(preset("digits8"), block_out_channels=(8, 8)))
    others = {name for name, _ in muon_groups(net)[1]["params"] if net.get_parameter(name).ndim > 1}
    assert others == {"conv_in.weight", "conv_out.weight"}


def test_orthogonalised():
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 9), (9, 5), (6, 6), (5, 30), (40, 5), (5, 9)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    for found, matrix in zip(orthogonalised(matrices), matrices, strict=True):
        torch.testing.assert_close(found.double(), literal_direction(matrix), atol=1e-5, rtol=0)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
    assert orthogonalised([torch.zeros(3, 4)])[0].abs().max() == 0


def test_updates_equal_the_literal_formula():
    network = small_network()
    weights = {name: p.detach().double() for name, p in network.named_parameters()}
    name, shape = "1.weight", (6, 36)
    p, m, ema = weights[name].clone(), torch.zeros(6, 4, 3, 3, dtype=torch.float64), None
    twin = torch.zeros_like(network.get_parameter(name), dtype=torch.bfloat16)
    rate = torch.tensor(LR, dtype=torch.float64)
    options = {"lr": rate, "weight_decay": 0.1, "max_grad_norm": 1.0, "ema_decay": DECAY}
    optimizer = MuonEma(muon_groups(network), momentum=MU, twins={network.get_parameter(name): twin}, **options)
    for update in range(1, 5):
        give_gradients(network, update)
        g = network.get_parameter(name).grad.double()
        rate.fill_(LR / update)
        optimizer.step()
        m = MU * m + (1 - MU) * g
        direction = literal_direction((MU * m + (1 - MU) * g).reshape(shape)).reshape(p.shape)
        p = p * (1 - LR / update * 0.1) - LR / update * 0.2 * math.sqrt(36) * direction
        ema = p if ema is None else ema + (1 - DECAY) / (1 - DECAY**update) * (p - ema)
        torch.testing.assert_close(network.get_parameter(name).double(), p, atol=2e-6, rtol=0)
        torch.testing.assert_close(optimizer.ema_state_dict()[name].double(), ema, atol=2e-6, rtol=0)
        assert torch.equal(twin, network.get_parameter(name).bfloat16())
        total = math.sqrt(sum(q.grad.double().square().sum() for q in network.parameters()))
        assert float(optimizer.grad_norm) == pytest.approx(total, rel=1e-6)


def test_what_is_no_matrix_is_adamw_s():
    network = small_network()
    reference = copy_network(network)
    optimizer = MuonEma(muon_groups(network), lr=1e-2, weight_decay=0.0)
    adamw = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    for update in range(3):
        for net, one in ((network, optimizer), (reference, adamw)):
            give_gradients(net, update)
            one.step()
    for name, parameter in network.named_parameters():
        same = torch.allclose(parameter, reference.get_parameter(name), atol=1e-6)
        assert same == (name not in ("1.weight", "2.weight", "4.weight")), name


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_matrices_go_as_with_torch_s_muon():
    """Which iterates in bfloat16: a step agrees to some per cent."""
    network = nn.Sequential(*(nn.Linear(12, 12, bias=False) for _ in range(3)))
    start = network[1].weight.detach().clone()
    reference = nn.Parameter(start.clone())
    options = {"lr": 1e-2, "weight_decay": 0.0, "momentum": 0.95}
    optimizer = MuonEma(muon_groups(network), **options)
    muon = torch.optim.Muon([reference], adjust_lr_fn="match_rms_adamw", **options)
    for update in range(3):
        give_gradients(network, update)
        reference.grad = network[1].weight.grad.clone()
        optimizer.step()
        muon.step()
    difference, moved = (network[1].weight - reference).norm(), (reference - start).norm()
    assert difference < 0.05 * moved


def test_the_gradients_scale_does_not_count():
    one, other = small_network(), small_network()
    for network, factor in ((one, 1.0), (other, 1e4)):
        optimizer = MuonEma(muon_groups(network), lr=1e-2)
        give_gradients(network, 0, factor)
        optimizer.step()
    torch.testing.assert_close(one[1].weight, other[1].weight, atol=1e-6, rtol=0)


def test_a_checkpoint_continues_as_if_uninterrupted():
    config = TrainConfig(output_dir="", optimizer="muon", ema_decay=0.9, learning_rate=1e-2)
    states = [RoundState(small_network(), config, torch.device("cpu"))]

    def do(state, updates):
        for _ in range(updates):
            give_gradients(state.network, state.update)
            state.optimizer.step()
            state.update += 1

    do(states[0], 3)
    checkpoint = copy.deepcopy(states[0].checkpoint(0, 0))
    assert "exp_avg.1.weight" in checkpoint.tensors["optimizer"]
    assert "exp_avg_sq.1.weight" not in checkpoint.tensors["optimizer"]
    states.append(RoundState(small_network(), config, torch.device("cpu")))
    states[1].restore(checkpoint, main_process=True)
    for state in states:
        do(state, 2)
    for a, b in zip(*(state.network.parameters() for state in states), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*(state.averaged().parameters() for state in states), strict=True):
        assert torch.equal(a, b)


def test_settings():
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'; use adamw or muon"):
        TrainConfig(output_dir="x", optimizer="sgd")
    with pytest.raises(ValueError, match="muon_momentum is 1.0"):
        TrainConfig(output_dir="x", muon_momentum=1.0)
    with pytest.raises(ValueError, match=r"learning_rate_at names \[3\] steps"):
        DistillConfig(output_dir="x", learning_rate_at={3: 1e-3})
    with pytest.raises(ValueError, match="a learning rate is not negative"):
        DistillConfig(output_dir="x", learning_rate_at={1: -1e-3})
    config = DistillConfig(output_dir="x", rounds=2, learning_rate=1e-3, learning_rate_at={1: 2e-3})
    assert [config.for_round(steps).learning_rate for steps in (2, 1)] == [1e-3, 2e-3]


def test_older_runs_resume():
    """What is at its default is not part of what a resumed run must have in common."""
    assert {"optimizer", "muon_momentum", "learning_rate_at"}.isdisjoint(fingerprint(DistillConfig(output_dir="x")))
    config = DistillConfig(output_dir="x", optimizer="muon", learning_rate_at={1: 2e-3})
    assert fingerprint(config)["learning_rate_at"] == {"1": 2e-3} and fingerprint(config)["optimizer"] == "muon"


def test_rounds_with_their_own_learning_rates(tmp_path):
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    network = dataclasses.replace(preset("digits8"), block_out_channels=(8, 8))
    common = {"optimizer": "muon", "train_batch_size": 8, "logging_steps": 2, "progress": False}
    teacher = train(images, str(tmp_path / "teacher"), network=network, max_train_steps=4, **common)
    rates = {"learning_rate": 1e-3, "learning_rate_at": {1: 3e-3}, "lr_scheduler": "constant"}
    run = tmp_path / "run"
    distill(teacher, data=images, rounds=2, output_dir=str(run), updates_per_round=4, **rates, **common)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(record["label"], record["learning_rate"]) for record in records if record["event"] == "update"}
    assert found == {("4 -> 2 steps", 1e-3), ("2 -> 1 steps", 3e-3)}
