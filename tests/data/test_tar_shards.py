"""Tar shards, written by webdataset and by tarfile, against webdataset's own reader."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from progdistill.data import open_dataset

wds = pytest.importorskip("webdataset")

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape or (6, 5, 3), dtype=np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def write_tar(path, members: dict[str, bytes], **options):
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def chw(arrays) -> torch.Tensor:
    return torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("cache", ["1000000", "0"])
def test_order_and_content_are_webdataset_s(tmp_path, cache, monkeypatch):
    monkeypatch.setenv(CACHE, cache)
    with wds.ShardWriter(str(tmp_path / "train-%03d.tar"), maxcount=7, verbose=0) as sink:
        for index in range(20):
            sink.write(
                {"__key__": f"dir/{index * 7 % 20:05d}", "png": Image.fromarray(pixels(index)), "cls": index % 3}
            )
    pattern = str(tmp_path / "train-{000..002}.tar")
    samples = list(wds.WebDataset(pattern, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    expected, labels = chw([image for image, _ in samples]), [label for _, label in samples]
    files = sorted(tmp_path.glob("*.tar"))
    for source in (pattern, tmp_path / "train-*.tar", tmp_path, files, [str(file) for file in files]):
        dataset = open_dataset(source)
        assert (len(dataset), dataset.shape, dataset.num_classes) == (20, (3, 6, 5), 3)
        assert torch.equal(dataset.images(), expected)
        assert dataset.labels.tolist() == labels
        indices = torch.tensor([19, 0, 7, 7])
        assert torch.equal(dataset.batch(indices)[0], expected[indices])
    backwards = open_dataset(files[::-1])
    assert backwards.labels.tolist() == labels[14:] + labels[7:14] + labels[:7]
    assert open_dataset(files[1]).labels.tolist() == labels[7:14]


def test_names_as_webdataset_groups_them(tmp_path):
    """Dots, folders, upper case, metadata, hidden and other files, names longer than a header has room for."""
    deep = "/".join(["a-rather-long-folder-name"] * 8)
    members = {
        "./0.png": encode(pixels(0)),
        "./0.cls": b"4",
        "__meta__/1.png": b"not read",
        "__index__": b"not read",
        "a.b/c.d/1.PNG": encode(pixels(1)),
        "a.b/c.d/1.json": b'{"label": 3}',
        "._1.png": b"not read",
        "README": b"not read",
        f"{deep}/ünï.png": encode(pixels(2)),
        f"{deep}/ünï.cls": b" 0\n",
        "2.jpeg.png": encode(pixels(3)),
        "2.png": encode(pixels(4)),
        "2.cls": b"1",
    }
    for number, kind in enumerate((tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        path = write_tar(tmp_path / f"{number}.tar", members, format=kind)
        keys = [(sample["__key__"], "png" in sample) for sample in wds.WebDataset(str(path), shardshuffle=False)]
        assert keys == [("./0", True), ("a.b/c.d/1", True), (f"{deep}/ünï", True), ("2", True)]
        dataset = open_dataset(path)
        assert torch.equal(dataset.images(), chw([pixels(0), pixels(1), pixels(2), pixels(4)]))
        assert dataset.labels.tolist() == [4, 3, 0, 1]


def sample_members(count: int, **parts) -> dict[str, bytes]:
    members = {}
    for index in range(count):
        members[f"{index}.png"] = encode(pixels(index))
        for part, contents in parts.items():
            members[f"{index}.{part.replace('_', '.')}"] = contents[index]
    return members


@pytest.mark.parametrize(
    ("parts", "options", "expected"),
    [
        ({}, {}, None),
        ({"cls": [b"dog", b"cat"]}, {}, [1, 0]),
        ({"json": [b"3", b"0"]}, {}, [3, 0]),
        ({"json": [b'"b"', b'"a"']}, {}, [1, 0]),
        ({"json": [b'{"cls": 3}', b'{"cls": 0}']}, {}, [3, 0]),
        ({"json": [b'{"width": 9}', b'{"width": 9}']}, {}, None),
        ({"json": [b"not read", b"not read"], "cls": [b"5", b"6"]}, {}, [5, 6]),
        ({"json": [b'{"fine": 3}', b'{"fine": 0}']}, {"label_column": "fine"}, [3, 0]),
        ({"cls": [b"0", b"0"], "fine_txt": [b"2", b"1"]}, {"label_column": "fine.txt"}, [2, 1]),
        ({"cls": [b"-1", b"-1"]}, {}, None),
    ],
)
def test_labels(tmp_path, parts, options, expected):
    dataset = open_dataset(write_tar(tmp_path / "a.tar", sample_members(2, **parts)), **options)
    assert (None if dataset.labels is None else dataset.labels.tolist()) == expected


def test_one_of_several_images_is_named(tmp_path):
    members = {"0.png": encode(pixels(0)), "0.jpg": encode(pixels(1), "JPEG"), "0.mask.png": encode(pixels(2))}
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(KeyError, match=r"sample '0' in .*a\.tar has 2 parts that are images .*image_column="):
        open_dataset(path)
    assert torch.equal(open_dataset(path, image_column="mask.png").images(), chw([pixels(2)]))
    with pytest.raises(KeyError, match=r"no part 'webp' for image_column; it has \['png', 'jpg', 'mask.png'\]"):
        open_dataset(path, image_column="webp")


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ({"0.txt": b"", "1.txt": b""}, KeyError, r"sample '0' in .*a\.tar has 0 parts that are images.*\['txt'\]"),
        ({"README": b""}, ValueError, r"a\.tar holds no samples"),
        (sample_members(2, cls=[b"1", b"\xff"]), ValueError, r"part 'cls' of sample '1' in .*a\.tar as a label"),
        (sample_members(1, json=[b"{"]), ValueError, r"the json of sample '0' in .*a\.tar"),
        (sample_members(1, json=[b"[" * 100_000]), ValueError, r"the json of sample '0' in .*a\.tar"),
        (sample_members(1, json=[b'{"label": 0.5}']), TypeError, "label of sample '0' .* not 0.5"),
        (sample_members(1, cls=[b" " * 2**21]), ValueError, "2097152 bytes are more than"),
        ({"0.png": b"broken"}, ValueError, r"cannot read the image at '0' in .*a\.tar"),
        ({"0.png": encode(pixels(0)), "1.png": encode(pixels(0, 9, 9, 3))}, ValueError, "'0' in .* 5x6 and '1' in"),
    ],
)
def test_wrong_shards_are_explained(tmp_path, members, error, message):
    with pytest.raises(error, match=message):
        open_dataset(write_tar(tmp_path / "a.tar", members))


def test_a_part_twice_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("0.png"))
    with pytest.raises(ValueError, match=r"sample '0' in .*a\.tar has two parts 'png'"):
        open_dataset(tmp_path / "a.tar")


def test_a_missing_label_column_lists_what_there_is(tmp_path):
    path = write_tar(tmp_path / "a.tar", sample_members(1, json=[b'{"x": 1}']))
    with pytest.raises(
        KeyError, match=r"'fine' for label_column; it has the parts \['png', 'json'\].*json has \['x'\]"
    ):
        open_dataset(path, label_column="fine")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_compressed_shards_are_refused_with_the_fix(tmp_path, name):
    plain = write_tar(tmp_path / "plain.tar", sample_members(1)).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(plain))
    with pytest.raises(ValueError, match=r"compress.*(gunzip|decompress it first)"):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("damage", ["truncated", "header", "middle header", "empty", "text"])
def test_damaged_shards_are_named(tmp_path, damage):
    content = bytearray(write_tar(tmp_path / "a.tar", sample_members(4)).read_bytes())
    second = content.index(b"1.png")
    if damage == "middle header":
        content[second + 148 : second + 156] = b"00000000"  # its check sum: tarfile would take it for the end
    elif damage == "header":
        content[148:156] = b"00000000"
    (tmp_path / "a.tar").write_bytes(
        {"truncated": content[: second + 512 + 9], "empty": b"", "text": b"hello" * 999}.get(damage, content)
    )
    with pytest.raises(ValueError, match=r"cannot read the tar file .*a\.tar.*damaged or incomplete"):
        open_dataset(tmp_path / "a.tar")


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 11 + b"\0"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_headers_that_lie_about_sizes_are_refused_without_room_for_them(tmp_path, kind, size):
    path = write_tar(tmp_path / "a.tar", sample_members(2), format=tarfile.GNU_FORMAT)
    content = bytearray(path.read_bytes())
    content[124:136], content[156:157] = size, kind
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"cannot read the tar file .*a\.tar") as caught:
            open_dataset(path)
        assert not isinstance(caught.value.__cause__, MemoryError)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_sparse_member_is_refused(tmp_path):
    path = tmp_path / "a.tar"
    content = bytearray(write_tar(path, sample_members(1), format=tarfile.GNU_FORMAT).read_bytes())
    content[156:157] = tarfile.GNUTYPE_SPARSE
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar.*sparse"):
        open_dataset(path)


def test_images_are_read_where_they_lie(tmp_path, monkeypatch):
    """Nothing is unpacked: a change inside the shard shows in the next batch."""
    monkeypatch.setenv(CACHE, "0")
    path = write_tar(tmp_path / "a.tar", {f"{i}.bmp": encode(pixels(i, 8, 8, 3), "BMP") for i in range(3)})
    dataset = open_dataset(path)
    content = bytearray(path.read_bytes())
    start = content.index(b"2.bmp") + 512
    content[start : start + 54 + 192] = encode(pixels(9, 8, 8, 3), "BMP")
    path.write_bytes(content)
    assert torch.equal(dataset.images(), chw([pixels(0, 8, 8, 3), pixels(1, 8, 8, 3), pixels(9, 8, 8, 3)]))


def test_patterns_and_splits(tmp_path):
    for name in ("train-0", "train-1", "val-0"):
        write_tar(tmp_path / f"{name}.tar", sample_members(2))
    with pytest.raises(ValueError, match=r"mixes the splits .*train-\*\.tar"):
        open_dataset(tmp_path)
    assert len(open_dataset(str(tmp_path / "train-{1..0}.tar"))) == 4
    assert len(open_dataset(str(tmp_path / "{train,val}-0.tar").replace("{train,val}", "train"))) == 2
    with pytest.raises(FileNotFoundError, match=r"no file matches .*train-2\.tar; .* holds train-0\.tar"):
        open_dataset(str(tmp_path / "train-{0..2}.tar"))
    with pytest.raises(ValueError, match="more than 1000000 files"):
        open_dataset(str(tmp_path / "train-{0..9999999}.tar"))
    with pytest.raises(FileNotFoundError, match=r"no such file: .*x\.tar"):
        open_dataset([tmp_path / "train-0.tar", tmp_path / "x.tar"])
    (tmp_path / "labels.json").write_text(json.dumps(0))
    with pytest.raises(ValueError, match=r"cannot open .*labels\.json by its suffix"):
        open_dataset([tmp_path / "train-0.tar", tmp_path / "labels.json"])
    braces = tmp_path / "odd{0..1}.tar"
    write_tar(braces, sample_members(2))
    assert len(open_dataset(braces)) == 2
