"""Data sets of Hugging Face's library, in memory, saved and by name; the truth is the library's own decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from progdistill.data import open_dataset

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"
NAMES = ["ant", "bee", "cat", "dog"]


def pixels(count: int = 9) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 6, 5, 3), dtype=np.uint8)


def make(count: int = 9, image: str = "img", label: str = "label", kind=None, **columns):
    features = {image: datasets.Image(), label: kind or datasets.ClassLabel(names=NAMES)}
    features |= {name: datasets.Image() if isinstance(c[0], Image.Image) else None for name, c in columns.items()}
    data = {image: [Image.fromarray(a) for a in pixels(count)], label: [i % 3 for i in range(count)], **columns}
    if None in features.values():
        table = datasets.Dataset.from_dict(data)
        for name, feature in features.items():
            table = table.cast_column(name, feature) if feature is not None else table
        return table
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def decoded(source, column: str = "img") -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(row[column]) for row in source]).transpose(0, 3, 1, 2).copy())


@pytest.fixture(params=["1000000", "0"], ids=["cached", "lazy"])
def cache(request, monkeypatch):
    monkeypatch.setenv(CACHE, request.param)


def test_a_data_set_in_memory(cache):
    source = make()
    dataset = open_dataset(source)
    assert (len(dataset), dataset.shape, dataset.num_classes) == (9, (3, 6, 5), 4)
    assert dataset.labels.tolist() == source["label"][:]
    assert torch.equal(dataset.images(), decoded(source))
    indices = torch.tensor([8, 0, 8, 3])
    assert torch.equal(dataset.batch(indices)[0], decoded(source)[indices])


def test_selections_and_formats(cache):
    source = make()
    for chosen in (source.shuffle(seed=1), source.select([7, 2, 2]), source.with_format("torch").select(range(3, 6))):
        dataset = open_dataset(chosen)
        assert torch.equal(dataset.images(), decoded(chosen.with_format(None)))
        assert dataset.labels.tolist() == [int(label) for label in chosen["label"][:]]


def test_a_data_set_s_own_transform_counts():
    def dim(rows):
        return {"img": [np.asarray(image) // 2 for image in rows["img"]], "label": rows["label"]}

    source = make().with_transform(dim)
    assert torch.equal(open_dataset(source, image_column="img").images(), decoded(make()) // 2)


def test_saved_folders(tmp_path, cache):
    source = make()
    source.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(test=source.select([1]), train=source.select([4, 3])).save_to_disk(tmp_path / "two")
    datasets.DatasetDict(test=source.select([1])).save_to_disk(tmp_path / "three")
    one = open_dataset(str(tmp_path / "one"))
    assert torch.equal(one.images(), decoded(source))
    assert str(tmp_path / "one") in one.name
    assert torch.equal(open_dataset(tmp_path / "two").images(), decoded(source)[[4, 3]])
    assert torch.equal(open_dataset(tmp_path / "two", split="test").images(), decoded(source)[[1]])
    assert torch.equal(open_dataset(tmp_path / "three").images(), decoded(source)[[1]])
    with pytest.raises(KeyError, match=r"no split 'dev'; it has \['test', 'train'\]"):
        open_dataset(tmp_path / "two", split="dev")
    assert torch.equal(
        open_dataset(tmp_path / "one", resolution=4).batch(torch.tensor([5]))[0],
        open_dataset(pixels(), resolution=4).batch(torch.tensor([5]))[0],
    )


def test_splits_of_a_dict_and_of_one_split():
    source = make()
    both = datasets.DatasetDict(a=source.select([0]), b=source.select([1, 2]))
    assert len(open_dataset(both, split="b")) == 2
    with pytest.raises(KeyError, match=r"no split 'train'; it has \['a', 'b'\]: pass one of them as split="):
        open_dataset(both)
    with pytest.raises(KeyError, match="open the DatasetDict to choose 'test'"):
        open_dataset(source, split="test")
    with pytest.raises(ValueError, match="split cannot be used with an array"):
        open_dataset(pixels(), split="test")
    with pytest.raises(ValueError, match="dataset_config_name cannot be used with a Dataset"):
        open_dataset(source, dataset_config_name="x")


def test_columns_are_found_by_type_and_by_name():
    other = [Image.fromarray(255 - a) for a in pixels()]
    assert open_dataset(make(image="photo", label="species")).labels.tolist() == [0, 1, 2] * 3
    two = make(image="photo", sketch=other)
    with pytest.raises(KeyError, match=r"2 columns of images; its columns: photo \(Image\).*sketch \(Image\)"):
        open_dataset(two)
    assert torch.equal(open_dataset(two, image_column="sketch").images(), 255 - decoded(two, "photo"))
    assert torch.equal(open_dataset(make(image="image", sketch=other)).images(), decoded(make(), "img"))
    numbers = make(label="fine", kind=datasets.Value("int64"), coarse=[5] * 9)
    assert open_dataset(numbers).labels is None
    assert open_dataset(numbers, label_column="coarse").num_classes == 6
    with pytest.raises(KeyError, match=r"no column 'x' for label_column; its columns: img \(Image\), fine \(Value\)"):
        open_dataset(numbers, label_column="x")
    with pytest.raises(ValueError, match="'fine' of .* is no column of images.*cast_column"):
        open_dataset(numbers, image_column="fine")
    text = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(KeyError, match=r"0 columns of images; its columns: text \(Value\)"):
        open_dataset(text)
    with pytest.raises(ValueError, match="has no rows"):
        open_dataset(make().select([]))


def test_unlabelled_splits_and_missing_labels():
    source = make().remove_columns("label")
    minus = source.add_column("label", [-1] * 9).cast_column("label", datasets.ClassLabel(names=NAMES))
    assert open_dataset(minus).labels is None
    with pytest.raises(ValueError, match="image 1 has no label"):
        open_dataset(source.add_column("label", [0, None] + [0] * 7))


def test_images_that_are_paths(tmp_path, cache):
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, array in zip(paths, pixels(), strict=False):
        Image.fromarray(array).save(path)
    source = datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image())
    dataset = open_dataset(source)
    assert torch.equal(dataset.images(), decoded(source, "image"))
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read the image at row 1 \(the first is 0\) of datasets.Dataset"):
        open_dataset(source)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": "nowhere.png"}, {"bytes": b"broken", "path": None}])
def test_a_row_without_a_readable_image_is_named(cell):
    good = make(3)
    rows = [good.cast_column("img", datasets.Image(decode=False))[0]["img"], cell]
    source = datasets.Dataset.from_dict({"img": rows}, features=datasets.Features({"img": datasets.Image()}))
    with pytest.raises(ValueError, match=r"cannot read the image at row 1 \(the first is 0\) of"):
        open_dataset(source)


@pytest.mark.parametrize("damage", ["arrow", "state.json", "dataset_info.json", "offsets"])
def test_a_damaged_folder_is_named(tmp_path, damage):
    make().save_to_disk(tmp_path)
    if damage == "offsets":
        path = tmp_path / "data-00000-of-00001.arrow"
        content = bytearray(path.read_bytes())
        lengths = [len(row["img"]["bytes"]) for row in make().cast_column("img", datasets.Image(decode=False))]
        ends = np.cumsum([0, *lengths]).astype(np.int32).tobytes()
        start = content.index(ends)
        content[start + 4 : start + 8] = (2**30).to_bytes(4, "little")  # points far out of the mapped file
        path.write_bytes(content)
    else:
        path = next(tmp_path.glob("*.arrow")) if damage == "arrow" else tmp_path / damage
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cannot read .*, a folder of datasets' save_to_disk"):
        open_dataset(tmp_path).images()


def test_names_on_the_hub(tmp_path, monkeypatch):
    """There is no network here; the library takes a local folder for a name, and offline it says so."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    for split, rows in (("train", [0, 1, 2]), ("test", [5])):
        make().select(rows).to_parquet(tmp_path / "set" / f"{split}-00000-of-00001.parquet")
    name = f"hf:{tmp_path / 'set'}"
    dataset = open_dataset(name)
    assert dataset.name == name
    assert torch.equal(dataset.images(), decoded(make())[:3])
    assert torch.equal(open_dataset(name, split="test").images(), decoded(make())[[5]])
    assert torch.equal(
        open_dataset(name, split="train[1:]", resolution=6).images(), open_dataset(pixels()[1:3], resolution=6).images()
    )
    with pytest.raises(ValueError, match=r"cannot load .*Unknown split"):
        open_dataset(name, split="dev")
    with pytest.raises(ValueError, match="key cannot be used with the Hugging Face hub"):
        open_dataset(name, key="x")


def test_an_unreachable_hub_is_explained(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot load the data set 'nobody/nothing' .*Without network.*save_to_disk"):
        open_dataset("hf:nobody/nothing")
