"""D-ODE solvers on a Gaussian mixture whose ideal denoiser is known."""

import dataclasses
import functools
import json
import math

import pytest
import torch

from analytic import MixtureDenoiser
from progdistill import fit_solver, sample
from progdistill.core import Condition, EDMSchedule
from progdistill.sampling import ddim
from progdistill.sampling.latents import seeded_latents
from progdistill.sampling.solvers import FittedSolver, chosen_solver, make_grid, solve
from progdistill.sampling.solvers.first_order import rk4

MIXTURE = {"means": [-0.7, 0.4], "stds": [0.15, 0.3], "weights": [0.3, 0.7], "sample_shape": (1, 2, 3)}
COSINE = MixtureDenoiser(**MIXTURE)
EDM = MixtureDenoiser(**MIXTURE, schedule=EDMSchedule())
POLYNOMIAL = {"grid": "polynomial"}


@functools.cache
def exact_path(model):
    """Noises that are not fitted, and where the exact path leads them."""
    z = seeded_latents(torch.arange(1000, 1400), model.sample_shape).double()
    return z, solve(model, z, rk4(torch.linspace(math.pi / 2 - 1e-9, 0, 251, dtype=torch.float64).tolist()))


def held_out(model, solver, steps, **given):
    """Root-mean-square error at the end of the path."""
    z, truth = exact_path(model)
    if isinstance(solver, str):
        solver = chosen_solver(model, solver, steps, **given)
    return float((solver(model, z) - truth).square().mean().sqrt())


