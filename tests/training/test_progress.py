"""What a run tells while it goes on: status, list of runs, report, TensorBoard, Weights & Biases."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from progdistill.cli.main import main
from progdistill.core import Denoiser
from progdistill.training import adamw_ema, distill, train
from progdistill.training import run_report as run_report_module
from progdistill.training import trackers as trackers_module
from progdistill.training.progress import Plan, RunProgress, duration
from tiny import IMAGES, NETWORK

COMMON = {"train_batch_size": 4, "logging_steps": 2, "device": "cpu", "progress": False, "ema_decay": 0.9}


def teacher_run(folder, **settings):
    return train(IMAGES, str(folder), network=NETWORK, max_train_steps=6, lr_warmup_steps=0, **{**COMMON, **settings})


def both_runs(folder, **settings):
    teacher = teacher_run(folder / "teacher", **settings)
    options = {"rounds": 2, "updates_per_round": 4, "validation_images": 2, **COMMON, **settings}
    return distill(teacher, data=IMAGES, output_dir=str(folder / "student"), **options)


def listed(folder, capsys):
    assert main(["runs", str(folder), "--json"]) == 0
    return {run["folder"].split("/")[-1]: run for run in json.loads(capsys.readouterr().out)}


def test_runs_are_listed_with_their_state(tmp_path, capsys, monkeypatch):
    both_runs(tmp_path / "good")
    with pytest.raises(FloatingPointError), monkeypatch.context() as patched:
        patched.setattr(adamw_ema, "gradient_norm", lambda *_, **__: torch.tensor(float("nan")))
        teacher_run(tmp_path / "bad", logging_steps=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model": 1}')  # not a run of ours
    runs = listed(tmp_path, capsys)
    assert {name: run["state"] for name, run in runs.items()} == {
        "teacher": "finished",
        "student": "finished",
        "bad": "failed",
    }
    assert runs["student"]["done_updates"] == runs["student"]["total_updates"] == 8
    assert runs["student"]["command"] == "distill" and "norm is nan" in runs["bad"]["message"]
    assert main(["runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "8/8 (100%)" in table and "norm is nan" in table


def test_a_run_is_alive_as_long_as_its_process(tmp_path, capsys):
    teacher_run(tmp_path / "run")
    path = tmp_path / "run" / "status.json"
    status = json.loads(path.read_text())
    path.write_text(json.dumps({**status, "state": "running", "process": os.getpid()}))
    assert listed(tmp_path, capsys)["run"]["state"] == "running"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path.write_text(json.dumps({**status, "state": "running", "process": ended.pid}))
    assert listed(tmp_path, capsys)["run"]["state"] == "died"
    path.write_text(json.dumps({**status, "state": "running", "host": "elsewhere", "time": 0}))
    assert listed(tmp_path, capsys)["run"]["state"] == "died"


def test_time_left_is_that_of_all_rounds(tmp_path, monkeypatch):
    """10 updates took 20 s; of 3 rounds with 20 + 20 + 40 there are 70 left."""
    clock = iter([100.0, 100.0, 120.0])
    monkeypatch.setattr("progdistill.training.progress.time.monotonic", lambda: next(clock))
    progress = RunProgress(tmp_path, Plan([20, 20, 40]))
    assert progress.update(0, "first", 0, None) is None
    assert progress.update(0, "first", 10, 0.5) == pytest.approx(140.0)
    assert json.loads((tmp_path / "status.json").read_text())["seconds_left"] == 140.0


def test_time_left_after_resuming_goes_by_this_process_alone(tmp_path, monkeypatch):
    clock = iter([0.0, 1000.0, 1030.0])
    monkeypatch.setattr("progdistill.training.progress.time.monotonic", lambda: next(clock))
    progress = RunProgress(tmp_path, Plan([20, 20]))
    assert progress.update(1, "second", 5, None) is None
    assert progress.update(1, "second", 15, 0.5) == pytest.approx(15.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(7, "7 s"), (600, "10 min"), (12_000, "3 h 20 min"), (190_800, "2 d 5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_report_is_renewed_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(run_report_module, "RENEWAL_SECONDS", 0)
    seen = []
    original = run_report_module.write_text_atomic
    monkeypatch.setattr(run_report_module, "write_text_atomic", lambda p, t: (seen.append(t), original(p, t)))
    teacher_run(tmp_path)
    assert len(seen) == 4
    assert all('http-equiv="refresh"' in text and "running" in text for text in seen[:3])
    assert "refresh" not in seen[3] and "finished" in seen[3]


def test_tensorboard_has_every_logged_number_once(tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    both_runs(tmp_path, report_to=("tensorboard",))
    events = accumulators.EventAccumulator(str(tmp_path / "student" / "logs"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("2 -> 1 steps/loss")]
    records = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    written = [r for r in records if r["event"] == "update" and r["label"] == "2 -> 1 steps"]
    # Steps go on through the rounds: 4 updates came before.
    assert losses == [(4 + r["update"], pytest.approx(r["loss"], rel=1e-6)) for r in written]
    assert len(events.Scalars("2 -> 1 steps/student_distance")) == 1
    assert events.Images("samples")


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    teacher_run(tmp_path / "run", report_to=("wandb",))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert (tmp_path / "run" / "wandb-id.txt").read_text()


def test_trackers_are_closed_when_a_run_fails(tmp_path, monkeypatch):
    """Else Weights & Biases would count it as running."""
    pytest.importorskip("tensorboard")
    closed = []
    monkeypatch.setattr(trackers_module._TensorBoard, "close", lambda self: closed.append(self))
    calls = iter(range(1, 100))
    original = adamw_ema.gradient_norm
    broken = lambda *a, **k: original(*a, **k) if next(calls) < 3 else torch.tensor(float("nan"))  # noqa: E731
    monkeypatch.setattr(adamw_ema, "gradient_norm", broken)
    with pytest.raises(FloatingPointError):
        teacher_run(tmp_path, report_to=("tensorboard",))
    assert len(closed) == 1


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"comet.*tensorboard, wandb"):
        teacher_run(tmp_path, report_to=("comet",))


def test_a_missing_package_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"wandb.*progdistill\[log\]"):
        teacher_run(tmp_path / "run", report_to=("wandb",))
    assert not (tmp_path / "run").exists()


def test_trackers_do_not_change_what_a_run_is(tmp_path):
    """They may be asked for later: the same command with --report-to resumes."""
    pytest.importorskip("tensorboard")
    first = teacher_run(tmp_path)
    again = teacher_run(tmp_path, report_to=("tensorboard",))
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))


class OwnNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, time):
        return self.layer(z) + time.view(-1, 1, 1, 1) * 1e-3


def test_a_finished_run_of_a_users_own_network_is_not_trained_again(tmp_path):
    def go(network):
        return train(IMAGES, str(tmp_path), network=network, max_train_steps=6, lr_warmup_steps=0, **COMMON)

    torch.manual_seed(0)
    first = go(OwnNetwork())
    before = (tmp_path / "metrics.jsonl").read_text()
    torch.manual_seed(1)
    again = go(OwnNetwork())
    assert isinstance(again, Denoiser) and again.valid_steps is None
    assert torch.equal(first.network.layer.weight, again.network.layer.weight)
    assert (tmp_path / "metrics.jsonl").read_text() == before
