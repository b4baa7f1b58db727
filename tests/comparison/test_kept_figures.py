"""Figures that are there are not measured again, and none is taken for another one."""

import json

import pytest
import torch

import progdistill
from progdistill.comparison import compare
from small_comparisons import METHODS, settings


def figures(result):
    return {
        (name, steps): point["figures"]
        for name, of in result["methods"].items()
        for steps, point in of["steps"].items()
    }


def without_seconds(result):
    return {name: value for name, value in result.items() if name not in ("seconds", "classifier", "teacher", "data")}


def test_the_same_command_measures_nothing_again(folder, copy, measured, monkeypatch):
    monkeypatch.setattr("progdistill.comparison.features.train_classifier", None)  # not even its features' network
    before = json.loads((copy / "metrics.json").read_text())
    wanted = settings(folder, output_dir=str(copy), methods=tuple(METHODS), features=None)
    again = compare(**wanted)
    assert measured == [] and without_seconds(again) == without_seconds(before)
    assert again["classifier"] == before["classifier"] and json.loads((copy / "metrics.json").read_text()) == again
    # The same folder with more to do: only that is done.
    more = compare(**{**wanted, "methods": ("ddim", "ipndm", "d_ode"), "steps": (2, 3, 4)})
    assert sorted(measured) == [2, 3, 4, 4, 4]
    kept = figures(before)
    assert all(value == kept[point] for point, value in figures(more).items() if point in kept)
    assert len(figures(more)) == 9


@pytest.mark.parametrize("change", ["num_images", "seeds", "metrics", "features", "data", "overwrite"])
def test_figures_of_another_measurement_are_not_taken(folder, copy, measured, change, tmp_path):
    own = settings(folder, output_dir=str(copy), methods=("ddim",), steps=(2,))
    data = torch.randint(256, (24, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch_data = torch.utils.data.TensorDataset(data)
    new = {"num_images": 7, "seeds": 3, "metrics": ("kernel",), "features": "pixels", "data": torch_data}
    first = compare(**own)
    assert measured == []
    second = compare(**{**own, change: new.get(change, True)})
    assert measured == [2]
    assert (figures(first) == figures(second)) == (change == "overwrite")
    compare(**{**own, change: new.get(change)})
    assert measured == [2]


def test_figures_of_another_model_are_not_taken(folder, copy, measured):
    teacher = progdistill.load(folder / "teacher")
    own = {**settings(folder, output_dir=str(copy), methods=("ddim",), steps=(2,)), "teacher": teacher}
    first = compare(**own)
    assert measured == []
    with torch.no_grad():
        teacher.network.conv_out.bias.add_(0.1)
    assert figures(compare(**own)) != figures(first) and measured == [2]


def test_a_killed_comparison_keeps_what_it_measured(folder, result, tmp_path, measured):
    methods = ("ddim", "heun", "dpmpp_3m@logsnr", "d_ode", "sfd")
    own = settings(folder, output_dir=str(tmp_path), methods=methods)
    measured.most = 3
    with pytest.raises(KeyboardInterrupt):
        compare(**own)
    assert len(list((tmp_path / "figures").glob("*.json"))) == 3 and not (tmp_path / "metrics.json").exists()
    measured.most = None
    whole = figures(compare(**own))
    assert len(measured) == len(whole) == len(list((tmp_path / "figures").glob("*.json")))
    for point, found in figures(result).items():
        if point[0] in methods:
            assert whole[point]["frechet"]["values"] == pytest.approx(found["frechet"]["values"], rel=1e-6)


def test_methods_that_sample_alike_are_measured_once(folder, tmp_path, measured):
    """With two points, multistep solvers of orders two and three are the same."""
    own = settings(folder, output_dir=str(tmp_path), methods=("dpmpp_2m", "dpmpp_3m", "ipndm"), steps=(1, 2))
    result = compare(**own)
    assert measured == [1, 2, 1, 2]
    assert figures(result)["dpmpp_2m", "2"] == figures(result)["dpmpp_3m", "2"] != figures(result)["ipndm", "2"]


def test_a_file_that_is_no_record_is_measured_anew(folder, copy, measured):
    own = settings(folder, output_dir=str(copy), methods=("ddim",), steps=(2,))
    first = compare(**own)
    for path in (copy / "figures").glob("*.json"):
        path.write_text("[")
    assert figures(compare(**own)) == figures(first) and measured == [2]
    assert figures(compare(**own)) == figures(first) and measured == [2]