@pytest.mark.parametrize("scale", [5, 10, 20])
def test_kappa_of_fine_smooth_grids(scale):
    """(1 - 1 / S) / 2 in the limit: the mean of a slope over S steps lies that far beyond its first value."""
    deviations = []
    for steps in (32, 64):
        kappas = torch.tensor(fit_solver(COSINE, steps=steps, scale=scale).kappas)
        assert kappas[0] == 0.0
        deviations.append((kappas[steps // 8 : -steps // 8] - (1 - 1 / scale) / 2).abs().max())
    assert deviations[1] < 0.04 and deviations[1] < 0.65 * deviations[0]


def test_it_is_the_least_squares_solution():
    """One step's number, from the definition: the minimum over kappa of the distance to the teacher's state."""
    fitted = fit_solver(COSINE, steps=3, scale=4, batch_size=50)
    z = seeded_latents(torch.arange(50), COSINE.sample_shape)
    teacher = ddim(COSINE, z, COSINE.schedule.grid(12)[:9])

    def distance(kappa):
        solver = FittedSolver("ddim", fitted.phis[:3], (fitted.kappas[0], kappa), fitted.options)
        return float((solver(COSINE, z) - teacher).double().square().sum())

    best = distance(fitted.kappas[1])
    assert all(best < distance(fitted.kappas[1] + change) for change in (-0.01, 0.01))


@pytest.mark.parametrize("solver", ["ddim", "ipndm", "deis_tab_3", "dpm_2", "dpm_3", "dpmpp_2m", "heun"])
def test_zeros_are_the_plain_solver(solver):
    for model, given in ((COSINE, {}), (EDM, POLYNOMIAL)):
        options = {"quantity": "x"} if solver == "ddim" else {}
        plain = chosen_solver(model, solver, 6, **given, **options)
        zeros = FittedSolver(
            solver, tuple(make_grid(model.schedule, 6, **given).tolist()), (0.0,) * len(plain.stages), options
        )
        z = seeded_latents(torch.arange(5), model.sample_shape)
        assert torch.equal(zeros(model, z), plain(model, z))
        assert zeros.network_calls(model) == plain.network_calls


CASES = [
    (COSINE, "ddim", 5, {}, 0.6),
    (COSINE, "ddim", 10, {}, 0.4),
    (EDM, "ddim", 5, POLYNOMIAL, 0.7),
    (EDM, "ddim", 10, POLYNOMIAL, 0.5),
    (EDM, "heun", 10, POLYNOMIAL, 0.7),
    (COSINE, "dpm_2", 10, {}, 0.85),
    (COSINE, "ipndm", 6, {}, 0.95),
    (COSINE, "deis_tab_3", 6, {}, 0.95),
    (COSINE, "dpmpp_2m", 6, {}, 0.95),
]


@pytest.mark.parametrize(("model", "solver", "steps", "given", "share"), CASES)
def test_it_is_nearer_to_the_exact_path(model, solver, steps, given, share):
    fitted = fit_solver(model, solver, steps, **given)
    assert held_out(model, fitted, steps) < share * held_out(model, solver, steps, **given)


def test_a_grid_that_divides_the_intervals_beats_the_official_one():
    nested, official = (
        held_out(EDM, fit_solver(EDM, "ddim", 10, alignment=alignment, **POLYNOMIAL), 10)
        for alignment in ("nested", "official")
    )
    assert nested < 0.7 * official


def test_sampling_with_a_fitted_solver(tmp_path):
    fitted = fit_solver(COSINE, "ddim", 5, batch_size=20)
    fitted.save(tmp_path / "ddim-5.json")
    again = FittedSolver.load(tmp_path / "ddim-5.json")
    assert again == fitted and again.provenance["scale"] == 10
    images = sample(COSINE, 5, solver=again, seed=[3, 4], output_type="pt")
    z = seeded_latents(torch.tensor([3, 4]), COSINE.sample_shape)
    torch.testing.assert_close(2 * images - 1, fitted(COSINE, z).clamp(-1, 1), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="fitted for 5 steps"):
        sample(COSINE, 4, solver=again)


class Guidable(MixtureDenoiser):
    """Two classes that are Gaussians, and label 2 for none: their mixture."""

    def __init__(self):
        super().__init__(**MIXTURE)
        self.classes = [MixtureDenoiser([mean], [std]) for mean, std in ((-0.7, 0.15), (0.4, 0.3))]
        self.num_classes, self.unconditional_label = 2, 2

    def raw(self, z, phi, cond=None):
        with_label = torch.stack([model.raw(z, phi) for model in self.classes])
        out = with_label[cond.class_labels, torch.arange(len(z))]
        if cond.guidance_scale is None:
            return out
        return torch.lerp(super().raw(z, phi), out, cond.guidance_scale.to(z.dtype).reshape(-1, 1, 1, 1))


def test_a_guided_teacher_is_fitted_at_its_scale(tmp_path):
    model, labels, scale = Guidable(), torch.arange(400) % 2, 2.5
    z = seeded_latents(torch.arange(1000, 1400), model.sample_shape).double()
    guided = Condition(labels, torch.full((400,), scale))
    truth = solve(model, z, rk4(torch.linspace(math.pi / 2 - 1e-9, 0, 251, dtype=torch.float64).tolist()), guided)
    fitted = fit_solver(model, steps=10, guidance_scale=scale)
    fitted.save(tmp_path / "guided.json")
    assert FittedSolver.load(tmp_path / "guided.json") == fitted and fitted.guidance_scale == scale
    unguided = dataclasses.replace(fit_solver(model, steps=10), guidance_scale=scale)
    plain = chosen_solver(model, "ddim", 10)
    errors = [float((solver(model, z, guided) - truth).square().mean()) for solver in (fitted, unguided, plain)]
    assert errors[0] < 0.4 * errors[1] and errors[0] < 0.15 * errors[2]


def test_another_guidance_scale_is_refused():
    model, given = Guidable(), {"output_type": "pt", "class_labels": [0, 1]}
    guided, plain = fit_solver(model, steps=3, batch_size=4, guidance_scale=2.5), fit_solver(model, steps=3)
    for solver, scale, said in (
        (guided, 3.0, "guidance_scale is 3, but the solver was fitted at 2.5"),
        (guided, [2.5, 1.0], "guidance_scale is 1, but the solver was fitted at 2.5"),
        (guided, None, "guidance_scale is 1, but the solver was fitted at 2.5"),
        (plain, 2.5, "fitted at 1, .* fit one with guidance_scale=2.5"),
    ):
        with pytest.raises(ValueError, match=said):
            sample(model, 3, solver=solver, guidance_scale=scale, **given)
    assert sample(model, 3, solver=guided, guidance_scale=2.5, **given).isfinite().all()
    none, one = (sample(model, 3, solver=plain, guidance_scale=scale, **given) for scale in (None, 1.0))
    torch.testing.assert_close(none, one, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be guided"):
        fit_solver(COSINE, guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"guidance_scale is 0.5; this model takes 1 \(none\) and above"):
        fit_solver(model, guidance_scale=0.5)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "solver.json"
    FittedSolver("ddim", (1.0, 0.5, 0.0), (0.0, 0.4), {"quantity": "x"}).save(path)
    values = json.loads(path.read_text())
    changes = [{"format_version": 2}, {"solver": "euler_a"}, {"kappas": [0.0, None]}, {"phis": 3}, {"more": 1}]
    changes += [{"guidance_scale": "much"}]
    for change in changes:
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(ValueError, match=r"solver.json is no fitted solver .*; fit it again"):
            FittedSolver.load(path)
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "guidance_scale"}))
    assert FittedSolver.load(path).guidance_scale is None  # files of before there was guidance
    path.write_text("{")
    with pytest.raises(ValueError, match="no fitted solver"):
        FittedSolver.load(path)
    path.write_text(json.dumps({**values, "kappas": [0.1]}))
    with pytest.raises(ValueError, match="has 2 stages, but there are 1 kappas"):
        FittedSolver.load(path)(COSINE, torch.zeros(1, 1, 2, 3))


def test_what_cannot_be_fitted():
    student = COSINE.with_network(COSINE.network, valid_steps=(4,))
    with pytest.raises(ValueError, match="distilled student"):
        fit_solver(student, "ddim", 4)
    with pytest.raises(ValueError, match="scale is 1"):
        fit_solver(COSINE, scale=1)
    with pytest.raises(ValueError, match="combines v alone"):
        fit_solver(COSINE, "euler")
