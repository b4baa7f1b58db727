"""A small classifier, trained on the user's own data set, whose activations serve as features."""

from __future__ import annotations

import json
import os

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from progdistill.core.files import replace_atomic
from progdistill.metrics.features import require_uint8_images

_METADATA_KEY = "progdistill_classifier"
_SMALLEST_SIDE = 8
_EPOCHS = 20
_FEWEST_UPDATES = 200
_PEAK_LEARNING_RATE = 3e-3


class FeatureClassifier(nn.Module):
    """Convolutional classifier of uint8 images of one fixed size from 8 x 8 upwards, with any channels.

    The image is halved by strided convolutions until its longer side is at most 4; a hidden layer of
    `num_features` = 64 units follows, whose activations are the features, and a linear layer to the classes.
    It has no batch statistics and no dropout: an image's features depend on that image alone. It has no
    normalisation either, and is trained without label smoothing: both make features blind to contrast and blur,
    which is just what too few sampling steps do to an image.
    """

    num_features = 64

    def __init__(
        self,
        in_channels: int,
        image_size: tuple[int, int],
        num_classes: int,
        *,
        rotations: bool = False,
        data_name: str = "",
    ) -> None:
        """`image_size` is (height, width). `rotations` says that the classes are rotations of the image, not
        labels; it and `data_name` (the data set's name, "digits") only enter `description`. ValueError for
        sizes below 8 x 8, fewer than one channel or fewer than two classes.
        """
        super().__init__()
        if in_channels < 1 or num_classes < 2:
            raise ValueError(
                "a classifier needs at least 1 channel and 2 classes, "
                f"got {in_channels} channels and {num_classes} classes"
            )
        if min(image_size) < _SMALLEST_SIDE:
            raise ValueError(f"images must be at least {_SMALLEST_SIDE} x {_SMALLEST_SIDE}, got {image_size}")
        self.in_channels = in_channels
        self.image_size = tuple(image_size)
        self.num_classes = num_classes
        self.rotations = rotations
        self.data_name = data_name
        height, width = image_size
        layers = [_block(in_channels, 32, stride=1)]
        channels = 32
        while max(height, width) > 4:
            layers.append(_block(channels, 64, stride=2))
            channels, height, width = 64, (height + 1) // 2, (width + 1) // 2
        layers.append(_block(64, 64, stride=1))
        self.convolutions = nn.Sequential(*layers)
        self.hidden = nn.Linear(64 * height * width, self.num_features)
        self.classes = nn.Linear(self.num_features, num_classes)

    @property
    def description(self) -> str:
        """The name of a Frechet distance in these features: "Frechet distance (digits classifier features)".

        It is not an FID: that name belongs to Inception's features.
        """
        return f"Frechet distance ({self.features_name})"

    @property
    def features_name(self) -> str:
        """The name of the features: "digits classifier features"."""
        kind = "rotation classifier" if self.rotations else "classifier"
        return " ".join(filter(None, (self.data_name, kind, "features")))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 64) of uint8 images (B, C, H, W).

        Raises TypeError for another dtype, ValueError for other channels or another size than it was built
        for.
        """
        require_uint8_images(images)
        expected = (self.in_channels, *self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"this classifier was built for images of the shape (C, H, W) = {expected}, "
                f"got {tuple(images.shape[1:])}"
            )
        hidden = self.convolutions(images.to(self.hidden.weight.dtype) / 127.5 - 1)
        return F.relu(self.hidden(hidden.flatten(1)))

    def logits(self, images: Tensor) -> Tensor:
        """Class scores (B, num_classes) before the softmax; arguments and errors as in `forward`."""
        return self.features_and_logits(images)[1]

    def features_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both in one pass; arguments and errors as in `forward`."""
        features = self(images)
        return features, self.classes(features)


