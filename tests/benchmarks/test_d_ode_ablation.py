"""d_ode_ablation.py: the variants against their definitions on a Gaussian mixture, and the command."""

import json
import math

import pytest
import torch

import d_ode_ablation
import d_ode_report
from analytic import MixtureDenoiser
from d_ode_heat_map import colour, heat_map
from d_ode_paths import correlations, path_of, trajectory, varied_pixels
from d_ode_variants import LEAST_SQUARES, fitted_variant, fixed, freedom, lagging_targets, lookahead, variant
from progdistill import fit_solver
from progdistill.report import Section, Svg, html_page
from progdistill.sampling import ddim
from progdistill.sampling.latents import seeded_latents

MODEL = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7], sample_shape=(1, 2, 3))
FIT = {"scale": 4, "batch_size": 30, "seed": 7}


def noises(count, seed=7):
    return seeded_latents(torch.arange(seed, seed + count), MODEL.sample_shape)


def x_and_eps(z, phi):
    out = MODEL.raw(z, torch.full((len(z),), phi, dtype=torch.float64))
    return math.cos(phi) * z - math.sin(phi) * out, math.sin(phi) * z + math.cos(phi) * out


def literal_step(z, eps, s, t):
    """DDIM as eq. 11 has it."""
    return math.cos(t) * (z - math.sin(s) * eps) / math.cos(s) + math.sin(t) * eps


def shares_of(solver):
    """Each step's weights of the outputs, in units of DDIM's one."""
    wholes = [-math.sin(s.phi - s.phi_next) / math.cos(s.phi) for s in solver.stages[1:]]
    return [
        torch.tensor(s.result.outputs, dtype=torch.float64) / whole
        for s, whole in zip(solver.stages[1:], wholes, strict=True)
    ]


