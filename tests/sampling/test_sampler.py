"""`Sampler`: fixed steps, graphs (a stand-in that runs the function again), padding, changed weights.

On a GPU: test_sampler_on_a_gpu.py.
"""

import contextlib
import copy
import threading
from types import SimpleNamespace

import pytest
import torch

from analytic import MixtureDenoiser
from progdistill import Sampler
from progdistill.core import Denoiser
from progdistill.nets import upsampling
from progdistill.sampling import generate, sample
from progdistill.sampling import sampler as sampler_module
from progdistill.sampling.sampler import default_dtype
from small_students import student

F32 = torch.float32


class Again:
    """What CudaGraph does, with the function run again into the memory of its first result."""

    made = 0

    def __init__(self, run, device, pool):
        self._run, self.result, self.memory = run, run(), 100
        type(self).made += 1

    def replay(self):
        with torch.autocast("cpu", enabled=False):  # a recording does not care
            return self.result.copy_(self._run())


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    """Samplers made in the test use stand-ins for graphs."""
    monkeypatch.setattr(sampler_module, "CudaGraph", Again)
    monkeypatch.setattr(sampler_module, "GraphPool", lambda device: object())
    monkeypatch.setattr(Again, "made", 0)
    plain = Sampler.__init__

    def wanting(self, *arguments, **options):
        plain(self, *arguments, **options)
        self._graphs_wanted = self.cuda_graph is not False

    monkeypatch.setattr(Sampler, "__init__", wanting)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "sample_epsilon"])
