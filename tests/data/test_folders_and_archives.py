"""Image folders and zip archives, written with Pillow and zipfile."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from progdistill.data import ImageDataset, open_dataset

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 5, 3), dtype=np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def write(where: Path, files: dict[str, bytes], container: str) -> Path:
    """`files` as a folder or as a zip archive."""
    if container == "folder":
        for name, content in files.items():
            (where / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (where / "set" / name).write_bytes(content)
        return where / "set"
    with zipfile.ZipFile(where / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return where / "set.zip"


@pytest.fixture(params=["folder", "zip"])
def container(request) -> str:
    return request.param


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.transpose(2, 0, 1).copy())


def test_sub_folders_are_classes_by_sorted_name(tmp_path, container):
    names = ["zebra/1.png", "ant/b.bmp", "ant/a.PNG", "mouse/deep/er/c.webp"]
    arrays = {name: pixels(i) for i, name in enumerate(names)}
    kinds = {".png": ("PNG", {}), ".bmp": ("BMP", {}), ".webp": ("WEBP", {"lossless": True})}
    files = {}
    for name, array in arrays.items():
        kind, options = kinds[Path(name).suffix.lower()]
        files[name] = encode(array, kind, **options)
    dataset = open_dataset(write(tmp_path, files | {"notes.txt": b"x", "ant/.hidden.png": b"x"}, container))
    assert len(dataset) == 4
    assert dataset.shape == (3, 6, 5)
    assert dataset.num_classes == 3
    assert dataset.labels.tolist() == [0, 0, 1, 2]
    assert dataset.labels.dtype == torch.int64
    expected = torch.stack([chw(arrays[name]) for name in sorted(names)])
    assert torch.equal(dataset.images(), expected)
    images, labels = dataset.batch(torch.tensor([3, 0, 3]))
    assert images.dtype == torch.uint8
    assert torch.equal(images, expected[[3, 0, 3]])
    assert labels.tolist() == [2, 0, 2]


def test_a_flat_folder_has_no_labels_even_inside_others(tmp_path, container):
    files = {f"outer/inner/{i}.png": encode(pixels(i)) for i in range(3)}
    dataset = open_dataset(write(tmp_path, files, container))
    assert dataset.num_classes is None
    assert dataset.labels is None
    assert dataset.batch(torch.tensor([1]))[1] is None


def test_classes_are_found_below_a_folder_that_all_share(tmp_path, container):
    files = {f"cifar/train/{name}/0.png": encode(pixels(0)) for name in ("cat", "dog")}
    assert open_dataset(write(tmp_path, files, container)).labels.tolist() == [0, 1]


def test_images_beside_classes_are_refused(tmp_path, container):
    files = {"0.png": encode(pixels(0)), "cat/1.png": encode(pixels(0))}
    with pytest.raises(ValueError, match=r"beside class sub-folders \('0.png' and 'cat/1.png'\)"):
        open_dataset(write(tmp_path, files, container))


@pytest.mark.parametrize("prefix", ["", "data/"])
def test_dataset_json_as_edm_writes_it(tmp_path, container, prefix):
    files = {f"{prefix}{i // 2:05d}/img{i}.png": encode(pixels(i)) for i in range(4)}
    names = [name[len(prefix) :] for name in files]
    labels = {"labels": [[name, label] for name, label in zip(names[::-1], [3, 0, 5, 0], strict=True)]}
    files[f"{prefix}dataset.json"] = json.dumps(labels).encode()
    dataset = open_dataset(write(tmp_path, files, container))
    assert dataset.labels.tolist() == [0, 5, 0, 3]
    assert dataset.num_classes == 6


def test_the_outermost_dataset_json_counts(tmp_path, container):
    files = {f"in/{i}.png": encode(pixels(i)) for i in range(2)}
    files["in/dataset.json"] = b'{"labels": [["0.png", 0], ["1.png", 0]]}'
    files["dataset.json"] = b'{"labels": [["in/0.png", 1], ["in/1.png", 0]]}'
    assert open_dataset(write(tmp_path, files, container)).labels.tolist() == [1, 0]


def test_dataset_json_can_say_that_there_are_no_labels(tmp_path, container):
    files = {f"{i:05d}/0.png": encode(pixels(i)) for i in range(2)}
    dataset = open_dataset(write(tmp_path, files | {"dataset.json": b'{"labels": null}'}, container))
    assert dataset.labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"labels": [["a.png", 1]]}', "no label for 1 images, such as 'b.png'"),
        (b'{"labels": [["a.png", [0, 1]], ["b.png", [1, 0]]]}', "argmax"),
        (b'{"labels": [["a.png", 1], ["b.png", -2]]}', "label -2"),
        (b'{"labels": [["a.png", 1', "must hold"),
        (b"[]", "must hold"),
    ],
)
def test_a_wrong_dataset_json_is_explained(tmp_path, container, content, message):
    files = {"a.png": encode(pixels(0)), "b.png": encode(pixels(1)), "dataset.json": content}
    with pytest.raises(ValueError, match=message):
        open_dataset(write(tmp_path, files, container))


def test_grey_images_keep_one_channel(tmp_path, container):
    arrays = [pixels(i, 6, 5) for i in range(3)]
    dataset = open_dataset(write(tmp_path, {f"{i}.png": encode(a) for i, a in enumerate(arrays)}, container))
    assert dataset.shape == (1, 6, 5)
    assert np.array_equal(dataset.images()[:, 0].numpy(), np.stack(arrays))


def test_one_colour_image_makes_all_rgb(tmp_path, container):
    grey, colour = pixels(0, 6, 5), pixels(1)
    dataset = open_dataset(write(tmp_path, {"a.png": encode(grey), "b.png": encode(colour)}, container))
    assert dataset.shape == (3, 6, 5)
    assert torch.equal(dataset.images(), torch.stack([chw(np.stack([grey] * 3, axis=2)), chw(colour)]))


def test_images_of_two_sizes_are_refused_by_name(tmp_path, container):
    files = {"a.png": encode(pixels(0)), "b.png": encode(pixels(0)), "c.png": encode(pixels(0, 7, 9, 3))}
    with pytest.raises(ValueError, match=r"a\.png.* has 5x6 and .*c\.png.* has 9x7 .*resolution=5 "):
        open_dataset(write(tmp_path, files, container))


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("damage", ["header", "empty", "truncated", "flipped"])
def test_a_broken_image_is_named(tmp_path, container, damage, lazy, monkeypatch):
    if lazy:
        monkeypatch.setenv(CACHE, "0")
    good = encode(pixels(0, 40, 40, 3))
    middle = len(good) // 2
    broken = {
        "header": b"no image at all",
        "empty": b"",
        "truncated": good[:middle],
        "flipped": good[:middle] + bytes(255 - byte for byte in good[middle : middle + 60]) + good[middle + 60 :],
    }[damage]
    source = write(tmp_path, {"a/1.png": good, "a/2.png": broken, "b/3.png": good}, container)
    with pytest.raises(ValueError, match=r"cannot read the image at .*a/2\.png.*(Replace or remove)"):
        open_dataset(source).images()


def test_a_truncated_jpeg_is_named(tmp_path):
    source = write(tmp_path, {"a.jpg": encode(pixels(0, 64, 64, 3), "JPEG")[:-700]}, "folder")
    with pytest.raises(ValueError, match=r"a\.jpg.*truncated"):
        open_dataset(source)


def test_a_zip_entry_with_wrong_content_is_named(tmp_path):
    content = encode(pixels(0))
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("good.png", content)
        archive.writestr("wrong.png", content)
    data = bytearray(path.read_bytes())
    data[data.index(b"wrong.png") + len("wrong.png") + 45] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"'wrong\.png' in .*set\.zip"):
        open_dataset(path)


def test_a_zip_entry_that_lies_about_its_size_is_named(tmp_path):
    content = encode(pixels(0))
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", content)
    data = path.read_bytes()
    size = len(content).to_bytes(4, "little")
    assert data.count(size) >= 2
    path.write_bytes(data.replace(size, (60).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"cannot read the image at 'bomb\.png' in .*set\.zip"):
        open_dataset(path)


def test_a_zip_entry_without_a_name_does_no_harm(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a.png", encode(pixels(0)))
        archive.writestr("b.png", b"")
    data = (tmp_path / "set.zip").read_bytes()
    directory = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    nameless = data[directory : directory + 28] + b"\0\0\0\0\x05\0" + data[directory + 34 :]  # the name as comment
    (tmp_path / "set.zip").write_bytes(data[:directory] + nameless)
    assert len(open_dataset(tmp_path / "set.zip")) == 1


def test_what_is_no_zip_is_refused(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"set\.zip is not a readable zip archive"):
        open_dataset(tmp_path / "set.zip")


def test_limits_against_decompression_bombs(tmp_path, container, monkeypatch):
    source = write(tmp_path, {"bomb.png": encode(np.zeros((64, 64), np.uint8))}, container)
    monkeypatch.setattr("progdistill.data.decode.MAX_PIXELS", 64 * 63)
    with pytest.raises(ValueError, match=r"bomb\.png.*64x64 pixels are more than 4032"):
        open_dataset(source)
    monkeypatch.undo()
    monkeypatch.setattr("progdistill.data.decode.MAX_ENCODED_BYTES", 50)
    with pytest.raises(ValueError, match=r"bomb\.png.*more than 50 encoded bytes"):
        open_dataset(source)


def test_a_source_without_images_says_what_it_holds(tmp_path, container):
    source = write(tmp_path, {"a.txt": b"", "b.txt": b"", "c.gif": b""}, container)
    with pytest.raises(ValueError, match=r"no PNG, JPEG, WebP or BMP image; found: 2 x \.txt, 1 x \.gif"):
        open_dataset(source)


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(ValueError, match="found: nothing"):
        open_dataset(tmp_path)


def test_a_missing_path_shows_what_is_there(tmp_path):
    (tmp_path / "cats.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"cat\.zip; .* holds cats\.zip"):
        open_dataset(tmp_path / "cat.zip")
    (tmp_path / "cats.rar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"suffix '\.rar': allowed are an image folder"):
        open_dataset(tmp_path / "cats.rar")


def test_links_to_folders_are_followed_once(tmp_path):
    source = write(tmp_path, {"cat/0.png": encode(pixels(0))}, "folder")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "1.png").write_bytes(encode(pixels(1)))
    (source / "dog").symlink_to(outside, target_is_directory=True)
    (outside / "loop").symlink_to(source, target_is_directory=True)
    dataset = open_dataset(source)
    assert dataset.labels.tolist() == [0, 1]


def test_lazy_equals_eager(tmp_path, container, monkeypatch):
    files = {f"{i % 3}/{i:02d}.png": encode(pixels(i) if i % 2 else pixels(i, 6, 5)) for i in range(23)}
    source = write(tmp_path, files, container)
    eager = open_dataset(source)
    monkeypatch.setenv(CACHE, str(23 * 3 * 6 * 5 - 1))
    lazy = open_dataset(source)
    first = tmp_path / "set" / "0" / "00.png"
    if container == "folder":  # proves which of them reads when asked
        first.write_bytes(encode(255 - pixels(0, 6, 5)))
        assert torch.equal(lazy.batch(torch.tensor([0]))[0], 255 - eager.batch(torch.tensor([0]))[0])
        first.write_bytes(files["0/00.png"])
    indices = torch.randperm(23, generator=torch.Generator().manual_seed(0))
    for a, b in zip(lazy.batch(indices), eager.batch(indices), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(lazy.images(), eager.images())
    assert lazy.batch(indices[:0])[0].shape == eager.batch(indices[:0])[0].shape == (0, 3, 6, 5)


def test_an_image_that_changes_size_later_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, "0")
    source = write(tmp_path, {"a.png": encode(pixels(0)), "b.png": encode(pixels(0))}, "folder")
    dataset = open_dataset(source)
    (source / "b.png").write_bytes(encode(pixels(0, 9, 9, 3)))
    with pytest.raises(ValueError, match=r"b\.png is now \(3, 9, 9\)"):
        dataset.batch(torch.tensor([1]))
    (source / "b.png").unlink()
    with pytest.raises(ValueError, match=r"cannot read the image at .*b\.png"):
        dataset.batch(torch.tensor([1]))


def test_name_and_repr_are_for_people_and_json(tmp_path, container):
    source = write(tmp_path, {"a/0.png": encode(pixels(0)), "b/0.png": encode(pixels(0))}, container)
    dataset = open_dataset(str(source))
    assert str(source) in json.loads(json.dumps(dataset.name))
    assert "2 images 3x6x5, 2 classes" in repr(dataset)


def test_batch_checks_its_indices(tmp_path):
    dataset = open_dataset(write(tmp_path, {"a.png": encode(pixels(0))}, "folder"))
    for wrong in (torch.tensor([1]), torch.tensor([0, -1])):
        with pytest.raises(IndexError, match=r"outside 0\.\.0"):
            dataset.batch(wrong)
    with pytest.raises(TypeError, match="int64"):
        dataset.batch(torch.tensor([0.0]))
    with pytest.raises(TypeError, match="list"):
        dataset.batch([0])
    with pytest.raises(ValueError, match=r"shape \(B,\)"):
        dataset.batch(torch.tensor([[0]]))


def test_options_that_mean_nothing_are_refused(tmp_path):
    source = write(tmp_path, {"a.png": encode(pixels(0))}, "folder")
    with pytest.raises(ValueError, match="label_column cannot be used with an image folder"):
        open_dataset(source, label_column="label")
    dataset = open_dataset(source)
    assert isinstance(dataset, ImageDataset)
    assert open_dataset(dataset) is dataset
    with pytest.raises(ValueError, match="key cannot be used with an ImageDataset"):
        open_dataset(dataset, key="x")


def test_a_wrong_cache_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, "2GB")
    with pytest.raises(ValueError, match=r"PROGDISTILL_DATA_CACHE_BYTES must be a number of bytes.*'2GB'"):
        open_dataset(write(tmp_path, {"a.png": encode(pixels(0))}, "folder"))
