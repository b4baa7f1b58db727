"""benchmarks/sampling.py: that contenders agree, that wrong ones are seen, and what is made of the figures."""

import csv
import json
import time

import pytest
import torch

import sampling
import sampling_contenders
from launches import counted_elsewhere
from sampling import Settings, distance, main, measure, random_model, timed
from sampling_contenders import Contender, Size, contenders, loop, missing
from sampling_table import cell_lines, closing_lines
from start_up import prepare, start_up
from textbook_unet import TextbookUNet, stock_network

SETTINGS = Settings("cpu", 2, 1e-3, False, ())
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def model():
    return random_model("digits8", "cpu")


@pytest.fixture
def size(model, tmp_path):
    return Size(model, TextbookUNet(model.network).eval(), 3, tmp_path)


def test_quick_on_the_cpu(tmp_path, capsys):
    threads = str(torch.get_num_threads())
    files = ["--output", str(tmp_path / "s.json"), "--csv", str(tmp_path / "s.csv")]
    assert main(["--device", "cpu", "--quick", "--threads", threads, *files]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert [(cell["batch_size"], cell["steps"]) for cell in found["cells"]] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    for cell in found["cells"]:
        assert cell["notes"] == []
        assert {"Sampler, bfloat16", "Sampler, float32", "sample()", "eager, float32"} <= {
            r["contender"] for r in cell["records"]
        }
        for record in cell["records"]:
            assert record["minimum"] <= record["median"] and record["start_up_seconds"] > 0
            assert record["images_per_second"] == pytest.approx(cell["batch_size"] / record["median"])
            assert record["repetitions"] == len(record["seconds"]) == 3 and record["percentile_99"] is None
    assert found["left_out"]["eager in a CUDA graph"] == "needs a GPU"
    assert "--quick" in found["left_out"]["torch.compile"]
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert len(rows) == sum(len(cell["records"]) for cell in found["cells"])
    assert rows[0]["torch"] == torch.__version__ and rows[0]["network"] == "digits8"
    printed = capsys.readouterr().out
    assert "batch 3, 2 steps" in printed and "left out: eager in a CUDA graph (needs a GPU)" in printed


def test_every_weight_of_the_network_counts(model):
    assert all(parameter.any() for parameter in model.network.parameters() if parameter.dim() > 1)


def test_all_contenders_make_the_same_images(size, monkeypatch):
    """Those for a GPU with stand-ins: a graph runs its function again, a compiled network is the network."""
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    monkeypatch.setattr(sampling_contenders, "captured", lambda rotation, pool: rotation)
    chosen = contenders("cpu")
    if missing(chosen["DDIMPipeline"], "cpu", True):
        del chosen["DDIMPipeline"]
    size.stock = stock_network(size.model.network)[0]
    for steps in (1, 2):
        found = measure(size, steps, SETTINGS, chosen, {})
        assert found["notes"] == []
        assert [record["contender"] for record in found["records"]] == list(chosen)
        by_name = {record["contender"]: record for record in found["records"]}
        assert by_name["Sampler, float32"]["off_by"] < 1e-5 < 1e-3 < by_name["Sampler, bfloat16"]["off_by"]


def wrong_start(size, steps, prepared):
    images = sampling_contenders.stock_loop(size, steps)
    return lambda: images(torch.randn(size.shape).roll(1, dims=-1))


def wrong_time(size, steps, prepared):
    images = loop(size, steps, lambda z, times: size.stock(z, times - 20)[0])
    return lambda: images(torch.randn(size.shape))


def no_numbers(size, steps, prepared):
    return lambda: torch.full(size.shape, torch.nan)


def too_few(size, steps, prepared):
    return lambda: torch.rand(size.shape)[:1]


def too_coarse(size, steps, prepared):
    images = sampling_contenders.stock_loop(size, steps, torch.bfloat16)
    return lambda: images(torch.randn(size.shape))


def a_thousandth_off(size, steps, prepared):
    images = sampling_contenders.stock_loop(size, steps)
    return lambda: images(torch.randn(size.shape)) * 1.001


def three_hundredths_off(size, steps, prepared):
    images = sampling_contenders.stock_loop(size, steps, torch.bfloat16)
    return lambda: images(torch.randn(size.shape)) * 1.03


@pytest.mark.parametrize(
    ("start", "dtype"),
    [(start, torch.float32) for start in (wrong_start, wrong_time, no_numbers, too_few, too_coarse, a_thousandth_off)]
    + [(three_hundredths_off, torch.bfloat16)],
)
def test_wrong_images_are_said_and_not_timed(size, start, dtype):
    chosen = {
        "eager": contenders("cpu")["eager, float32"],
        "theirs": Contender(start, dtype, "torch"),
    }
    found = measure(size, 2, SETTINGS, chosen, {})
    assert [record["contender"] for record in found["records"]] == ["eager"]
    assert "theirs is WRONG: its images are off by" in "\n".join(cell_lines(found))
    lines, failed = closing_lines(result(found))
    assert failed and any("theirs is WRONG" in line for line in lines)


def test_an_eager_loop_that_is_far_off_excuses_nobody(size):
    """What bfloat16 allows follows from the eager loop's own error; a network that breaks in bfloat16 must show."""
    broken = size.stock.network.conv_out.register_forward_hook(
        lambda module, inputs, out: out * 2 if out.dtype == torch.bfloat16 else out
    )
    try:
        chosen = {"eager": contenders("cpu")["eager, bfloat16"]}
        found = measure(size, 1, SETTINGS, chosen, {})
    finally:
        broken.remove()
    assert found["records"] == [] and "is WRONG" in found["notes"][0]["text"] and found["notes"][0]["failed"]


def failing(size, steps, prepared):
    raise RuntimeError("no kernel image\nand more")


@pytest.mark.parametrize(("ours", "failed"), [(True, True), (False, False)])
def test_what_does_not_run_is_said_and_the_others_are_timed(size, ours, failed):
    chosen = {
        "a": Contender(failing, torch.float32, "torch", ours=ours),
        "eager": contenders("cpu")["eager, float32"],
    }
    found = measure(size, 1, SETTINGS, chosen, {})
    assert [record["contender"] for record in found["records"]] == ["eager"]
    assert found["notes"] == [
        {"contender": "a", "text": "does not run: RuntimeError: no kernel image", "failed": failed}
    ]
    assert closing_lines(result(found))[1] == failed


def test_too_little_memory_skips(size):
    def hungry(size, steps, prepared):
        raise torch.OutOfMemoryError("CUDA out of memory")

    found = measure(size, 1, SETTINGS, {"a": Contender(hungry, torch.float32, "torch", ours=True)}, {})
    assert found["notes"][0]["text"].startswith("skipped: OutOfMemoryError") and not closing_lines(result(found))[1]


def test_what_serves_all_step_counts_is_made_once_and_counted_in_each(size):
    made = []

    def slow(size):
        made.append(size.batch_size)
        time.sleep(0.05)
        return "network"

    contender = Contender(lambda size, steps, prepared: lambda: (prepared, steps), torch.float32, "torch", slow)
    prepared = prepare(contender, size)
    for steps in (1, 2):
        call, seconds, memory = start_up(contender, size, steps, prepared)
        assert call() == ("network", steps) and seconds >= 0.05 and memory is None
    assert made == [3]


def test_a_network_is_compiled_once_for_all_step_counts(size, monkeypatch):
    compiled, prepared = [], {}
    monkeypatch.setattr(torch, "compile", lambda network, **options: compiled.append(options) or network)
    for steps in (1, 2):
        found = measure(size, steps, SETTINGS, {"compiled": contenders("cpu")["torch.compile"]}, prepared)
        assert [record["contender"] for record in found["records"]] == ["compiled"]
    assert compiled == [{"mode": "default", "dynamic": False}]


def test_start_up_includes_the_first_calls(size):
    contender = Contender(lambda size, steps, prepared: lambda: time.sleep(0.02), torch.float32, "torch")
    assert start_up(contender, size, 1, prepare(contender, size))[1] >= 0.06


def test_compile_caches_are_put_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    environment = sampling_contenders.os.environ
    with sampling_contenders.compile_cache(tmp_path):
        assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)
        assert environment["TRITON_CACHE_DIR"] == str(tmp_path / "triton")
    assert environment["TRITON_CACHE_DIR"] == "/mine" and "TORCHINDUCTOR_CACHE_DIR" not in environment