def train_classifier(
    images: Tensor,
    labels: Tensor | None,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    held_out: float = 0.1,
    batch_size: int = 64,
    max_updates: int = 2000,
    device: torch.device | str = "cpu",
    data_name: str = "",
) -> tuple[FeatureClassifier, dict[str, float | int]]:
    """Trains a `FeatureClassifier` on a data set and measures it on a held-out part of it.

    `images`: uint8 (N, C, H, W). `labels`: integers (N,) from 0; `num_classes` is one more than the largest
    if not given. With `labels=None` the task is to tell by how much an image was turned (Gidaris et al., ICLR
    2018): by 0, 90, 180 or 270 degrees, or by 0 or 180 if it is not square. A random share `held_out` of the
    images is kept from training.

    Training takes 20 passes over the data, but at least 200 and at most `max_updates` updates of `batch_size`
    images: 2000 updates are 2.8 passes over 45,000 images. Two runs with the same arguments and thread count
    on a CPU give equal weights, bit for bit; the global random generators are left alone.

    Returns the classifier in evaluation mode and {"accuracy": share of held-out images (for rotations: of all
    their rotations) classified correctly, "train_size", "held_out_size"}.

    Raises TypeError for images that are not uint8 or labels that are not integers, ValueError for labels that
    do not fit the images or the classes, fewer than two classes, and shares that leave either part empty.
    """
    require_uint8_images(images)
    if batch_size < 1 or max_updates < 1:
        raise ValueError(f"batch_size and max_updates must be at least 1, got {batch_size} and {max_updates}")
    generator = torch.Generator().manual_seed(seed)
    held, kept = _split(images.shape[0], held_out, generator)
    turns = 4 if images.shape[2] == images.shape[3] else 2
    if labels is None:
        if num_classes is not None:
            raise ValueError(f"num_classes={num_classes} needs labels: without them the classes are {turns} rotations")
        classes = turns
        held_images, held_labels = _all_rotations(images[held], turns)
    else:
        labels, classes = _checked_labels(labels, images.shape[0], num_classes)
        held_images, held_labels = images[held], labels[held]

    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that one seeds every GPU's generator too, which is not restored here.
        torch.default_generator.manual_seed(seed)
        classifier = FeatureClassifier(
            images.shape[1], tuple(images.shape[2:]), classes, rotations=labels is None, data_name=data_name
        )
    classifier.to(device)

    batch_size = min(batch_size, len(kept))
    updates = min(max(_EPOCHS * len(kept) // batch_size, _FEWEST_UPDATES), max_updates)
    _fit(classifier, images, labels, kept, turns, batch_size, updates, generator)
    classifier.eval()
    accuracy = _accuracy(classifier, held_images, held_labels)
    return classifier, {"accuracy": accuracy, "train_size": len(kept), "held_out_size": len(held)}


def save_classifier(classifier: FeatureClassifier, path: str | os.PathLike[str]) -> None:
    """Writes weights and configuration into one .safetensors file, atomically."""
    config = {
        "in_channels": classifier.in_channels,
        "image_size": classifier.image_size,
        "num_classes": classifier.num_classes,
        "rotations": classifier.rotations,
        "data_name": classifier.data_name,
    }
    with replace_atomic(path) as temporary:
        save_file(classifier.state_dict(), temporary, metadata={"format": "pt", _METADATA_KEY: json.dumps(config)})


def load_classifier(path: str | os.PathLike[str]) -> FeatureClassifier:
    """Reads what `save_classifier` wrote: a classifier on the CPU in evaluation mode.

    The random generators are left alone. Raises FileNotFoundError, or ValueError if the file holds something
    else or is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get(_METADATA_KEY)
    except SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no safetensors file ({error}): name another, or save it anew") from None
    if config is None:
        raise ValueError(f"{os.fspath(path)} has no {_METADATA_KEY!r} metadata: it was not written by save_classifier")
    try:
        with torch.device("meta"):
            classifier = FeatureClassifier(**json.loads(config))
        classifier.load_state_dict(load_file(path), assign=True)
    except (SafetensorError, ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged ({error}): copy it again, or train and save it anew") from error
    return classifier.requires_grad_(True).eval()


def _block(in_channels: int, out_channels: int, *, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1), nn.ReLU())


def _split(total: int, held_out: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    held = round(total * held_out)
    if not 0 < held < total:
        raise ValueError(
            f"held_out={held_out} of {total} images leaves {held} to measure and {total - held} to train on: "
            "both need at least 1"
        )
    order = torch.randperm(total, generator=generator)
    return order[:held], order[held:]


def _checked_labels(labels: Tensor, total: int, num_classes: int | None) -> tuple[Tensor, int]:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integers, got {labels.dtype}")
    if labels.shape != (total,):
        raise ValueError(f"labels must have the shape ({total},), one per image, got {tuple(labels.shape)}")
    lowest, highest = int(labels.min()), int(labels.max())
    classes = highest + 1 if num_classes is None else num_classes
    if classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {classes}: use labels=None to train on rotations")
    if lowest < 0 or highest >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1} (num_classes={classes}), got {lowest}..{highest}")
    return labels.long(), classes


def _fit(
    classifier: FeatureClassifier,
    images: Tensor,
    labels: Tensor | None,
    kept: Tensor,
    turns: int,
    batch_size: int,
    updates: int,
    generator: torch.Generator,
) -> None:
    device = next(classifier.parameters()).device
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=_PEAK_LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _PEAK_LEARNING_RATE, total_steps=max(updates, 2), pct_start=0.15
    )
    order = kept[:0]
    for _ in range(updates):
        if len(order) < batch_size:
            order = kept[torch.randperm(len(kept), generator=generator)]
        chosen, order = order[:batch_size], order[batch_size:]
        batch = images[chosen.to(images.device)].to(device)
        if labels is None:
            turned = torch.randint(turns, (len(chosen),), generator=generator)
            batch, target = _rotated(batch, turned.to(device), turns), turned.to(device)
        else:
            target = labels[chosen.to(labels.device)].to(device)
        with torch.enable_grad():
            loss = F.cross_entropy(classifier.logits(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _rotated(images: Tensor, turned: Tensor, turns: int) -> Tensor:
    """Each image turned by its class: class k of `turns` is k * (4 / turns) quarter turns."""
    result = images.clone()
    for turn in range(1, turns):
        chosen = turned == turn
        result[chosen] = images[chosen].rot90(turn * (4 // turns), dims=(2, 3))
    return result


def _all_rotations(images: Tensor, turns: int) -> tuple[Tensor, Tensor]:
    turned = torch.arange(turns).repeat(images.shape[0])
    return _rotated(images.repeat_interleave(turns, dim=0), turned.to(images.device), turns), turned


@torch.no_grad()
def _accuracy(classifier: FeatureClassifier, images: Tensor, labels: Tensor) -> float:
    device = next(classifier.parameters()).device
    correct = 0
    for batch, target in zip(images.split(256), labels.split(256), strict=True):
        correct += int((classifier.logits(batch.to(device)).argmax(dim=1).cpu() == target.cpu()).sum())
    return correct / images.shape[0]
