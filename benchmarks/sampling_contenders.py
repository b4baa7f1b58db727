"""Who makes images in benchmarks/sampling.py: progdistill, and what one would write or take without it.

All have the same weights. Each draws its noise, takes the steps of DDIM and returns images (B, C, H, W) in [0, 1] in
memory of their own, on the device.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from progdistill.core import Denoiser
from progdistill.sampling import Sampler, sample
from progdistill.sampling.latents import seeded_latents
from rotation import captured

FIRST_CALLS = 3  # a network compiled with "reduce-overhead" records its graph in the second call, and replays it then
Call = Callable[[], Tensor]
Predict = Callable[[Tensor, Tensor], Tensor]


class Size:
    """What a batch size's contenders work with.

    Args:
        model: progdistill's.
        stock: the network of the others, `UNet2DModel` or called like it, with the same weights in float32.
        batch_size: images a call.
        caches: a folder for what torch.compile keeps, empty where its start-up is to be measured.
    """

    def __init__(self, model: Denoiser, stock: nn.Module, batch_size: int, caches: Path) -> None:
        self.model = model
        self.stock = stock
        self.batch_size = batch_size
        self.caches = caches
        self.shape = (batch_size, *model.sample_shape)
        self.device = model.device


class Contender(NamedTuple):
    """`start(size, steps, prepared)` makes the call; `prepare(size)` what it needs at every number of steps.

    `noise` says where the images start: see `NOISE`. `needs` lists what may be missing.
    """

    start: Callable[[Size, int, Any], Call]
    dtype: torch.dtype
    noise: str
    prepare: Callable[[Size], Any] = lambda size: None
    needs: tuple[str, ...] = ()
    ours: bool = False


# What a call starts from that follows `torch.manual_seed(CHECK_SEED)`.
CHECK_SEED = 1234
NOISE: dict[str, Callable[[Size], Tensor]] = {
    "seeds": lambda size: seeded_latents(torch.arange(size.batch_size).to(size.device), size.model.sample_shape),
    "torch": lambda size: _drawn(size),
}


def _drawn(size: Size) -> Tensor:
    torch.manual_seed(CHECK_SEED)
    return torch.randn(size.shape, device=size.device)


def contenders(device: str) -> dict[str, Contender]:
    """All of them by name."""
    body = {"dtype": torch.bfloat16, "channels_last": True} if device == "cuda" else {"dtype": torch.float32}
    own = {"noise": "seeds", "ours": True}
    gpu, best = ("gpu",), body["dtype"]
    found = {
        "Sampler, bfloat16": Contender(partial(_sampler, dtype=torch.bfloat16), torch.bfloat16, **own),
        "Sampler, float32": Contender(partial(_sampler, dtype=torch.float32), torch.float32, **own),
        "sample()": Contender(_sample, best, **own),
        "DDIMPipeline": Contender(_pipeline, torch.float32, "torch", needs=("diffusers",)),
        "eager, float32": Contender(_eager, torch.float32, "torch"),
        "eager, bfloat16": Contender(partial(_eager, dtype=torch.bfloat16), torch.bfloat16, "torch"),
        "eager in a CUDA graph": Contender(partial(_graph, **body), best, "torch", needs=gpu),
    }
    for name, mode, needs in (
        ("torch.compile", "default", ("compile",)),
        ("torch.compile, reduce-overhead", "reduce-overhead", ("compile", "gpu")),
    ):
        prepare = partial(_compiled, mode=mode, **body)
        found[name] = Contender(_around, best, "torch", prepare=prepare, needs=needs)
    return found


def taking_part(
    everyone: Mapping[str, Any], device: str, with_compile: bool, wanted: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The contenders whose name has one of `wanted` in it (all without) and that can run; and why the others do not."""
    chosen, left_out = {}, {}
    for name, contender in everyone.items():
        if not wanted or any(part in name for part in wanted):
            reason = missing(contender, device, with_compile)
            if reason is None:
                chosen[name] = contender
            else:
                left_out[name] = reason
    return chosen, left_out


def missing(contender: Any, device: str, with_compile: bool) -> str | None:
    """Why a contender cannot take part, or None."""
    if "gpu" in contender.needs and device != "cuda":
        return "needs a GPU"
    if "diffusers" in contender.needs and importlib.util.find_spec("diffusers") is None:
        return "needs diffusers, which is not installed"
    if "compile" in contender.needs and not with_compile:
        return "takes minutes, and --no-compile or --quick was given"
    return None


