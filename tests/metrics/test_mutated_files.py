"""Damaged classifiers and reference statistics: read as they are, or a ValueError that names the file."""

import random

import pytest
import torch

from progdistill.data import open_dataset
from progdistill.evaluation import reference_statistics
from progdistill.metrics import FeatureClassifier, load_classifier, load_reference_statistics, save_classifier


def mutated(content, chance):
    """Some bytes changed, most of them in the header, or the end cut off."""
    content = bytearray(content)
    if chance.random() < 0.2:
        return bytes(content[: chance.randrange(len(content))])
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(min(len(content), chance.choice([8, 100, 1000, len(content)])))
        content[place] = chance.choice([chance.randrange(256), ord(chance.choice('0123456789"{[,-.e'))])
    return bytes(content)


@pytest.mark.parametrize("kind", ["classifier", "statistics"])
def test_damage_is_named_or_harmless(tmp_path, kind):
    torch.manual_seed(0)
    features = FeatureClassifier(1, (8, 8), 10, data_name="digits")
    good = tmp_path / "good.safetensors"
    if kind == "classifier":
        save_classifier(features, good)
        load = load_classifier
    else:
        images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
        reference_statistics(features, open_dataset(images), good, keep_features=True)
        load = load_reference_statistics
    content, chance, refused = good.read_bytes(), random.Random(0), 0
    bad = tmp_path / "bad.safetensors"
    for _ in range(1500):
        bad.write_bytes(mutated(content, chance))
        try:
            load(bad)
        except ValueError as error:
            assert "bad.safetensors" in str(error)
            refused += 1
    assert 300 < refused < 1500
