"""The settings of a run: one dataclass a recipe, named as in diffusers' training scripts."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from progdistill.data.resize import DEFAULT_INTERPOLATION, Interpolation
from progdistill.ops.checks import check_huber_c, check_min_snr_gamma
from progdistill.ops.names import canonical_loss_type, canonical_prediction_type, canonical_weighting
from progdistill.sampling.addim import check_addim_eta
from progdistill.sampling.arguments import checked_guidance_range
from progdistill.training.trackers import TRACKERS

MAX_TEACHER_SUBSTEPS = 16  # what the compiled kernels take


@dataclasses.dataclass(kw_only=True)
class RunConfig:
    """Where a run lives."""

    output_dir: str
    """Folder for models, checkpoints, metrics, pictures and the report."""


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """How the images of `data` are read; the options of `progdistill.data.open_dataset`."""

    dataset_config_name: str | None = None
    """Configuration of a data set on the Hugging Face hub."""
    split: str | None = None
    """Split of a Hugging Face data set; default: train, or the only one."""
    image_column: str | None = None
    """Column with the images; for .npz the array, for .tar the part of a sample (jpg)."""
    label_column: str | None = None
    """Column with the labels."""
    resolution: int | None = None
    """Side of the square that every image is cropped and resized to; default: all images have one size already."""
    center_crop: bool = True
    """Crop to the centre before resizing; no: squeeze the whole image."""
    interpolation: Interpolation = DEFAULT_INTERPOLATION
    """How to resize, always antialiased: bilinear, area, bicubic or lanczos."""

    def reading_options(self) -> dict[str, Any]:
        """Keyword arguments of `open_dataset`: those that are not at their defaults."""
        fields = dataclasses.fields(DataConfig)
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) != f.default}


@dataclasses.dataclass(kw_only=True)
class LoopConfig(RunConfig):
    """What every training loop needs."""

    train_batch_size: int = 128
    """Images an update sees, over all accumulated microbatches."""
    gradient_accumulation_steps: int = 1
    """Microbatches that an update's batch is split into, to save memory."""
    learning_rate: float = 1e-4
    """Peak learning rate of AdamW, and of Muon, whose steps are scaled to AdamW's."""
    lr_warmup_steps: int = 0
    """Updates over which the learning rate rises linearly from 0."""
    lr_scheduler: Literal["constant", "linear", "piecewise_constant"] = "linear"
    """After the warm-up: constant, annealed linearly to 0 at the end of the round, or (piecewise_constant) a tenth from
    half of the round on."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon (Jordan et al. 2024) for the inner convolutions and linear layers and AdamW for the rest."""
    muon_momentum: float = 0.95
    """Decay of Muon's momentum."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    adam_weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Bound of the gradient's global norm; 0 switches clipping off."""
    ema_decay: float = 0.9999
    """Decay of the weights' bias-corrected moving average; 0 keeps the raw weights."""
    weighting: str = "truncated_snr"
    """Loss weighting: constant, snr, truncated_snr, snr_plus_one or min_snr."""
    min_snr_gamma: float = 5.0
    """Bound of the min_snr weighting (Hang et al. 2023: 5)."""
    loss_type: str = "l2"
    """What the loss makes of the weighted error: l2 (its square, the paper's), l1 or pseudo_huber."""
    huber_c: float = 1e-3
    """Weighted error at which pseudo_huber turns from a square to an absolute value."""
    random_flip: bool = False
    """Mirror each image with probability 1/2."""
    mixed_precision: Literal["auto", "no", "bf16"] = "auto"
    """Precision of the networks; auto: bf16 on a GPU in rounds whose steps are large enough, else float32."""
    compile: bool = False
    """Compile the networks with torch.compile; worth it for networks of your own on a GPU."""
    cuda_graph: Literal["auto", "require"] | bool = "auto"
    """Updates as CUDA graphs: auto (on one GPU, where they can be captured), require (else an error) or False."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""
    seed: int = 0
    """Everything random follows from it."""
    logging_steps: int = 50
    """Updates between two lines of metrics.jsonl."""
    checkpointing_steps: int = 1000
    """Updates between two checkpoints."""
    checkpoints_total_limit: int = 2
    """Checkpoints that are kept, at least 2."""
    validation_steps: int = 0
    """Updates between two sample grids; 0: only at the end of a round."""
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Also log to TensorBoard (output_dir/logs) or Weights & Biases; metrics.jsonl is always written."""
    overwrite: bool = False
    """Start anew where a run already is, instead of resuming it."""
    progress: bool = True
    """Show a progress bar."""

    def loss_options(self) -> dict[str, Any]:
        """How losses weigh and measure an error; keyword arguments of the operations that compute them."""
        return {name: getattr(self, name) for name in ("weighting", "min_snr_gamma", "loss_type", "huber_c")}

    def __post_init__(self) -> None:
        self.weighting = canonical_weighting(self.weighting)
        self.loss_type = canonical_loss_type(self.loss_type)
        check_min_snr_gamma(self.min_snr_gamma)
        check_huber_c(self.huber_c)
        positive = ("train_batch_size", "gradient_accumulation_steps", "logging_steps", "checkpointing_steps")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a positive whole number")
        if self.train_batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"train_batch_size {self.train_batch_size} does not divide into "
                f"{self.gradient_accumulation_steps} microbatches; change gradient_accumulation_steps"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it lies in [0, 1), 0 = no averaging")
        if self.learning_rate < 0 or self.lr_warmup_steps < 0 or self.max_grad_norm < 0 or self.validation_steps < 0:
            raise ValueError("learning_rate, lr_warmup_steps, max_grad_norm and validation_steps are not negative")
        if self.checkpoints_total_limit < 2:
            raise ValueError(f"checkpoints_total_limit is {self.checkpoints_total_limit}; at least 2 are kept")
        self.report_to = tuple(self.report_to)
        if unknown := set(self.report_to) - set(TRACKERS):
            raise ValueError(f"report_to names {sorted(unknown)}; allowed: {', '.join(TRACKERS)}")
        if self.mixed_precision not in ("auto", "no", "bf16"):
            raise ValueError(f"unknown mixed_precision {self.mixed_precision!r}; use auto, no or bf16")
        if self.cuda_graph not in ("auto", "require", True, False):
            raise ValueError(f'cuda_graph is {self.cuda_graph!r}; use "auto", "require" or False')
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"unknown optimizer {self.optimizer!r}; use adamw or muon")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum is {self.muon_momentum}; it lies in [0, 1)")
        if self.lr_scheduler not in ("constant", "linear", "piecewise_constant"):
            raise ValueError(f"unknown lr_scheduler {self.lr_scheduler!r}; use constant, linear or piecewise_constant")


