"""What the networks of a round compute in, and that their float32 weights are what is trained and kept."""

import copy
import json
import shutil

import pytest
import torch
from torch import nn

import tiny
from progdistill.core import Denoiser
from progdistill.nets.constants import MadeOfWeights
from progdistill.nets.presets import preset
from progdistill.nets.resnet import ResnetBlock
from progdistill.nets.unet import UNet
from progdistill.nets.upsampling import UpsamplingConv2d, transposed_kernel
from progdistill.training import DistillConfig, TrainConfig, distill, train
from progdistill.training.compute_network import ComputeNetwork, computing_teacher
from progdistill.training.precision import BFLOAT16_STUDENT_STEPS, convolution_settings, round_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
COMMON = {"train_batch_size": 8, "progress": False, "logging_steps": 1, "device": "cpu", "learning_rate": 1e-3}


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, time):
        return self.conv(z) * (time / 1024).reshape(-1, 1, 1, 1)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def test_auto_is_bfloat16_where_a_step_is_above_its_resolution():
    config = DistillConfig(output_dir="")
    assert round_precision(config, CPU, 1) == torch.float32
    assert round_precision(config, CUDA, BFLOAT16_STUDENT_STEPS) == torch.bfloat16
    assert round_precision(config, CUDA, 2 * BFLOAT16_STUDENT_STEPS) == torch.float32
    assert round_precision(TrainConfig(output_dir=""), CUDA) == torch.bfloat16
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        config = DistillConfig(output_dir="", mixed_precision=name)
        assert {round_precision(config, device, steps) for device in (CPU, CUDA) for steps in (1, 4096)} == {dtype}
    with pytest.raises(ValueError, match="unknown mixed_precision 'fp16'; use auto, no or bf16"):
        DistillConfig(output_dir="", mixed_precision="fp16")


def test_cudnn_is_left_as_it_was():
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision, cudnn.benchmark
    with pytest.raises(RuntimeError, match="in the update"), convolution_settings():
        assert (cudnn.conv.fp32_precision, cudnn.benchmark) == ("tf32", True)
        raise RuntimeError("in the update")
    assert (cudnn.conv.fp32_precision, cudnn.benchmark) == before
    torch.use_deterministic_algorithms(True)
    try:
        with convolution_settings():
            assert not cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_twin_shares_what_is_float32_and_follows_its_masters():
    network = UNet(tiny.NETWORK)
    compute = ComputeNetwork(network, torch.bfloat16, CPU)
    own, theirs = dict(network.named_parameters()), dict(compute.module.named_parameters())
    assert own.keys() == theirs.keys()
    for name, master in own.items():
        assert master.dtype == torch.float32
        twin = compute.twins.get(master, master)
        assert theirs[name] is twin and twin.requires_grad and twin.stride() == master.stride()
    assert compute.twins
    nn.init.normal_(network.conv_in.weight)
    compute.refresh()
    assert torch.equal(compute.module.conv_in.weight, network.conv_in.weight.bfloat16())


def test_gradients_of_several_microbatches_are_added_in_float32():
    network = nn.Conv2d(3, 4, 3)
    compute = ComputeNetwork(network, torch.float32, CPU)
    compute.twins = {p: nn.Parameter(p.detach().bfloat16()) for p in network.parameters()}
    parts = [torch.randn(4, 3, 3, 3).bfloat16() for _ in range(5)]
    for part in parts:
        compute.twins[network.weight].grad = part.clone()
        compute.collect_gradients()
    assert torch.equal(network.weight.grad, torch.stack([part.float() for part in parts]).cumsum(0)[-1])
    assert compute.twins[network.weight].grad is None and network.bias.grad is None


def test_a_teacher_that_computes_is_another_network_and_a_constant():
    teacher = Denoiser(UNet(tiny.NETWORK), sample_shape=(1, 8, 8))
    nn.init.normal_(teacher.network.conv_out.weight)
    before = copy.deepcopy(teacher.network.state_dict())
    constant = computing_teacher(teacher, torch.bfloat16)
    assert not any(p.requires_grad for p in constant.network.parameters()) and not constant.network.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())
    assert {p.dtype for p in teacher.network.parameters()} == {torch.float32}
    z, phi = torch.randn(4, 1, 8, 8), torch.linspace(0.1, 1.5, 4, dtype=torch.float64)
    exact = teacher.raw(z, phi)
    assert 0 < (constant.raw(z, phi).float() - exact).abs().max() < 0.03 * exact.abs().max()
    assert computing_teacher(teacher, torch.float32).network is teacher.network


def test_only_a_copy_of_a_teacher_keeps_what_it_makes_of_its_weights():
    """A teacher's own weights may change after its round."""
    teacher = Denoiser(UNet(preset("digits8")), sample_shape=(1, 8, 8))
    kept, own = (
        [module for module in network.modules() if isinstance(module, MadeOfWeights)]
        for network in (computing_teacher(teacher, torch.bfloat16).network, teacher.network)
    )
    (conv,) = (module for module in kept if isinstance(module, UpsamplingConv2d))
    assert torch.equal(conv._kept, transposed_kernel(conv.weight))
    shortcuts = [block for block in kept if isinstance(block, ResnetBlock) and block.conv_shortcut is not None]
    assert shortcuts and not any(block._is_made_anew() for block in shortcuts)
    assert all(module._is_made_anew() for module in own)


@pytest.mark.parametrize("own_network", [False, True])
def test_a_round_in_bfloat16_learns_what_one_in_float32_does(own_network, tmp_path):
    """And says so: in its lines, its provenance; kept weights are float32 and finer than bfloat16."""

    torch.manual_seed(0)
    network, teachers, losses = Own() if own_network else tiny.NETWORK, {}, {}
    for name in ("no", "bf16"):
        options = {"mixed_precision": name, "max_train_steps": 8, "lr_warmup_steps": 0, **COMMON}
        teachers[name] = train(tiny.IMAGES, str(tmp_path / name), network=copy.deepcopy(network), **options)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = torch.tensor([line["loss"] for line in lines if line["event"] == "update"])
        kind = {"no": "float32", "bf16": "bfloat16"}[name]
        assert {line["precision"] for line in lines if line["event"] == "update"} == {kind}
        assert teachers[name].provenance["precision"] == kind
    torch.testing.assert_close(losses["bf16"], losses["no"], rtol=0.01, atol=0)
    difference = (weights(teachers["bf16"]) - weights(teachers["no"])).abs()
    assert 0 < difference.mean() < 1e-3
    trained = weights(teachers["bf16"])
    assert trained.dtype == torch.float32 and not torch.equal(trained, trained.bfloat16().float())
    student = distill(
        teachers["bf16"],
        rounds=1,
        data=tiny.IMAGES,
        output_dir=str(tmp_path / "student"),
        updates_per_round=2,
        validation_images=2,
        mixed_precision="bf16",
        **COMMON,
    )
    assert student.provenance["precision"] == "bfloat16"
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in student.network.parameters())


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_network_computes_the_same(tmp_path):
    torch.manual_seed(0)
    network, trained = Own(), {}
    for compiled in (False, True):
        folder, options = str(tmp_path / str(compiled)), {"max_train_steps": 3, "lr_warmup_steps": 0, **COMMON}
        trained[compiled] = train(tiny.IMAGES, folder, network=copy.deepcopy(network), compile=compiled, **options)
    assert trained[True].network.state_dict().keys() == network.state_dict().keys()
    torch.testing.assert_close(weights(trained[True]), weights(trained[False]), rtol=1e-5, atol=1e-6)
