"""`Sampler` with CUDA graphs, against the same steps without them."""

import copy

import pytest
import torch

from progdistill import Sampler
from progdistill.core import Denoiser
from progdistill.sampling import generate, sample
from small_students import student

F32 = torch.float32
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.fixture
def without_tf32(monkeypatch):
    """Convolutions of float32 tensors in float32, whichever algorithm cuDNN chooses."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captured_graphs_against_eager(without_tf32, steps, dtype):
    model = student().cuda()
    ready = Sampler(model, steps, batch_sizes=(1, 7, 64), dtype=dtype, cuda_graph="require").warmup()
    assert ready.graph_memory() > 0
    eager = Sampler(model, steps, batch_sizes=(64,), dtype=dtype, cuda_graph=False)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for count in (1, 5, 7, 64, 100):
        got, expected = ready.generate(torch.arange(count)), eager.generate(torch.arange(count))
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    one, other = torch.cuda.Stream(), torch.cuda.Stream()
    with torch.cuda.stream(one):
        first = ready.generate(torch.arange(64))
    with torch.cuda.stream(other):
        second = ready.generate(torch.arange(64) + 64)
    torch.cuda.synchronize()
    together = eager.generate(torch.arange(128))
    torch.testing.assert_close(torch.cat([first, second]), together, rtol=0, atol=tolerance)


def test_sampling_on_a_gpu_equals_sampling_on_the_cpu(without_tf32):
    model = student()
    expected = sample(model, 4, batch_size=6, output_type="pt")
    got = sample(copy.deepcopy(model).cuda(), 4, batch_size=6, output_type="pt", dtype=torch.float32)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-4)


def fill_free_memory():
    """Not a number wherever torch takes memory to be free."""
    torch.cuda.synchronize()
    kept = [torch.full((size // 4,), float("nan"), device="cuda") for size in 16 * [2**20] + 8 * [32 * 2**20]]
    torch.cuda.synchronize()
    kept.clear()
    torch.cuda.empty_cache()


def test_graphs_need_nothing_that_others_may_free(without_tf32):
    """Neither the graphs that went, nor cuBLAS's workspaces, which torch.compile frees, nor what autocast keeps."""
    model = student().cuda()
    expected = Sampler(model, 2, dtype=F32, cuda_graph=False).generate(torch.arange(8))
    with torch.inference_mode(), torch.autocast("cuda", dtype=torch.bfloat16):
        ready = Sampler(model, 2, batch_sizes=(2, 8), dtype=F32, cuda_graph="require", memory_budget=1)
        ready.generate(torch.arange(8))
    for count in (2, 8, 8, 2):
        fill_free_memory()
        torch.testing.assert_close(ready.generate(torch.arange(count)), expected[:count], rtol=0, atol=1e-4)
        torch._C._cuda_clearCublasWorkspaces()
    ready.refresh()
    torch.testing.assert_close(ready.generate(torch.arange(8)), expected, rtol=0, atol=1e-4)


class Wrapped(torch.nn.Module):
    """A network of somebody's own: no copy is made of it, so graphs read its weights themselves."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, z, time):
        return self.network(z, time)


@pytest.mark.parametrize("wrap", [Wrapped, lambda network: network], ids=["own_weights", "a_copy"])
def test_graphs_outlast_the_weights_that_they_read(without_tf32, wrap):
    model = student()
    model = model.with_network(wrap(model.network)).cuda()
    ready = Sampler(model, 2, batch_sizes=(8,), dtype=F32, cuda_graph="require")
    before = ready.generate(torch.arange(8))
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data
    fill_free_memory()
    torch.testing.assert_close(ready.generate(torch.arange(8)), before, rtol=0, atol=1e-5)
    ready.refresh()
    expected = Sampler(model, 2, dtype=F32, cuda_graph=False).generate(torch.arange(8))
    torch.testing.assert_close(ready.generate(torch.arange(8)), expected, rtol=0, atol=1e-4)


def test_a_network_made_on_the_gpu():
    """Its embedding of the guidance is computed within the graph, from nothing on the CPU."""
    with torch.device("cuda"):
        model = student(num_class_embeds=4, guidance_embed_dim=8)
    model = model.with_network(model.network, guidance_range=(1.0, 4.0))
    labels, scales = torch.tensor([3, 0, 1]), torch.tensor([1.0, 2.5, 4.0])
    ready, eager = (Sampler(model, 2, cuda_graph=graph) for graph in ("require", False))
    expected = eager.generate(torch.arange(3), labels, scales)
    torch.testing.assert_close(ready.generate(torch.arange(3), labels, scales), expected, rtol=0, atol=0.05)


class Looking(torch.nn.Module):
    """Looks at its input's values, which no capture survives."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, z, time):
        return self.factor * z if float(z.mean()) > -10 else z


def test_a_failed_capture_leaves_torch_as_it_was():
    model = Denoiser(Looking(), sample_shape=(1, 8, 8))
    expected = generate(model, 2, seeds=torch.arange(3))
    model.cuda()
    torch.cuda.manual_seed(3)
    numbers, stream = torch.randn(4, device="cuda"), torch.cuda.current_stream()
    torch.cuda.manual_seed(3)
    sampler = Sampler(model, 2)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        images = sampler.generate(torch.arange(3))
    torch.testing.assert_close(images.cpu(), expected, rtol=0, atol=1e-5)
    assert torch.cuda.current_stream() == stream and torch.equal(torch.randn(4, device="cuda"), numbers)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            Sampler(model, 2, cuda_graph="require").generate(torch.arange(3))
    fill_free_memory()
    other = student().cuda()
    ready, eager = (Sampler(other, 2, cuda_graph=graph) for graph in ("require", False))
    torch.testing.assert_close(ready.generate(torch.arange(3)), eager.generate(torch.arange(3)), rtol=0, atol=0.05)


def test_page_locked_latents_may_be_changed_after_the_call():
    ready = Sampler(student().cuda(), 2, batch_sizes=(64,), cuda_graph="require")
    latents = torch.randn(64, 1, 8, 8)
    expected = ready.generate(latents)
    locked = latents.pin_memory()
    torch.cuda._sleep(100_000_000)  # cycles that the call has to wait for
    got = ready.generate(locked)
    locked.zero_()
    torch.testing.assert_close(got, expected, rtol=0, atol=0.05)
    assert expected.std() > 0.1  # and so not those of zeros
