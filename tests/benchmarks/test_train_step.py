"""benchmarks/train_step.py: that all contenders do the same updates, that wrong ones are seen, and what is printed."""

import dataclasses
import json

import pytest
import torch

import stock_update
from kernel_classes import CLASSES
from loss_curves import WINDOW, apart
from own_update import OwnUpdate
from progdistill.core import Denoiser
from progdistill.nets.presets import preset
from progdistill.nets.unet import UNet
from random_model import random_model
from stock_update import StockUpdate
from textbook_unet import TextbookUNet, stock_network
from train_step import Settings, main, measure
from train_step_contenders import Contender, contenders
from train_step_table import closing_lines
from update_task import UpdateTask

SETTINGS = Settings("cpu", 2, False, (), 3, False)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def task():
    model = random_model("digits8", "cpu")
    return UpdateTask(model, TextbookUNet(model.network), 4, 8)


def two_headed_model():
    config = dataclasses.replace(
        preset("imagenet64"),
        sample_size=8,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        attention_head_dim=16,
    )
    torch.manual_seed(0)
    network = UNet(config).eval().requires_grad_(False)
    torch.nn.init.normal_(network.conv_out.weight, std=0.05)
    return Denoiser(network, sample_shape=(3, 8, 8), prediction_type="sample_epsilon", num_classes=1000)


def measured(task, chosen, settings=SETTINGS):
    records, notes = [], []

    def found(record, note):
        records.extend([] if record is None else [record])
        notes.extend([] if note is None else [note])

    measure(task, settings, chosen, 10**9, 10**12, found)
    return records, notes


