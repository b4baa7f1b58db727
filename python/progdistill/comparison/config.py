"""The settings of a comparison."""

from __future__ import annotations

import dataclasses

from progdistill.sampling.solvers import GRIDS, SOLVERS
from progdistill.training.config import DataConfig

TRAINED = ("d_ode", "sfd", "pd")
"""Methods that are trained: a fitted solver, SFD, progressive distillation."""


@dataclasses.dataclass(kw_only=True)
class CompareConfig(DataConfig):
    """Compare methods of sampling in few network calls: on one teacher, with the same noise, in the same features."""

    teacher: str = ""
    """The teacher's folder, or its id on the Hugging Face hub; also as the first argument, without a flag. Of the
    folder of a quickstart the teacher, with its students for pd and its classifier for features."""
    data: str = ""
    """Reference images, as in train; default: the data set that the teacher's folder records."""
    output_dir: str = "compare"
    """Folder for metrics.json, report.html, samples.png, and for what is trained and measured, which later commands
    with the same settings use again."""
    methods: tuple[str, ...] = ("ddim", "dpmpp_3m", "ipndm", "d_ode", "sfd", "pd")
    """Solvers (ddim, dpmpp_3m, ipndm, unipc_3, heun ...), d_ode, sfd and pd; solvers and d_ode perhaps @GRID
    (dpmpp_3m@logsnr), trailing being the default. Also with commas."""
    steps: tuple[int, ...] = (1, 2, 4, 5, 8, 10, 25)
    """Step counts; also with commas. Methods leave out those that they cannot do."""
    metrics: tuple[str, ...] = ("frechet",)
    """frechet, kernel, precision_recall, density_coverage, sliced_wasserstein, inception_score."""
    num_images: int = 1000
    """Generated images for one figure."""
    seeds: int = 3
    """Disjoint sets of image seeds; their spread is the error bar."""
    features: str | None = None
    """As in evaluate; default: train a classifier on the data set, to be kept as classifier.safetensors."""
    d_ode_solver: str = "ddim"
    """The solver that d_ode corrects."""
    d_ode_scale: int = 10
    """Steps of the finer solver that it is fitted to in one of its own."""
    d_ode_batch_size: int = 100
    """Noises that it is fitted on."""
    sfd_iterations: int = 100
    """Batches of noise for each student of sfd; there is one for each step count."""
    sfd_learning_rate: float = 5e-4
    """Peak learning rate of sfd."""
    sfd_max_steps: int = 5
    """The most steps that sfd trains a student for."""
    pd: str | None = None
    """A finished progressive distillation of this teacher to take for pd; default: one is run."""
    pd_rounds: int = 5
    """pd starts at 2 ** rounds of the teacher's steps and ends at 1."""
    pd_updates_per_round: int = 400
    """Updates of a round; the 2- and 1-step students get twice as many, as in the paper."""
    pd_learning_rate: float = 6e-3
    """Peak learning rate of each round."""
    pd_ema_decay: float = 0.995
    """Decay of the average of pd's weights."""
    train_batch_size: int = 64
    """Images or noises of an update, in sfd and pd."""
    seed: int = 0
    """What training draws follows from it."""
    device: str | None = None
    """cpu or cuda; default: cuda if there is one."""
    overwrite: bool = False
    """Train and measure anew what output_dir holds, instead of using it."""
    progress: bool = True
    """Print lines and show bars as it goes on."""

    def __post_init__(self) -> None:
        self.methods = tuple(dict.fromkeys(self.methods))
        self.steps = tuple(sorted(set(self.steps)))
        if not self.methods or not self.steps or self.steps[0] < 1:
            raise ValueError(f"methods are {self.methods}, steps {self.steps}; name some of each, steps from 1 up")
        for method in self.methods:
            _check_method(method)
        if self.d_ode_solver not in SOLVERS:
            raise ValueError(f"d_ode_solver is {self.d_ode_solver!r}; use one of {', '.join(SOLVERS)}")
        if self.num_images < 2:
            raise ValueError(f"num_images is {self.num_images}; a distance needs at least 2")
        names = ("seeds", "d_ode_batch_size", "sfd_iterations", "sfd_max_steps", "pd_rounds", "pd_updates_per_round")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a positive whole number")


def _check_method(method: str) -> None:
    name, at, grid = method.partition("@")
    if name not in (*SOLVERS, *TRAINED):
        raise ValueError(f"unknown method {name!r}; use {', '.join(TRAINED)} or a solver: {', '.join(SOLVERS)}")
    if at and name in ("sfd", "pd"):
        raise ValueError(f"method {method!r}: {name} has steps of its own; leave @{grid} out")
    if at and grid not in GRIDS:
        raise ValueError(f"method {method!r}: unknown grid {grid!r}; use one of {', '.join(GRIDS)}")
