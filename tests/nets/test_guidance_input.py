"""A U-Net that takes a guidance weight."""

from dataclasses import replace

import pytest
import torch

import tiny
from interop import models
from progdistill.nets.unet import UNet

CLASSES = replace(tiny.NETWORK, num_class_embeds=3)
X, TIMES, LABELS = torch.randn(2, 1, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([0, 2])


def test_the_new_input_changes_nothing_at_first():
    plain, guided = models.randomise(UNet(CLASSES)), UNet(replace(CLASSES, guidance_embed_dim=8))
    missing, unexpected = guided.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["guidance_embedding.projection.weight"] and not unexpected
    with torch.no_grad():
        expected = plain(X, TIMES, LABELS)
        assert torch.equal(guided(X, TIMES, LABELS, torch.tensor([0.0, 3.5])), expected)
        torch.nn.init.normal_(guided.guidance_embedding.projection.weight)
        changed = guided(X, TIMES, LABELS, torch.tensor([0.0, 3.5]))
        assert not torch.equal(changed, expected)
        # Each sample by its own weight; neighbouring weights are told apart.
        torch.testing.assert_close(guided(X[1:], TIMES[1:], LABELS[1:], torch.tensor([3.5])), changed[1:])
        assert not torch.equal(guided(X, TIMES, LABELS, torch.tensor([0.01, 3.5]))[0], changed[0])


def test_a_fixed_time_leaves_the_guidance_open():
    net = models.randomise(UNet(replace(CLASSES, guidance_embed_dim=8)))
    with torch.no_grad():
        for weight in (torch.tensor([1.5]), torch.tensor([0.0, 2.0])):
            expected = net(X, torch.tensor([700.0, 700.0]), LABELS, weight)
            torch.testing.assert_close(net(X, net.fixed_time(700.0), LABELS, weight), expected)


def test_missing_and_superfluous_guidance_is_named():
    with pytest.raises(ValueError, match="guidance given to a network that takes none"):
        UNet(CLASSES)(X, TIMES, LABELS, torch.ones(2))
    net = UNet(replace(CLASSES, guidance_embed_dim=8))
    with pytest.raises(ValueError, match="no guidance given to a network with guidance_embed_dim"):
        net(X, TIMES, LABELS)
    with pytest.raises(ValueError, match=r"guidance has shape \(3,\); allowed: \(1,\) or \(2,\)"):
        net(X, TIMES, LABELS, torch.ones(3))
