"""The floor of a distillation update: every convolution, matrix product and attention of a network, timed alone.

    python benchmarks/convolutions.py --device cuda --network ddpm-cifar10-32 --batch-size 128 --output floor.json

Each shape of a forward pass is timed forward, for the gradient of its input and for that of its weight, without
bias, in channels_last and in NCHW order: PyTorch's calls, cuDNN choosing its algorithms by trial. What is between them
in a network costs nothing here, nor does changing the layout, except where cuDNN does that itself. An update is three
forward passes, two of them the teacher's, and one backward. On a GPU a figure is that of replays of a CUDA graph in
which copies of the inputs take turns, so that the L2 cache is cold; in bfloat16, on a CPU in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from machine import describe, one_line
from matrix_rate import DTYPE, matrix_rate
from notes import first_line, note, note_line
from options import parsed, parser_of, positive, writer
from products import ATTENTION, CONVOLUTION, LINEAR, Product, products
from progdistill.nets.presets import PRESETS, preset
from progdistill.nets.unet import UNet
from rotation import Rotation, captured, copies_beyond, tensor_bytes
from timing import clock_of, interleaved, spread

LAYOUTS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = PASSES = ("forward", "input gradient", "weight gradient")
WIDTH = 52


class Operands(NamedTuple):
    """Tensors of a product: its two inputs, and a gradient of its result."""

    first: Tensor
    second: Tensor
    grad: Tensor


def operands(product: Product, device: str, memory_format: torch.memory_format) -> Operands:
    """Random ones, in the order in memory that the network would have."""
    make = partial(torch.randn, device=device, dtype=DTYPE[device])
    if product.kind == ATTENTION:
        batch, heads, length, channels = product.inputs[0]
        query, grad, key = (make(batch, length, heads, channels).transpose(1, 2) for _ in range(3))
        return Operands(query, key, grad)
    first, second = (make(shape) for shape in product.inputs)
    if product.kind == CONVOLUTION:
        first, second = (tensor.to(memory_format=memory_format) for tensor in (first, second))
    return Operands(first, second, torch.randn_like(_forward(product, Operands(first, second, first))))


def passes_of(product: Product) -> dict[str, Callable[[Operands], Any]]:
    """The passes that a product has in training: a weight's gradient none of attention, the first layer no input's."""
    found: dict[str, Callable[[Operands], Any]] = {FORWARD: partial(_forward, product)}
    if product.kind == ATTENTION:
        return {**found, INPUT_GRADIENT: _attention_gradients}
    if product.kind == LINEAR:
        return {**found, INPUT_GRADIENT: _linear_input_gradient, WEIGHT_GRADIENT: _linear_weight_gradient}
    if product.wants_input_gradient:
        found[INPUT_GRADIENT] = partial(_convolution_gradient, product, [True, False, False])
    return {**found, WEIGHT_GRADIENT: partial(_convolution_gradient, product, [False, True, False])}


def _forward(product: Product, tensors: Operands) -> Tensor:
    if product.kind == CONVOLUTION:
        return F.conv2d(tensors.first, tensors.second, None, product.stride, product.padding)
    if product.kind == LINEAR:
        return F.linear(tensors.first, tensors.second)
    return F.scaled_dot_product_attention(tensors.first, tensors.second, tensors.second)


def _convolution_gradient(product: Product, wanted: list[bool], tensors: Operands) -> tuple[Tensor, ...]:
    where = None, product.stride, product.padding, (1, 1), False, (0, 0), 1
    return torch.ops.aten.convolution_backward(tensors.grad, tensors.first, tensors.second, *where, wanted)


def _linear_input_gradient(tensors: Operands) -> Tensor:
    return tensors.grad @ tensors.second


def _linear_weight_gradient(tensors: Operands) -> Tensor:
    return tensors.grad.flatten(0, -2).t() @ tensors.first.flatten(0, -2)


def _attention_gradients(tensors: Operands) -> tuple[Tensor, ...]:
    """Forward and backward: `measure` takes the time of the forward pass off."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (tensors.first, tensors.second, tensors.second)]
        return torch.autograd.grad(F.scaled_dot_product_attention(*inputs), inputs, tensors.grad)


