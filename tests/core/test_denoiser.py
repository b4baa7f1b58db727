"""The Denoiser against literal formulas, and keyed random numbers."""

import math

import numpy as np
import pytest
import torch

import literal
from progdistill.core import Condition, CosineSchedule, Denoiser, EDMSchedule, TimeMap
from progdistill.core.random import Stream, integers, sample_seeds, uniform

TYPES = ("epsilon", "sample", "v_prediction", "sample_epsilon")


class Recorder(torch.nn.Module):
    """Returns a fixed output and keeps what it was called with."""

    def __init__(self, output=None):
        super().__init__()
        self.output = output
        self.calls = []

    def forward(self, *inputs):
        self.calls.append(inputs)
        return inputs[0] if self.output is None else self.output


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_predictions_are_the_literal_formulas(prediction_type, dtype, tolerance):
    phi = torch.linspace(0.05, 1.5, 9, dtype=torch.float64)
    z, out = randn(9, 3, 4, 5), randn(9, 6 if prediction_type == "sample_epsilon" else 3, 4, 5, seed=1)
    x, eps = literal.x_and_eps(z, out, phi, prediction_type)
    v = literal.from_x(z, x, phi, "v_prediction")
    model = Denoiser(Recorder(out.to(dtype)), sample_shape=(3, 4, 5), prediction_type=prediction_type)
    for expected, found in ((x, model.x), (eps, model.eps), (v, model.v)):
        found = found(z.to(dtype), phi)
        assert found.dtype == dtype
        # Where the conversion divides by a small sine or cosine, the error grows with the result.
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance * 20)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample_epsilon"])
def test_both_ends_are_finite(prediction_type):
    phi = torch.tensor([0.0, math.pi / 2], dtype=torch.float64)
    z, out = randn(2, 3, 4, 4), randn(2, 6 if prediction_type == "sample_epsilon" else 3, 4, 4, seed=1)
    model = Denoiser(Recorder(out), sample_shape=(3, 4, 4), prediction_type=prediction_type)
    x, eps, v = model.x(z, phi), model.eps(z, phi), model.v(z, phi)
    torch.testing.assert_close(x[0], z[0])
    torch.testing.assert_close(eps[1], z[1])
    if prediction_type == "sample_epsilon":
        torch.testing.assert_close(x[1], out[1, :3])
        torch.testing.assert_close(eps[0], out[0, 3:])
    else:
        torch.testing.assert_close(x[1], -out[1])
        torch.testing.assert_close(eps[0], out[0])
    torch.testing.assert_close(v[0], eps[0])
    torch.testing.assert_close(v[1], -x[1])


def test_a_bfloat16_network_predicts_in_float32():
    z = randn(2, 3, 4, 4, dtype=torch.float32)
    model = Denoiser(Recorder(z.bfloat16()), sample_shape=(3, 4, 4))
    phi = torch.full((2,), 0.5, dtype=torch.float64)
    assert model.raw(z, phi).dtype == torch.bfloat16
    assert model.x(z, phi).dtype == torch.float32


