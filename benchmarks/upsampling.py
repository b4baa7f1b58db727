"""The convolutions behind upsampling: of the upsampled image, transposed, and with the transposed kernel kept.

    python benchmarks/upsampling.py --device cuda --network ddpm-cifar10-32 --batch-size 128 --output upsampling.json

Each shape of a network is timed without its bias, in channels_last order: a call without gradients, as a teacher or a
sampler makes it, and one with its backward pass. A student forms the transposed kernel in every call, and the gradient
of its weight comes back through that; teachers and samplers keep it. On a GPU a figure is that of replays of a CUDA
graph in which copies of the inputs take turns, so that the L2 cache is cold; in bfloat16, on a CPU in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from machine import describe, one_line
from matrix_rate import DTYPE
from options import parsed, parser_of, positive, writer
from progdistill.nets.presets import PRESETS, preset
from progdistill.nets.unet import UNet
from progdistill.nets.upsampling import UpsamplingConv2d, transposed_convolution, transposed_kernel, upsample
from rotation import Rotation, captured, copies_beyond, tensor_bytes
from timing import clock_of, interleaved, spread

IMAGE, TRANSPOSED, KEPT = CONTENDERS = ("of the upsampled image", "transposed", "transposed, kernel kept")
CALLS = ("forward", "forward and backward")


class Shape(NamedTuple):
    """A convolution of a network: its channels, and the edge of the image before it is upsampled."""

    in_channels: int
    out_channels: int
    edge: int

    def __str__(self) -> str:
        """For a line of a table."""
        return f"{self.in_channels} -> {self.out_channels} channels, {self.edge} -> {2 * self.edge}"


class Operands(NamedTuple):
    """Tensors of a call: an image, a weight, the weight's transposed kernel, the result's gradient."""

    x: Tensor
    weight: Tensor
    kernel: Tensor
    grad: Tensor


def shapes(network: UNet) -> Iterator[Shape]:
    """Those of a network on images of the configured size, from the lowest level up."""
    blocks = [block for block in network.up_blocks if block.upsamplers is not None]
    for level, block in enumerate(blocks):
        (conv,) = (module for module in block.upsamplers.modules() if isinstance(module, UpsamplingConv2d))
        yield Shape(conv.in_channels, conv.out_channels, network.config.sample_size // 2 ** (len(blocks) - level))


def operands(shape: Shape, batch_size: int, device: str) -> Operands:
    """Random ones."""

    def draw(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=DTYPE[device]).to(memory_format=torch.channels_last)

    weight = draw(shape.out_channels, shape.in_channels, 3, 3)
    x, grad = draw(batch_size, shape.in_channels, shape.edge, shape.edge), (2 * shape.edge, 2 * shape.edge)
    return Operands(x, weight, transposed_kernel(weight), draw(batch_size, shape.out_channels, *grad))


def contenders(call: str) -> dict[str, Callable[[Operands], Any]]:
    """What is timed, by name: a kernel that is kept has no backward pass."""
    ways: dict[str, Callable[[Operands], Tensor]] = {
        IMAGE: lambda given: F.conv2d(upsample(given.x), given.weight, padding=1),
        TRANSPOSED: lambda given: transposed_convolution(given.x, transposed_kernel(given.weight)),
    }
    if call == CALLS[0]:
        return {**ways, KEPT: lambda given: transposed_convolution(given.x, given.kernel)}
    return {name: partial(_with_backward, way) for name, way in ways.items()}


def _with_backward(way: Callable[[Operands], Tensor], given: Operands) -> tuple[Tensor, ...]:
    x, weight = (tensor.detach().requires_grad_() for tensor in (given.x, given.weight))
    with torch.enable_grad():
        return torch.autograd.grad(way(given._replace(x=x, weight=weight)), [x, weight], given.grad)


def measure(shape: Shape, batch_size: int, device: str, l2_bytes: int, options: dict[str, Any]) -> dict[str, Any]:
    """{call: {contender: median and spread in seconds}}."""
    one = operands(shape, batch_size, device)
    sets = [one] + [Operands(*(t.clone() for t in one)) for _ in range(copies_beyond(l2_bytes, tensor_bytes(one)) - 1)]
    found: dict[str, Any] = {}
    for call in CALLS:
        turns: dict[str, Any] = {name: Rotation(run, sets) for name, run in contenders(call).items()}
        if device == "cuda":
            turns = {name: captured(rotation, None) for name, rotation in turns.items()}
        seconds = interleaved(turns, clock_of(device), **options)
        found[call] = {name: spread([turn / len(sets) for turn in own])._asdict() for name, own in seconds.items()}
    return found


def lines(record: dict[str, Any]) -> list[str]:
    """A shape's figures: milliseconds, and how many times as fast as with the upsampled image."""
    found = [record["shape"]]
    for call, of_call in record["seconds"].items():
        usual = of_call[IMAGE]["median"]
        cells = (f"{name} {1e3 * s['median']:.3f} ({usual / s['median']:.2f})" for name, s in of_call.items())
        found.append(f"  {call + ', ms':<26}" + "; ".join(cells))
    return found


def summary(found: dict[str, Any]) -> list[str]:
    """What an update saves: the student's call with its backward pass, and two calls of the teacher."""
    total = dict.fromkeys((IMAGE, KEPT), 0.0)
    for record in found["records"]:
        forward, both = (record["seconds"][call] for call in CALLS)
        total[IMAGE] += 2 * forward[IMAGE]["median"] + both[IMAGE]["median"]
        total[KEPT] += 2 * forward[KEPT]["median"] + both[TRANSPOSED]["median"]
    ours, usual = 1e3 * total[KEPT], 1e3 * total[IMAGE]
    about = f"{found['network']}, batch {found['batch_size']}"
    return [f"{about}: an update's convolutions behind upsampling take {ours:.3f} ms, {usual:.3f} of upsampled images"]


def run(arguments: argparse.Namespace, save: Callable[[dict], None]) -> dict[str, Any]:
    """Measures and prints; `save` gets all that there is after every shape."""
    about = describe(arguments.device)
    with torch.device("meta"):
        network = UNet(preset(arguments.network))
    options = {"repetitions": 2, "seconds_per_turn": 1e-4}
    if not arguments.quick:
        options = {"repetitions": arguments.repetitions, "seconds_per_turn": 5e-3}
    found: dict[str, Any] = {"machine": about, "network": arguments.network, "batch_size": arguments.batch_size}
    found["records"] = []
    print(f"{one_line(about)}\n{arguments.network}, batch {arguments.batch_size}")
    for shape in shapes(network):
        seconds = measure(shape, arguments.batch_size, arguments.device, about.get("l2_bytes") or 0, options)
        found["records"].append({"shape": str(shape), "seconds": seconds})
        print("\n".join(lines(found["records"][-1])), flush=True)
        save(found)
    found["summary"] = summary(found)
    return found


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = parser_of(__doc__)
    parser.add_argument("--network", choices=list(PRESETS), help="default: ddpm-cifar10-32; with --quick digits8")
    parser.add_argument("--batch-size", type=positive, help="default: 128, on a CPU 8, with --quick 2")
    parser.add_argument("--repetitions", type=positive, default=10, help="default: 10")
    arguments = parsed(parser, words)
    torch.set_num_threads(arguments.threads)
    arguments.network = arguments.network or ("digits8" if arguments.quick else "ddpm-cifar10-32")
    arguments.batch_size = arguments.batch_size or (2 if arguments.quick else 8 if arguments.device == "cpu" else 128)
    save = writer(arguments.output)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True), torch.no_grad():
        found = run(arguments, save)
    print("\n".join(found["summary"]))
    save(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