def test_on_a_gpu_images_a_second_are_of_calls_one_behind_the_other(monkeypatch):
    monkeypatch.setattr(sampling, "interleaved", lambda calls, clock, **options: {name: [0.5] for name in calls})
    monkeypatch.setattr(sampling, "EventClock", lambda: None)
    monkeypatch.setattr(sampling, "HostClock", lambda device: sampling_clock())
    figures = timed({"a": lambda: None}, 8, SETTINGS._replace(device="cuda"))["a"]
    assert figures["images_per_second"] == 16 and figures["median"] == 1 and figures["seconds_back_to_back"] == 0.5


def sampling_clock():
    class Seconds:
        now = 0

        def mark(self):
            self.now += 1
            return self.now

        def elapsed(self, start, end):
            return end - start

        def wait(self):
            pass

    return Seconds()


def test_distance():
    exact = torch.tensor([1.0, 0.0])
    assert distance(exact, exact) == 0
    assert distance(torch.tensor([1.0, 0.1]), exact) == pytest.approx(0.2 / 2**0.5)
    assert distance(exact[:1], exact) == distance(exact * torch.nan, exact) == float("inf")


def record(contender, median, ours=False, launches=None):
    figures = {"contender": contender, "ours": ours, "median": median, "percentile_99": 2 * median, "repetitions": 200}
    figures |= {"images_per_second": 1 / median, "start_up_seconds": 1.5, "memory_bytes": 3e6, "off_by": 0.0}
    return {**figures, "launches": launches, "kernels": launches}