def measure(product: Product, layout: str, device: str, l2_bytes: int, options: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each pass, by the median, and their spread."""
    one = operands(product, device, LAYOUTS[layout])
    sets = [one] + [Operands(*(t.clone() for t in one)) for _ in range(copies_beyond(l2_bytes, tensor_bytes(one)) - 1)]
    found = {}
    for which, call in passes_of(product).items():
        rotation: Any = Rotation(call, sets)
        if device == "cuda":
            rotation = captured(rotation, None)
        seconds = interleaved({"it": rotation}, clock_of(device), **options)["it"]
        found[which] = spread([turn / len(sets) for turn in seconds])._asdict()
    if product.kind == ATTENTION:
        forward = found[FORWARD]["median"]
        found[INPUT_GRADIENT] = {key: max(value - forward, 0.0) for key, value in found[INPUT_GRADIENT].items()}
    return found


def flop_of(product: Product, which: str) -> int:
    """Each gradient of a product is as much work as it; those of attention, which are one pass, twice as much."""
    return 2 * product.flop if product.kind == ATTENTION and which != FORWARD else product.flop


def sums(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """For each layout the seconds of each pass over the whole network, and of an update."""
    found = {}
    for layout in LAYOUTS:
        total = dict.fromkeys(PASSES, 0.0)
        for record in records:
            for which, figures in record["seconds"][layout].items():
                total[which] += record["count"] * figures["median"]
        update = 3 * total[FORWARD] + total[INPUT_GRADIENT] + total[WEIGHT_GRADIENT]
        found[layout] = {**total, "update": update}
    return found


def heading() -> str:
    """The columns: for each layout microseconds of the passes, then the rates in channels_last."""
    columns = "".join(f"{name:>9}" for _ in LAYOUTS for name in ("fwd, us", "dx, us", "dw, us"))
    above = "".join(f"{layout:>27}" for layout in LAYOUTS)
    return f"{'':<{WIDTH}}{above}\n{'':<{WIDTH}}{columns}{'TFLOP/s fwd, dx, dw':>30}"


def line(record: dict[str, Any]) -> str:
    """A product's figures."""
    cells = ""
    for layout in LAYOUTS:
        for which in PASSES:
            figures = record["seconds"][layout].get(which)
            cells += f"{'-':>9}" if figures is None else f"{1e6 * figures['median']:>9.1f}"
    reached = "".join(f"{rate / 1e12:>10.3g}" if rate else f"{'-':>10}" for rate in record["rates"].values())
    return f"{record['count']:>3} x {record['product']:<{WIDTH - 6}}{cells}{reached}"


def summary(found: dict[str, Any]) -> list[str]:
    """The sums over the network."""
    ceiling = found["matrix_rate"]["flop_per_second"]
    lines = [f"{found['network']}, batch {found['batch_size']}: all of a network, milliseconds"]
    for layout, total in found["sums"].items():
        rate = found["update_flop"] / total["update"] if total["update"] else 0.0
        lines.append(
            f"  {layout:<14}"
            + "".join(f"{which} {1e3 * total[which]:.3f}, " for which in PASSES)
            + f"an update {1e3 * total['update']:.3f} ms: {rate / 1e12:.3g} TFLOP/s, {100 * rate / ceiling:.0f} % of "
            f"the {found['matrix_rate']['size']}^3 product's"
        )
    return lines + [note_line(one) for one in found["notes"]]


def run(arguments: argparse.Namespace, save: Callable[[dict], None]) -> dict[str, Any]:
    """Measures and prints; `save` gets all that there is after every product."""
    about = describe(arguments.device)
    with torch.device("meta"):
        network = UNet(preset(arguments.network))
    counted = products(network, arguments.batch_size)
    ceiling = matrix_rate(arguments.device, clock_of(arguments.device), size=64 if arguments.quick else None)
    found: dict[str, Any] = {"machine": about, "network": arguments.network, "batch_size": arguments.batch_size}
    found |= {"matrix_rate": ceiling, "update_flop": update_flop(counted), "records": [], "notes": []}
    print(f"{one_line(about)}\n{arguments.network}, batch {arguments.batch_size}, {len(counted)} shapes\n{heading()}")
    options = {"repetitions": 2, "seconds_per_turn": 1e-4}
    if not arguments.quick:
        options = {"repetitions": arguments.repetitions, "seconds_per_turn": 5e-3}
    for product, count in sorted(counted.items(), key=lambda pair: -pair[0].flop * pair[1]):
        try:
            seconds = {
                layout: measure(product, layout, arguments.device, about.get("l2_bytes") or 0, options)
                for layout in LAYOUTS
            }
        except Exception as error:  # the others still count
            found["notes"].append(note(f"{product}: {first_line(error)}", failed=True))
            continue
        record = {"product": str(product), "kind": product.kind, "count": count, "flop": product.flop}
        found["records"].append({**record, "seconds": seconds, "rates": rates(product, seconds["channels_last"])})
        print(line(found["records"][-1]), flush=True)
        save(found)
    found["sums"] = sums(found["records"])
    found["summary"] = summary(found)
    return found


def update_flop(counted: Mapping[Product, int]) -> int:
    """Operations of an update: the forward pass three times, the passes backward once."""
    return sum(
        count * flop_of(product, which) * (3 if which == FORWARD else 1)
        for product, count in counted.items()
        for which in passes_of(product)
    )


def rates(product: Product, seconds: dict[str, dict[str, float]]) -> dict[str, float | None]:
    """Operations a second of each pass."""
    medians = {which: seconds[which]["median"] if which in seconds else 0.0 for which in PASSES}
    return {which: flop_of(product, which) / median if median else None for which, median in medians.items()}


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark; the exit status is 1 if a product could not be run."""
    parser = parser_of(__doc__)
    parser.add_argument("--network", choices=list(PRESETS), help="default: ddpm-cifar10-32; on a CPU digits8")
    parser.add_argument("--batch-size", type=positive, help="default: 128, with --quick 2")
    parser.add_argument("--repetitions", type=positive, default=10, help="default: 10")
    arguments = parsed(parser, words)
    torch.set_num_threads(arguments.threads)
    small = arguments.quick or arguments.device == "cpu"
    arguments.network = arguments.network or ("digits8" if small else "ddpm-cifar10-32")
    arguments.batch_size = arguments.batch_size or (2 if arguments.quick else 128)
    save = writer(arguments.output)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True), torch.no_grad():
        found = run(arguments, save)
    print("\n".join(found["summary"]))
    save(found)
    return int(bool(found["notes"]))


if __name__ == "__main__":
    raise SystemExit(main())
