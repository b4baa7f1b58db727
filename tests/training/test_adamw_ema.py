"""The optimizer as a user holds it: against torch's AdamW, clip_grad_norm_ and _foreach_lerp_, and its states."""

import copy
import io

import pytest
import torch
from torch import nn

from progdistill.ops import backends
from progdistill.training.adamw_ema import AdamWEma

DECAY = 0.9


def network(seed=0, last=True):
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 5, 1), nn.Flatten(), nn.Linear(80, 3))
    return layers.to(memory_format=torch.channels_last) if last else layers


def groups(net, named=True):
    """Two groups with their own settings, as decay is usually kept from biases and norms."""
    pairs = list(net.named_parameters())
    choose = lambda wide: [  # noqa: E731
        pair if named else pair[1] for pair in pairs if (pair[1].dim() > 1) == wide
    ]
    return [{"params": choose(True), "lr": 2e-2}, {"params": choose(False), "weight_decay": 0.0, "betas": (0.8, 0.99)}]


def give_gradients(net, update, leave_out=()):
    """Gradients in their parameters' memory order: torch's fused AdamW takes others for what they are not."""
    generator = torch.Generator().manual_seed(update)
    for name, parameter in net.named_parameters():
        grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))
        parameter.grad = None if name in leave_out else grad


def torch_step(optimizer, net, averages, update, max_norm=1.0):
    norm = nn.utils.clip_grad_norm_(net.parameters(), max_norm)
    optimizer.step()
    weight = (1 - DECAY) / (1 - DECAY**update)
    torch._foreach_lerp_(averages, [parameter.detach() for parameter in net.parameters()], weight)
    return norm


def assert_equal_networks(a, b):
    for mine, other in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_groups_clipping_and_average_as_torch_does_them():
    mine, theirs = network(), network()
    own = AdamWEma(groups(mine), max_grad_norm=1.0, ema_decay=DECAY)
    other, averages = torch.optim.AdamW(groups(theirs), fused=True), [p.detach().clone() for p in theirs.parameters()]
    for update in range(1, 21):
        give_gradients(mine, update)
        give_gradients(theirs, update)
        before = [parameter.grad.clone() for parameter in mine.parameters()]
        own.step()
        torch.testing.assert_close(own.grad_norm, torch_step(other, theirs, averages, update))
        assert all(torch.equal(a, p.grad) for a, p in zip(before, mine.parameters(), strict=True))
    assert_equal_networks(mine, theirs)
    average = own.ema_state_dict()
    for (name, _), expected in zip(theirs.named_parameters(), averages, strict=True):
        torch.testing.assert_close(average[name], expected, rtol=1e-5, atol=1e-6)
    assert len({id(state["step"]) for state in own.state.values()}) == 1


def test_gradients_of_twins_and_weights_for_them():
    masters, plain = network(), network()
    twin = copy.deepcopy(masters).bfloat16()
    twins = dict(zip(masters.parameters(), twin.parameters(), strict=True))
    del twins[masters[1].weight]
    own, other = AdamWEma(masters.parameters(), lr=1e-2, twins=twins), AdamWEma(plain.parameters(), lr=1e-2)
    before = twin[1].weight.clone()
    for update in range(1, 4):
        give_gradients(twin, update)
        give_gradients(plain, update)
        masters[1].weight.grad = twin[1].weight.grad.float()
        for parameter in plain.parameters():
            parameter.grad = parameter.grad.bfloat16().float()
        own.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(masters.parameters(), plain.parameters(), strict=True))
    assert all(torch.equal(twins[parameter], parameter.bfloat16()) for parameter in twins)
    assert torch.equal(twin[1].weight, before)
    own.zero_grad(set_to_none=False)
    assert all(twin.grad.count_nonzero() == 0 for twin in twins.values())
    own.zero_grad()
    assert all(parameter.grad is None for parameter in (*twins, *twins.values()))


