"""benchmarks/kernels.py: that it runs, measures every operation, and shows what is wrong or slow."""

import csv
import json

import pytest
import torch

import cuda_on_cpu
import draw_cases
import group_norm_cases
import kernel_cases
import kernels
import optimizer_cases
import padded_sum_cases
import sampling_cases
from kernel_cases import FORWARD, GRADIENT, Case, Contender, as_it_is, cases
from kernel_table import best, case_lines, closing_lines
from kernels import Settings, Subject, main, measure, subject
from progdistill import ops
from progdistill.ops import native
from timing import HostClock

SETTINGS = Settings("cpu", 2, 1e-4, False, ())
SHAPE = subject("4x3x8x8")
ONE, FOUR = Subject("1x1", (1, 1)), Subject("2x2", (2, 2))
STATE = 4 * 4 * 3 * 8 * 8


def named(name):
    (case,) = [case for case in [*cases("cpu"), *sampling_cases.cases("cpu")] if case.name == name]
    return case


def test_quick_on_the_cpu(tmp_path, capsys):
    threads = str(torch.get_num_threads())
    files = ["--output", str(tmp_path / "k.json"), "--csv", str(tmp_path / "k.csv")]
    assert main(["--device", "cpu", "--quick", "--threads", threads, *files]) == 0
    found = json.loads((tmp_path / "k.json").read_text())
    assert found["copy"]["bytes_per_second"] > 0 and found["machine"]["torch"] == torch.__version__
    assert [note for case in found["cases"] for note in case["notes"]] == []
    for case in found["cases"]:
        contenders = {record["contender"] for record in case["records"]}
        assert contenders >= {"reference", "textbook", "copy"}
        for record in case["records"]:
            assert record["minimum"] <= record["quantile_20"] <= record["median"] <= record["quantile_80"]
            assert record["of_copy"] == pytest.approx(
                case["must_move_bytes"] / record["median"] / found["copy"]["bytes_per_second"]
            )
    rows = list(csv.DictReader((tmp_path / "k.csv").open()))
    assert len(rows) == sum(len(case["records"]) for case in found["cases"])
    assert {row["shape"] for row in rows} <= {"4x3x8x8", "digits8", "2x32+32x4x4", "2x64+0x4x4"}
    printed = capsys.readouterr().out
    assert "4x3x8x8  distillation_loss, clip: forward + gradient, must move" in printed
    assert "progdistill is slower than PyTorch in" in printed


def test_every_operation_has_a_case():
    operations = {name.removesuffix("_and_grad") for name in ops.__all__}
    modules = (kernel_cases, optimizer_cases, group_norm_cases, padded_sum_cases, sampling_cases, draw_cases)
    missing = operations - {case.operation for module in modules for case in module.cases("cpu")}
    assert not missing, f"write cases for {missing} in benchmarks/*_cases.py"


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("normal: forward", 1),
        ("diffuse: forward", 3),
        ("ddim_step: forward + gradient", 6),
        ("ddim_step, clip: forward + gradient", 8),
        ("ddim_step_and_input, bf16: forward", 3),
        ("linear_combination, 5 tensors: forward", 6),
        ("distillation_target: forward", 4),
        ("distillation_loss: forward + gradient", 5),
        ("distillation_loss, bf16 outputs: forward + gradient", 3),
        ("distillation_loss, two heads, channels_last: forward + gradient", 9),
        ("prediction_loss: forward + gradient", 4),
        ("half step + loss: forward + gradient", 8),
    ],
)
def test_bytes_that_must_move(name, states):
    found = measure(named(name), SHAPE, SETTINGS, 0, 1.0)
    losses = 4 * 4 if "loss" in name else 0
    assert found["must_move_bytes"] == states * STATE + losses


def test_a_norm_reads_each_image_once_each_way():
    layer = subject("2x32+64x4x4")
    assert layer.sizes == ((2, 32, 4, 4), (2, 64, 4, 4))
    x, y = 2 * 2 * 32 * 16, 2 * 2 * 96 * 16
    values = 2 * (2 * 96 + 2 * 32)
    shift = {case.mode: case for case in group_norm_cases.cases("cpu") if case.variant == "shift"}
    moved = {mode: measure(case, layer, SETTINGS, 0, 1.0)["must_move_bytes"] for mode, case in shift.items()}
    assert moved[FORWARD] == 3 * x + y + values
    assert moved[GRADIENT] == moved[FORWARD] + y + 2 * 3 * x + values
    with pytest.raises(ValueError, match="48 channels cannot be cut into 32 groups"):
        subject("2x32+16x4x4")


