"""Features of a set of images that is seen once, batch by batch, and never held."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from progdistill.metrics.features import feature_batches, require_uint8_images
from progdistill.metrics.frechet import GaussianStatistics
from progdistill.metrics.inception_score import ClassScore, ScoreSums


class FeatureBank:
    """Takes uint8 images and keeps what the metrics need of them: statistics, feature vectors, class probabilities.

    Memory: 4 N F bytes for the vectors (400 MB for 50,000 x 2048), if they are kept, and 16 F^2 bytes for each of a
    few matrices while statistics are gathered (32 MB at 2048). Another batch size changes a vector by the rounding of
    the network's convolutions (1e-6 relative), a distance by as much.
    """

    def __init__(
        self,
        module: nn.Module,
        capacity: int,
        *,
        keep_features: bool = True,
        splits: int | None = None,
        batch_size: int = 256,
    ) -> None:
        """Starts empty.

        Args:
            module: the feature network (see `FeatureModule`), used where it is, in evaluation mode.
            capacity: how many images will come at most.
            keep_features: False keeps their statistics only.
            splits: of the Inception score's formula over `capacity` images; None: no classes are looked at.
            batch_size: images that go through the network at once.

        Raises ValueError for a capacity or batch size below 1, more splits than images, or splits of a module without
        `features_and_logits`.
        """
        if capacity < 1 or batch_size < 1:
            raise ValueError(f"capacity and batch_size must be at least 1, got {capacity} and {batch_size}")
        if splits is not None and not hasattr(module, "features_and_logits"):
            raise ValueError(
                f"{type(module).__name__} has no classes for the Inception score's formula: use features of a "
                "classifier, or give the module a features_and_logits method"
            )
        self.module = module
        self.capacity = capacity
        self.batch_size = batch_size
        self.image_shape: tuple[int, ...] | None = None
        self._keep = keep_features
        self._sums = None if splits is None else ScoreSums(capacity, splits)
        self._vectors: Tensor | None = None
        self._statistics: GaussianStatistics | None = None

    def __len__(self) -> int:
        return 0 if self._statistics is None else self._statistics.count

    @property
    def statistics(self) -> GaussianStatistics:
        """Mean and covariance of the features. ValueError before the first image."""
        if self._statistics is None:
            raise ValueError("the bank is empty: add images")
        return self._statistics

    @property
    def features(self) -> Tensor:
        """The vectors in the order of their images, float32 (N, F) on the CPU; a view. ValueError if none are kept."""
        if self._vectors is None:
            raise ValueError("this bank holds no feature vectors: make it with keep_features=True and add images")
        return self._vectors[: len(self)]

    @property
    def class_score(self) -> ClassScore:
        """The Inception score's formula. ValueError without `splits`, or before `capacity` images have come."""
        if self._sums is None:
            raise ValueError("this bank did not look at classes: make it with splits=10")
        return self._sums.score()

    def add(self, images: Tensor) -> None:
        """Computes and takes the features of uint8 images (B, C, H, W) on any device.

        Raises TypeError for other types; ValueError for other shapes, another image size than before, more images
        than `capacity`, and features that are not finite.
        """
        require_uint8_images(images)
        shape = tuple(images.shape[1:])
        if self.image_shape not in (None, shape):
            raise ValueError(f"images of shape {shape} after images of shape {self.image_shape}: use one size")
        for features, logits in feature_batches(
            self.module, images, batch_size=self.batch_size, with_logits=self._sums is not None
        ):
            self.add_features(features, logits)
        self.image_shape = shape

    def add_features(self, features: Tensor, logits: Tensor | None = None) -> None:
        """Takes features (B, F) that the module has already computed, here or in another process, in their order.

        `logits` (B, K) are needed if the bank was made with `splits`. ValueError for other shapes, more images than
        `capacity`, missing logits, and features that are not finite; the bank is then as it was.
        """
        if len(self) + len(features) > self.capacity:
            raise ValueError(f"{len(self) + len(features)} images for a bank of {self.capacity}")
        if (logits is None) != (self._sums is None):
            raise ValueError("logits are needed by a bank made with splits, and by no other")
        first = len(self)
        statistics = self._statistics or GaussianStatistics(features.shape[1])
        statistics.update(features)
        self._statistics = statistics
        if logits is not None:
            self._sums.update(logits)
        if self._keep:
            if self._vectors is None:
                self._vectors = torch.empty(self.capacity, features.shape[1])
            self._vectors[first : len(self)] = features
