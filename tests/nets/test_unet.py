"""What the U-Net does by itself: time input, dtypes, memory formats, dropout, initialisation, errors."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from nets.small_networks import SMALL
from progdistill.nets.attention import Attention
from progdistill.nets.config import UNetConfig
from progdistill.nets.embeddings import SinusoidalEmbedding
from progdistill.nets.pending_sum import PendingSum
from progdistill.nets.unet import UNet

CONFIG = UNetConfig(
    in_channels=2,
    out_channels=4,
    block_out_channels=(8, 16),
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    layers_per_block=1,
    norm_num_groups=4,
    resnet_time_scale_shift="scale_shift",
)
CLASSES = replace(CONFIG, num_class_embeds=5)
IDENTITY = replace(CONFIG, class_embed_type="identity")
LEARNED = replace(CONFIG, time_embedding_type="learned", num_train_timesteps=10)
TIMES = torch.tensor([3.0, 7.0])


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_net(config: UNetConfig = CONFIG) -> UNet:
    """In evaluation mode, with no weight at zero."""
    torch.manual_seed(0)
    net = UNet(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def sample(batch: int = 2, size: int = 8) -> torch.Tensor:
    return torch.randn(batch, CONFIG.in_channels, size, size, generator=torch.Generator().manual_seed(1))


def sinusoid(values: torch.Tensor, channels: int, *, cosines_first: bool, freq_shift: float) -> torch.Tensor:
    """Equation of Vaswani et al. 2017, section 3.5, in float64."""
    half = channels // 2
    rows = []
    for value in values.double().tolist():
        phases = [value * 10000 ** (-k / (half - freq_shift)) for k in range(half)]
        sines, cosines = [math.sin(p) for p in phases], [math.cos(p) for p in phases]
        rows.append(cosines + sines if cosines_first else sines + cosines)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("cosines_first", [False, True])
@pytest.mark.parametrize("freq_shift", [0, 1])
def test_sinusoid(cosines_first, freq_shift):
    values = torch.tensor([0.0, 1.0, -0.5, 433.05, 1023.0])
    embed = SinusoidalEmbedding(12, flip_sin_to_cos=cosines_first, freq_shift=freq_shift)
    exact = sinusoid(values, 12, cosines_first=cosines_first, freq_shift=freq_shift)
    # One rounding of a phase of up to 1023 radians is 6e-5.
    torch.testing.assert_close(embed(values).double(), exact, rtol=0, atol=1.3e-4)
    assert embed(values.double()).dtype == torch.float32


def test_sinusoid_follows_its_module_to_a_device_but_not_to_a_dtype():
    embed = SinusoidalEmbedding(12, flip_sin_to_cos=True, freq_shift=0)
    before = embed(TIMES)
    assert embed.to("meta").frequencies.is_meta
    assert torch.equal(embed.to_empty(device="cpu").to(torch.bfloat16)(TIMES), before)
    assert not embed.state_dict()


@pytest.mark.parametrize("timestep", [7, 7.0, torch.tensor(7), torch.tensor([7.0]), torch.tensor([7, 7])])
def test_timestep_forms(timestep):
    net = random_net()
    torch.testing.assert_close(net(sample(), timestep), net(sample(), torch.tensor([7.0, 7.0])), rtol=0, atol=0)


@pytest.mark.parametrize("config", [CONFIG, LEARNED, CLASSES], ids=["sinusoids", "learned", "classes"])
def test_a_fixed_time(config):
    net, x = random_net(config).double(), sample().double()
    labels = (torch.tensor([0, 4]),) if config is CLASSES else ()
    output = net(x, net.fixed_time(7.0), *labels)
    torch.testing.assert_close(output, net(x, 7.0, *labels))
    assert not torch.allclose(output, net(x, net.fixed_time(3.0), *labels))


def test_python_fractions_are_not_truncated():
    net = random_net()
    torch.testing.assert_close(net(sample(), 7.5), net(sample(), torch.tensor([7.5, 7.5])), rtol=0, atol=0)
    assert not torch.allclose(net(sample(), 7.5), net(sample(), 7), atol=1e-3)


def test_bfloat16_computes_in_bfloat16_but_tells_neighbouring_times_apart():
    net = random_net().to(torch.bfloat16)
    at_1000, at_1001 = net(sample(), 1000), net(sample(), 1001)
    assert at_1000.dtype == net.dtype == torch.bfloat16
    # bfloat16 has no number between 1000 and 1004.
    assert (at_1000.float() - at_1001.float()).abs().max() > 0.1
    exact = random_net().double()(sample(), 1000)
    assert (at_1000.double() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_output_dtype_is_that_of_the_weights(dtype):
    net = random_net(CLASSES).to(dtype)
    for given in (torch.float32, torch.float64, torch.bfloat16):
        assert net(sample().to(given), TIMES.double(), torch.tensor([0, 4])).dtype == dtype


def test_learned_table_replaces_the_sinusoid():
    """A table filled with the sinusoids of its rows is the positional network (that is how one is baked)."""
    positional, learned = random_net(), UNet(LEARNED).eval()
    table = positional.time_proj(torch.arange(10))
    learned.load_state_dict({**positional.state_dict(), "time_proj.weight": table})
    expected = positional(sample(), TIMES)
    assert torch.equal(learned(sample(), TIMES.long()), expected)
    assert torch.equal(learned(sample(), TIMES), expected)
    assert torch.equal(learned(sample(), TIMES.double() - 1e-9), expected)


@pytest.mark.parametrize("head_dim", [None, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(head_dim, memory_format):
    net = random_net(replace(CONFIG, attention_head_dim=head_dim))
    reference = copy.deepcopy(net)(sample(), TIMES)
    exact = copy.deepcopy(net).double()(sample(), TIMES)
    output = net.to(memory_format=memory_format)(sample().contiguous(memory_format=memory_format), TIMES)
    assert output.is_contiguous(memory_format=memory_format)
    assert (output - exact).abs().max() <= 2 * (reference - exact).abs().max() + 1e-7
    block = Attention(16, head_dim=head_dim, norm_num_groups=4, eps=1e-5)
    features = torch.randn(2, 16, 4, 4).contiguous(memory_format=memory_format)
    assert block(PendingSum(features, waits=False)).formed().is_contiguous(memory_format=memory_format)


def test_rectangular_samples():
    assert random_net()(torch.randn(1, 2, 4, 10), 0).shape == (1, 4, 4, 10)


def test_samples_of_a_batch_do_not_mix():
    net = random_net(CLASSES)
    labels = torch.tensor([1, 3])
    alone = net(sample()[1:], TIMES[1:], labels[1:])
    torch.testing.assert_close(net(sample(), TIMES, labels)[1:], alone, rtol=1e-5, atol=1e-5)


def test_gradients():
    """Against finite differences, in float64, for the input and every parameter."""
    config = replace(CONFIG, block_out_channels=(4, 4), norm_num_groups=2, attention_head_dim=2, num_class_embeds=2)
    net = random_net(config).double()
    names, parameters = zip(*net.named_parameters(), strict=True)

    def evaluate(images, *values):
        arguments = (images, torch.tensor([3.0]), torch.tensor([1]))
        return torch.func.functional_call(net, dict(zip(names, values, strict=True)), arguments)

    images = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(evaluate, (images, *parameters), fast_mode=True)


def test_dropout_acts_in_training_only():
    net = random_net(replace(CONFIG, dropout=0.5))
    plain = random_net()
    assert torch.equal(net(sample(), TIMES), plain(sample(), TIMES))
    net.train()
    assert not torch.equal(net(sample(), TIMES), net(sample(), TIMES))
    assert torch.equal(plain.train()(sample(), TIMES), plain.eval()(sample(), TIMES))


def test_a_fresh_network_returns_zeros_and_identity_branches():
    net = UNet(CONFIG)
    assert not net(sample(), TIMES).any()
    features = torch.randn(2, 8, 4, 4)
    block = net.down_blocks[0].resnets[0]
    assert torch.equal(
        block(PendingSum(features, waits=False), torch.randn(2, CONFIG.time_embed_dim)).formed(), features
    )
    attention = net.mid_block.attentions[0]
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(attention(PendingSum(features, waits=False)).formed(), features)


def test_a_fresh_network_keeps_the_variance():
    weight = UNet(replace(CONFIG, block_out_channels=(64, 64))).mid_block.resnets[0].conv1.weight
    assert weight.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.02)


def test_weights_can_be_assigned_to_a_network_without_memory():
    net = random_net(CLASSES)
    with torch.device("meta"):
        empty = UNet(CLASSES).eval()
    empty.load_state_dict(net.state_dict(), assign=True)
    labels = torch.tensor([1, 3])
    assert torch.equal(empty(sample(), TIMES, labels), net(sample(), TIMES, labels))
    moved = UNet(CLASSES).to("meta").to_empty(device="cpu").eval()
    moved.load_state_dict(net.state_dict())
    assert torch.equal(moved(sample(), TIMES, labels), net(sample(), TIMES, labels))


@pytest.mark.parametrize(
    "config", [CONFIG, CLASSES, IDENTITY, LEARNED], ids=["plain", "classes", "identity", "learned"]
)
def test_compiles_without_graph_breaks(config):
    net = random_net(config)
    labels = {CLASSES: torch.tensor([1, 3]), IDENTITY: torch.randn(2, config.time_embed_dim)}.get(config)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(sample(), TIMES, labels), net(sample(), TIMES, labels), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (CONFIG, (torch.zeros(2, 3, 8, 8), TIMES), r"\(2, 3, 8, 8\).*\(B, 2, H, W\)"),
        (CONFIG, (torch.zeros(2, 8, 8), TIMES), r"\(2, 8, 8\).*\(B, 2, H, W\)"),
        (CONFIG, (torch.zeros(2, 2, 8, 9), TIMES), r"\(8, 9\).*multiples of 2"),
        (CONFIG, (sample(), torch.zeros(3)), r"timestep has shape \(3,\).*\(2,\)"),
        (CONFIG, (sample(), torch.zeros(2, 1)), r"timestep has shape \(2, 1\)"),
        (CONFIG, (sample(), TIMES, torch.tensor([0, 1])), "network without classes.*num_class_embeds"),
        (CLASSES, (sample(), TIMES), r"class_labels of shape None.*\(2,\)"),
        (CLASSES, (sample(), TIMES, torch.tensor([0])), r"class_labels of shape \(1,\).*\(2,\)"),
        (CLASSES, (sample(), TIMES, TIMES), r"float32; allowed: integers.*long\(\)"),
        (CLASSES, (sample(), TIMES, torch.tensor([0, 5])), r"class_labels in 0 \.\. 5.*0 \.\. 4"),
        (CLASSES, (sample(), TIMES, torch.tensor([0, -1])), r"class_labels in -1 \.\. 0.*0 \.\. 4"),
        (IDENTITY, (sample(), TIMES, torch.tensor([0, 1])), r"class_labels of shape \(2,\).*\(2, 32\)"),
        (LEARNED, (sample(), 10), r"timestep in 10 \.\. 10.*0 \.\. 9"),
        (LEARNED, (sample(), torch.tensor([3.0, -1.0])), r"timestep in -1 \.\. 3.*0 \.\. 9"),
        (LEARNED, (sample(), 2.5), r"timestep.*2\.5.*whole"),
    ],
)
def test_errors_name_value_and_remedy(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(config)(*arguments)


def test_of_weights_are_also_the_constants_where_the_weights_are():
    net = UNet(SMALL)
    again = UNet.of_weights(net.config, net.state_dict())
    assert all(again.state_dict()[name].data_ptr() == value.data_ptr() for name, value in net.state_dict().items())
    torch.testing.assert_close(again.time_proj.frequencies, net.time_proj.frequencies)
    elsewhere = UNet.of_weights(net.config, net.to("meta").state_dict())  # another device that every machine has
    assert elsewhere.time_proj.frequencies.is_meta
