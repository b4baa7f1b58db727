"""The stage runner of benchmarks/on_gpu.py, with stages of a second."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stages
from stages import Stage, chosen, run_stages

BENCHMARKS = Path(stages.__file__).parent
PYTHON = "{python}"


def python(name, code, seconds=30.0, **options):
    return Stage(name, (PYTHON, "-c", code), seconds, **options)


def run(found, tmp_path, **environment):
    output = tmp_path / "record.json"
    status = run_stages(found, output, {"python": sys.executable}, environment)
    return status, json.loads(output.read_text())


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_failing_stage_is_said_and_later_ones_run(tmp_path, capsys):
    good = "import json, sys; json.dump({'summary': ['fast'], 'n': 3}, open(sys.argv[1], 'w'))"
    found = [
        python("first", "print('fine')"),
        python("bad", "print('before'); raise ValueError('no such kernel')"),
        Stage("good", (PYTHON, "-c", good, "{results}"), 30.0),
        Stage("absent", ("/nonexistent/program",), 30.0),
        Stage("tool", ("no-such-tool-here", "x"), 30.0, needs=("no-such-tool-here",)),
    ]
    status, record = run(found, tmp_path)
    assert status == 1
    entries = {entry["name"]: entry for entry in record["stages"]}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        "first": "passed",
        "bad": "failed",
        "good": "passed",
        "absent": "failed",
        "tool": "skipped",
    }
    assert entries["bad"]["exit_status"] == 1 and entries["bad"]["last_lines"][-1] == "ValueError: no such kernel"
    assert entries["good"]["results"] == {"summary": ["fast"], "n": 3}
    assert "before\n" in (tmp_path / "record.files" / "bad.log").read_text()
    printed = capsys.readouterr().out
    assert "-- bad failed, its last lines:\nbefore\n" in printed and "-- good\nfast\n" in printed
    table = printed.splitlines()[-5:]
    assert table[0].split()[:2] == ["first", "passed"] and table[1].endswith("ValueError: no such kernel")
    assert table[4].split()[:2] == ["tool", "skipped"] and "not found: no-such-tool-here" in table[4]


def test_skipped_stages_are_no_failure(tmp_path):
    status, _ = run([python("a", ""), Stage("b", ("x",), 1.0, needs=("no-such-tool-here",))], tmp_path)
    assert status == 0


def test_a_stage_out_of_time_ends_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "GRACE_SECONDS", 0.3)
    # The stage ignores the request to end, and has a child.
    code = (
        "import json, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "json.dump({'child': child.pid}, open(sys.argv[1], 'w')); print('partial', flush=True); time.sleep(60)"
    )
    found = [Stage("slow", (PYTHON, "-c", code, "{results}"), 1.5), python("next", "print('ran')")]
    started = time.monotonic()
    status, record = run(found, tmp_path)
    assert status == 1 and time.monotonic() - started < 20
    slow, after = record["stages"]
    assert slow["status"] == "timed out" and slow["exit_status"] is None and slow["last_lines"] == ["partial"]
    assert not is_running(slow["results"]["child"])
    assert after["status"] == "passed"


def test_the_record_is_written_after_every_stage(tmp_path):
    """The second stage finds the first one's entry."""
    look = "import json, sys; print([s['status'] for s in json.load(open(sys.argv[1]))['stages']])"
    found = [python("a", "raise SystemExit(3)"), Stage("b", (PYTHON, "-c", look, str(tmp_path / "record.json")), 30.0)]
    _, record = run(found, tmp_path)
    assert record["stages"][0]["exit_status"] == 3
    assert record["stages"][1]["last_lines"] == ["['failed']"]


def test_old_or_half_results_are_not_taken(tmp_path):
    (tmp_path / "record.files").mkdir()
    (tmp_path / "record.files" / "a.json").write_text('{"old": 1}')
    half = Stage("b", (PYTHON, "-c", "import sys; open(sys.argv[1], 'w').write('{')", "{results}"), 30.0)
    status, record = run([python("a", ""), half], tmp_path)
    assert status == 0
    assert record["stages"][0]["results"] is None
    assert record["stages"][1]["results"] is None and "not JSON" in record["stages"][1]["results_error"]


def test_environment_of_a_stage(tmp_path):
    show = "import os; print(os.environ['OWN'], os.environ['ALL'])"
    _, record = run([python("a", show, environment={"OWN": "{files}"})], tmp_path, ALL="every")
    assert record["stages"][0]["last_lines"] == [f"{tmp_path / 'record.files'} every"]


def test_stages_are_chosen_by_the_beginnings_of_their_names():
    found = [Stage(name, (), 1.0) for name in ("build", "tests", "kernels-1", "kernels-2")]
    assert chosen(found, []) == found
    assert [stage.name for stage in chosen(found, ["kernels", "build"])] == ["build", "kernels-1", "kernels-2"]
    with pytest.raises(ValueError, match="no stage begins with 'bench'; there are: build, tests, kernels-1, kernels-2"):
        chosen(found, ["bench"])


def test_a_killed_run_keeps_its_record_and_leaves_nothing_running(tmp_path):
    script = (
        "import sys, on_gpu; from stages import Stage;"
        "sleep = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)';"
        "on_gpu.STAGES = (Stage('quick', (sys.executable, '-c', ''), 30.0),"
        " Stage('sleep', (sys.executable, '-c', sleep), 60.0));"
        f"on_gpu.main(['--output', {str(tmp_path / 'record.json')!r}])"
    )
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    child = next(int(line) for line in process.stdout if line.strip().isdigit())
    assert is_running(child)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143 and not is_running(child)
    entries = json.loads((tmp_path / "record.json").read_text())["stages"]
    assert [entry["name"] for entry in entries] == ["quick"]