def result(*cells, trouble=None):
    return {"cells": list(cells), "left_out": {"DDIMPipeline": "needs diffusers"}, "launch_trouble": trouble}


def test_lines_for_people():
    records = [record("Sampler, bfloat16", 2e-3, ours=True, launches=4), record("torch.compile", 1e-3, launches=700)]
    cell = {"batch_size": 64, "steps": 4, "notes": [], "records": records}
    lines = cell_lines(cell)
    assert lines[0].startswith("batch 64, 4 steps")
    assert lines[2].split() == ["torch.compile", "1.000", "2.000", "200", "1000.0", "1.50", "3", "0.0e+00", "0.50"]
    lines, failed = closing_lines(result(cell, trouble="Segmentation fault"))
    text = "\n".join(lines)
    assert not failed
    assert "progdistill is slower than another in 1 of 1 sizes:" in text
    assert "batch 64, 4 steps: torch.compile takes 0.50 of Sampler, bfloat16's time" in text
    assert "left out: DDIMPipeline (needs diffusers)" in text and "Segmentation fault" in text
    counts = lines[lines.index("launches a call:") + 1 :]
    assert [line.split()[-1] for line in counts[1:3]] == ["4", "700"]


def test_another_process_counts_the_launches():
    """On a CPU there are none."""
    words = ["--device", "cpu", "--quick", "--batch-sizes", "2", "--steps", "1", "--contenders", "eager"]
    words += ["--count-launches", "--csv", "no.csv"]
    cells, trouble = counted_elsewhere(sampling.Path(sampling.__file__), words)
    assert trouble is None
    counts = {r["contender"]: (r["launches"], r["kernels"]) for r in cells[0]["records"]}
    assert counts == {"eager, float32": (0, 0), "eager, bfloat16": (0, 0)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contenders", "sampler"], "no contender has 'sampler' in its name; there are: Sampler, bfloat16; "),
        (["--steps", "0"], "'0' is not a positive whole number"),
        (["--device", "cuda"], "torch sees no GPU here; use --device cpu"),
    ],
)
def test_wrong_options(words, message, capsys):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.gpu
@gpu
def test_quick_on_a_gpu(tmp_path):
    assert main(["--device", "cuda", "--quick", "--output", str(tmp_path / "s.json")]) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["launch_trouble"] is None
    for cell in found["cells"]:
        by_name = {record["contender"]: record for record in cell["records"]}
        assert {"Sampler, bfloat16", "eager, bfloat16", "eager in a CUDA graph"} <= set(by_name), cell["notes"]
        assert all(record["memory_bytes"] >= 0 for record in cell["records"])
        # A seed's copy, the graph, and the copy of its result; an eager loop launches every kernel.
        assert 0 < by_name["Sampler, bfloat16"]["launches"] < 10 < by_name["eager, float32"]["launches"]
