"""What is found out about each method: figures, costs, and pictures of the same noise."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from progdistill.comparison.config import CompareConfig
from progdistill.comparison.kept_figures import KeptFigures
from progdistill.comparison.methods import Contender, Method
from progdistill.core.processes import is_main_process
from progdistill.data import to_uint8
from progdistill.evaluation import QualityMeter, class_labels_in_turn
from progdistill.metrics import features_fingerprint, features_name, metric_names
from progdistill.sampling import generate

Say = Callable[[str], None]

PICTURE_COLUMNS = 12
PICTURE_STEP_COUNTS = 4


class Measurement:
    """Takes methods through the same measurement, one after the other; processes do it together."""

    def __init__(self, config: CompareConfig, meter: QualityMeter, kept: KeptFigures, say: Say) -> None:
        self.config = config
        self.meter = meter
        self.kept = kept
        self.say = say
        self._pictures: list[tuple[int, str, Tensor]] = []
        self._figure_names: list[str] = []
        self._seconds = {"train": 0.0, "measure": 0.0}

    def entry(self, method: Method) -> dict[str, Any]:
        """A method's entry in metrics.json; trains it where it is not trained yet."""
        entry: dict[str, Any] = {"trains": method.trains, "steps": {}, "left_out": {}}
        for steps in self.config.steps:
            reason = method.why_not(steps)
            if reason is not None:
                entry["left_out"][str(steps)] = reason
                self.say(f"{method.name}, {steps} steps: left out, {reason}")
                continue
            with self._timed("train"):
                contender = method.contender(steps)
            entry["steps"][str(steps)] = self._point(method, contender)
            if steps in self.config.steps[:PICTURE_STEP_COUNTS]:
                self._draw(f"{method.name}, {counted(contender.network_calls)}", contender)
        return entry

    def rows(self) -> list[tuple[str, Tensor]]:
        """Labelled pictures (12, C, H, W) uint8 of the first step counts, all methods at each; in the first process."""
        return [(label, images) for _, label, images in sorted(self._pictures, key=lambda picture: picture[0])]

    def facts(self) -> dict[str, Any]:
        """What the figures are of, JSON-ready."""
        features = self.meter.features
        return {
            "features": features_name(features),
            "features_fingerprint": features_fingerprint(features),
            "num_images": self.meter.num_images,
            "seeds": self.meter.seeds,
            "metrics": self._figure_names,
            "names": metric_names(features),
        }

    def seconds(self) -> dict[str, float]:
        """What training and measuring took since this was made; not what was there before."""
        return {stage: round(value, 1) for stage, value in self._seconds.items()}

    def _point(self, method: Method, contender: Contender) -> dict[str, Any]:
        with self._timed("measure"):
            figures, measured = self.kept.figures(
                contender,
                lambda: self.meter.measure_all(contender.model, contender.steps, **contender.options),
            )
        said = ", ".join(f"{name} {found['mean']:.4g} ± {found['deviation']:.2g}" for name, found in figures.items())
        self._figure_names = list(figures)
        took = f", trained in {contender.training_seconds:.1f} s" if method.trains else ""
        before = "" if measured else " (measured before)"
        self.say(f"{method.name}, {counted(contender.network_calls)}{took}: {said}{before}")
        return {
            "network_calls": contender.network_calls,
            "training_seconds": contender.training_seconds,
            "figures": figures,
        }

    def _draw(self, label: str, contender: Contender) -> None:
        if not is_main_process() or contender.model.sample_shape[0] not in (1, 3):
            return
        labels = class_labels_in_turn(contender.model, PICTURE_COLUMNS)
        seeds = torch.arange(PICTURE_COLUMNS)
        images = generate(contender.model, contender.steps, seeds=seeds, class_labels=labels, **contender.options)
        self._pictures.append((contender.steps, label, to_uint8(images.cpu())))

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[stage] += time.perf_counter() - started


def counted(calls: int) -> str:
    """ "1 call", "2 calls"."""
    return f"{calls} call{'s' * (calls > 1)}"
