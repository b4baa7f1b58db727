"""What is measured of a data set once and used against many models, in memory and in a file."""

from __future__ import annotations

import dataclasses
import json
import os

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from progdistill.core.files import replace_atomic
from progdistill.metrics.frechet import GaussianStatistics

_METADATA_KEY = "progdistill_reference_statistics"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ReferenceStatistics:
    """Features of a data set, as far as the metrics need them, and where they come from."""

    statistics: GaussianStatistics
    features: Tensor | None
    """The vectors, float32 (N, F), or None: only the Frechet distance needs none."""
    features_name: str
    features_fingerprint: str
    """Of the feature module, by `features_fingerprint`."""
    data_name: str
    image_shape: tuple[int, ...]
    """(C, H, W) of the images."""
    data_fingerprint: str = ""
    """Identifies the images, where the maker has a way to; compared only if both sides have one."""

    @property
    def count(self) -> int:
        """Number of images."""
        return self.statistics.count

    def require(
        self,
        *,
        features_name: str,
        features_fingerprint: str,
        data_name: str | None = None,
        count: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        data_fingerprint: str = "",
        where: str = "the reference statistics",
    ) -> None:
        """ValueError, naming both sides, unless these statistics come from this feature module and this data set.

        What is None, or empty, is not compared; names of data sets are compared only where a fingerprint is missing,
        for a moved data set has another one.
        """
        wrong = []
        if (features_name, features_fingerprint) != (self.features_name, self.features_fingerprint):
            wrong.append(
                f"features: {self.features_name} (weights {self.features_fingerprint[:12]}) there, "
                f"{features_name} (weights {features_fingerprint[:12]}) here"
            )
        same_name = data_name in (None, self.data_name)
        if data_fingerprint and self.data_fingerprint:
            same_name = data_fingerprint == self.data_fingerprint
        if not same_name or count not in (None, self.count):
            wrong.append(f"data: {self.data_name} ({self.count} images) there, {data_name} ({count} images) here")
        if image_shape is not None and tuple(image_shape) != tuple(self.image_shape):
            wrong.append(f"image size (C, H, W): {self.image_shape} there, {tuple(image_shape)} here")
        if wrong:
            raise ValueError(
                f"{where} cannot be used: {'; '.join(wrong)}. Name another file for these, or delete that one"
            )


def save_reference_statistics(reference: ReferenceStatistics, path: str | os.PathLike[str]) -> None:
    """Writes one .safetensors file, atomically: `mean` (F,) and `scatter` (F, F) in float64, `features` if there are.

    What is read back gives the same distances, bit for bit.
    """
    tensors = {"mean": reference.statistics.mean, "scatter": reference.statistics.scatter}
    if reference.features is not None:
        tensors["features"] = reference.features
    metadata = {
        "version": _VERSION,
        "count": reference.count,
        **{name: getattr(reference, name) for name in _NAMES},
        "image_shape": list(reference.image_shape),
    }
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replace_atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", _METADATA_KEY: json.dumps(metadata)})


def load_reference_statistics(path: str | os.PathLike[str], *, with_features: bool = True) -> ReferenceStatistics:
    """Reads what `save_reference_statistics` wrote; `with_features=False` leaves the vectors in the file.

    Raises FileNotFoundError, or ValueError if the file is damaged or holds something else.
    """
    where = os.fspath(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            if text is None:
                raise ValueError(f"it has no {_METADATA_KEY!r} metadata")
            metadata = json.loads(text)
            if metadata["version"] != _VERSION:
                raise ValueError(f"it has version {metadata['version']}, this program reads {_VERSION}")
            statistics = GaussianStatistics.from_moments(
                int(metadata["count"]), file.get_tensor("mean"), file.get_tensor("scatter")
            )
            features = file.get_tensor("features") if with_features and "features" in file.keys() else None  # noqa: SIM118
            names = {name: str(metadata[name]) for name in _NAMES}
            shape = tuple(int(size) for size in metadata["image_shape"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{where} holds no reference statistics ({error}): name another file or delete it") from error
    expected = (statistics.count, statistics.num_features)
    if features is not None and (tuple(features.shape) != expected or features.dtype != torch.float32):
        raise ValueError(
            f"{where} is damaged: its features are {features.dtype} {tuple(features.shape)}, not {expected}"
        )
    return ReferenceStatistics(statistics, features, image_shape=shape, **names)


_NAMES = ("features_name", "features_fingerprint", "data_name", "data_fingerprint")