@dataclasses.dataclass(kw_only=True)
class TeacherConfig(DataConfig, RunConfig):
    """What a teacher is and sees."""

    data: str = ""
    """Image folder, .zip, .npz/.npy, .parquet, .tar, "train-{000..009}.tar", "hf:NAME" of the hub, or "digits"."""
    network: str = "cifar10"
    """A named network (cifar10, imagenet64, lsun128, ddpm-cifar10-32, digits8), or the path of a unet/config.json."""
    max_train_steps: int = 800_000
    """Updates."""
    class_conditional: bool = False
    """Condition on the data set's labels."""
    label_dropout: float = 0.0
    """Share of labels that are replaced by one that says nothing, so that the teacher can be guided; usual is 0.1."""
    prediction_type: str = "v_prediction"
    """What the network predicts: v_prediction, sample, epsilon or sample_epsilon (two-headed)."""
    logsnr_min: float | None = None
    """logSNR at t = 1; none: the pure cosine schedule's -inf (the released code: -20)."""
    logsnr_max: float | None = None
    """logSNR at t = 0; none: +inf (the released code: 20)."""


@dataclasses.dataclass(kw_only=True)
class TrainConfig(LoopConfig, TeacherConfig):
    """Train a teacher (Salimans & Ho 2022, Algorithm 1, continuous time)."""

    # The released CIFAR-10 configuration (the paper's section E has 3e-4, see recipes/); neither anneals.
    learning_rate: float = 2e-4
    lr_scheduler: Literal["constant", "linear"] = "constant"
    lr_warmup_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_train_steps < 1:
            raise ValueError(f"max_train_steps is {self.max_train_steps}; use a positive whole number")
        if not 0 <= self.label_dropout < 1 or (self.label_dropout and not self.class_conditional):
            raise ValueError(
                f"label_dropout is {self.label_dropout}, class_conditional {self.class_conditional}; it is a share in "
                "[0, 1) of the labels that class_conditional=True uses"
            )
        if canonical_prediction_type(self.prediction_type) == "epsilon" and self.logsnr_min is None:
            raise ValueError(
                "prediction_type is epsilon, which says nothing about x at SNR 0, where sampling would start: give "
                "logsnr_min (the released code: -20), or predict v_prediction, sample or sample_epsilon"
            )