def test_a_padded_sum_reads_two_images_and_writes_two():
    layer = subject("2x64+0x4x4")
    x, padded, shift = 2 * 2 * 64 * 16, 2 * 2 * 64 * 25, 2 * 64
    moved = {case.name: measure(case, layer, SETTINGS, 0, 1.0) for case in padded_sum_cases.cases("cpu")}
    assert {name: found["must_move_bytes"] for name, found in moved.items()} == {
        "padded_sum, sum: forward": 3 * x + shift,
        "padded_sum, padding: forward": 3 * x + padded + shift,
        "padded_sum, padding: forward + gradient": 3 * x + padded + shift + 2 * x + padded + shift,
    }
    assert not any(found["notes"] for found in moved.values())


def test_a_norm_that_is_read_twice(monkeypatch):
    cuda_on_cpu.use(monkeypatch)
    monkeypatch.setattr(group_norm_cases, "serving", lambda operation, device: ["cuda"])
    workspace, budgets = native._C.group_norm_workspace, []

    def noted(x, skip, groups, backward, tile_bytes, run):
        budgets.append(tile_bytes)
        return workspace(x, skip, groups, backward, tile_bytes, run)

    monkeypatch.setattr(native._C, "group_norm_workspace", noted)
    for case in group_norm_cases.cases("cpu"):
        t = case.inputs(subject("2x32+64x4x4").sizes, "cpu", 0)
        for name in ("cuda", "cuda, read twice"):
            contender = case.contenders[name]
            contender.join(*contender.pieces)(t)
            calls = 2 if case.mode == GRADIENT else 1
            assert len(budgets) == calls and all((budget > 0) == (name == "cuda") for budget in budgets)
            budgets.clear()


def test_torch_compile_gets_the_formulas_piece_by_piece(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda piece, **options: compiled.append(options) or piece)
    case = named("half step + loss: forward + gradient")
    found = measure(case, SHAPE, SETTINGS._replace(with_compile=True), 0, 1.0)
    assert len(compiled) == 4 and all(options == {"fullgraph": True, "dynamic": False} for options in compiled)
    assert {"reference, compiled", "textbook, compiled"} <= {record["contender"] for record in found["records"]}


def test_a_network_is_its_parameters():
    network = subject("cifar10")
    assert network.elements == 60_004_099 and all(isinstance(shape, tuple) for shape in network.sizes)


def test_contenders_that_change_their_inputs_start_alike():
    def double(t):
        return t["x"].mul_(2).clone()

    case = tiny_case({"reference": double, "cpu": double})._replace(in_place=True)
    assert measure(case, FOUR, SETTINGS, 0, 1.0)["notes"] == []
    assert "WRONG" in measure(case._replace(in_place=False), FOUR, SETTINGS, 0, 1.0)["notes"][0]["text"]


def tiny_case(contenders, mode=FORWARD):
    named = {name: Contender((piece,), as_it_is) for name, piece in contenders.items()}
    return Case("double", "", mode, lambda shape, device, seed: {"x": torch.ones(shape)}, ("x",), named)


def broken(t):
    raise RuntimeError("no such kernel\nand more")


def test_wrong_and_failing_contenders_are_said_and_not_timed():
    case = tiny_case(
        {"reference": lambda t: 2 * t["x"], "cpu": lambda t: 2.01 * t["x"], "cuda": broken, "textbook": broken}
    )
    found = measure(case, FOUR, SETTINGS, 0, 1.0)
    assert {record["contender"] for record in found["records"]} == {"reference", "copy"}
    text = "\n".join(case_lines(found))
    assert "cpu is WRONG" in text and "cuda does not run: RuntimeError: no such kernel" in text
    lines, failed = closing_lines([found])
    assert failed and any("cpu is WRONG" in line for line in lines)
    # Others may fail, as torch.compile does on some machines.
    only_textbook = measure(tiny_case({"reference": lambda t: 2 * t["x"], "textbook": broken}), FOUR, SETTINGS, 0, 1.0)
    assert not closing_lines([only_textbook])[1]


def test_nan_is_wrong():
    case = tiny_case({"reference": lambda t: 2 * t["x"], "cpu": lambda t: torch.nan * t["x"]})
    assert "WRONG" in "\n".join(case_lines(measure(case, FOUR, SETTINGS, 0, 1.0)))


def test_gradient_mode_follows_the_case():
    seen = []
    for mode in (FORWARD, GRADIENT):
        case = tiny_case({"reference": lambda t: seen.append(torch.is_grad_enabled()) or t["x"]}, mode)
        measure(case, ONE, SETTINGS, 0, 1.0)
        assert set(seen) == {mode == GRADIENT}
        seen.clear()