def test_quick_on_the_cpu(tmp_path, capsys):
    threads = str(torch.get_num_threads())
    output = tmp_path / "t.json"
    assert main(["--device", "cpu", "--quick", "--threads", threads, "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    (cell,) = found["cells"]
    assert cell["notes"] == [] and [r["contender"] for r in cell["records"]] == [
        "progdistill",
        "eager",
        "progdistill, bfloat16",
        "eager, bfloat16",
    ]
    for record in cell["records"]:
        assert record["quantile_20"] <= record["median"] <= record["quantile_80"]
        assert record["flop_per_second"] == pytest.approx(found["update_flop"] / record["median"])
        assert record["of_matrix_rate"] == pytest.approx(
            record["flop_per_second"] / found["matrix_rate"]["flop_per_second"]
        )
        assert record["memory_bytes"] is None and record["start_up_seconds"] > 0
        assert record["dtype"] == ("bfloat16" if "bfloat16" in record["contender"] else "float32")
        assert len(record["curve"]["loss"]) == 3 and set(record["by_class"]["seconds"]) == set(CLASSES)
        assert record["by_class"]["seconds"]["arithmetic"] > 0
    assert "--quick" in found["left_out"]["torch.compile, NCHW"]
    printed = capsys.readouterr().out
    assert "left out: torch.compile in a CUDA graph, NCHW (needs a GPU)" in printed
    for said in ("digits8, batch 4, 16 -> 8 steps", "TFLOP/s", "layout copies and casts", "losses of 3 updates"):
        assert said in printed
    assert found["summary"][-1] in printed


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
def test_updates_in_plain_pytorch_are_those_of_progdistill(task, prediction_type):
    if prediction_type == "sample_epsilon":
        model = two_headed_model()
        task = UpdateTask(model, stock_network(model.network)[0], 4, 4)
    off = apart(OwnUpdate(task).curve(6), StockUpdate(task, torch.float32).curve(6))
    assert max(map(abs, off)) < 1e-4
    low = apart(StockUpdate(task, torch.bfloat16).curve(6), StockUpdate(task, torch.float32).curve(6))
    assert 1e-4 < low.mean < 0.05


def test_a_curve_begins_at_the_first_weights(task):
    for update in (StockUpdate(task, torch.float32), OwnUpdate(task)):
        update()
        update()
        first = update.curve(3)
        update()
        assert update.curve(3) == first
        assert len(set(first["loss"])) == 3


def test_those_for_a_gpu_with_stand_ins(task, monkeypatch, tmp_path):
    """A graph runs its function again, a compiled network is the network."""
    monkeypatch.setattr(torch, "compile", lambda one, **options: one)
    monkeypatch.setattr(stock_update, "captured", lambda function, pool: function)
    chosen = contenders("cpu", tmp_path)
    records, notes = measured(task, chosen)
    assert notes == [] and [record["contender"] for record in records] == list(chosen)
    for record in records:
        assert (record["apart"]["mean"] < 1e-5) == (record["dtype"] == "float32"), record["contender"]


class Changed(StockUpdate):
    """An update that is not that of the others."""

    def __init__(self, task, change):
        super().__init__(task, torch.float32)
        change(self)


def wrong_times(update):
    update._times = update._times - 30


def wrong_target(update):
    update._x_target = lambda z, reached, at, end: reached


def no_update(update):
    update.optimizer.step = lambda: None


def no_numbers(update):
    update._loss = lambda *given: torch.nan * stock_update.truncated_snr_loss(*given)


@pytest.mark.parametrize("change", [wrong_times, wrong_target, no_update, no_numbers])
def test_wrong_updates_are_said_and_not_timed(task, change):
    chosen = {
        "wrong": Contender(lambda task, steps, _: Changed(task, change), torch.float32, lambda task: None),
        "eager": contenders("cpu", None)["eager"],
    }
    records, notes = measured(task, chosen)
    assert [record["contender"] for record in records] == ["eager"]
    assert notes[0]["contender"] == "wrong" and notes[0]["text"].startswith("is WRONG: ") and notes[0]["failed"]


def failing(task, steps, prepared):
    raise RuntimeError("no kernel image\nand more")


@pytest.mark.parametrize(("ours", "failed"), [(True, True), (False, False)])
def test_what_does_not_run_is_said_and_the_others_are_timed(task, ours, failed):
    everyone = contenders("cpu", None)
    chosen = {"a": Contender(failing, torch.float32, lambda task: None, ours=ours), "eager": everyone["eager"]}
    records, notes = measured(task, chosen)
    assert [record["contender"] for record in records] == ["eager"]
    assert notes == [{"contender": "a", "text": "does not run: RuntimeError: no kernel image", "failed": failed}]


def test_what_shares_its_preparation_is_prepared_once(task):
    made = []

    def prepare(task):
        made.append(StockUpdate(task, torch.float32))
        return made[-1]

    one = Contender(lambda task, steps, prepared: prepared, torch.float32, prepare)
    records, notes = measured(task, {"a": one, "b": one, "c": contenders("cpu", None)["eager"]})
    assert len(records) == 3 and notes == [] and len(made) == 1


def test_profiling_times_nothing(task):
    records, notes = measured(task, {"eager": contenders("cpu", None)["eager"]}, SETTINGS._replace(profiling=True))
    assert notes == [] and set(records[0]) == {"contender", "ours", "dtype", "launches", "kernels", "by_class"}


def test_differences_of_curves():
    reference = {"loss": [1.0] * (2 * WINDOW), "grad_norm": [2.0] * (2 * WINDOW)}
    curve = {"loss": [1.1, 0.9] * (WINDOW // 2) + [1.02] * WINDOW, "grad_norm": [1.9] * (2 * WINDOW)}
    off = apart(curve, reference)
    assert off == pytest.approx((0.1, 0.05, 0.06, 0.02, 0.01))


def test_summary_of_a_gpu():
    def record(name, ours, median, layout):
        seconds = dict.fromkeys(CLASSES, 0.0) | {"arithmetic": 0.016, "layout copies": layout}
        return {
            "contender": name,
            "ours": ours,
            "median": median,
            "quantile_20": median,
            "quantile_80": median,
            "flop_per_second": 8e12 / median,
            "of_matrix_rate": 8e12 / median / 8e14,
            "memory_bytes": 5 * 10**9,
            "start_up_seconds": 3.0,
            "curve": {"loss": [1.0], "grad_norm": [1.0]},
            "apart": dict.fromkeys(("first_loss", "first_grad_norm", "mean", "largest_window", "total"), 1e-3),
            "by_class": {"seconds": seconds, "names": []},
            "launches": 1,
            "kernels": 900,
        }

    found = {
        "network": "ddpm-cifar10-32",
        "stock_network": "theirs",
        "update_flop": 8e12,
        "matrix_rate": {"size": 8192, "dtype": "bfloat16", "flop_per_second": 8e14},
        "left_out": {},
        "profile_trouble": None,
        "cells": [
            {
                "batch_size": 128,
                "steps": 8,
                "records": [record("progdistill", True, 0.02, 0.0), record("graph", False, 0.04, 0.004)],
                "notes": [],
            }
        ],
    }
    lines, failed = closing_lines(found)
    text = "\n".join(lines)
    assert not failed and "the fastest other, graph, takes 2.00 of progdistill's time" in text
    assert "20.00     20.00     20.00       400      50.0 %     5000       3.0" in text
    assert "0.0 %    20.0 %" in text and "900" in text


@gpu
@pytest.mark.gpu
def test_a_graph_does_the_same_updates_on_a_gpu(tmp_path):
    output = tmp_path / "t.json"
    assert main(["--device", "cuda", "--quick", "--batch-size", "8", "--output", str(output)]) == 0
    (cell,) = json.loads(output.read_text())["cells"]
    assert {"progdistill", "eager"} <= {record["contender"] for record in cell["records"]}
    assert all(record["by_class"] for record in cell["records"])
    model = random_model("digits8", "cuda")
    task = UpdateTask(model, stock_network(model.network)[0], 8, 8)
    update = StockUpdate(task, torch.bfloat16)
    eager = update.curve(5)
    graphed = stock_update.GraphedUpdate(update).curve(5)
    assert max(map(abs, apart(graphed, eager))) < 1e-2