def test_parameters_without_gradients_are_left_alone_and_count_for_themselves():
    mine, theirs = network(), network()
    own, other = AdamWEma(mine.parameters(), lr=1e-2), torch.optim.AdamW(theirs.parameters(), lr=1e-2, fused=True)
    for update, leave_out in enumerate([(), ("0.weight",), ("0.weight", "1.bias"), (), ("4.bias",)], start=1):
        for net, optimizer in ((mine, own), (theirs, other)):
            give_gradients(net, update, leave_out)
            optimizer.step()
    assert_equal_networks(mine, theirs)
    steps = {name: int(own.state[parameter]["step"]) for name, parameter in mine.named_parameters()}
    assert steps["0.weight"] == 3 and steps["1.bias"] == 4 and steps["4.bias"] == 4 and steps["0.bias"] == 5


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or backends.unavailable("cuda") is not None,
        reason="needs a GPU and an extension with CUDA kernels: graphs are not emulated",
    ),
]


@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("cpu", {"fused": True}),
        ("cpu", {"foreach": False}),
        ("cpu", {"lr": torch.tensor(1e-3)}),
        pytest.param("cuda", {"fused": True}, marks=gpu),
        pytest.param("cuda", {"capturable": True}, marks=gpu),
        pytest.param("cuda", {"foreach": False}, marks=gpu),
    ],
)
def test_torch_loads_ours_and_we_load_torch_s(device, options):
    """Six updates, three by each class, either first, equal six of one."""
    whole = network().to(device)
    reference = torch.optim.AdamW(groups(whole, named=False), fused=True)
    for update in range(1, 7):
        give_gradients(whole, update)
        reference.step()
    make = {
        "ours": lambda net: AdamWEma(groups(net, named=False)),
        "torch": lambda net: torch.optim.AdamW(groups(net, named=False), **options),
    }
    for first, second in (("ours", "torch"), ("torch", "ours")):
        net = network().to(device)
        optimizer = make[first](net)
        for update in range(1, 4):
            give_gradients(net, update)
            optimizer.step()
        state = saved_and_loaded(optimizer.state_dict())
        optimizer = make[second](net)
        optimizer.load_state_dict(state)
        for update in range(4, 7):
            give_gradients(net, update)
            optimizer.step()
        assert_equal_networks(net, whole)
        if second == "ours":
            assert len({id(entry["step"]) for entry in optimizer.state.values()}) == 1, "one call a group"
        assert {float(entry["step"]) for entry in optimizer.state_dict()["state"].values()} == {6.0}


def test_state_dict_is_what_torch_writes():
    def written(make):
        net = network()
        optimizer = make(groups(net))
        give_gradients(net, 1)
        optimizer.step()
        return optimizer.state_dict()

    own, other = written(lambda g: AdamWEma(g, ema_decay=DECAY)), written(lambda g: torch.optim.AdamW(g, fused=True))
    assert own.keys() == other.keys() and own["param_groups"] == other["param_groups"]
    assert own["state"].keys() == other["state"].keys()
    for mine, theirs in zip(own["state"].values(), other["state"].values(), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(mine[key].dtype == theirs[key].dtype and mine[key].shape == theirs[key].shape for key in mine)
    # Torch counts every one of them up.
    assert len({state["step"].data_ptr() for state in own["state"].values()}) == len(own["state"])


def test_resumed_is_uninterrupted_bit_for_bit():
    whole, first, second = network(), network(), network(1)
    make = lambda net: AdamWEma(groups(net), max_grad_norm=1.0, ema_decay=DECAY)  # noqa: E731
    optimizers = make(whole), make(first), make(second)
    for update in range(1, 7):
        resumed = update > 3
        if update == 4:
            second.load_state_dict(first.state_dict())
            optimizers[2].load_state_dict(saved_and_loaded(optimizers[1].state_dict()))
            optimizers[2].load_ema_state_dict(saved_and_loaded(optimizers[1].ema_state_dict()))
        for net, optimizer in ((whole, optimizers[0]), (second, optimizers[2]) if resumed else (first, optimizers[1])):
            give_gradients(net, update)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    averages = optimizers[0].ema_state_dict(), optimizers[2].ema_state_dict()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    second.load_state_dict(averages[1])


def test_a_copy_goes_on_alike():
    net = network()
    optimizer = AdamWEma(net.named_parameters(), max_grad_norm=1.0, ema_decay=DECAY)
    give_gradients(net, 1)
    optimizer.step()
    other, twin = copy.deepcopy((net, optimizer))
    for model, own in ((net, optimizer), (other, twin)):
        give_gradients(model, 2)
        own.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    averages = optimizer.ema_state_dict(), twin.ema_state_dict()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def test_the_state_follows_a_change_of_memory_format():
    mine, plain = network(last=False), network(last=False)
    own, other = (AdamWEma(net.named_parameters(), lr=1e-2, ema_decay=DECAY) for net in (mine, plain))
    for update in range(1, 5):
        if update == 3:
            mine.to(memory_format=torch.channels_last)
        for net, optimizer in ((mine, own), (plain, other)):
            give_gradients(net, update)
            optimizer.step()
    assert mine[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), plain.parameters(), strict=True))


