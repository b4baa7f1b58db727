"""The samplers that `sample` keeps for the models it has been called with."""

from __future__ import annotations

import threading

import torch

from progdistill.core import Denoiser
from progdistill.sampling.sampler import GraphMode, Sampler

_lock = threading.Lock()


class _Kept(dict):
    """Options -> (sampler, places of the weights, their versions). Copies of a model start without."""

    def __deepcopy__(self, memo) -> _Kept:
        return _Kept()

    def __reduce__(self):
        return _Kept, ()


def sampler_for(
    model: Denoiser,
    steps: int,
    max_batch_size: int,
    dtype: torch.dtype | None,
    clip: float | None,
    cuda_graph: GraphMode,
) -> Sampler:
    """The sampler kept for these options, with the model's weights as they are now; a new one if there is none.

    It is kept as long as the model is. Weights that were changed in place are taken in; a model that was moved, or got
    other tensors for its weights, gets a new sampler.
    """
    key = (steps, max_batch_size, dtype, clip, cuda_graph)
    with _lock:
        tensors = [*model.parameters(), *model.buffers()]
        places, versions = [t.data_ptr() for t in tensors], [_version(t) for t in tensors]
        # With the model itself, which lives and dies with it.
        kept = model.__dict__.setdefault("_kept_samplers", _Kept())
        if key not in kept or kept[key][1] != places:
            sizes = _powers_of_two(max_batch_size)
            sampler = Sampler(model, steps, batch_sizes=sizes, dtype=dtype, clip=clip, cuda_graph=cuda_graph)
            kept[key] = (sampler, places, versions)
        elif kept[key][2] != versions:
            kept[key][0].refresh()
            kept[key] = (kept[key][0], places, versions)
        return kept[key][0]


def _powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... below `largest`, and `largest`."""
    return [*(2**k for k in range(largest.bit_length()) if 2**k < largest), largest]


def _version(tensor: torch.Tensor) -> object:
    # Those made in inference mode count no changes: each look finds another version.
    return object() if tensor.is_inference() else tensor._version
