"""Many images, part by part, as bytes: what writes them need not wait for the next part, nor hold the last one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from progdistill.core import Denoiser
from progdistill.sampling.arguments import student_for
from progdistill.sampling.images import rounded
from progdistill.sampling.sample import sample


def sample_parts(
    model: Denoiser,
    steps: int,
    parts: Iterable[range],
    *,
    seed: int = 0,
    class_labels: Tensor | None = None,
    **options: Any,
) -> Iterator[tuple[range, Pixels]]:
    """Generates the images of each part when it is asked for.

    Args:
        model, steps: as in `sample`.
        parts: ranges of image numbers. Image i has seed `seed + i`, so it is the same in any part but for the
            rounding that other batch sizes bring.
        class_labels: (N,) int64 by image number, for class-conditional models.
        options: guidance_scale (one for all images), sampler, gamma, clip, max_batch_size, dtype, cuda_graph; as in
            `sample`.

    Yields:
        (part, its images on their way from the device): on a GPU the next part may be begun meanwhile.

    Raises:
        ValueError: as `sample`.
    """
    model = student_for(model, steps)  # once: a kept student is read from its folder
    for part in parts:
        seeds = torch.arange(seed + part.start, seed + part.stop)
        labels = None if class_labels is None else class_labels[part.start : part.stop]
        images = sample(model, steps, seed=seeds, class_labels=labels, output_type="pt", **options)
        yield part, Pixels(images, seeds)


class Pixels:
    """Images of `sample(output_type="pt")` as uint8 (B, H, W, C), the bytes of its "pil" images, sent to the CPU.

    Rounding and the change of layout happen on the images' device; nothing here waits for it but `arrived`, which may
    be called in another thread.
    """

    def __init__(self, images: Tensor, seeds: Tensor) -> None:
        self._seeds = seeds
        self._finite = _sent(images.isfinite().flatten(1).all(dim=1))
        self._bytes = _sent(rounded(images))
        self._copied: torch.cuda.Event | None = None
        if images.is_cuda:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(images.device))

    def arrived(self) -> Tensor:
        """uint8 (B, H, W, C) on the CPU.

        Raises:
            FloatingPointError: an image is not finite; it names the seed.
        """
        if self._copied is not None:
            self._copied.synchronize()
        if not bool(self._finite.all()):
            bad = self._seeds[~self._finite]
            raise FloatingPointError(
                f"the network's output is not finite for {len(bad)} images, the first has seed {int(bad[0])}; "
                "are these the weights of a training that diverged?"
            )
        return self._bytes


def _sent(tensor: Tensor) -> Tensor:
    """A copy on the CPU that will be there when the work queued so far is done."""
    if not tensor.is_cuda:
        return tensor
    # Page-locked, else the copy would wait for the device and the next part with it.
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
