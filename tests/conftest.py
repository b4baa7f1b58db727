"""One thread for each worker of pytest-xdist, and for the programs that it starts: they share the cores."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