@pytest.mark.parametrize("clip", [None, 0.9])
def test_fixed_steps_are_those_of_ddim(steps, prediction_type, clip):
    model = student(prediction_type=prediction_type, out_channels=2 if prediction_type == "sample_epsilon" else 1)
    expected = generate(model, steps, seeds=torch.arange(5), clip=clip)
    got = Sampler(model, steps, clip=clip, dtype=F32).generate(torch.arange(5))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_classes_latents_and_denoisers_of_ones_own():
    model, labels = student(num_class_embeds=4), torch.tensor([3, 0, 1])
    latents = torch.randn(3, 1, 8, 8)
    expected = generate(model, 2, seeds=torch.arange(3), latents=latents, class_labels=labels)
    sampler = Sampler(model, 2, dtype=F32)
    torch.testing.assert_close(sampler.generate(latents, labels), expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        model.network.time_embedding.linear_2.weight.mul_(3.0)
    sampler.refresh()
    changed = generate(model, 2, seeds=torch.arange(3), latents=latents, class_labels=labels)
    assert (changed - expected).abs().max() > 1e-3
    torch.testing.assert_close(sampler.generate(latents, labels), changed, rtol=0, atol=1e-6)
    own = MixtureDenoiser([-0.7, 0.4], [0.15, 0.3], sample_shape=(1, 4, 4))
    expected = generate(own, 8, seeds=torch.arange(3))
    torch.testing.assert_close(Sampler(own, 8).generate(torch.arange(3)), expected, rtol=0, atol=1e-6)


def test_graphs_of_a_few_sizes_serve_all(graphs_on_cpu):
    model = student()
    expected = generate(model, 2, seeds=torch.arange(20))
    sampler = Sampler(model, 2, batch_sizes=(1, 4, 8), dtype=F32).warmup()
    assert Again.made == 3
    sampler.warmup("pil")
    assert Again.made == 6
    results = {count: 2 * sampler(batch_size=count) - 1 for count in (1, 3, 4, 7, 20, 2)}
    for count, images in results.items():  # after all calls: no result is another one's memory
        assert images.shape == (count, 1, 8, 8)
        torch.testing.assert_close(images, expected[:count], rtol=0, atol=1e-5)
    assert Again.made == 6
    assert sampler.generate(torch.arange(0)).shape == (0, 1, 8, 8)
    assert sampler(seed=[], output_type="uint8").shape == (0, 8, 8, 1)
    latents = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(
        sampler.generate(latents), generate(model, 2, seeds=torch.arange(3), latents=latents), rtol=0, atol=1e-5
    )
    assert Again.made == 7


def test_labels_of_padded_batches(graphs_on_cpu):
    model, labels = student(num_class_embeds=4), torch.tensor([3, 0, 1])
    sampler = Sampler(model, 2, batch_sizes=(4,), dtype=F32)
    for given in (labels, labels.flip(0), labels):
        expected = generate(model, 2, seeds=torch.arange(3), class_labels=given)
        torch.testing.assert_close(sampler.generate(torch.arange(3), given), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("least_channels", [1, 10**6], ids=["kernels_kept", "none_kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_weights(graphs_on_cpu, dtype, least_channels, monkeypatch):
    monkeypatch.setattr(upsampling, "LEAST_CHANNELS", least_channels)
    model = student()
    sampler = Sampler(model, 2, dtype=dtype)
    before = sampler.generate(torch.arange(4))
    kept = sample(model, 2, batch_size=4, dtype=torch.bfloat16, output_type="pt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    sampler.refresh()
    after = sampler.generate(torch.arange(4))
    assert (after - before).abs().max() > 0.01
    assert torch.equal(after, Sampler(model, 2, dtype=dtype, batch_sizes=(4,)).generate(torch.arange(4)))
    looked = sample(model, 2, batch_size=4, dtype=torch.bfloat16, output_type="pt")
    assert (looked - kept).abs().max() > 0.005
    model.network = copy.deepcopy(model.network).double().float()  # other memory
    assert torch.equal(sample(model, 2, batch_size=4, dtype=torch.bfloat16, output_type="pt"), looked)


def test_graphs_that_read_the_models_own_weights_go_when_it_gets_others(graphs_on_cpu):
    for dtype, made in ((F32, 2), (torch.bfloat16, 1)):  # a copy stays where it is
        model = student()
        sampler = Sampler(model, 2, batch_sizes=(4,), dtype=dtype)
        before, Again.made = sampler.generate(torch.arange(4)), 1
        for parameter in model.parameters():
            parameter.data = 1.1 * parameter.data
        sampler.refresh()
        after = sampler.generate(torch.arange(4))
        assert Again.made == made and (after - before).abs().max() > 0.01
        sampler.refresh()
        assert torch.equal(sampler.generate(torch.arange(4)), after) and Again.made == made


def test_bfloat16_is_as_good_as_the_network_in_bfloat16():
    model = student()
    half = model.with_network(copy.deepcopy(model.network).bfloat16())
    exact = generate(model, 4, seeds=torch.arange(32))
    error = (Sampler(model, 4, dtype=torch.bfloat16).generate(torch.arange(32)) - exact).abs()
    allowed = (generate(half, 4, seeds=torch.arange(32)) - exact).abs()
    assert 0 < error.max() <= 2 * allowed.max() and error.mean() <= 2 * allowed.mean()


def test_memory_budget_lets_the_least_used_graphs_go(graphs_on_cpu):
    sampler = Sampler(student(), 1, batch_sizes=(1, 2, 4), memory_budget=250)
    for size in (1, 2, 4):
        sampler.generate(torch.arange(size))
    assert sampler.graph_memory() == 200  # a graph of the stand-in holds 100
    sampler.generate(torch.arange(2))
    sampler.generate(torch.arange(1))
    made = Again.made
    sampler.generate(torch.arange(2))
    assert Again.made == made
    sampler.generate(torch.arange(4))
    assert Again.made == made + 1 and sampler.graph_memory() == 200


def test_a_network_that_cannot_be_captured(graphs_on_cpu, monkeypatch):
    def fails(run, device, pool):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(sampler_module, "CudaGraph", fails)
    model = student()
    sampler = Sampler(model, 2, dtype=F32)
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted"):
        images = sampler.generate(torch.arange(3))
    torch.testing.assert_close(images, generate(model, 2, seeds=torch.arange(3)), rtol=0, atol=1e-5)
    required = Sampler(model, 2)
    required.cuda_graph = "require"
    with pytest.raises(RuntimeError, match="not permitted"):
        required.generate(torch.arange(3))
    monkeypatch.setattr(
        sampler_module, "CudaGraph", lambda run, device, pool: pools.append(pool) or fails(run, device, pool)
    )
    pools = []
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not permitted"):
            required.generate(torch.arange(3))
    assert pools[0] is not pools[1]  # torch does not record again to a pool that a capture has failed in


def test_what_a_caller_is_in_does_not_last(graphs_on_cpu):
    """Inference mode, whose tensors cannot be written to later; autocast, whose casts of weights do not live long."""
    model = student()
    plain = {dtype: Sampler(model, 2, dtype=dtype)(batch_size=3) for dtype in (F32, torch.bfloat16)}
    for dtype, expected in plain.items():
        for mode in (torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16)):
            sampler = Sampler(model, 2, dtype=dtype)
            with mode:
                within = Sampler(model, 2, dtype=dtype)
                assert torch.equal(sampler(batch_size=3), expected) and torch.equal(within(batch_size=3), expected)
            within.refresh()
            assert torch.equal(sampler(batch_size=3), expected) and torch.equal(within(batch_size=3), expected)
    with torch.inference_mode():
        made = student()
    for factor in (1.0, 1.2):
        with torch.inference_mode():
            made.network.conv_in.weight.mul_(factor)
        images = sample(made, 2, dtype=torch.bfloat16, output_type="pt", batch_size=3)
        assert torch.equal(images, plain[torch.bfloat16]) == (factor == 1)


def test_calls_on_several_streams_wait_for_one_another(graphs_on_cpu, monkeypatch):
    """Whatever reads or writes what the calls share, the making of it included."""
    log, model = [], student()
    monkeypatch.setattr(torch.cuda, "Event", lambda: SimpleNamespace(record=lambda stream: log.append("record")))
    stream = SimpleNamespace(wait_event=lambda event: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(Denoiser, "device", property(lambda self: SimpleNamespace(type="cuda")))
    monkeypatch.setattr(sampler_module, "FixedSteps", lambda *given: program)
    program = SimpleNamespace(refresh=lambda: log.append("refresh"), network=model.network)
    monkeypatch.setattr(sampler_module, "_plainly", lambda model: contextlib.nullcontext())
    sampler = Sampler(model, 2)
    assert log == ["record"]
    monkeypatch.setattr(sampler, "_run", lambda *given: log.append("run") or torch.zeros(1))
    sampler.refresh()
    sampler.generate(torch.arange(3))
    monkeypatch.setattr(sampler, "_captured", lambda *given: log.append("capture"))
    sampler.batch_sizes = (1,)
    sampler.warmup()
    assert log[1:] == [step for work in ("refresh", "run", "capture") for step in ("wait", work, "record")]


def test_several_threads(graphs_on_cpu):
    model = student()
    sampler, wrong = Sampler(model, 2, batch_sizes=(1, 4), dtype=F32), []
    expected = generate(model, 2, seeds=torch.arange(12))

    def work(first):
        for _ in range(10):
            images = sampler.generate(torch.arange(first, first + 3))
            wrong.append(float((images - expected[first : first + 3]).abs().max()))

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 3, 6, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 40 and max(wrong) < 1e-5


def test_output_types_and_arguments():
    sampler = Sampler(student(), 2)
    pictures, pixels = (sampler(batch_size=3, seed=4, output_type=kind) for kind in ("pil", "uint8"))
    assert pixels.shape == (3, 8, 8, 1) and pixels.dtype == torch.uint8
    assert [list(picture.get_flattened_data()) for picture in pictures] == pixels.flatten(1).tolist()
    torch.testing.assert_close(sampler(seed=[4, 5, 6]), sampler(batch_size=3, seed=4))
    with pytest.raises(ValueError, match="unknown output_type"):
        sampler(output_type="jpeg")


def test_what_is_refused():
    model = student()
    with pytest.raises(ValueError, match="cuda_graph is 'yes'; use \"auto\""):
        Sampler(model, cuda_graph="yes")
    with pytest.raises(ValueError, match="the model is on cpu; move it to a GPU"):
        sample(model, cuda_graph="require")
    with pytest.raises(ValueError, match=r"batch_sizes is \(0, 4\)"):
        Sampler(model, batch_sizes=(0, 4))
    with pytest.raises(ValueError, match="use a positive whole number"):
        Sampler(model, 0)
    with pytest.raises(ValueError, match="runs in float32 without a CUDA graph"):
        sample(model, 2, sampler="stochastic", dtype=torch.bfloat16)


def test_the_default_dtype_is_the_fast_one_for_our_own_networks(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda answer=supported: answer)
        assert default_dtype(student()) == expected
        assert default_dtype(MixtureDenoiser([0.1], [0.2], sample_shape=(1, 4, 4))) == torch.float32


def test_a_copy_of_a_model_takes_no_samplers_along():
    model = student()
    sample(model, 2, dtype=torch.bfloat16, output_type="pt")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.network.conv_in.weight.mul_(2)
    changed = sample(twin, 2, dtype=torch.bfloat16, output_type="pt")
    assert not torch.equal(changed, sample(model, 2, dtype=torch.bfloat16, output_type="pt"))
