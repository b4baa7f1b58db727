"""Samplers as ONNX and torch.export files: the same images elsewhere, and nothing half written."""

import importlib
import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from progdistill import export_onnx, export_program, ops
from progdistill.cli import main
from progdistill.core import Denoiser
from progdistill.interop import save
from progdistill.sampling import exported, sample, unrolled
from tiny_models import MILD, model, truth

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
onnx_module = importlib.import_module("progdistill.sampling.export_onnx")  # its function hides it

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def inputs(denoiser, count):
    noise = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
    labels = None if denoiser.num_classes is None else (torch.arange(count) + 1) % denoiser.num_classes
    return noise, labels


def run_onnx(path, noise, labels=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"noise": noise.numpy()} if labels is None else {"noise": noise.numpy(), "class_labels": labels.numpy()}
    (images,) = session.run(["images"], feed)
    return torch.from_numpy(images)


def run_program(path, noise, labels=None):
    module = torch.export.load(path).module()
    return module(noise) if labels is None else module(noise, labels)


def assert_images_of(denoiser, steps, run, path, counts=(1, 5)):
    for count in counts:
        noise, labels = inputs(denoiser, count)
        images = run(path, noise, labels)
        ours = sample(denoiser, steps, latents=noise, class_labels=labels, output_type="pt")
        torch.testing.assert_close(images / 2 + 0.5, ours, rtol=0, atol=2e-6)
        exact = truth(denoiser, noise, steps, labels)
        assert (images - exact).abs().max() <= 2 * (2 * ours - 1 - exact).abs().max() + 1e-6


CASES = {
    "v": (model(), 4),
    "two heads": (model("sample_epsilon"), 2),
    "classes": (model("sample", classes=4), 2),
    "epsilon": (model("epsilon", schedule=MILD), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_onnx_for_any_batch(case, tmp_path):
    denoiser, steps = CASES[case]
    result = export_onnx(denoiser, steps, tmp_path / "student.onnx")
    assert result.path == tmp_path / "student.onnx" and 0 <= result.difference < 1e-5
    assert [entry.name for entry in tmp_path.iterdir()] == ["student.onnx"]
    assert_images_of(denoiser, steps, run_onnx, result.path)
    graph = onnx.load(result.path)
    onnx.checker.check_model(graph)
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"Sin", "Cos", "If", "Loop"} and {node.domain for node in graph.graph.node} == {""}
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert facts["steps"] == str(steps) and facts["prediction_type"] == denoiser.prediction_type
    assert json.loads(facts["schedule"]) == json.loads(json.dumps(denoiser.schedule.to_dict()))
    assert facts["progdistill_version"]
    # Each weight once, whatever the number of steps, and no paths of this machine.
    weights = sum(parameter.numel() for parameter in denoiser.network.parameters())
    assert sum(np.prod(tensor.dims) for tensor in graph.graph.initializer) < 1.05 * weights
    assert b".py" not in result.path.read_bytes() and not any(node.metadata_props for node in graph.graph.node)


def test_onnx_for_one_batch_size_in_bytes(tmp_path):
    denoiser = model()
    path = export_onnx(denoiser, 1, tmp_path / "new" / "x.onnx", batch_size=2, output_type="uint8", clip=0.8).path
    noise, _ = inputs(denoiser, 2)
    pixels = run_onnx(path, noise)
    ours = sample(denoiser, 1, latents=noise, clip=0.8, output_type="uint8")
    assert pixels.dtype == torch.uint8 and pixels.shape == ours.shape
    assert (pixels.int() - ours.int()).abs().max() <= 1 and (pixels == ours).float().mean() > 0.98
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run_onnx(path, inputs(denoiser, 3)[0])


@pytest.mark.parametrize("case", ["v", "classes"])
def test_program_for_any_batch(case, tmp_path):
    denoiser, steps = CASES[case]
    result = export_program(denoiser, steps, tmp_path / "student.pt2")
    assert 0 <= result.difference < 1e-5
    assert_images_of(denoiser, steps, run_program, result.path)
    facts = {"progdistill.json": ""}
    torch.export.load(result.path, extra_files=facts)
    assert json.loads(facts["progdistill.json"])["steps"] == steps


def test_a_program_holds_no_pickle(tmp_path, monkeypatch):
    import pickle

    path = export_program(model(), 1, tmp_path / "student.pt2").path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for name, data in members.items():
        assert not data or not name.endswith(".pt"), name
        assert b".py" not in data, f"{name} tells of this machine"

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    run_program(path, inputs(model(), 2)[0])


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("student/data/sample_inputs/model.pt", b"something"),
        ("student/data/weights/model_weights_config.json", b'{"config": {"weight": {"use_pickle": true}}}'),
    ],
)
def test_a_program_with_a_pickle_is_refused(tmp_path, monkeypatch, member, content):
    def save(program, file, extra_files):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(member, content)

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(ValueError, match="as pickles, which can run code"):
        export_program(model(), 1, tmp_path / "student.pt2")
    assert not list(tmp_path.iterdir())


@gpu
@pytest.mark.gpu
def test_a_program_for_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    denoiser = model().cuda()
    path = export_program(denoiser, 2, tmp_path / "student.pt2").path
    noise, _ = inputs(denoiser, 3)
    ours = sample(denoiser, 2, latents=noise, output_type="pt", cuda_graph=False, dtype=torch.float32)
    torch.testing.assert_close(run_program(path, noise.cuda()) / 2 + 0.5, ours, rtol=0, atol=1e-3)


class Refusing(nn.Module):
    """Looks at its input's values."""

    def forward(self, z, time):
        return z if float(z.sum()) > 0 else -z