def test_too_little_memory_skips_with_a_line(monkeypatch):
    monkeypatch.setattr(kernels, "free_bytes", lambda device: 1000)
    found = measure(named("diffuse: forward"), SHAPE, SETTINGS, 0, 1.0)
    assert found["records"] == []
    assert "skipped: needs about 0.0 GB, 0.0 GB are free" in case_lines(found)[1]
    assert not closing_lines([found])[1]


def test_running_out_of_memory_skips_and_another_failure_does_not():
    def hungry(t):
        raise torch.OutOfMemoryError("CUDA out of memory")

    skipped = measure(tiny_case({"reference": hungry}), ONE, SETTINGS, 0, 1.0)
    failed = measure(tiny_case({"reference": broken}), ONE, SETTINGS, 0, 1.0)
    assert not closing_lines([skipped])[1] and closing_lines([failed])[1]


def test_the_timers_of_a_gpu(monkeypatch):
    """With stand-ins for graph and events: every copy is visited; what cannot be captured has its events and a note."""

    def capture(rotation, pool):
        rotation()
        if rotation._call is refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        return rotation

    called = []

    def counts(x):
        called.append(x)

    def refuses(x):
        pass

    monkeypatch.setattr(kernels, "captured", capture)
    monkeypatch.setattr(kernels, "EventClock", HostClock)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    notes = []
    sets = {"cuda": [0, 1, 2], "textbook": [0, 1, 2]}
    calls = {"cuda": counts, "textbook": refuses}
    found = kernels.timed(calls, sets, SETTINGS._replace(device="cuda"), notes)
    assert set(found["graph"]) == {"cuda"} and set(found["events"]) == {"cuda", "textbook"}
    assert all(len(values) == SETTINGS.repetitions for timer in found.values() for values in timer.values())
    assert called[:6] == [0, 1, 2, 0, 1, 2]
    assert [note["contender"] for note in notes] == ["textbook"] and not notes[0]["failed"]


def test_figures_are_of_one_call(monkeypatch):
    monkeypatch.setattr(kernels, "captured", lambda rotation, pool: rotation)
    monkeypatch.setattr(kernels, "EventClock", HostClock)
    monkeypatch.setattr(kernels, "interleaved", lambda calls, clock, **options: {name: [6.0] for name in calls})
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    found = kernels.timed({"cuda": abs}, {"cuda": [1, 2, 3]}, SETTINGS._replace(device="cuda"), [])
    assert found == {"graph": {"cuda": [2.0]}, "events": {"cuda": [2.0]}}


def record(contender, median, timer="graph"):
    figures = dict.fromkeys(("quantile_20", "median", "quantile_80", "minimum"), median)
    return {"contender": contender, "timer": timer, **figures, "bytes_per_second": 1 / median, "of_copy": 0.5}


def test_losing_cases_are_named_by_the_main_timer():
    records = [record("cuda", 3e-6), record("triton", 2e-6), record("reference, compiled", 1e-6), record("copy", 1e-7)]
    records += [record("cuda", 9e-6, "events"), record("textbook", 1e-9, "events")]
    case = {"operation": "half step + loss", "variant": "", "mode": GRADIENT, "shape": "1x2x3x4"}
    case |= {"must_move_bytes": 1e6, "notes": [], "records": records}
    assert best(case)["contender"] == "triton"
    lines, failed = closing_lines([case])
    assert "triton 2.0 us, 0.50 of copy; 0.5 x reference, compiled" in lines[1]
    assert "slower than PyTorch in 1 of 1 cases:" in lines[2] and "takes 0.50 of triton's time" in lines[3]
    assert not failed
    table = case_lines(case)
    assert any(line.split() == ["cuda", *["3.00"] * 4, "0.0", "0.50", "1.50", "9.00"] for line in table)
    assert any(line.split() == ["textbook", "-", "0.00"] for line in table)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shapes", "128x3x32"], "'128x3x32' is no shape; write samples, channels, height, width"),
        (["--shapes", "0x3x8x8"], "is no shape"),
        (["--device", "cuda"], "torch sees no GPU here; use --device cpu"),
    ],
)
def test_wrong_options(words, message, capsys):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_an_unknown_case_lists_the_known_ones():
    with pytest.raises(SystemExit, match=r"no case has 'dffuse' in its name; there are:\n  normal: forward"):
        main(["--device", "cpu", "--quick", "--only", "dffuse"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_quick_on_a_gpu(tmp_path):
    assert main(["--device", "cuda", "--quick", "--output", str(tmp_path / "k.json")]) == 0
    found = json.loads((tmp_path / "k.json").read_text())
    for case in found["cases"]:
        assert {"graph", "events"} == {record["timer"] for record in case["records"]}, case["notes"]
        assert case["copies"] > 1