ZERO_SNR = ("truncate", "finetune")


@dataclasses.dataclass(kw_only=True)
class ScheduleConfig:
    """Where the schedule of a converted network ends."""

    zero_snr: Literal["truncate", "finetune"] = "truncate"
    """Of a teacher that is converted: end its schedule where it has been trained, or extend it to SNR 0 on the data."""


@dataclasses.dataclass(kw_only=True)
class ConversionConfig(DataConfig, ScheduleConfig, RunConfig):
    """What a conversion makes of which teacher."""

    teacher: str = ""
    """The folder of a teacher or a student, or its id on the Hugging Face hub, perhaps with @REVISION."""
    data: str = ""
    """As in train; default: the data set that the teacher's folder records, read as it was then."""
    prediction_type: str = "v_prediction"
    """What the converted network predicts: v_prediction or sample."""
    updates: int = 50_000
    """Updates."""
    validation_images: int = 64
    """Images of fixed noise that teacher and converted network are compared on."""


@dataclasses.dataclass(kw_only=True)
class ConvertConfig(LoopConfig, ConversionConfig):
    """Make a v or x network of an epsilon teacher, or of a two-headed student, at an unchanged step count."""

    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prediction_type = canonical_prediction_type(self.prediction_type)
        if self.prediction_type not in ("v_prediction", "sample"):
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}; a conversion makes a v_prediction or sample network"
            )
        if self.updates < 1 or self.validation_images < 1:
            raise ValueError(
                f"updates = {self.updates} and validation_images = {self.validation_images} must be at least 1"
            )
        _check_zero_snr(self.zero_snr)


def _check_zero_snr(name: str) -> None:
    if name not in ZERO_SNR:
        raise ValueError(f"unknown zero_snr {name!r}; use {' or '.join(ZERO_SNR)}")


@dataclasses.dataclass(kw_only=True)
class RoundsConfig(DataConfig, ScheduleConfig, RunConfig):
    """Which rounds a distillation has."""

    teacher: str = ""
    """The teacher's folder, or its id on the Hugging Face hub, perhaps with @REVISION."""
    data: str = ""
    """As in train; default: the data set that the teacher's folder records, read as it was then."""
    rounds: int = 10
    """How often the step count is divided by step_factor."""
    end_steps: int = 1
    """Step count of the last student."""
    start_steps: int | None = None
    """The teacher's step count, as a check: it must equal end_steps * step_factor ** rounds, the default."""
    step_factor: int = 2
    """Division of the step count in a round."""
    teacher_substeps: int = 2
    """Teacher steps inside a student's step: 2 to 16; the paper takes 2, even with step_factor 4 (appendix I)."""
    first_teacher_substeps: int | None = None
    """As many in the first round, whose teacher knows all times: more follow it more exactly; none: as in all."""
    teacher_sampler: Literal["ddim", "addim"] = "ddim"
    """The teacher's steps; addim (Heek et al. 2024) makes up for the variance that DDIM loses."""
    addim_eta: float | None = 0.75
    """Share of the teacher's measured error that addim counts as variance; none: 0.1 / (2 + SNR) instead."""
    addim_min_steps: int = 4
    """Rounds whose student has fewer steps use ddim, which the paper of addim found better there."""
    next_teacher: Literal["ema", "raw"] = "ema"
    """Weights of a student that teach the next round: the average that is kept, or the raw ones."""
    updates_per_round: int = 50_000
    """Updates of a round."""
    updates_at: dict[int, int] = dataclasses.field(default_factory=dict)
    """Other numbers of updates for the students of certain step counts, for instance 2 100000 1 100000."""
    learning_rate_at: dict[int, float] = dataclasses.field(default_factory=dict)
    """Other peak learning rates for the students of certain step counts, for instance 16 1e-5 8 2e-5."""
    conversion_updates: int | None = None
    """Updates of the round that converts an epsilon teacher first; none: updates_per_round; 0: refuse such teachers."""
    guidance_range: tuple[float, float] | None = None
    """Lowest and highest guidance scale (1: none) that the students of a teacher trained with label_dropout take as an
    input, learned in a round before the others (Meng et al. 2023); none: they are unguided."""
    guidance_updates: int | None = None
    """Updates of that round; none: updates_per_round."""
    validation_images: int = 64
    """Images of fixed noise that each round's student and teacher are compared on."""


