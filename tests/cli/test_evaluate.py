"""`progdistill evaluate` as a user meets it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from progdistill.cli import main
from progdistill.data import open_dataset
from progdistill.metrics import METRICS, extract_features, frechet_distance, load_classifier, statistics_of


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez("real.npz", images=real, labels=np.arange(60) % 4)
    (tmp_path / "made").mkdir()
    for i, image in enumerate(rng.integers(40, 200, (35, 8, 8), dtype=np.uint8)):
        Image.fromarray(image).save(tmp_path / "made" / f"{i:03d}.png")
    return tmp_path


def test_two_data_sets_by_every_metric(files, capsys):
    first = ["evaluate", "--images", "made", "--data", "real.npz", "--save-classifier", "c.safetensors"]
    kept = ["--reference-statistics", "ref.safetensors", "--device", "cpu"]
    assert main([*first, *kept, "--metrics", *METRICS, "--output", "all.json"]) == 0
    result = json.loads((files / "all.json").read_text())
    assert set(result["figures"]) == {*METRICS, "precision", "recall", "density", "coverage"} - {
        "precision_recall",
        "density_coverage",
    }
    assert (result["num_images"], result["data_images"]) == (35, 60)
    assert "classifier features" in result["features"] and len(result["features_fingerprint"]) == 32
    classifier = load_classifier("c.safetensors")
    real, made = open_dataset("real.npz").images(), open_dataset("made").images()
    expected = frechet_distance(statistics_of(classifier, real), statistics_of(classifier, made))
    assert result["figures"]["frechet"]["value"] == pytest.approx(expected, rel=1e-6)
    assert result["figures"]["frechet"]["standard_error"] > 0
    assert extract_features(classifier, made).shape == (35, 64)
    output = capsys.readouterr().out
    assert "FID" not in output and "KID" not in output and "± " in output

    assert main(["evaluate", "--images", "made", "--features", "c.safetensors", *kept, "--output", "again.json"]) == 0
    again = json.loads((files / "again.json").read_text())
    assert again["figures"]["frechet"]["value"] == result["figures"]["frechet"]["value"]
    assert again["data"] == result["data"] and set(again["figures"]) == {"frechet"}

    capsys.readouterr()
    other = ["evaluate", "--images", "made", "--data", "made", "--classifier", "c.safetensors"]
    assert main([*other, *kept]) == 2
    assert "(60 images) there, image folder made (35 images) here" in capsys.readouterr().err


def test_pixels_and_torchscript_as_features(files, capsys):
    common = ["evaluate", "--images", "made", "--data", "real.npz", "--device", "cpu"]
    assert main([*common, "--features", "pixels", "--metrics", "sliced_wasserstein"]) == 0
    assert "sliced wasserstein (pixels)" in capsys.readouterr().out

    class Means(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(3).flatten(1)

    torch.jit.trace(Means(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).save("means.ts")
    assert main([*common, "--features", "means.ts"]) == 0
    assert "Frechet distance (means.ts features)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "either --model FOLDER or --images PATH"),
        (["--model", "m", "--images", "made"], "either --model FOLDER or --images PATH"),
        (["--images", "made"], "name one with --data"),
        (["--images", "made", "--features", "pixels"], "no data set to measure"),
        (["--images", "made", "--features", "pixels", "--classifier", "c"], "give one of them"),
        (["--images", "made", "--features", "pixels", "--save-classifier", "c"], "leave out --features"),
        (["--images", "made", "--data", "real.npz", "--metrics", "fid"], "use one or more of frechet, kernel"),
        (
            ["--images", "made", "--data", "real.npz", "--features", "inception:no.pth"],
            "no Inception weights at no.pth",
        ),
    ],
)
def test_what_does_not_fit_is_named(files, capsys, options, message):
    assert main(["evaluate", *options]) == 2
    assert message in capsys.readouterr().err