class Custom(nn.Module):
    """Calls an operator that comes with this package."""

    def forward(self, z, time):
        phi = torch.zeros(z.shape[0], dtype=torch.float64)
        return ops.diffuse(z, z, phi)


class Counting(nn.Module):
    """Python's len() of a tensor is a number, even in a graph for any batch size."""

    def forward(self, z, time):
        return z * torch.ones(len(z), 1, 1, 1)


@pytest.mark.parametrize("export", [export_program, export_onnx])
@pytest.mark.parametrize(
    ("network", "message"),
    [(Refusing(), "sampler of this Refusing into one graph"), (Custom(), "the network calls progdistill.diffuse")],
)
def test_networks_that_are_no_graph(tmp_path, export, network, message):
    with pytest.raises(ValueError, match=message):
        export(Denoiser(network, sample_shape=(1, 8, 8)), 1, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_network_that_only_its_bytecode_explains(tmp_path):
    denoiser = Denoiser(Counting(), sample_shape=(1, 8, 8))
    path = export_program(denoiser, 2, tmp_path / "student.pt2").path
    noise = inputs(denoiser, 5)[0]
    ours = sample(denoiser, 2, latents=noise, output_type="pt")
    torch.testing.assert_close(run_program(path, noise) / 2 + 0.5, ours, rtol=0, atol=1e-6)


@pytest.mark.parametrize("export", [export_program, export_onnx])
def test_other_images_are_not_written(tmp_path, monkeypatch, export):
    path = tmp_path / "student"
    path.write_bytes(b"old")
    right = unrolled._combined
    monkeypatch.setattr(unrolled, "_combined", lambda coefficients, *tensors: 1.01 * right(coefficients, *tensors))
    with pytest.raises(RuntimeError, match=r"deviate from progdistill's by 0\.0.*the tolerance of 0\.001; no file"):
        export(model(), 1, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_counts_as_a_deviation():
    expected = torch.tensor([[[[-1.0, 0.0, 0.4]]]])
    assert exported._deviation(expected + 0.25, expected, "float") == 0.25
    assert np.isnan(exported._deviation(expected * torch.nan, expected, "float"))
    levels = torch.tensor([[[[0], [127], [179]]]], dtype=torch.uint8)  # 0 lies between 127 and 128, 0.4 is 178.5
    assert exported._deviation(levels, expected, "uint8") < 1e-6
    assert exported._deviation(levels + 1, expected, "uint8") == pytest.approx(1.5 / 127.5 - 1 / 255, rel=1e-3)
    with pytest.raises(RuntimeError, match=r"returns torch.float32 \(1, 1, 3\) instead of"):
        exported._deviation(expected[0], expected, "float")


@pytest.fixture
def converted(monkeypatch):
    """The conversion, done once for all tests that are about the file."""
    if not hasattr(converted_once, "graph"):
        converted_once.graph = onnx_module._converted(unrolled.UnrolledSampler(model(), 1), None, None)
    monkeypatch.setattr(onnx_module, "_converted", lambda *_: converted_once.graph)


def converted_once():
    """Keeps the graph of `converted`."""


def test_large_weights_lie_beside_the_file(tmp_path, monkeypatch, converted):
    monkeypatch.setattr(onnx_module, "_MOST_BYTES_INSIDE", 1000)
    path = export_onnx(model(), 1, tmp_path / "student.onnx").path
    small, large = sorted(tmp_path.iterdir(), key=lambda file: file.name)
    assert small == path and large.name.startswith("student.onnx.") and large.suffix == ".data"
    assert_images_of(model(), 1, run_onnx, path, counts=(2,))
    with pytest.raises(RuntimeError, match="deviate"):
        export_onnx(model(), 1, tmp_path / "other.onnx", tolerance=1e-12)
    assert sorted(tmp_path.iterdir()) == [small, large]


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, converted):
    import onnx_ir

    def fill(graph, path, external_data):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    path = tmp_path / "student.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(onnx_ir, "save", fill)
    with pytest.raises(OSError, match="No space"):
        export_onnx(model(), 1, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_without_the_extra(tmp_path, monkeypatch, converted):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.warns(UserWarning, match=r'nobody has looked.*pip install "progdistill\[onnx\]"'):
        assert export_onnx(model(), 1, tmp_path / "student.onnx").difference is None
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r'need onnx and onnxscript: pip install "progdistill\[onnx\]"'):
        export_onnx(model(), 1, tmp_path / "student.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"tolerance": 0.0}, r"tolerance is 0\.0"),
        ({"steps": 3}, "distilled for 4 steps, not 3"),
        ({"opset": 99}, "opset is 99, which torch.onnx cannot write"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(model(valid_steps=(4,)), path=tmp_path / "student.onnx", **{"steps": 4, **arguments})
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    denoiser = model(valid_steps=(2,))
    save(denoiser, "student")
    common = ["export", "--model", "student", "--steps", "2"]
    assert main([*common, "--output", "student.onnx"]) == 0
    assert main([*common, "--format", "torch", "--output", "student.pt2", "--batch-size", "3"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 2 and all("2-step sampler in student." in line and "within" in line for line in printed)
    assert_images_of(denoiser, 2, run_onnx, "student.onnx", counts=(2,))
    assert_images_of(denoiser, 2, run_program, "student.pt2", counts=(3,))
    for wrong, message in (
        (["--format", "gguf"], "unknown format 'gguf'; use one of onnx, torch"),
        (["--format", "torch", "--opset", "18"], "--opset means nothing to --format torch"),
        (["--steps", "4"], "distilled for 2 steps, not 4"),
        (["--output", "student"], "student is a folder"),
    ):
        assert main([*common, "--output", "x", *wrong]) == 2
        assert message in capsys.readouterr().err