@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_no_numbers_near_the_fitted_ones_are_better(name):
    """Step by step from the definition: distance to the finer solver's state at equal noise, all in float64."""
    steps, z = 4, noises(30).double()
    solver = fitted_variant(MODEL, name, steps, **FIT)
    phis, fine = [(steps - n) * math.pi / 2 / steps for n in range(steps + 1)], MODEL.schedule.grid(16)
    x, eps = x_and_eps(z, phis[0])
    outputs, z = [eps], math.cos(phis[1]) * x + math.sin(phis[1]) * eps
    for number, shares in enumerate(shares_of(solver), start=1):
        outputs.insert(0, x_and_eps(z, phis[number])[1])
        target = ddim(MODEL, noises(30).double(), fine[: 4 * number + 5])

        def distance(weights, z=z, number=number, target=target):
            combined = torch.tensordot(weights, torch.stack(outputs), dims=1)
            return float((literal_step(z, combined, phis[number], phis[number + 1]) - target).square().sum())

        steady, free = freedom(name, len(outputs))
        numbers = torch.linalg.lstsq(free.T, (shares - steady)[:, None]).solution[:, 0]
        torch.testing.assert_close(steady + numbers @ free, shares, rtol=0, atol=1e-6)
        best = distance(shares)
        changes = (
            0.02 * torch.randn(20, len(free), generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ free
        )
        assert all(best < distance(shares + change) for change in changes)
        combined = torch.tensordot(shares, torch.stack(outputs), dims=1)
        z = literal_step(z, combined, phis[number], phis[number + 1])
    torch.testing.assert_close(solver(MODEL, noises(30)).double(), z, rtol=0, atol=1e-5)


def test_freedom_is_what_the_equations_say():
    new, first, second = (torch.eye(3, dtype=torch.float64)[n] for n in range(3))
    expected = {
        "d_ddim": (new, [new - first]),
        "two": (new, [new - first, new - second]),
        "differences": (new, [new - first, new - second]),
        "sep": (0 * new, [new, first]),
        "all": (0 * new, [new, first, second]),
    }
    for name, (steady, free) in expected.items():
        found = freedom(name, 3)
        assert torch.equal(found[0], steady) and torch.equal(found[1], torch.stack(free))
    assert len(freedom("differences", 5)[1]) == 4 and len(freedom("two", 5)[1]) == 2


def test_without_their_further_numbers_they_are_the_base():
    """Before there are outputs to combine two is D-DDIM, all is sep, and one step is DDIM."""
    z = noises(5, seed=100)
    for steps, one, other in ((2, "two", "d_ddim"), (2, "differences", "d_ddim"), (2, "all", "sep"), (3, "d_ddim", 0)):
        base = fit_solver(MODEL, "ddim", steps, **FIT) if other == 0 else fitted_variant(MODEL, other, steps, **FIT)
        found = fitted_variant(MODEL, one, steps, **FIT)
        torch.testing.assert_close(found(MODEL, z), base(MODEL, z), rtol=0, atol=2e-5)
    plain = ddim(MODEL, z, MODEL.schedule.grid(3))
    for solver in (variant(MODEL, "ddim", 3), fixed(MODEL, 3, 0.0), lookahead(MODEL, 3, 0.0)):
        torch.testing.assert_close(solver(MODEL, z), plain, rtol=0, atol=1e-5)


def test_one_number_for_all_steps():
    """Eq. 10, and the formula of the lookahead: x is extrapolated, eps stays."""
    start, phis = noises(5).double(), MODEL.schedule.grid(3).tolist()
    for make, which in ((fixed, 1), (lookahead, 0)):
        x, eps = x_and_eps(start, phis[0])
        z, before = math.cos(phis[1]) * x + math.sin(phis[1]) * eps, (x, eps)[which]
        for s, t in zip(phis[1:-1], phis[2:], strict=True):
            x, eps = x_and_eps(z, s)
            now = (x, eps)[which]
            further = 1.3 * now - 0.3 * before
            z = math.cos(t) * further + math.sin(t) * eps if which == 0 else literal_step(z, further, s, t)
            before = now
        torch.testing.assert_close(make(MODEL, 3, 0.3)(MODEL, start), z, rtol=0, atol=1e-9)


def test_lagging_targets_are_noisier_but_for_the_last():
    z, phis = noises(3), MODEL.schedule.grid(12)
    found = lagging_targets(MODEL, z, variant(MODEL, "ddim", 3).stages, "ddim", 4)
    for target, steps in zip(found, (1, 5, 12), strict=True):
        torch.testing.assert_close(target, ddim(MODEL, z, phis[: steps + 1]), rtol=0, atol=1e-6)
    aimed = fitted_variant(MODEL, "sep", 3, **FIT, lag=True)
    assert not torch.allclose(aimed(MODEL, z), fitted_variant(MODEL, "sep", 3, **FIT)(MODEL, z), atol=1e-3)


def test_what_the_figures_show():
    found = correlations(MODEL, steps=6, shown=3, count=4, seed=7)
    z, phis = noises(4).double(), MODEL.schedule.grid(6)
    states = [ddim(MODEL, z, phis[: n + 1]) if n else z for n in (0, 2, 5)]
    for which, name in enumerate(("x", "eps")):
        outputs = [x_and_eps(state, float(phis[n]))[which] for state, n in zip(states, (0, 2, 5), strict=True)]
        for i, j in ((0, 1), (0, 2), (1, 2), (1, 1)):
            cosine = torch.cosine_similarity(outputs[i].flatten(1), outputs[j].flatten(1)).mean()
            assert found[name][i][j] == pytest.approx(float(cosine), abs=2e-4)
    assert found["times"] == pytest.approx([1, 2 / 3, 1 / 6], abs=1e-4)
    path = path_of(MODEL, variant(MODEL, "ddim", 6), noises(4))
    torch.testing.assert_close(path[5].double(), states[2], rtol=0, atol=1e-5)
    drawn = trajectory(path, [4, 0])
    assert drawn["norm"][-1] == pytest.approx(float(path[-1].square().mean().sqrt()), abs=1e-4)
    assert drawn["pixels"][0][2] == pytest.approx(float(path[2, 0].flatten()[4]), abs=1e-4)
    assert varied_pixels(torch.tensor([[0.0, 5.0, 1.0], [0.0, -5.0, 2.0]]))[0] == 1


def test_the_heat_map_is_a_drawing_for_reports():
    drawn = heat_map([[1.0, 0.2], [0.2, 1.0]], [1.0, 0.5], title="outputs", label="time")
    assert drawn.count(colour(1.0)) == 3 and drawn.count(colour(0.0)) == 3  # two cells and one of the bar
    html_page("page", [Section("figure", [Svg(drawn)])])
    with pytest.raises(ValueError, match="2 times need as many rows and columns"):
        heat_map([[1.0, 0.2]], [1.0, 0.5], title="", label="")


class TinyBench:
    """In place of the digits: the mixture, and for a distance the mean of the samples."""

    asked = 0

    def __init__(self, arguments, models):
        self.images = arguments.images

    def teacher(self, seed):
        return MODEL

    def distance(self, model, steps, *, sets, solver):
        type(self).asked += 1
        return {"mean": round(float(solver(model, noises(self.images)).mean()), 4), "deviation": 0.1 * sets}


def test_the_command_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(d_ode_ablation, "Bench", TinyBench)
    output, page = tmp_path / "found.json", tmp_path / "page.html"
    sizes = "--images 4 --steps 2 3 --searched-steps 3 --scale 2 --batch-size 4 --scales 3 --batch-sizes 1 --batches 2"
    sizes += " --fixed 0.2 0.5 --lookahead 0.1 --fine-steps 8 --followed 4 --shown-images 2"
    given = ["--output", str(output), "--page", str(page), *sizes.split()]
    d_ode_ablation.main(given)
    found, asked = json.loads(output.read_text()), TinyBench.asked
    assert str(tmp_path) not in output.read_text() and asked == 12 + 1 + 5 + 3 + 4 + 2 + 2
    assert {"variants/fixed-0.2/2", "variants/fixed-0.5/2"} & set(found["cells"])
    assert "D-DDIM-Sep" in page.read_text() and page.read_text().count("<svg") == 8
    d_ode_ablation.main(given)
    assert TinyBench.asked == asked and json.loads(output.read_text()) == found
    d_ode_ablation.main([*given, "--lookahead", "0.1", "0.2"])
    again = json.loads(output.read_text())["cells"]
    assert TinyBench.asked <= asked + 3 and "searched/la/0.2" in set(again) - set(found["cells"])
    d_ode_report.main([str(output), "--docs", str(tmp_path / "docs")])
    assert "| D-DDIM-Sep |" in (tmp_path / "docs" / "d-ode.md").read_text()
    assert len(list((tmp_path / "docs" / "images").glob("d-ode-*.svg"))) == 8
