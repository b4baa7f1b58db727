"""Training a teacher: Salimans & Ho 2022, Algorithm 1, in continuous time."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from progdistill.core import CosineSchedule, Denoiser
from progdistill.core.processes import join_processes, on_main_process
from progdistill.core.random import Stream, uniform
from progdistill.data import ImageDataset, open_dataset, to_uint8
from progdistill.evaluation import class_labels_in_turn, rows_by_class
from progdistill.nets.config import UNetConfig
from progdistill.nets.presets import PRESETS, preset
from progdistill.nets.unet import UNet
from progdistill.ops import diffuse, normal, prediction_loss_and_grad
from progdistill.ops.names import canonical_prediction_type, heads
from progdistill.report import image_grid, labelled_rows
from progdistill.sampling import generate
from progdistill.training.batches import Batch, BatchSource
from progdistill.training.config import TrainConfig
from progdistill.training.device import choose_device
from progdistill.training.guidance import with_dropped_labels
from progdistill.training.keep import is_kept, keep, recall
from progdistill.training.loop import Round, run_round
from progdistill.training.objective import Loss
from progdistill.training.progress import Plan
from progdistill.training.run_folder import RunFolder
from progdistill.training.run_report import write_run_report

VALIDATION_STEPS = 64
VALIDATION_IMAGES = 64
GRID_COLUMNS = 8


class DenoisingObjective:
    """Algorithm 1: t uniform on [0, 1], z = cos(phi) x + sin(phi) eps, the weighted error of the prediction."""

    def __init__(self, config: TrainConfig) -> None:
        self.loss_options = config.loss_options()
        self.label_dropout = config.label_dropout

    def __call__(self, student: Denoiser, batch: Batch, grad_scale: float) -> Loss:
        phi = student.schedule.angle(uniform(batch.seeds, batch.update, Stream.TIME))
        noise = normal(batch.seeds, batch.update, Stream.NOISE, batch.x.shape[1:])
        z = diffuse(batch.x, noise, phi)
        cond = with_dropped_labels(batch, student.unconditional_label, self.label_dropout)
        pred = student.raw(z, phi, cond)
        target, target_type = self._target(student.prediction_type, batch.x, noise, phi)
        loss, grad = prediction_loss_and_grad(
            pred,
            z,
            target,
            phi,
            prediction_type=student.prediction_type,
            target_type=target_type,
            grad_scale=grad_scale,
            **self.loss_options,
        )
        return Loss(pred, grad, loss, phi)

    @staticmethod
    def _target(prediction_type: str, x: Tensor, noise: Tensor, phi: Tensor) -> tuple[Tensor, str]:
        # In the network's own quantity, so that no conversion divides by sin or cos.
        if prediction_type == "sample":
            return x, "sample"
        if prediction_type == "epsilon":
            return noise, "epsilon"
        return diffuse(noise, -x, phi), "v_prediction"


def train(
    data: Any = None,
    output_dir: str | None = None,
    *,
    network: nn.Module | UNetConfig | str | None = None,
    config: TrainConfig | None = None,
    **settings: Any,
) -> Denoiser:
    """Trains a teacher; the same call again resumes an interrupted run.

    Args:
        data: whatever `progdistill.data.open_dataset` takes: a folder, archive, table, "digits", a torch Dataset.
        output_dir: where everything goes.
        network: a named network, a UNetConfig, or a module called as network(z, time[, class_labels]) that returns
            a tensor.
        config: a TrainConfig instead of keyword settings.
        settings: fields of `TrainConfig`.

    Returns:
        The teacher with its averaged weights, as kept in output_dir/model: a model folder for a `UNet`, the bare
        weights (safetensors) for a module of the caller's.

    Raises:
        ValueError: settings that contradict each other, the data or an earlier run in output_dir.
    """
    if config is None:
        config = TrainConfig(
            data=data if isinstance(data, str) else "",
            output_dir=_required(output_dir),
            network=network if isinstance(network, str) else "",
            **settings,
        )
    join_processes()
    dataset = open_dataset(data if data is not None else config.data, **config.reading_options())
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    student = _new_denoiser(network or config.network, dataset, config).to(device)
    inputs = {"data": dataset.name, "network": _describe(student.network)}
    run = RunFolder(config, "train", inputs, Plan([config.max_train_steps]), "Training a teacher")
    if on_main_process(partial(is_kept, run.model)):
        run.finish()
        return recall(run.model, student, None)

    def on_validation(model: Denoiser, update: int) -> None:
        labels = class_labels_in_turn(model, VALIDATION_IMAGES)
        images = generate(model, VALIDATION_STEPS, seeds=torch.arange(VALIDATION_IMAGES), class_labels=labels)
        if images.shape[1] in (1, 3):
            run.save_grid(_grid(to_uint8(images.cpu()), labels), f"update-{update:07d}", 0, update)

    round_ = Round(
        index=0,
        student=student,
        objective=DenoisingObjective(config),
        updates=config.max_train_steps,
        label="teacher",
        dropout=True,
        on_validation=on_validation,
    )
    result = run_round(round_, BatchSource(dataset, config, 0, device, config.class_conditional), config, run)
    teacher = result.student
    on_main_process(lambda: on_validation(teacher, config.max_train_steps))
    run.write({"event": "round_end", "round": 0, "label": "teacher", "seconds": round(result.seconds, 3)})
    teacher.provenance = {
        "recipe": "train",
        "data": dataset.name,
        "data_source": config.data or None,
        "data_options": config.reading_options(),
        "updates": config.max_train_steps,
        "seconds": round(result.seconds, 3),
        "precision": result.precision,
        "loss": result.loss,
    }
    on_main_process(lambda: keep(teacher, run.model, result.raw_state_dict))
    run.finish()
    on_main_process(lambda: write_run_report(run))
    return teacher


def _grid(images: Tensor, labels: Tensor | None) -> Image.Image:
    if labels is None:
        return image_grid(images, columns=GRID_COLUMNS)
    return labelled_rows(rows_by_class([("", images)], labels, GRID_COLUMNS))


def _new_denoiser(network: nn.Module | UNetConfig | str, dataset: ImageDataset, config: TrainConfig) -> Denoiser:
    prediction_type = canonical_prediction_type(config.prediction_type)
    num_classes, unconditional_label = None, None
    if config.class_conditional:
        if dataset.num_classes is None:
            raise ValueError(f"class_conditional was asked for, but {dataset.name} has no labels")
        num_classes = dataset.num_classes
        unconditional_label = num_classes if config.label_dropout else None
    if not isinstance(network, nn.Module):
        shape = dataset.shape
        unet = dataclasses.replace(
            _network_config(network),
            sample_size=shape[1] if shape[1] == shape[2] else shape[1:],
            in_channels=shape[0],
            out_channels=heads(prediction_type) * shape[0],
            num_class_embeds=num_classes if unconditional_label is None else num_classes + 1,
        )
        network = UNet(unet)
    return Denoiser(
        network,
        sample_shape=dataset.shape,
        schedule=CosineSchedule(config.logsnr_min, config.logsnr_max),
        prediction_type=prediction_type,
        num_classes=num_classes,
        unconditional_label=unconditional_label,
    )


def _network_config(network: UNetConfig | str) -> UNetConfig:
    if isinstance(network, UNetConfig):
        return network
    if network.endswith(".json"):
        return UNetConfig.from_dict(json.loads(Path(network).read_text()))
    if not network:
        raise ValueError(f"name a network: one of {', '.join(PRESETS)}, a config.json, a UNetConfig or a module")
    return preset(network)


def _describe(network: nn.Module) -> Any:
    return network.config.to_dict() if isinstance(network, UNet) else type(network).__name__


def _required(output_dir: str | None) -> str:
    if not output_dir:
        raise ValueError("output_dir is missing; name a folder for models, checkpoints and metrics")
    return output_dir
