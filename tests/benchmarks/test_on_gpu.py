"""benchmarks/on_gpu.py: its list of stages, its environment, and what it asks of pytest."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import on_gpu
from on_gpu import STAGES, main, python_of

ROOT = Path(on_gpu.__file__).parents[1]


def test_every_stage_ends_within_eight_minutes_and_names_what_exists(capsys):
    assert len({stage.name for stage in STAGES}) == len(STAGES)
    for stage in STAGES:
        assert 0 < stage.seconds < 480, stage.name
        for word in stage.command:
            if word.startswith("{root}/"):
                assert (ROOT / word.removeprefix("{root}/")).exists(), word
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [stage.name for stage in STAGES]


def test_memcheck_runs_no_test_that_captures_a_graph():
    """It switches the caching allocator off, and without that nothing can be captured."""
    (memcheck,) = (stage for stage in STAGES if stage.name == "sanitizer-memcheck")
    words = memcheck.command[memcheck.command.index("-k") + 1].replace("not ", "").split(" and ")
    for path in (ROOT / "tests" / "ops").glob("test_*.py"):
        for function in re.split(r"^def ", path.read_text(), flags=re.MULTILINE)[1:]:
            name = function.partition("(")[0]
            assert "CUDAGraph" not in function or any(word in name for word in words), name


def test_an_older_record_is_kept(tmp_path, capsys):
    record = tmp_path / "on_gpu.json"
    record.write_text("{}")
    with pytest.raises(SystemExit):
        main(["--output", str(record)])
    assert "exists; name another file with --output, or replace it with --overwrite" in capsys.readouterr().err
    assert record.read_text() == "{}"


def test_the_machine_stage_runs_here(tmp_path):
    output = tmp_path / "out" / "on_gpu.json"
    assert main(["--stages", "machine", "--commit", "abc", "--output", str(output)]) == 0
    (entry,) = json.loads(output.read_text())["stages"]
    assert entry["status"] == "passed"
    assert entry["results"]["progdistill"] == "python/progdistill"
    assert {"processor", "torch", "extension", "commit", "gpu"} <= set(entry["results"])


def test_an_environment_of_its_own_sees_the_packages(tmp_path):
    python = python_of(tmp_path / "venv")
    code = "import sys, numpy, pytest; print(sys.prefix)"
    done = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "venv")
    assert python_of(tmp_path / "venv") == python


def pytest_run(folder, *options):
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs a GPU\naddopts = --import-mode=importlib\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu_test_run", "-m", "gpu"]
    command += ["--test-record", "record.json", *options]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "benchmarks"), "HOME": "/"}
    )
    return done, json.loads((folder / "record.json").read_text())


def test_files_whose_packages_are_missing_are_skipped_by_name(tmp_path):
    (tmp_path / "test_a.py").write_text("import no_such_package.inner\n")
    (tmp_path / "test_b.py").write_text(
        "import pytest\n@pytest.mark.gpu\n@pytest.mark.parametrize('n', range(5))\ndef test_b(n): assert n < 3\n"
        "@pytest.mark.gpu\ndef test_c(): pass\ndef test_d(): assert False\n"
    )
    done, record = pytest_run(tmp_path, "--cases-per-test", "3")
    assert done.returncode == 0, done.stdout
    assert (record["passed"], record["failed"], record["skipped"]) == (4, 0, 1)
    assert record["reasons"] == {"no_such_package is not installed": 1}
    done, record = pytest_run(tmp_path)
    assert done.returncode == 1 and (record["passed"], record["failed"]) == (4, 2)


def test_files_that_are_broken_are_errors(tmp_path):
    (tmp_path / "test_a.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): pass\n")
    for broken in ("import progdistill.no_such_room\n", "import literal.no_such_formula\n", "1 / 0\n"):
        (tmp_path / "test_b.py").write_text(broken)
        done, record = pytest_run(tmp_path)
        assert done.returncode != 0 and record["error"] == 1, done.stdout


def test_a_run_in_which_nothing_passed_has_failed(tmp_path):
    (tmp_path / "test_a.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): pytest.skip('needs a GPU')\n")
    done, record = pytest_run(tmp_path)
    assert done.returncode == 1
    assert record["reasons"] == {"needs a GPU": 1} and "no test passed" in record["summary"][-1]
