"""How solvers form their states: from whatever a network predicts, in few passes over memory."""

import pytest
import torch

from analytic import MixtureDenoiser
from progdistill.core import CosineSchedule
from progdistill.sampling.solvers import Thresholding, network_calls, solve, solver_stages, terms

PHIS = torch.linspace(1.4, 0.0, 7, dtype=torch.float64)
SOLVERS = ("ddim", "heun", "rk4", "dpm_3s", "dpmpp_3m", "ipndm_4", "deis_tab_3", "unipc_3")


class Teller(MixtureDenoiser):
    """The ideal denoiser as a network of a prediction type that writes every output where the last one was."""

    def __init__(self, prediction_type, dtype=None):
        super().__init__([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7], schedule=CosineSchedule())
        self.prediction_type, self.dtype, self.room = prediction_type, dtype, None

    def raw(self, z, phi, cond=None):
        v = super().raw(z, phi)
        cos, sin = (f(phi).reshape(-1, *(1,) * (z.dim() - 1)).to(z.dtype) for f in (torch.cos, torch.sin))
        x, eps = cos * z - sin * v, sin * z + cos * v
        outputs = {"v_prediction": v, "sample": x, "epsilon": eps, "sample_epsilon": torch.cat([x, eps], dim=1)}
        out = outputs[self.prediction_type].to(self.dtype or z.dtype)
        self.room = out if self.room is None else self.room.copy_(out)
        return self.room


def noise(dtype=torch.float64):
    return torch.randn(4, 1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "sample_epsilon"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_the_network_predicts_makes_no_difference(solver, prediction_type):
    plain = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], [0.3, 0.7], schedule=CosineSchedule())
    stages = solver_stages(solver, PHIS, plain)
    for options in ({}, {"clip": 0.8}, {"thresholding": Thresholding(0.9)}, {"corrections": [0.1] * len(stages)}):
        expected = solve(plain, noise(), stages, **options)
        got = solve(Teller(prediction_type), noise(), stages, **options)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_outputs_of_other_dtypes(dtype):
    """Rounded outputs in their own dtype or in that of the state are the same numbers."""

    class Rounded(Teller):
        def raw(self, z, phi, cond=None):
            return super().raw(z, phi).to(z.dtype)

    for solver in ("ddim", "dpmpp_2m"):
        stages = solver_stages(solver, PHIS, Teller("epsilon"))
        got, expected = (
            solve(kind("sample_epsilon", dtype), noise(torch.float32), stages) for kind in (Teller, Rounded)
        )
        assert got.dtype == torch.float32 and torch.equal(got, expected)


@pytest.mark.parametrize(
    ("solver", "passes"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("ipndm_4", 2), ("rk4", 2), ("unipc_3", 3)]
)
def test_passes_of_a_stage(solver, passes, monkeypatch):
    """One where no output is remembered; else one for that, one for the state, one for what UniPC corrects."""
    calls, plain = [], terms.linear_combination
    monkeypatch.setattr(terms, "linear_combination", lambda *given: calls.append(1) or plain(*given))
    stages = solver_stages(solver, PHIS, Teller("v_prediction"))
    solve(Teller("v_prediction"), noise(), stages)
    assert (passes - 1) * network_calls(stages) < len(calls) <= passes * network_calls(stages)


def test_a_correction_is_one_more_pass(monkeypatch):
    calls, plain = [], terms.linear_combination
    monkeypatch.setattr(terms, "linear_combination", lambda *given: calls.append(1) or plain(*given))
    stages = solver_stages("ipndm_4", PHIS, Teller("epsilon"))
    solve(Teller("epsilon"), noise(), stages, corrections=[0.0] * len(stages))
    without = len(calls)
    solve(Teller("epsilon"), noise(), stages, corrections=[0.1] * len(stages))
    assert len(calls) - 2 * without == len(stages)
