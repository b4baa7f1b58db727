"""What goes wrong in a week of training: signals, damaged checkpoints, full disks, losses that are not finite."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import progdistill
from progdistill.core.files import flush_file
from progdistill.training import adamw_ema, train
from progdistill.training import checkpoint as checkpoint_module
from progdistill.training.checkpoint import Checkpoint, CheckpointFolder
from progdistill.training.metrics_log import MetricsLog
from progdistill.training.running_loss import RunningLoss
from progdistill.training.stopping import RunInterrupted, StopRequest
from tiny import IMAGES, NETWORK

HERE = Path(__file__).parent
SETTINGS = {
    "max_train_steps": 12,
    "train_batch_size": 4,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    "ema_decay": 0.9,
    "logging_steps": 5,
    "checkpointing_steps": 3,
    "device": "cpu",
    "progress": False,
}


def run(folder, **settings):
    return train(IMAGES, str(folder), network=NETWORK, **{**SETTINGS, **settings})


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.network.parameters()])


def log(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def stop_at(monkeypatch, update, act):
    """Calls `act` when the given update's losses are taken in."""
    original = RunningLoss.add

    def add(self, at, loss, phi):
        original(self, at, loss, phi)
        if at == update:
            act()

    monkeypatch.setattr(RunningLoss, "add", add)


def test_runs_killed_at_any_moment_resume_bit_for_bit():
    """10 kills here, in real processes; `kill_runs.py --kills 100` by hand."""
    done = subprocess.run([sys.executable, HERE / "kill_runs.py"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 kills" in done.stdout and "a checkpoint half written" in done.stdout
    assert "at the end of a round" in done.stdout
    assert "is damaged" not in done.stderr


@pytest.mark.parametrize("update", [0, 5, 11])
def test_sigterm_finishes_the_update_saves_and_exits_with_0(tmp_path, monkeypatch, capsys, update):
    whole = run(tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_at(patched, update, lambda: os.kill(os.getpid(), signal.SIGTERM))
        if update == 11:  # the last one: there is nothing left to stop
            run(tmp_path / "stopped")
        else:
            with pytest.raises(SystemExit) as stopped:
                run(tmp_path / "stopped")
            assert stopped.value.code == 0
            assert f"stopped by SIGTERM after update {update + 1} of 12" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    resumed = run(tmp_path / "stopped")
    assert torch.equal(weights(whole), weights(resumed))
    assert log(tmp_path / "whole") == log(tmp_path / "stopped")


def test_a_second_sigterm_is_not_held_back():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("second"))
    try:
        with StopRequest() as stop:
            assert not stop.pending()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.pending() and not seen
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["second"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_command_line_exits_with_0_on_sigterm(tmp_path):
    (tmp_path / "net.json").write_text(json.dumps(NETWORK.to_dict()))
    np.savez(tmp_path / "images.npz", images=IMAGES)
    command = [sys.executable, "-m", "progdistill", "train", "--data", "images.npz", "--output-dir", "run"]
    command += ["--network", "net.json", "--max-train-steps", "100000", "--logging-steps", "1", "--device", "cpu"]
    command += ["--train-batch-size", "4"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.01)
        process.terminate()
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "stopped by SIGTERM" in out and "the same command resumes" in out
    assert list((tmp_path / "run" / "checkpoints").glob("round-00-update-*"))


def interrupted(folder, monkeypatch):
    """A run that stopped by update 10, with checkpoints at 6 and 9."""
    with monkeypatch.context() as patched, pytest.raises(RunInterrupted):
        stop_at(patched, 9, lambda: (_ for _ in ()).throw(RunInterrupted("in the test")))
        run(folder)
    found = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in found] == ["round-00-update-00000006", "round-00-update-00000009"]
    return found


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a bit flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
}


def flipped(data):
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that came to its end in `whole`, and one that was interrupted in `interrupted`."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "whole")
    with pytest.MonkeyPatch.context() as patched:
        interrupted(folder / "interrupted", patched)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    "file", ["student.safetensors", "optimizer.safetensors", "running_loss.safetensors", "state.json", "SHA256SUMS"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(runs, tmp_path, file, damage):
    shutil.copytree(runs / "interrupted", tmp_path / "run")
    DAMAGES[damage](tmp_path / "run" / "checkpoints" / "round-00-update-00000009" / file)
    with pytest.warns(UserWarning, match="round-00-update-00000009 is damaged"):
        resumed = run(tmp_path / "run")
    assert torch.equal(weights(progdistill.load(runs / "whole" / "model")), weights(resumed))
    assert log(runs / "whole") == log(tmp_path / "run")


def test_only_damaged_checkpoints_are_an_error_that_says_what_to_delete(tmp_path, monkeypatch):
    for path in interrupted(tmp_path, monkeypatch):
        os.truncate(path / "ema.safetensors", 10)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"update-00000006.*delete that folder"):
        run(tmp_path)


def test_another_number_of_threads_is_said_on_resuming(tmp_path, monkeypatch):
    interrupted(tmp_path, monkeypatch)
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match="threads was 1, is 2.*will not equal"):
            run(tmp_path)
    finally:
        torch.set_num_threads(1)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    """The writes of the checkpoint at update 9 fail; a second attempt with room goes on from 6."""
    whole = run(tmp_path / "whole")

    def full(path):
        if "00000009" in str(path):
            raise OSError(28, "No space left on device", str(path))
        flush_file(path)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_module, "flush_file", full)
        with pytest.raises(OSError, match=r"00000009 could not be written.*No space left.*resumes from .*00000006"):
            run(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "round-00-update-00000003",
        "round-00-update-00000006",
    ]
    assert torch.equal(weights(whole), weights(run(tmp_path / "run")))