def test_schedulers_closures_and_rates_as_tensors():
    mine, theirs, moving = network(), network(), network()
    rate = torch.tensor(0.1)
    optimizers = AdamWEma(mine.parameters(), lr=0.1), torch.optim.AdamW(theirs.parameters(), lr=0.1, fused=True)
    third = AdamWEma(moving.parameters(), lr=rate)
    schedulers = [torch.optim.lr_scheduler.LinearLR(own, 1.0, 0.0, 4) for own in (*optimizers, third)]
    for update in range(1, 4):
        for net, own in zip((mine, theirs, moving), (*optimizers, third), strict=True):
            give_gradients(net, update)
            assert own.step(lambda: 5.0) == 5.0
        for scheduler in schedulers:
            scheduler.step()
    assert third.param_groups[0]["lr"] is rate and float(rate) == pytest.approx(0.025)
    assert_equal_networks(mine, theirs)
    assert_equal_networks(moving, theirs)


def test_no_gradients_are_no_update():
    net = network()
    before = copy.deepcopy(net)
    AdamWEma(net.named_parameters(), max_grad_norm=1.0, ema_decay=DECAY).step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))


def test_bad_input_is_named():
    net = network()
    with pytest.raises(ValueError, match=r"saved by name: pass network.named_parameters\(\)"):
        AdamWEma(net.parameters(), ema_decay=DECAY)
    with pytest.raises(ValueError, match="twins has a key that is not a parameter"):
        AdamWEma(net.parameters(), twins={network()[0].weight: torch.zeros(1)})
    with pytest.raises(ValueError, match="keeps no average; make it with ema_decay"):
        AdamWEma(net.parameters()).ema_state_dict()
    optimizer = AdamWEma(net.named_parameters(), ema_decay=DECAY)
    averages = optimizer.ema_state_dict()
    with pytest.raises(ValueError, match=r"\['4.bias'\] are on one side only"):
        optimizer.load_ema_state_dict({name: value for name, value in averages.items() if name != "4.bias"})
    with pytest.raises(ValueError, match=r"average 4.bias has shape \(4,\), its parameter \(3,\)"):
        optimizer.load_ema_state_dict({**averages, "4.bias": torch.zeros(4)})
    twins = {net[0].weight: net[0].weight.detach().bfloat16()}
    twins[net[0].weight].grad = torch.zeros_like(twins[net[0].weight])
    give_gradients(net, 1)
    with pytest.raises(ValueError, match="and its twin both have gradients"):
        AdamWEma(net.parameters(), twins=twins).step()
    amsgrad = torch.optim.AdamW(net.parameters(), amsgrad=True)
    amsgrad.step()
    own = AdamWEma(net.parameters())
    own.load_state_dict(amsgrad.state_dict())
    with pytest.raises(ValueError, match="amsgrad=True, which AdamWEma does not do"):
        own.step()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=gpu)])
def test_a_captured_step_equals_an_eager_one(device):
    nets = [network().to(device) for _ in range(2)]
    rates = [torch.tensor(0.0, device=device) for _ in nets]
    eager, captured = (
        AdamWEma(net.named_parameters(), lr=rate, max_grad_norm=1.0, ema_decay=DECAY)
        for net, rate in zip(nets, rates, strict=True)
    )
    for net, optimizer in zip(nets, (eager, captured), strict=True):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for update, rate in enumerate((0.1, 0.02, 0.3), start=1):
        for lr in rates:
            lr.fill_(rate)
        generator = torch.Generator().manual_seed(update)
        for parameters in zip(*(net.parameters() for net in nets), strict=True):
            grad = torch.randn(parameters[0].shape, generator=generator).to(device)
            for parameter in parameters:
                parameter.grad.copy_(grad)
        eager.step()
        graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))
    averages = eager.ema_state_dict(), captured.ema_state_dict()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
