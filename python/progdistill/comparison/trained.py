"""Methods that are trained, and kept in the comparison's folder."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from progdistill.comparison.config import CompareConfig
from progdistill.comparison.methods import Contender, Method, blind_start
from progdistill.core import Denoiser
from progdistill.core.fingerprint import model_fingerprint
from progdistill.core.processes import on_main_process
from progdistill.interop import load
from progdistill.sampling.arguments import student_for
from progdistill.sampling.solvers import FittedSolver, correctable_stages, fit_solver, make_grid
from progdistill.training import distill, finetune_trajectory


class FittedMethod(Method):
    """D-ODE: a solver with a number for each network call, fitted to a finer one (`fit_solver`)."""

    trains = True

    def __init__(self, name: str, teacher: Denoiser, config: CompareConfig, grid: str) -> None:
        super().__init__(name)
        self.teacher = teacher
        self.config = config
        self.grid = grid

    def why_not(self, steps: int) -> str | None:
        phis = make_grid(self.teacher.schedule, steps, self.grid)
        try:
            correctable_stages(self.teacher, self.config.d_ode_solver, phis)
        except ValueError as error:
            return str(error)
        return None

    def contender(self, steps: int) -> Contender:
        config = self.config
        path = Path(config.output_dir) / "d_ode" / f"{config.d_ode_solver}-{self.grid}-{steps}.json"
        kept = on_main_process(lambda: FittedSolver.load(path) if path.exists() and not config.overwrite else None)
        if kept is None:
            fitted = self._fitted(steps)
            on_main_process(lambda: fitted.save(path))
        else:
            fitted = kept
            _check_fit(path, fitted, {**self._settings(), "model": model_fingerprint(self.teacher)})
        calls, seconds = fitted.network_calls(self.teacher), fitted.provenance["seconds"]
        return Contender(self.teacher, steps, calls, seconds, fitted)

    def _settings(self) -> dict[str, int]:
        config = self.config
        return {"scale": config.d_ode_scale, "batch_size": config.d_ode_batch_size, "seed": config.seed}

    def _fitted(self, steps: int) -> FittedSolver:
        started = time.perf_counter()
        fitted = fit_solver(self.teacher, self.config.d_ode_solver, steps, grid=self.grid, **self._settings())
        seconds = round(time.perf_counter() - started, 3)
        return dataclasses.replace(fitted, provenance={**fitted.provenance, "seconds": seconds})


def _check_fit(path: Path, fitted: FittedSolver, wanted: dict[str, Any]) -> None:
    known = {**fitted.provenance}
    differences = [
        f"{name} was {known.get(name)!r}, is {value!r}" for name, value in wanted.items() if known.get(name) != value
    ]
    if differences or "seconds" not in known:
        raise ValueError(
            f"{path} holds a solver that was fitted with other settings: {'; '.join(differences) or 'no seconds'}; use "
            "the same settings, another --output-dir, or --overwrite to fit it anew"
        )


class TrajectoryMethod(Method):
    """SFD: a student for each step count, trained along the teacher's trajectory (`finetune_trajectory`)."""

    trains = True

    def __init__(self, name: str, teacher: Denoiser, config: CompareConfig) -> None:
        super().__init__(name)
        self.teacher = teacher
        self.config = config

    def why_not(self, steps: int) -> str | None:
        most = self.config.sfd_max_steps
        if steps > most:
            return f"students are trained for up to {most} steps (sfd_max_steps)"
        return blind_start(self.teacher, float(self.teacher.schedule.grid(steps)[0]))

    def contender(self, steps: int) -> Contender:
        config = self.config
        student = finetune_trajectory(
            self.teacher,
            steps=steps,
            output_dir=str(Path(config.output_dir) / "sfd" / f"steps-{steps:04d}"),
            iterations=config.sfd_iterations,
            learning_rate=config.sfd_learning_rate,
            **_common(config),
        )
        seconds = training_seconds(student, self.teacher)
        return Contender(student, steps, student.plan(steps).network_calls, seconds)


class DistillationMethod(Method):
    """Progressive distillation: the students of one run (`distill`), which may be a finished one."""

    trains = True

    def __init__(self, name: str, teacher: Denoiser, data: Any, config: CompareConfig) -> None:
        super().__init__(name)
        self.teacher = teacher
        self.data = data
        self.config = config
        self._student = None if config.pd is None else _finished(config.pd, teacher)

    def why_not(self, steps: int) -> str | None:
        if self._student is not None and self._student.guidance_range is not None:
            return f"the students in {self.config.pd} are guided, but the comparison is without guidance"
        known = self._known_steps()
        return None if steps in known else f"its students take {', '.join(map(str, known))} steps"

    def contender(self, steps: int) -> Contender:
        if self._student is None:
            self._student = self._distilled()
        student = student_for(self._student, steps)
        seconds = training_seconds(student, self.teacher)
        return Contender(student, steps, student.plan(steps).network_calls, seconds)

    def _known_steps(self) -> list[int]:
        if self._student is None:
            return [2**k for k in range(self.config.pd_rounds)]
        return sorted({*self._student.valid_steps, *self._student.students})

    def _distilled(self) -> Denoiser:
        config = self.config
        last = {steps: 2 * config.pd_updates_per_round for steps in (2, 1) if steps in self._known_steps()}
        return distill(
            self.teacher,
            data=self.data,
            rounds=config.pd_rounds,
            output_dir=str(Path(config.output_dir) / "pd"),
            updates_per_round=config.pd_updates_per_round,
            updates_at=last,
            learning_rate=config.pd_learning_rate,
            ema_decay=config.pd_ema_decay,
            **config.reading_options(),
            **_common(config),
        )


def _common(config: CompareConfig) -> dict[str, Any]:
    names = ("train_batch_size", "seed", "device", "overwrite", "progress")
    return {name: getattr(config, name) for name in names}


def _finished(folder: str, teacher: Denoiser) -> Denoiser:
    """The students in a folder.

    Raises:
        ValueError: a teacher is there, or students that make other images or come from another teacher.
    """
    student = load(folder, device=teacher.device)
    if student.valid_steps is None:
        raise ValueError(f"{folder} holds a teacher; name the folder of a finished `progdistill distill`")
    if student.sample_shape != teacher.sample_shape or student.num_classes != teacher.num_classes:
        raise ValueError(f"{folder} holds students that make other images than this teacher; distil this one")
    try:
        training_seconds(student, teacher)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return student


def training_seconds(student: Denoiser, teacher: Denoiser) -> float:
    """The seconds of all rounds that lie between a teacher and a student, as the models' provenance records them.

    Raises:
        ValueError: the student's teachers are recorded, and this one is not among them.
    """
    facts, origin, total = _plain(student.provenance), _plain(teacher.provenance), 0.0
    while facts and facts != origin:
        total += facts.get("seconds", 0.0)
        facts = facts.get("teacher")
    if origin and not facts:
        raise ValueError(
            "these students were made of another teacher, as far as is recorded; compare with their own, or leave pd "
            "out to distil this one"
        )
    return round(total, 3)


def _plain(facts: Any) -> Any:
    # As it is read again from a file, tuples being lists.
    return json.loads(json.dumps(facts))
