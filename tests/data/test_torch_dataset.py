"""torch data sets and sequences, with every form of item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from progdistill.data import open_dataset

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
LABELS = [2, 0, 1, 0, 2]


class Items(Dataset):
    def __init__(self, items):
        self.items, self.reads = items, 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        return self.items[index]


IMAGE_FORMS = {
    "pil": Image.fromarray,
    "array_hwc": lambda a: a,
    "array_chw": lambda a: np.moveaxis(a, -1, 0) if a.ndim == 3 else a[None],
    "tensor_chw": lambda a: torch.from_numpy(np.moveaxis(a, -1, 0).copy() if a.ndim == 3 else a[None]),
    "tensor_hwc": lambda a: torch.from_numpy(a if a.ndim == 3 else a[..., None]),
    "float_chw": lambda a: IMAGE_FORMS["tensor_chw"](a) / 127.5 - 1,
    "half_chw": lambda a: (IMAGE_FORMS["tensor_chw"](a) / 127.5 - 1).bfloat16(),
    "float_array": lambda a: IMAGE_FORMS["array_chw"](a) / 127.5 - 1,
}
ITEM_FORMS = {
    "image": lambda image, label: image,
    "one_tuple": lambda image, label: (image,),
    "pair": lambda image, label: (image, label),
    "tensor_label": lambda image, label: [image, torch.tensor(label)],
    "numpy_label": lambda image, label: (image, np.int32(label)),
    "mapping": lambda image, label: {"image": image, "label": label},
    "mapping_without_label": lambda image, label: {"image": image},
}


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("item_form", ITEM_FORMS)
@pytest.mark.parametrize("image_form", IMAGE_FORMS)
@pytest.mark.parametrize("arrays", [GREY, COLOUR], ids=["grey", "colour"])
def test_every_item_form(arrays, image_form, item_form, lazy, monkeypatch):
    if lazy:
        monkeypatch.setenv(CACHE, "100")
    make_image, make_item = IMAGE_FORMS[image_form], ITEM_FORMS[item_form]
    source = Items([make_item(make_image(a), label) for a, label in zip(arrays, LABELS, strict=True)])
    dataset = open_dataset(source)
    expected = arrays[:, None] if arrays.ndim == 3 else arrays.transpose(0, 3, 1, 2)
    assert dataset.shape == expected.shape[1:]
    labelled = "label" in item_form.replace("without_label", "") or item_form in ("pair", "mapping")
    assert (dataset.labels.tolist() if labelled else dataset.labels) == (LABELS if labelled else None)
    assert dataset.num_classes == (3 if labelled else None)
    assert np.array_equal(dataset.images().numpy(), expected)
    images, labels = dataset.batch(torch.tensor([4, 4, 1]))
    assert np.array_equal(images.numpy(), expected[[4, 4, 1]])
    assert (labels is None) or labels.tolist() == [2, 2, 0]
    assert (source.reads == 5) == (not lazy)


def test_a_list_and_a_tensor_data_set_are_sources():
    expected = COLOUR.transpose(0, 3, 1, 2)
    assert np.array_equal(open_dataset(list(COLOUR)).images().numpy(), expected)
    pairs = TensorDataset(torch.from_numpy(expected.copy()), torch.tensor(LABELS))
    dataset = open_dataset(pairs)
    assert np.array_equal(dataset.images().numpy(), expected)
    assert dataset.labels.tolist() == LABELS
    assert "TensorDataset" in dataset.name


def test_hugging_face_data_sets_are_sources():
    datasets = pytest.importorskip("datasets")
    columns = {"img": [Image.fromarray(a) for a in COLOUR], "fine_label": LABELS}
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.Value("int64")})
    source = datasets.Dataset.from_dict(columns, features=features)
    dataset = open_dataset(source, image_column="img", label_column="fine_label")
    assert np.array_equal(dataset.images().numpy(), COLOUR.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == LABELS


def test_columns_of_mappings_can_be_named():
    source = [{"img": a, "fine": label} for a, label in zip(COLOUR, LABELS, strict=True)]
    assert open_dataset(source, image_column="img").labels is None
    assert open_dataset(source, image_column="img", label_column="fine").labels.tolist() == LABELS
    with pytest.raises(KeyError, match=r"item 0 of .* has no 'image'; it has \['img', 'fine'\]"):
        open_dataset(source)
    with pytest.raises(KeyError, match="has no 'coarse'"):
        open_dataset(source, image_column="img", label_column="coarse")
    with pytest.raises(ValueError, match="are for mappings"):
        open_dataset(list(COLOUR), image_column="img")


def test_grey_among_colour_becomes_rgb(monkeypatch):
    for cache in ("1000", "0"):
        monkeypatch.setenv(CACHE, cache)
        dataset = open_dataset([GREY[0], COLOUR[1]])
        expected = np.stack([np.stack([GREY[0]] * 3), COLOUR[1].transpose(2, 0, 1)])
        assert np.array_equal(dataset.images().numpy(), expected)


def test_names_are_labels():
    assert open_dataset([(COLOUR[0], "dog"), (COLOUR[1], "cat")]).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (torch.full((3, 6, 4), 255.0), ValueError, r"item 1 .* from 255 to 255; allowed are \[-1, 1\]"),
        (torch.full((3, 6, 4), float("nan")), ValueError, "item 1 .* from nan"),
        (torch.zeros(3, 6, 4, dtype=torch.int64), TypeError, "item 1 .*int64"),
        (torch.zeros(4, 6, 4, dtype=torch.uint8), ValueError, r"item 1 .*\(4, 6, 4\)"),
        (np.zeros((3, 6, 3), np.uint8), ValueError, r"item 1 .*either layout"),
        (np.zeros((0, 4), np.uint8), ValueError, "item 1 .*empty"),
        ("a.png", TypeError, "item 1 .* is a str; allowed are PIL images"),
        ((COLOUR[0], 1, 2), ValueError, "item 1 .*3 parts"),
        (COLOUR[0, :5], ValueError, "item 0 .* has 4x6 and item 1 .* has 4x5"),
        ((COLOUR[0], 1), ValueError, "image 0 has no label but others have"),
    ],
)
def test_wrong_items_are_named(item, error, message):
    with pytest.raises(error, match=message):
        open_dataset([COLOUR[0], item])


def test_floating_point_images_in_zero_to_one_are_noticed():
    with pytest.raises(ValueError, match=r"seem to be in \[0, 1\].*image \* 2 - 1"):
        open_dataset([torch.rand(3, 4, 4) for _ in range(3)])


def test_an_item_that_cannot_be_read_is_named(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-500])
    with (
        Image.open(tmp_path / "a.png") as broken,
        pytest.raises(ValueError, match=r"cannot decode item 0 of"),
    ):
        open_dataset([broken])

    class Failing(Items):
        def __getitem__(self, index):
            raise OSError("disk on fire")

    with pytest.raises(ValueError, match=r"cannot read item 0 of .*Failing.*disk on fire"):
        open_dataset(Failing([0]))


def test_what_is_no_source_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(COLOUR)

    for source in (Stream(), {"a": COLOUR[0]}, b"bytes", 7, None):
        with pytest.raises(TypeError, match=r"cannot open a \w+ as a data set"):
            open_dataset(source)
    with pytest.raises(ValueError, match="at least one image"):
        open_dataset([])
