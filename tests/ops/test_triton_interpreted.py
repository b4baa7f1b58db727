"""The Triton kernels without a GPU: the tests of operations once more, in Triton's interpreter on CPU tensors.

What they compute is shown by it; speed, races and float64's fused multiply-adds are not.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from progdistill.ops import backends

HERE = Path(__file__).parent
RUNS = [
    ("test_backends_agree.py", "triton"),
    ("test_every_backend.py", "triton"),
    ("test_loss_types.py", "triton and not gradcheck"),
    ("test_against_paper.py", "prediction_loss_in_float64"),  # names no backend: takes that of the environment
    ("test_group_norm_silu.py", "triton and not one_graph"),
    ("test_adamw_ema.py", "triton"),
    ("test_gradient_norm.py", "triton"),
    ("test_draws.py", "triton and not captured_graph"),
    ("test_linear_combination.py", "triton"),
    ("test_ddim_step_and_input.py", "triton"),
]


@pytest.mark.skipif(
    backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs itself")
@pytest.mark.parametrize(("file", "wanted"), RUNS)
def test_in_the_interpreter(file, wanted):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PROGDISTILL_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-k", wanted]
    done = subprocess.run(
        [*command, str(HERE / file)], env=environment, cwd=HERE.parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
