"""`progdistill bench` finds and runs the benchmarks of the checkout."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import progdistill
from progdistill.cli import bench, main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path):
    """A checkout with benchmarks of its own."""
    (tmp_path / "python" / "progdistill").mkdir(parents=True)
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "kernels.py").write_text('"""Times things.\n\nMore."""\ndef main(): ...\n')
    (folder / "pieces.py").write_text('"""Shared."""\n')
    (folder / "show.py").write_text(
        "import sys, progdistill\ndef main(): ...\n"
        "open(sys.argv[1], 'w').write(progdistill.__file__)\nraise SystemExit(int(sys.argv[2]))\n"
    )
    return tmp_path


@pytest.fixture
def installed_without_source(tmp_path, monkeypatch):
    """A package in site-packages of which pip knows no folder."""
    package = tmp_path / "lib" / "site-packages" / "progdistill"
    monkeypatch.setattr(progdistill, "__file__", str(package / "__init__.py"))
    monkeypatch.setattr(bench, "_installed_from", lambda: None)


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_lists_the_benchmarks(words, capsys):
    assert main(["bench", *words]) == 0
    printed = capsys.readouterr().out
    for name in ("kernels", "launch_cost", "sampling", "on_gpu", "ablation", "quickstart_trial"):
        assert f"  {name} " in printed
    assert "timing" not in printed and str(ROOT / "benchmarks") in printed


def test_runs_one_with_the_progdistill_that_runs_this(checkout, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "benchmarks_folder", lambda: checkout / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(checkout / "python"))  # another progdistill
    (checkout / "python" / "progdistill" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "show", "said.txt", "0"]) == 0
    assert Path("said.txt").read_text() == str(Path(progdistill.__file__).resolve())
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "show", "said.txt", "3"])
    assert stopped.value.code == 3


@pytest.mark.parametrize(
    ("given", "name"),
    [("step", "train_step"), ("train-step", "train_step"), ("ablation", "ablation"), ("sfd-ablation", "sfd_ablation")],
)
def test_the_last_words_of_a_name_are_enough_if_one_alone_ends_so(given, name, monkeypatch):
    ran = []
    monkeypatch.setattr(
        bench.subprocess, "run", lambda command, env: ran.append(command) or SimpleNamespace(returncode=0)
    )
    assert main(["bench", given, "--quick"]) == 0
    assert [Path(ran[0][1]).stem, *ran[0][2:]] == [name, "--quick"]


def test_ambiguous_words_are_no_name(capsys):
    assert main(["bench", "report"]) == 2  # several end so
    assert "no benchmark is named 'report'" in capsys.readouterr().err


def test_unknown_names_list_the_known(capsys):
    assert main(["bench", "kernel"]) == 2
    assert "no benchmark is named 'kernel'; use one of convolutions" in capsys.readouterr().err


def test_the_current_directory_serves_without_a_checkout_of_the_package(
    checkout, installed_without_source, monkeypatch, capsys
):
    monkeypatch.chdir(checkout)
    assert main(["bench"]) == 0
    printed = capsys.readouterr().out
    assert "  kernels  Times things.\n" in printed and "pieces" not in printed


def test_without_a_checkout_it_says_where_they_are(installed_without_source, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "kernels"]) == 2
    message = capsys.readouterr().err
    assert "no source checkout of progdistill in" in message and "clone the repository" in message


def test_pip_notes_where_a_package_came_from(monkeypatch, tmp_path):
    class Distribution:
        def __init__(self, note):
            self.note = note

        def read_text(self, name):
            assert name == "direct_url.json"
            return self.note

    local = json.dumps({"url": (tmp_path / "a b").as_uri(), "dir_info": {}})
    remote = json.dumps({"url": "https://example.org/progdistill.whl", "archive_info": {}})
    for note, expected in ((local, tmp_path / "a b"), (remote, None), (None, None)):
        monkeypatch.setattr("importlib.metadata.distribution", lambda name, note=note: Distribution(note))
        assert bench._installed_from() == expected
