"""NumPy files, arrays, tensors and scikit-learn's digits."""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from progdistill.data import open_dataset

CACHE = "PROGDISTILL_DATA_CACHE_BYTES"


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((9, 4, 6), (1, 4, 6)), ((9, 4, 6, 3), (3, 4, 6)), ((9, 3, 4, 6), (3, 4, 6)), ((9, 4, 6, 1), (1, 4, 6))],
)
def test_every_layout(tmp_path, shape, expected, suffix, lazy, monkeypatch):
    if lazy:
        monkeypatch.setenv(CACHE, "10")
    array, path = pixels(*shape), tmp_path / f"images.{suffix}"
    np.save(path, array) if suffix == "npy" else np.savez(path, array)
    dataset = open_dataset(path)
    assert (len(dataset), dataset.shape, dataset.labels) == (9, expected, None)
    channels_first = array.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else array.reshape(9, *expected)
    assert np.array_equal(dataset.images().numpy(), channels_first)
    images, _ = dataset.batch(torch.tensor([8, 0, 8]))
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), channels_first[[8, 0, 8]])


@pytest.mark.parametrize("image_key", ["images", "image", "x", "arr_0"])
@pytest.mark.parametrize("label_key", ["labels", "label", "y"])
def test_usual_names_in_an_npz_are_found(tmp_path, image_key, label_key):
    np.savez(
        tmp_path / "a.npz",
        **{image_key: pixels(4, 5, 5), label_key: np.array([[2], [0], [1], [2]], np.uint8)},
    )
    dataset = open_dataset(tmp_path / "a.npz")
    assert dataset.labels.tolist() == [2, 0, 1, 2]
    assert dataset.num_classes == 3


def test_other_names_in_an_npz_are_given(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=pixels(2, 5, 5), y_train=np.array(["dog", "cat"]))
    with pytest.raises(KeyError, match=r"x_train.*key="):
        open_dataset(tmp_path / "a.npz")
    with pytest.raises(KeyError, match=r"no array 'x_test'.*'x_train', 'y_train'"):
        open_dataset(tmp_path / "a.npz", key="x_test")
    assert open_dataset(tmp_path / "a.npz", key="x_train").labels is None
    assert open_dataset(tmp_path / "a.npz", key="x_train", label_column="y_train").labels.tolist() == [1, 0]


def test_floating_point_ranges():
    expected = torch.from_numpy(pixels(9, 3, 4, 6))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        signed = expected.to(torch.float64) / 127.5 - 1
        assert torch.equal(open_dataset(signed.to(dtype)).images(), expected)
    unit = expected.numpy() / 255
    assert torch.equal(open_dataset(unit).images(), expected)
    assert torch.equal(open_dataset(unit.astype(">f4")).images(), expected)


@pytest.mark.parametrize("value", [255.0, 1.01, -1.01, float("nan"), float("inf")])
def test_unclear_floating_point_ranges_are_refused(value):
    array = np.full((2, 4, 4), 0.5)
    array[1, 2, 2] = value
    with pytest.raises(ValueError, match=r"run from .*allowed are \[-1, 1\] and.*\[0, 1\]"):
        open_dataset(array)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_arrays_are_refused(tmp_path, suffix):
    array, path = np.array([{"a": 1}, None], dtype=object), tmp_path / f"images.{suffix}"
    np.save(path, array, allow_pickle=True) if suffix == "npy" else np.savez(path, images=array)
    with pytest.raises(ValueError, match=r"cannot read .*Pickled \(object\) arrays are refused"):
        open_dataset(path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_broken_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"images.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"cannot read .*images\.{suffix}"):
        open_dataset(path)


def with_header(array: np.ndarray, text: str) -> bytes:
    """An .npy file whose header says something else than what follows it."""
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text.encode() + b"\n" + array.tobytes()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|u1', 'fortran_order': False, 'shape': (68719476736, 4, 4)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904, 4611686018427387904)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4)}",
        "{'descr': '|V0', 'fortran_order': True, 'shape': (-1,)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (3, 0, 4)}",
        "{'descr': '<U99999999', 'fortran_order': False, 'shape': (9999, 4, 4)}",
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_that_lie_are_refused_without_room_for_their_claims(tmp_path, suffix, header):
    """NumPy's own readers set the claimed memory aside, and one of these headers crashes its memory map."""
    path, content = tmp_path / f"a.{suffix}", with_header(pixels(2, 4, 4), header)
    if suffix == "npy":
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"cannot read .*a\.{suffix}") as caught:
            open_dataset(path)
        assert not isinstance(caught.value.__cause__, MemoryError)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_fortran_order_and_other_byte_orders_are_read(tmp_path):
    array = np.asfortranarray(pixels(5, 4, 6, 3))
    values = (array / 127.5 - 1).astype(">f4", order="F")
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        for saved in (array, values):
            np.save(path, saved) if path.suffix == ".npy" else np.savez_compressed(path, images=saved)
            assert np.array_equal(open_dataset(path).images().numpy(), array.transpose(0, 3, 1, 2))


def test_a_truncated_npy_is_named(tmp_path):
    np.save(tmp_path / "a.npy", pixels(5, 8, 8))
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"cannot read .*a\.npy"):
        open_dataset(tmp_path / "a.npy")


def test_a_misnamed_file_is_explained(tmp_path):
    np.savez(tmp_path / "a.npz", pixels(2, 4, 4))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"rename it to \.npz"):
        open_dataset(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "shape", [(4, 4), (2, 4, 4, 4), (2, 3, 5, 3), (2, 1, 5, 3), (0, 4, 4), (2, 0, 4), (2, 1, 1, 4, 4)]
)
def test_shapes_that_are_no_set_of_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"\(N, H, W\)|\(H, W\)"):
        open_dataset(pixels(*shape))


def test_integers_other_than_bytes_are_refused():
    with pytest.raises(TypeError, match=r"int64.*astype\(np\.uint8\)"):
        open_dataset(np.zeros((2, 4, 4), np.int64))


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (np.array([0, 1, 2]), ValueError, r"2 images need labels of shape \(2,\), not \(3,\)"),
        (np.eye(2), ValueError, "argmax"),
        (np.array([0.0, 1.0]), TypeError, "integers or names"),
        (np.array([0, -3]), ValueError, "image 1 has label -3"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, labels, error, message):
    np.savez(tmp_path / "a.npz", images=pixels(2, 4, 4), labels=labels)
    with pytest.raises(error, match=message):
        open_dataset(tmp_path / "a.npz")


def test_a_data_set_does_not_change_with_its_source():
    array = pixels(3, 4, 4)
    dataset = open_dataset(array)
    array[:] = 0
    assert dataset.images().max() > 0


def test_digits_are_scikit_learn_s():
    datasets = pytest.importorskip("sklearn.datasets")
    dataset = open_dataset("digits")
    digits = datasets.load_digits()
    assert (len(dataset), dataset.shape, dataset.num_classes) == (1797, (1, 8, 8), 10)
    assert np.array_equal(dataset.labels.numpy(), digits.target)
    assert np.abs(dataset.images()[:, 0].numpy() - digits.images * 255 / 16).max() <= 0.5
    assert dataset.images().max() == 255
    with pytest.raises(ValueError, match="cannot be used"):
        open_dataset("digits", key="images")
