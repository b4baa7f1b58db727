"""Updates as graphs: the bits of updates without them, on the CPU with a stand-in that repeats recorded operations."""

import copy
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from interrupted_runs import Interrupted, interrupt_at, lines
from progdistill.nets.unet import UNet
from progdistill.training import distill, train, update_graph
from recorded_graph import CpuRecorder, RecordedGraph

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
COMMON = {"train_batch_size": 8, "progress": False, "logging_steps": 3, "checkpointing_steps": 4, "ema_decay": 0.9}
COMMON |= {"learning_rate": 1e-3, "random_flip": True}


@pytest.fixture(autouse=True)
def quick_pictures(monkeypatch):
    monkeypatch.setattr(sys.modules["progdistill.training.train"], "VALIDATION_STEPS", 2)
    monkeypatch.setattr(sys.modules["progdistill.training.train"], "VALIDATION_IMAGES", 4)


@pytest.fixture
def recorders(monkeypatch):
    """All runs are recorded, on the CPU; the recorders that were made."""
    made = []

    class Counting(CpuRecorder):
        def __init__(self, device):
            super().__init__(device)
            made.append(self)

        def record(self, run):
            self.recorded += 1
            return super().record(run)

    monkeypatch.setattr(update_graph, "CudaRecorder", Counting)
    monkeypatch.setattr(update_graph, "_obstacle", lambda *_: None)
    return made


def data(folder):
    path = folder / "images.npz"
    np.savez(path, images=tiny.IMAGES, labels=np.arange(len(tiny.IMAGES)) % 3)
    return str(path)


def teacher_run(folder, device="cpu", **settings):
    options = {"network": tiny.WITH_DROPOUT, "max_train_steps": 9, "lr_warmup_steps": 20, "class_conditional": True}
    return train(data(folder.parent), str(folder), device=device, **{**COMMON, **options, **settings})


def student_run(teacher, folder, device="cpu", **settings):
    options = {"rounds": 2, "updates_per_round": 7, "validation_images": 2, "data": data(folder.parent)}
    return distill(teacher, output_dir=str(folder), device=device, **{**COMMON, **options, **settings})


def weights(model):
    return torch.cat([p.detach().flatten().cpu() for p in model.network.parameters()])


