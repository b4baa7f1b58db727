"""Python imports this first in a process that run.py has started, and in those that it starts in turn."""

import importlib.util
import os
import sys
import warnings

import operations

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch says which kernels are replaced
    KEPT = operations.install()

spec = importlib.util.spec_from_file_location("progdistill._C", os.environ["SIMULATED_GPU_EXTENSION"])
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