@dataclasses.dataclass(kw_only=True)
class DistillConfig(LoopConfig, RoundsConfig):
    """Distil a teacher round by round (Salimans & Ho 2022, Algorithm 2)."""

    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or self.end_steps < 1 or self.step_factor < 2 or self.updates_per_round < 1:
            raise ValueError(
                f"rounds = {self.rounds}, end_steps = {self.end_steps}, updates_per_round = {self.updates_per_round} "
                f"must be at least 1 and step_factor = {self.step_factor} at least 2"
            )
        self._check_teacher_steps()
        _check_zero_snr(self.zero_snr)
        if self.conversion_updates is not None and self.conversion_updates < 0:
            raise ValueError(f"conversion_updates is {self.conversion_updates}; use a whole number from 0 up")
        self._check_guidance()
        if self.start_steps not in (None, self.teacher_steps):
            raise ValueError(
                f"start_steps is {self.start_steps}, but {self.rounds} rounds by {self.step_factor} that end at "
                f"{self.end_steps} steps start at {self.teacher_steps}; leave start_steps out or change rounds"
            )
        for name in ("updates_at", "learning_rate_at"):
            if unknown := sorted(set(getattr(self, name)) - set(self.student_steps)):
                raise ValueError(f"{name} names {unknown} steps; this run's students have {self.student_steps}")
        if min(self.learning_rate_at.values(), default=0) < 0:
            raise ValueError(f"learning_rate_at is {self.learning_rate_at}; a learning rate is not negative")
        if self.weighting in ("snr", "min_snr") and self.end_steps == 1:
            raise ValueError(
                f"weighting {self.weighting!r} is zero at t = 1, which is all there is in the 1-step round: it would "
                "train nothing; use truncated_snr, snr_plus_one or constant, or end_steps = 2"
            )

    def _check_teacher_steps(self) -> None:
        for name in ("teacher_substeps", "first_teacher_substeps"):
            count = getattr(self, name)
            if count is not None and not 2 <= count <= MAX_TEACHER_SUBSTEPS:
                raise ValueError(
                    f"{name} is {count}; the teacher takes 2 to {MAX_TEACHER_SUBSTEPS} steps inside a student's step"
                )
        if self.rounds > 1 and self.step_factor % self.teacher_substeps:
            raise ValueError(
                f"teacher_substeps is {self.teacher_substeps}, which does not divide step_factor = {self.step_factor}: "
                "from the second round on the teacher is a student that knows the times of its own steps only; use a "
                "divisor of step_factor, or rounds = 1"
            )
        for name, allowed in (("teacher_sampler", ("ddim", "addim")), ("next_teacher", ("ema", "raw"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; use {' or '.join(allowed)}")
        if self.addim_eta is not None:
            check_addim_eta(self.addim_eta)
        if self.addim_min_steps < 1:
            raise ValueError(f"addim_min_steps is {self.addim_min_steps}; use a positive whole number")
        if self.teacher_sampler == "addim" and self.student_steps[0] < self.addim_min_steps:
            raise ValueError(
                f"teacher_sampler is addim, but with addim_min_steps = {self.addim_min_steps} no round would use it: "
                f"this run's students have {self.student_steps} steps; lower addim_min_steps or use ddim"
            )

    def _check_guidance(self) -> None:
        if self.guidance_range is None:
            if self.guidance_updates is not None:
                raise ValueError(
                    f"guidance_updates is {self.guidance_updates}, but there is no guidance_range; give both or neither"
                )
            return
        self.guidance_range = checked_guidance_range(self.guidance_range)
        if self.guidance_updates is not None and self.guidance_updates < 1:
            raise ValueError(f"guidance_updates is {self.guidance_updates}; use a positive whole number")

    @property
    def teacher_steps(self) -> int:
        """The step count that the first round starts from."""
        return self.end_steps * self.step_factor**self.rounds

    @property
    def student_steps(self) -> list[int]:
        """The step count of each round's student."""
        return [self.end_steps * self.step_factor**k for k in reversed(range(self.rounds))]

    def updates_for(self, steps: int) -> int:
        """The number of updates of the round whose student has `steps` steps."""
        return self.updates_at.get(steps, self.updates_per_round)

    def substeps_for(self, steps: int) -> int:
        """Teacher steps inside one of a student's `steps`."""
        first = steps == self.student_steps[0] and self.first_teacher_substeps is not None
        return self.first_teacher_substeps if first else self.teacher_substeps

    def for_round(self, steps: int) -> DistillConfig:
        """The settings that the loop takes for the round whose student has `steps` steps: its own learning rate."""
        return dataclasses.replace(self, learning_rate=self.learning_rate_at.get(steps, self.learning_rate))