def test_a_limit_of_the_operating_system_is_told_the_same_way(tmp_path):
    """A real failing write: no file may grow beyond 50 kB, while the checkpoint's are larger."""
    folder = CheckpointFolder(tmp_path / "checkpoints", 2)
    small = {"student": {"w": torch.ones(10)}}
    folder.save(Checkpoint(0, 1, small, {}))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"could not be written.*resumes from round-00-update-00000001"):
            folder.save(Checkpoint(0, 2, {"student": {"w": torch.ones(100_000)}}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert folder.latest().update == 1 and len(list(folder.folder.iterdir())) == 1


def test_a_loss_that_is_not_finite_names_update_and_noise_level_and_saves_nothing(tmp_path, monkeypatch):
    """One sample at angle 0.4 (tenth 2) of update 7 becomes NaN; the checkpoint at 9 must not be written."""
    original = RunningLoss.add

    def add(self, update, loss, phi):
        if update == 6:
            loss, phi = loss.clone(), phi.clone()
            loss[1], phi[1] = float("nan"), 0.4
        original(self, update, loss, phi)

    monkeypatch.setattr(RunningLoss, "add", add)
    with pytest.raises(FloatingPointError, match=r"round 0 \(teacher\).*in update 7, in tenths \[2\].*learning_rate"):
        run(tmp_path)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == [
        "round-00-update-00000003",
        "round-00-update-00000006",
    ]


def test_an_infinite_gradient_is_not_saved(tmp_path, monkeypatch):
    original = adamw_ema.gradient_norm
    calls = iter(range(1, 100))
    broken = lambda *a, **k: original(*a, **k) if next(calls) != 9 else torch.tensor(float("inf"))  # noqa: E731
    monkeypatch.setattr(adamw_ema, "gradient_norm", broken)
    with pytest.raises(FloatingPointError, match="the gradient's norm is inf in update 9"):
        run(tmp_path)
    assert CheckpointFolder(tmp_path / "checkpoints", 2).latest().update == 6


def test_a_half_line_of_the_log_is_left_out(tmp_path):
    path = MetricsLog(tmp_path / "metrics.jsonl")
    path.write({"event": "update", "round": 0})
    with open(path.path, "a") as file:
        file.write('{"event": "upd')
    assert path.records() == [{"event": "update", "round": 0}]


def test_what_a_killed_process_left_half_written_goes_at_the_end(tmp_path):
    (tmp_path / "run" / ".tmp-model-1-abc").mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))
    assert progdistill.load(tmp_path / "run" / "model")