SETTINGS = {
    "float32": {},
    "bf16": {"mixed_precision": "bf16"},
    "accumulated": {"gradient_accumulation_steps": 4},
    "accumulated bf16": {"gradient_accumulation_steps": 2, "mixed_precision": "bf16"},
    "no average": {"ema_decay": 0.0, "max_grad_norm": 0.0},
    "muon": {"optimizer": "muon"},
    "muon bf16": {"optimizer": "muon", "mixed_precision": "bf16"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_graphs_train_a_teacher_with_the_bits_of_eager_updates(recorders, tmp_path, settings):
    """Dropout included: each microbatch has its seed."""
    eager = teacher_run(tmp_path / "eager", cuda_graph=False, **settings)
    assert not recorders
    graphs = teacher_run(tmp_path / "graphs", **settings)
    assert [recorder.recorded for recorder in recorders] == [2 if "gradient_accumulation_steps" in settings else 1]
    assert torch.equal(weights(eager), weights(graphs))
    assert lines(tmp_path / "eager") == lines(tmp_path / "graphs")


@pytest.mark.parametrize("settings", [{"teacher_sampler": "addim", "addim_min_steps": 2}, SETTINGS["accumulated bf16"]])
def test_graphs_distil_with_the_bits_of_eager_updates(recorders, tmp_path, settings):
    """Each round is recorded anew."""
    teacher = teacher_run(tmp_path / "teacher", cuda_graph=False, max_train_steps=3)
    eager = student_run(teacher, tmp_path / "eager", cuda_graph=False, **settings)
    graphs = student_run(teacher, tmp_path / "graphs", **settings)
    assert len(recorders) == 2
    assert torch.equal(weights(eager), weights(graphs))
    assert torch.equal(weights(eager.students[2]()), weights(graphs.students[2]()))
    assert lines(tmp_path / "eager") == lines(tmp_path / "graphs")


@pytest.mark.parametrize("settings", [{}, SETTINGS["accumulated bf16"]], ids=["float32", "accumulated bf16"])
def test_a_run_of_graphs_resumes_bit_for_bit(recorders, tmp_path, monkeypatch, settings):
    """Stopped at the line of update 6, with a checkpoint at 4 whose losses belong to that line."""
    whole = teacher_run(tmp_path / "whole", cuda_graph=False, **settings)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, 2)
        teacher_run(tmp_path / "run", **settings)
    resumed = teacher_run(tmp_path / "run", **settings)
    assert [recorder.recorded > 0 for recorder in recorders] == [True, True]
    assert torch.equal(weights(whole), weights(resumed))
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")


def test_validation_between_updates_sees_the_average_and_disturbs_nothing(recorders, tmp_path):
    settings = {"validation_steps": 2, **SETTINGS["accumulated bf16"]}
    eager = teacher_run(tmp_path / "eager", cuda_graph=False, **settings)
    graphs = teacher_run(tmp_path / "graphs", **settings)
    assert torch.equal(weights(eager), weights(graphs))
    pictures = sorted((tmp_path / "eager" / "samples").glob("*.png"))
    assert len(pictures) == 5
    for picture in pictures:
        assert picture.read_bytes() == (tmp_path / "graphs" / "samples" / picture.name).read_bytes()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_cannot_be_captured_goes_on_eagerly_and_says_so_once(recorders, tmp_path, monkeypatch, accumulation):
    settings = {"gradient_accumulation_steps": accumulation, "mixed_precision": "bf16"}
    eager = teacher_run(tmp_path / "eager", cuda_graph=False, **settings)

    def record(self, run):
        RecordedGraph(run)  # leaves behind what a capture leaves behind
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(update_graph.CudaRecorder, "record", record)
    with pytest.warns(UserWarning, match="without CUDA graphs: an update cannot be captured .*not permitted") as said:
        graphs = teacher_run(tmp_path / "graphs", **settings)
    assert len([warning for warning in said if "CUDA graphs" in str(warning.message)]) == 1
    assert torch.equal(weights(eager), weights(graphs))
    assert lines(tmp_path / "eager") == lines(tmp_path / "graphs")
    with pytest.raises(RuntimeError, match="not permitted"):
        teacher_run(tmp_path / "required", cuda_graph="require", **settings)


class Reading(nn.Module):
    """A network whose Python code looks at its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, z, time):
        return self.conv(z) * (2.0 if float(time.mean()) > 0 else 1.0)


def test_a_host_that_waits_is_not_captured(recorders, tmp_path, monkeypatch):
    """A capture that fails leaves torch in a bad state, so it is not tried."""

    def warm_up(self, run):
        run()
        return ["network.py, line 7", "another"]

    monkeypatch.setattr(update_graph.CudaRecorder, "warm_up", warm_up)
    with pytest.warns(UserWarning, match=r"cannot be captured \(the host waits for the device: network.py, line 7\)"):
        teacher_run(tmp_path / "auto")
    with pytest.raises(RuntimeError, match="the host waits for the device: network.py, line 7"):
        teacher_run(tmp_path / "required", cuda_graph="require")
    assert [recorder.recorded for recorder in recorders] == [0, 0]


def test_what_waits_is_told_from_other_warnings(monkeypatch):
    """Torch warns of the mode in which it warns, too: of that nobody wants to hear."""

    def set_mode(mode):
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet detect all", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with warnings.catch_warnings(record=True) as passed_on:
        warnings.simplefilter("always")
        with update_graph._waits_of_the_host() as waits:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    assert len(waits) == 1 and "test_update_graph.py, line" in waits[0]
    assert [str(warning.message) for warning in passed_on] == ["something else"]


def test_a_read_by_the_host_is_found_when_it_is_recorded(recorders, tmp_path):
    options = {"network": Reading(), "class_conditional": False}
    with pytest.raises(RuntimeError, match="_local_scalar_dense while a graph is recorded"):
        teacher_run(tmp_path / "required", cuda_graph="require", **options)


def test_networks_of_ones_own_and_other_processes_are_said_beforehand(monkeypatch):
    cuda, own, ours = torch.device("cuda"), Reading(), UNet(tiny.NETWORK)
    made = lambda network, mode, device=cuda: update_graph.UpdateGraph(print, print, network, device, mode)  # noqa: E731
    monkeypatch.setattr(update_graph, "CudaRecorder", CpuRecorder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert made(ours, "auto").wanted and made(own, "require").wanted
        assert not made(ours, False).wanted and not made(ours, "auto", torch.device("cpu")).wanted
    with pytest.warns(UserWarning, match="Reading is a network of your own.*'require' captures it"):
        assert not made(own, "auto").wanted
    with pytest.raises(ValueError, match="cuda_graph is 'require', but updates are computed on cpu"):
        made(ours, "require", torch.device("cpu"))
    monkeypatch.setattr(update_graph, "process_count", lambda: 2)
    with pytest.warns(UserWarning, match="2 processes exchange their gradients, which is not captured"):
        assert not made(ours, "auto").wanted
    with pytest.raises(ValueError, match="2 processes exchange"):
        made(ours, True)


@pytest.fixture
def deterministic():
    """Kernels whose sums have a fixed order, as far as there are any."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.deterministic = before[1]


GPU_SETTINGS = {"float32": {"mixed_precision": "no"}, "bf16": {}, **{k: SETTINGS[k] for k in list(SETTINGS)[2:]}}


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("cached", [True, False], ids=["images on the GPU", "images read ahead"])
@pytest.mark.parametrize("settings", GPU_SETTINGS.values(), ids=GPU_SETTINGS)
def test_captured_updates_have_the_bits_of_eager_ones(deterministic, tmp_path, monkeypatch, settings, cached):
    if not cached:
        monkeypatch.setenv("PROGDISTILL_DEVICE_CACHE_BYTES", "0")
    runs = {"eager": False, "graphs": "require"}
    teachers = {name: teacher_run(tmp_path / name, "cuda", cuda_graph=mode, **settings) for name, mode in runs.items()}
    assert torch.equal(weights(teachers["eager"]), weights(teachers["graphs"]))
    assert lines(tmp_path / "eager") == lines(tmp_path / "graphs")
    students = {
        name: student_run(teachers["eager"], tmp_path / f"students {name}", "cuda", cuda_graph=mode, **settings)
        for name, mode in runs.items()
    }
    assert torch.equal(weights(students["eager"]), weights(students["graphs"]))
    assert lines(tmp_path / "students eager") == lines(tmp_path / "students graphs")


@pytest.mark.gpu
@gpu
def test_captured_runs_resume_with_the_bits_of_eager_ones(deterministic, tmp_path, monkeypatch):
    whole = teacher_run(tmp_path / "whole", "cuda", cuda_graph=False)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        interrupt_at(patched, 2)
        teacher_run(tmp_path / "run", "cuda", cuda_graph="require")
    resumed = teacher_run(tmp_path / "run", "cuda", cuda_graph="require")
    assert torch.equal(weights(whole), weights(resumed))
    assert lines(tmp_path / "whole") == lines(tmp_path / "run")


class ReadingUNet(UNet):
    def forward(self, sample, timestep, class_labels=None):
        return super().forward(sample * (1.0 if float(timestep.mean()) < 2000 else 2.0), timestep, class_labels)


@pytest.mark.gpu
@gpu
def test_on_a_gpu_a_read_by_the_host_makes_updates_eager(deterministic, tmp_path):
    torch.manual_seed(0)
    network = ReadingUNet(tiny.NETWORK)
    options = {"class_conditional": False}
    copies = [copy.deepcopy(network) for _ in range(3)]
    eager = teacher_run(tmp_path / "eager", "cuda", network=copies[0], cuda_graph=False, **options)
    with pytest.warns(UserWarning, match="without CUDA graphs: an update cannot be captured"):
        fallen_back = teacher_run(tmp_path / "auto", "cuda", network=copies[1], **options)
    assert torch.equal(weights(eager), weights(fallen_back))
    with pytest.raises(RuntimeError):
        teacher_run(tmp_path / "required", "cuda", network=copies[2], cuda_graph="require", **options)


@pytest.mark.gpu
@gpu
def test_a_capture_that_failed_leaves_an_allocator_that_frees():
    recorder = update_graph.CudaRecorder(torch.device("cuda"))
    with pytest.raises(RuntimeError):
        recorder.record(lambda: float(torch.ones(1, device="cuda")))
    side, current = torch.cuda.Stream(), torch.cuda.current_stream()
    with torch.cuda.stream(side):
        images = torch.empty(2**24, device="cuda")
    images.record_stream(current)
    del images
    torch.cuda.synchronize()
    held = torch.cuda.memory_stats()["active_bytes.all.current"]
    torch.empty(1, device="cuda")  # sees what two streams are done with
    assert torch.cuda.memory_stats()["active_bytes.all.current"] <= held - 2**26
    x = torch.zeros(1, device="cuda")
    update_graph.CudaRecorder(torch.device("cuda")).record(lambda: x.add_(torch.rand_like(x).sign())).replay()
    assert float(x) == 1
