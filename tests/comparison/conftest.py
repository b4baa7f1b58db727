"""One small comparison, which every test here looks at."""

import json
import shutil

import numpy as np
import pytest

import tiny
from progdistill.cli.main import main
from progdistill.evaluation import QualityMeter
from progdistill.training import train
from small_comparisons import METHODS, SMALL, TRAINING


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """images.npz, a teacher, and what `progdistill compare` makes of it in out."""
    folder = tmp_path_factory.mktemp("compare")
    np.savez(folder / "images.npz", images=tiny.IMAGES[:, 0], labels=np.arange(24) % 3)
    data = str(folder / "images.npz")
    train(data, str(folder / "teacher"), network=tiny.NETWORK, max_train_steps=2, **TRAINING)
    arguments = [str(folder / "teacher"), "--data", data, "--output-dir", str(folder / "out")]
    assert main(["compare", *arguments, "--methods", ",".join(METHODS), "--steps", "1,2,3", *SMALL]) == 0
    return folder


@pytest.fixture(scope="session")
def result(folder):
    """Its metrics.json."""
    return json.loads((folder / "out" / "metrics.json").read_text())


@pytest.fixture
def copy(folder, tmp_path):
    """The comparison's folder, to be worked on."""
    return shutil.copytree(folder / "out", tmp_path / "copy")


@pytest.fixture
def measured(monkeypatch):
    """The step counts of all measurements that a test makes; `measured.most`: how many of them go well."""
    measure = QualityMeter.measure_all

    class Measured(list):
        most = None

    calls = Measured()

    def measure_all(self, model, steps, **options):
        if calls.most is not None and len(calls) >= calls.most:
            raise KeyboardInterrupt
        calls.append(steps)
        return measure(self, model, steps, **options)

    monkeypatch.setattr(QualityMeter, "measure_all", measure_all)
    return calls
