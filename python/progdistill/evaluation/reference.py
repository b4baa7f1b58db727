"""Reference statistics of a data set: measured once, kept in a file, checked before they are used again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from progdistill.data import ImageDataset
from progdistill.metrics import (
    FeatureBank,
    ReferenceStatistics,
    features_fingerprint,
    features_name,
    load_reference_statistics,
    save_reference_statistics,
)

_BATCH = 256
_FINGERPRINT_IMAGES = 64


def measure_dataset(features: nn.Module, dataset: ImageDataset, *, keep_features: bool = False) -> ReferenceStatistics:
    """Statistics of all images of `dataset`, read batch by batch; their vectors too if `keep_features`."""
    bank = FeatureBank(features, len(dataset), keep_features=keep_features)
    add_dataset(bank, dataset)
    return ReferenceStatistics(
        bank.statistics,
        bank.features if keep_features else None,
        features_name(features),
        features_fingerprint(features),
        dataset.name,
        tuple(dataset.shape),
        dataset_fingerprint(dataset),
    )


def add_dataset(bank: FeatureBank, dataset: ImageDataset) -> None:
    """Puts every image of `dataset` into `bank`, in order, one batch in memory at a time."""
    for indices in torch.arange(len(dataset)).split(_BATCH):
        bank.add(dataset.batch(indices)[0])


def reference_statistics(
    features: nn.Module,
    dataset: ImageDataset | None,
    path: str | os.PathLike[str] | None = None,
    *,
    keep_features: bool = False,
) -> ReferenceStatistics:
    """The statistics in the file `path`, or those of `dataset`, which are then written to `path`.

    A file that was made without the vectors that `keep_features` asks for is measured and written anew. Without
    `dataset` the file must be there and hold all that is asked for.

    Raises:
        ValueError: the file comes from another feature module, or from other images than `dataset`'s; both are named.
        FileNotFoundError: neither the file nor a data set is there.
    """
    if path is None or not Path(path).exists():
        if dataset is None:
            where = "" if path is None else f": there are no reference statistics at {path}"
            raise FileNotFoundError(f"no data set to measure{where}; name one")
        return _measured_and_saved(features, dataset, path, keep_features)
    stored = load_reference_statistics(path, with_features=keep_features)
    here = {"features_name": features_name(features), "features_fingerprint": features_fingerprint(features)}
    if dataset is not None:
        here |= {"data_name": dataset.name, "count": len(dataset), "image_shape": tuple(dataset.shape)}
        here |= {"data_fingerprint": dataset_fingerprint(dataset)}
    stored.require(**here, where=f"the reference statistics in {os.fspath(path)}")
    if not keep_features or stored.features is not None:
        return stored
    if dataset is None:
        raise ValueError(
            f"{os.fspath(path)} holds no feature vectors, which all metrics but the Frechet distance need: name the "
            "data set too, and they are added"
        )
    return _measured_and_saved(features, dataset, path, keep_features)


def dataset_fingerprint(dataset: ImageDataset) -> str:
    """32 hex digits of SHA-256 over the count, the shape and 64 images at equal distances."""
    count = len(dataset)
    digest = hashlib.sha256(f"{count} {tuple(dataset.shape)}".encode())
    chosen = torch.arange(min(count, _FINGERPRINT_IMAGES)) * count // min(count, _FINGERPRINT_IMAGES)
    digest.update(dataset.batch(chosen)[0].contiguous().numpy())
    return digest.hexdigest()[:32]


def _measured_and_saved(
    features: nn.Module, dataset: ImageDataset, path: str | os.PathLike[str] | None, keep_features: bool
) -> ReferenceStatistics:
    reference = measure_dataset(features, dataset, keep_features=keep_features)
    if path is not None:
        save_reference_statistics(reference, path)
    return reference
