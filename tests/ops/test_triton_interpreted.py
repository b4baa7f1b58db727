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
# Files that share a process, of about equal lengths.
RUNS = [
    ("test_backends_agree.py", "test_same_bits.py"),
    (
        *("test_group_norm_silu.py", "test_group_norm_silu_calls.py", "test_group_norm_silu_sources.py"),
        *("test_padded_sum.py", "test_padded_sum_calls.py", "test_linear_combination.py", "test_draws.py"),
    ),
    (
        *("test_adamw_ema.py", "test_every_backend.py", "test_against_paper.py", "test_loss_types.py"),
        *("test_ddim_step_and_input.py", "test_gradient_norm.py"),
    ),
]
# Of test_against_paper.py what names no backend takes that of the environment.
WANTED = "(triton or prediction_loss_in_float64) and not gradcheck and not one_graph and not captured_graph"


@pytest.mark.skipif(
    backends.unavailable("triton") is not None, reason=f"backend triton: {backends.unavailable('triton')}"
)
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="runs itself")
@pytest.mark.parametrize("files", RUNS, ids=lambda files: files[0])
def test_in_the_interpreter(files):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PROGDISTILL_BACKEND": "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", "-k", WANTED]
    done = subprocess.run(
        [*command, *(str(HERE / file) for file in files)],
        env=environment,
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