def test_the_network_sees_its_own_time():
    network = Recorder()
    schedule = CosineSchedule(-20.0, 20.0)
    time_map = TimeMap(EDMSchedule(), scale=10.0, offset=0.5)
    z, phi = randn(3, 1, 2, 2), schedule.angle(torch.tensor([0.25, 0.5, 1.0]))
    Denoiser(network, sample_shape=(1, 2, 2), schedule=schedule).raw(z, phi)
    Denoiser(network, sample_shape=(1, 2, 2), schedule=schedule, time_map=time_map).raw(z, phi)
    (state, default), (_, own) = network.calls
    assert state is z
    torch.testing.assert_close(default, torch.tensor([255.0, 511.0, 1023.0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(own, (10 * EDMSchedule().time(phi) + 0.5).float())


def test_labels_reach_the_network_and_are_asked_for():
    network, labels = Recorder(), torch.tensor([2, 0])
    model = Denoiser(network, sample_shape=(1, 2, 2), num_classes=3)
    z, phi = randn(2, 1, 2, 2), torch.full((2,), 0.5, dtype=torch.float64)
    model.v(z, phi, Condition(class_labels=labels))
    assert network.calls[0][2] is labels
    for nothing in (None, Condition()):
        with pytest.raises(ValueError, match="3 classes; pass class_labels"):
            model.raw(z, phi, nothing)


def test_an_unconditional_network_is_called_without_labels():
    network = Recorder()
    z, phi = randn(2, 1, 2, 2), torch.full((2,), 0.5, dtype=torch.float64)
    Denoiser(network, sample_shape=(1, 2, 2)).raw(z, phi, Condition())
    assert len(network.calls[0]) == 2


def test_description_and_its_changes():
    provenance = {"round": 1}
    model = Denoiser(
        torch.nn.Linear(2, 2),
        sample_shape=[1, 2, 2],
        prediction_type="both",
        num_classes=4,
        valid_steps=(1, 8, 4),
        provenance=provenance,
    )
    provenance["round"] = 2
    assert model.sample_shape == (1, 2, 2) and model.prediction_type == "sample_epsilon"
    assert model.schedule == CosineSchedule() and model.time_map == TimeMap(CosineSchedule())
    assert model.valid_steps == (8, 4, 1) and model.provenance == {"round": 1} and model.students == {}
    network = Recorder()
    other = model.with_network(network, prediction_type="eps", valid_steps=None)
    assert other.network is network and other.prediction_type == "epsilon" and other.valid_steps is None
    for name in ("sample_shape", "schedule", "time_map", "num_classes", "provenance"):
        assert getattr(other, name) == getattr(model, name)
    assert model.prediction_type == "sample_epsilon"


def test_device():
    assert Denoiser(Recorder(), sample_shape=(1,)).device == torch.device("cpu")
    assert Denoiser(torch.nn.Linear(2, 2, device="meta"), sample_shape=(1,)).device == torch.device("meta")


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ValueError, match="'noise'.*v_prediction"):
        Denoiser(Recorder(), sample_shape=(1,), prediction_type="noise")


# Random numbers: the first two words of Philox4x32-10 at counter 0 and key 0 (Random123's known answers).
WORDS = (0x6627E8D5, 0xE169C58D)


def test_uniform_is_53_bits_of_the_generator():
    found = uniform(torch.tensor([0]), 0, Stream.NOISE)
    assert found.dtype == torch.float64
    assert found.item() == ((WORDS[0] >> 5) * 2**26 + (WORDS[1] >> 6)) / 2**53
    assert integers(torch.tensor([0]), 0, Stream.NOISE, 10).item() == WORDS[0] * 10 // 2**32


def kolmogorov_smirnov(values):
    """The distance to the uniform distribution times sqrt(n); above 1.95 with probability 0.001."""
    ordered, count = np.sort(values), len(values)
    above = np.arange(1, count + 1) / count - ordered
    return max(above.max(), (1 / count - above).max()) * math.sqrt(count)


@pytest.mark.parametrize("stream", [Stream.TIME, Stream.RENOISE])
def test_uniform_is_uniform(stream):
    seeds = sample_seeds(3, 0, torch.arange(50_000))
    by_seed = uniform(seeds, 7, stream).numpy()
    by_step = np.array([uniform(seeds[:50], step, stream).numpy() for step in range(1000)]).ravel()
    for values in (by_seed, by_step):
        assert values.min() >= 0 and values.max() < 1
        assert kolmogorov_smirnov(values) < 1.95


def test_integers_are_uniform():
    counts = integers(sample_seeds(0, 0, torch.arange(60_000)), 0, Stream.FLIP, 6).bincount(minlength=6)
    assert len(counts) == 6
    chi_squared = ((counts - 10_000.0) ** 2 / 10_000.0).sum()
    assert chi_squared < 20.5  # 5 degrees of freedom, probability 0.001


def test_draws_are_independent_of_the_batch():
    samples = torch.arange(1000, 1064)
    seeds = sample_seeds(5, 2, samples)
    alone = torch.cat([sample_seeds(5, 2, samples[i : i + 1]) for i in range(64)])
    assert torch.equal(seeds, alone)
    for draw in (lambda s: uniform(s, 9, Stream.TIME), lambda s: integers(s, 9, Stream.FLIP, 2)):
        assert torch.equal(draw(seeds), torch.cat([draw(part) for part in seeds.split(7)]))


def test_every_part_of_the_key_matters():
    samples = torch.arange(4096)
    seeds = sample_seeds(0, 0, samples)
    others = [sample_seeds(1, 0, samples), sample_seeds(0, 1, samples), sample_seeds(2**40, 0, samples)]
    assert torch.cat([seeds, *others]).unique().numel() == 4 * 4096
    reference = uniform(seeds, 0, Stream.TIME)
    for other in (
        uniform(seeds, 1, Stream.TIME),
        uniform(seeds, 2**32, Stream.TIME),
        uniform(seeds, 0, Stream.FLIP),
        uniform(others[0], 0, Stream.TIME),
    ):
        correlation = np.corrcoef(reference.numpy(), other.numpy())[0, 1]
        assert abs(correlation) < 5 / math.sqrt(4096)


def test_streams_keep_their_numbers():
    """Checkpoints and recorded runs depend on them."""
    names = ["NOISE", "TIME", "FLIP", "LATENT", "RENOISE", "DROPOUT", "SEEDS"]
    assert [(stream.name, int(stream)) for stream in Stream][:7] == [(name, i) for i, name in enumerate(names)]