def loop(size: Size, steps: int, predict: Predict) -> Callable[[Tensor], Tensor]:
    """DDIM as one writes it (Song et al. 2021, eq. 12, eta = 0; v of Salimans & Ho 2022): noise -> images in [0, 1]."""
    phis = size.model.schedule.grid(steps)
    alphas, sigmas = phis.cos().tolist(), phis.sin().tolist()
    times = size.model.time_map(phis[:-1]).to(size.device).unsqueeze(1).repeat(1, size.batch_size)

    @torch.no_grad()
    def images(z: Tensor) -> Tensor:
        for n in range(steps):
            v = predict(z, times[n])
            x = alphas[n] * z - sigmas[n] * v
            eps = sigmas[n] * z + alphas[n] * v
            z = alphas[n + 1] * x + sigmas[n + 1] * eps
        return (z / 2 + 0.5).clamp(0, 1)

    return images


def stock_loop(
    size: Size, steps: int, dtype: torch.dtype = torch.float32, channels_last: bool = False
) -> Callable[[Tensor], Tensor]:
    """That loop with the stock network in `dtype`; the state is float32."""
    return loop(size, steps, predicting(_twin(size.stock, dtype, channels_last), dtype, channels_last))


def predicting(network: nn.Module, dtype: torch.dtype, channels_last: bool) -> Predict:
    """(z float32, times (B,)) -> v float32, for a network called as `UNet2DModel`."""
    memory_format = torch.channels_last if channels_last else torch.preserve_format

    def predict(z: Tensor, times: Tensor) -> Tensor:
        return network(z.to(dtype, memory_format=memory_format), times, return_dict=False)[0].float()

    return predict


def _twin(network: nn.Module, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    if dtype == torch.float32 and not channels_last:
        return network
    # Not diffusers' own `to`: it warns of modules to be kept in float32, of which this network has none.
    twin = nn.Module.to(copy.deepcopy(network), dtype)
    return twin.to(memory_format=torch.channels_last) if channels_last else twin


def _sampler(size: Size, steps: int, prepared: None, dtype: torch.dtype) -> Call:
    graph = "require" if size.device.type == "cuda" else False
    sampler = Sampler(size.model, steps, batch_sizes=(size.batch_size,), dtype=dtype, cuda_graph=graph).warmup()
    return lambda: sampler(batch_size=size.batch_size, seed=0)


def _sample(size: Size, steps: int, prepared: None) -> Call:
    model = size.model.with_network(size.model.network)  # its samplers are kept with it, and go with it
    return lambda: sample(model, steps, batch_size=size.batch_size, seed=0, output_type="pt")


def _pipeline(size: Size, steps: int, prepared: None) -> Call:
    from diffusers import DDIMPipeline, DDIMScheduler

    from progdistill.interop.ddim_config import ddim_config

    pipeline = DDIMPipeline(size.stock, DDIMScheduler.from_config(ddim_config(size.model)))
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(size.batch_size, num_inference_steps=steps, output_type="pt").images


def _eager(size: Size, steps: int, prepared: None, dtype: torch.dtype = torch.float32) -> Call:
    images = stock_loop(size, steps, dtype)
    return lambda: images(torch.randn(size.shape, device=size.device))


def _graph(size: Size, steps: int, prepared: None, dtype: torch.dtype, channels_last: bool = False) -> Call:
    noise = torch.randn(size.shape, device=size.device)
    # The graph reads and writes tensors that have to live as long as it does.
    kept: dict[str, Any] = {"images": stock_loop(size, steps, dtype, channels_last)}
    replay = captured(lambda: kept.update(result=kept["images"](noise)), None)

    def call() -> Tensor:
        noise.normal_()
        replay()
        return kept["result"].clone()

    return call


def _compiled(size: Size, mode: str, dtype: torch.dtype, channels_last: bool = False) -> Predict:
    network = torch.compile(_twin(size.stock, dtype, channels_last), mode=mode, dynamic=False)
    inner = predicting(network, dtype, channels_last)

    def predict(z: Tensor, times: Tensor) -> Tensor:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()  # the last call's output may be overwritten
        return inner(z, times)

    with compile_cache(size.caches / f"{mode}-{size.batch_size}"), torch.no_grad():
        for _ in range(FIRST_CALLS):
            predict(torch.zeros(size.shape, device=size.device), torch.zeros(size.batch_size, device=size.device))
    return predict


def _around(size: Size, steps: int, prepared: Predict) -> Call:
    images = loop(size, steps, prepared)
    return lambda: images(torch.randn(size.shape, device=size.device))


@contextlib.contextmanager
def compile_cache(folder: Path) -> Iterator[None]:
    """torch.compile keeps what it makes in `folder`, and finds there, and in memory, nothing made elsewhere."""
    from torch._inductor.utils import clear_caches

    places = {"TORCHINDUCTOR_CACHE_DIR": str(folder), "TRITON_CACHE_DIR": str(folder / "triton")}
    before = {name: os.environ.get(name) for name in places}
    os.environ.update(places)
    clear_caches()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
