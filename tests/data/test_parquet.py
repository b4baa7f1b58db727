"""Parquet files as Hugging Face writes them, made with pyarrow."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from progdistill.data import open_dataset

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"


def arrays(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (6, 5, 3))), dtype=np.uint8)


def encode(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def as_structs(cells: list[bytes | None]):
    rows = [{"bytes": cell, "path": f"{index}.png"} for index, cell in enumerate(cells)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write(path, columns: dict, metadata: dict | None = None, **options):
    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, **options)
    return path


def chw(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("cache", ["2000000", "700", "0"])
@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_round_trip(tmp_path, kind, cache, monkeypatch):
    monkeypatch.setenv(CACHE, cache)
    images = arrays(7)
    cells = [encode(image) for image in images]
    column = as_structs(cells) if kind == "struct" else pa.array(cells, getattr(pa, kind)())
    labels = pa.array([3, 0, 1, 1, 2, 0, 3])
    path = write(tmp_path / "a.parquet", {"image": column, "label": labels}, row_group_size=3)
    dataset = open_dataset(path)
    assert (len(dataset), dataset.shape, dataset.num_classes) == (7, (3, 6, 5), 4)
    assert dataset.labels.tolist() == labels.to_pylist()
    assert torch.equal(dataset.images(), chw(images))
    assert torch.equal(dataset.batch(torch.tensor([6, 2, 6]))[0], chw(images)[[6, 2, 6]])


def test_class_names_in_the_metadata_count(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"names": list("abcdefg"), "_type": "ClassLabel"}}
    columns = {"image": as_structs([encode(a) for a in arrays(2)]), "label": pa.array([0, 4])}
    path = write(tmp_path / "a.parquet", columns, {"info": {"features": features}})
    assert open_dataset(path).num_classes == 7


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(["dog", "cat"], [1, 0]), ([-1, -1], None), ([None, None], None)],
)
def test_label_spellings(tmp_path, labels, expected):
    columns = {"image": as_structs([encode(a) for a in arrays(2)]), "labels": pa.array(labels)}
    dataset = open_dataset(write(tmp_path / "a.parquet", columns))
    assert (None if dataset.labels is None else dataset.labels.tolist()) == expected


def test_a_missing_label_is_named(tmp_path):
    columns = {"image": as_structs([encode(a) for a in arrays(2)]), "label": pa.array([1, None])}
    with pytest.raises(ValueError, match="image 1 has no label"):
        open_dataset(write(tmp_path / "a.parquet", columns))


def test_columns_can_be_named(tmp_path):
    one, two = ([encode(a) for a in arrays(3) // divisor] for divisor in (1, 2))
    columns = {"photo": as_structs(one), "sketch": as_structs(two), "fine": pa.array([2, 1, 0])}
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(KeyError, match=r"2 columns that may hold images.*photo \(struct.*fine \(int64\)"):
        open_dataset(path)
    dataset = open_dataset(path, image_column="sketch", label_column="fine")
    assert torch.equal(dataset.images(), chw(arrays(3) // 2))
    assert dataset.labels.tolist() == [2, 1, 0]
    with pytest.raises(KeyError, match=r"no column 'coarse' for label_column.*fine \(int64\)"):
        open_dataset(path, image_column="photo", label_column="coarse")
    with pytest.raises(ValueError, match=r"column 'fine' .* is int64, but encoded images are binary"):
        open_dataset(path, image_column="fine")
    with pytest.raises(ValueError, match="key cannot be used with parquet files"):
        open_dataset(path, key="photo")


def test_a_file_without_images_says_what_it_has(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": pa.array(["a"])})
    with pytest.raises(KeyError, match=r"0 columns that may hold images.*text \(string\)"):
        open_dataset(path)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("broken", [b"no image", "truncated"])
@pytest.mark.parametrize("row", [0, 1])
def test_a_broken_image_is_named_by_its_row(tmp_path, row, broken, lazy, monkeypatch):
    if lazy:
        monkeypatch.setenv(CACHE, "0")
    cells = [encode(array) for array in arrays(4, 40, 40, 3)]
    cells[row] = cells[row][:-900] if broken == "truncated" else broken
    for name, part in (("0.parquet", cells[2:]), ("1.parquet", cells[:2])):
        write(tmp_path / name, {"image": as_structs(part)})
    with pytest.raises(ValueError, match=rf"cannot read the image at row {row} \(the first is 0\) of .*1\.parquet"):
        open_dataset(tmp_path).images()


@pytest.mark.parametrize("missing", ["bytes", "row"])
def test_a_row_without_bytes_is_named(tmp_path, missing):
    cells = [encode(array) for array in arrays(3)]
    rows = [{"bytes": cell, "path": "x.png"} for cell in cells]
    rows[2] = None if missing == "row" else {"bytes": None, "path": "x.png"}
    column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    with pytest.raises(ValueError, match=r"row 2 \(the first is 0\) of .*a\.parquet holds no image bytes"):
        open_dataset(write(tmp_path / "a.parquet", {"image": column}))


def test_mixed_sizes_are_refused_by_row(tmp_path):
    cells = [encode(arrays(1)[0]), encode(arrays(1, 8, 8, 3)[0])]
    with pytest.raises(ValueError, match=r"row 0 .* has 5x6 and row 1 .* has 8x8"):
        open_dataset(write(tmp_path / "a.parquet", {"image": as_structs(cells)}))


def test_folders_and_patterns(tmp_path):
    images = arrays(6)
    for index, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"]):
        part = images[2 * index : 2 * index + 2]
        (tmp_path / "data").mkdir(exist_ok=True)
        columns = {"image": as_structs([encode(a) for a in part]), "label": pa.array([index, index])}
        write(tmp_path / "data" / f"{name}.parquet", columns)
    with pytest.raises(ValueError, match=r"mixes the splits .*test-0.*train-0.*pattern"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path / "data" / "train-*.parquet")
    assert torch.equal(dataset.images(), chw(images[:4]))
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(FileNotFoundError, match=r"no file matches .*dev-\*"):
        open_dataset(tmp_path / "data" / "dev-*.parquet")
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    assert torch.equal(open_dataset(tmp_path).images(), chw(images[:4]))
    (tmp_path / "banner.png").write_bytes(encode(images[0]))
    with pytest.raises(ValueError, match="both images and parquet files"):
        open_dataset(tmp_path)


def test_broken_and_empty_files_are_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"cannot read the parquet file .*a\.parquet"):
        open_dataset(tmp_path / "a.parquet")
    path = write(tmp_path / "b.parquet", {"image": as_structs([])})
    with pytest.raises(ValueError, match="has no rows"):
        open_dataset(path)


def test_a_column_name_that_is_no_text_is_named(tmp_path):
    path = write(
        tmp_path / "a.parquet", {"image": as_structs([encode(a) for a in arrays(2)]), "label": pa.array([0, 1])}
    )
    path.write_bytes(path.read_bytes().replace(b"label", b"la\xffel"))
    with pytest.raises(ValueError, match=r"cannot read the parquet file .*a\.parquet"):
        open_dataset(path)


def test_a_damaged_page_is_named(tmp_path):
    cells = [encode(array) for array in arrays(4, 40, 40, 3)]
    path = write(tmp_path / "a.parquet", {"image": as_structs(cells)}, compression="gzip")
    content = bytearray(path.read_bytes())
    content[2000:2200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        open_dataset(path)


def test_encoded_images_beyond_the_cache_need_room_on_disk(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", {"image": as_structs([encode(a) for a in arrays(3)])})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert len(open_dataset(path)) == 3
    monkeypatch.setenv(CACHE, "100")
    with pytest.raises(ValueError, match=r"cannot keep \d+ bytes .*missing.*set TMPDIR"):
        open_dataset(path)
