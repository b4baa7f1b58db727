"""`progdistill compare OUT` on a folder like a quickstart's: nothing but OUT has to be named."""

import json
import shutil

import pytest

from progdistill.cli.main import main
from progdistill.comparison import compare
from progdistill.training import distill
from small_comparisons import SMALL, TRAINING, settings


@pytest.fixture(scope="module")
def quick(folder, tmp_path_factory):
    """A teacher in quick/teacher and its students in quick, as the quickstart leaves them, and a classifier."""
    quick = tmp_path_factory.mktemp("quick") / "out"
    shutil.copytree(folder / "teacher", quick / "teacher")
    distill(str(quick / "teacher"), rounds=3, output_dir=str(quick), updates_per_round=1, **TRAINING)
    shutil.copy(folder / "out" / "classifier.safetensors", quick)
    return quick


def test_teacher_students_and_classifier_are_found(quick, folder, tmp_path):
    flags = [*SMALL, "--output-dir", str(tmp_path), "--methods", "ddim,pd", "--steps", "2,4"]
    assert main(["compare", str(quick), *flags]) == 0
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["teacher"] == str(quick / "teacher") and result["students"] == str(quick)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["figures"]
    named = {"teacher": str(quick / "teacher"), "pd": str(quick), "methods": ("ddim", "pd"), "steps": (2, 4)}
    again = compare(**settings(folder, output_dir=str(tmp_path / "named"), **named))
    assert again["methods"] == result["methods"] and list(again["methods"]["pd"]["steps"]) == ["2", "4"]


def test_what_is_named_is_taken_instead(quick, folder, tmp_path):
    own = {**settings(folder, output_dir=str(tmp_path)), "teacher": str(quick), "methods": ("pd",), "steps": (1,)}
    result = compare(**{**own, "features": "pixels", "pd": str(folder / "out" / "pd")})
    assert result["features"] == "pixels" and result["students"] == str(folder / "out" / "pd")


def test_a_quickstart_that_is_not_finished_is_named(quick, tmp_path):
    shutil.copytree(quick / "teacher", tmp_path / "teacher")
    with pytest.raises(ValueError, match=r"holds a teacher, but no finished student.*or name .*teacher"):
        compare(str(tmp_path), output_dir=str(tmp_path / "compare"))
    assert not (tmp_path / "compare").exists()
