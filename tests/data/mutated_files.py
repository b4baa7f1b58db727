"""Opens thousands of damaged files; run by test_mutated_files.py in a process that may crash or run out of memory.

python mutated_files.py FOLDER FIRST_SEED COUNT: prints one JSON line a case that went wrong, and "done" at the end.
FOLDER/current names the case that is being tried.
"""

from __future__ import annotations

import binascii
import faulthandler
import importlib.util
import io
import json
import os
import random
import resource
import struct
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from progdistill.data import open_dataset

HEADROOM = 2**30
SECONDS = 20
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 12, 3), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1])
EXTREMES = [0, 1, 2**7, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
ALLOWED = (ValueError, OSError, KeyError, TypeError)


def encoded(kind: str, index: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS[index]).save(stream, kind)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(files: dict[str, bytes], method: int) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for index in range(4):
            names = [f"{index}.png", f"{index}.cls", f"{index}.json", "ü" * 101 + f"{index}.txt"]
            for name, content in zip(names, [encoded("PNG", index), b"1", b'{"label": 2}', b"x"], strict=True):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def parquet(compression: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array([{"bytes": encoded("PNG", i), "path": None} for i in range(4)])
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": LABELS}), stream, compression=compression)
    return stream.getvalue()


def arrow_folder(folder: Path) -> bytes:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    rows = {"image": [Image.fromarray(a) for a in PIXELS], "label": LABELS.tolist()}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return next(folder.glob("*.arrow")).read_bytes()


# Mutations of any file.


def flipped(content: bytes, rng: random.Random) -> bytes:
    result = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        result[rng.randrange(len(result))] ^= 1 << rng.randrange(8)
    return bytes(result)


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def spliced(content: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(content)) for _ in range(2))
    return (
        content[:start] + rng.choice([b"", content[start:stop] * 2, rng.randbytes(rng.randrange(64))]) + content[stop:]
    )


def with_extreme(content: bytes, rng: random.Random) -> bytes:
    """An extreme integer somewhere, mostly near the ends, where headers and directories are."""
    size, order = rng.choice([2, 4, 8]), rng.choice(["little", "big"])
    near = min(len(content) - size, 300)
    start = rng.choice(
        [rng.randrange(near), len(content) - size - rng.randrange(near), rng.randrange(len(content) - size)]
    )
    value = rng.choice(EXTREMES) % 2 ** (8 * size)
    return content[:start] + value.to_bytes(size, order) + content[start + size :]


ANY = [flipped, truncated, spliced, with_extreme]


# Headers that claim what is not there, with correct check sums.


def png_claim(content: bytes, rng: random.Random) -> bytes:
    size = [rng.choice([0, 1, 12, 16, 8191, 65535, 2**24, 2**31 - 1, 2**32 - 1]) for _ in range(2)]
    header = b"IHDR" + struct.pack(">II", *size) + content[24:29]
    return content[:12] + header + struct.pack(">I", binascii.crc32(header)) + content[33:]


def npy_claim(content: bytes, rng: random.Random) -> bytes:
    shape = tuple(rng.choice([-1, 0, 1, 3, 4, 16, 2**20, 2**31, 2**40, 2**62, 10**30]) for _ in range(rng.randrange(6)))
    kind = rng.choice(
        ["|u1", "<f4", "<f8", "<f2", ">f4", "<c8", "|O", "|S5", "<U9999999", "|V0", "<i8", "[('a','<f4')]"]
    )
    text = repr({"descr": kind, "fortran_order": rng.random() < 0.5, "shape": shape}).encode()
    header = text.replace(b'"[', b"[").replace(b']"', b"]") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content[128:]


def npz_claim(content: bytes, rng: random.Random) -> bytes:
    arrays = {"images.npy": npy(PIXELS), "labels.npy": npy(LABELS)}
    name = rng.choice(list(arrays))
    arrays[name] = npy_claim(arrays[name], rng)
    return zipped(arrays, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def zip_claim(content: bytes, rng: random.Random) -> bytes:
    """Another size, offset or method in the directory, the local header, or both."""
    result = bytearray(content)
    for magic, first in rng.sample([(b"PK\x01\x02", 8), (b"PK\x03\x04", 6), (b"PK\x05\x06", 8)], rng.choice([1, 2])):
        places = [i for i in range(len(content)) if content.startswith(magic, i)]
        place = rng.choice(places)
        field = place + first + 2 * rng.randrange(8)
        result[field : field + 4] = (rng.choice(EXTREMES) % 2**32).to_bytes(4, "little")
    return bytes(result[: len(content)])


def zip_content(content: bytes, rng: random.Random) -> bytes:
    labels = json.dumps({"labels": [["a/0.png", 0], ["a/1.png", 1]]}).encode()
    files = {"a/0.png": encoded("PNG"), "a/1.png": encoded("PNG", 1), "dataset.json": rng.choice(ANY)(labels, rng)}
    return zipped(files, zipfile.ZIP_DEFLATED)


def tar_claim(content: bytes, rng: random.Random) -> bytes:
    """Another size, type or name in a header, with its check sum."""
    result = bytearray(content)
    starts = [i - 257 for i in range(0, len(content)) if content.startswith(b"ustar", i)]
    start = rng.choice(starts)
    header = result[start : start + 512]
    size = rng.choice([b"77777777777\0", b"00000000000\0", b"00001000000\0", b"\x80" + bytes(3) + b"\x7f" * 8])
    size = rng.choice([size, b"\xff" * 12, b"\xff" * 10 + b"\xfc\x00", b"\xff" * 11 + b"\x00", rng.randbytes(12)])
    for _ in range(rng.choice([1, 2])):
        match rng.randrange(4):
            case 0 | 1:
                header[124:136] = size
            case 2:
                header[156:157] = rng.choice([b"0", b"1", b"2", b"5", b"L", b"K", b"x", b"g", b"S", b"\0"])
            case 3:
                header[:100] = rng.choice([b"\xff" * 100, rng.randbytes(100), b"1.png".ljust(100, b"\0"), bytes(100)])
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    result[start : start + 512] = header
    return bytes(result)


def cases(folder: Path) -> dict[str, tuple[bytes, str, list]]:
    """By kind: a good file, where to write it, and its mutations."""
    files = {f"{name}/{i}.png": encoded("PNG", i) for i in range(2) for name in "ab"}
    arrays = {"images.npy": npy(PIXELS), "labels.npy": npy(LABELS)}
    found = {
        "png": (encoded("PNG"), "png/a.png", [*ANY, png_claim, png_claim]),
        "jpeg": (encoded("JPEG"), "jpeg/a.jpg", ANY),
        "webp": (encoded("WEBP"), "webp/a.webp", ANY),
        "npy": (npy(PIXELS), "a.npy", [*ANY, npy_claim, npy_claim]),
        "npz": (zipped(arrays, zipfile.ZIP_STORED), "a.npz", [*ANY, npz_claim, npz_claim, zip_claim]),
        "npz deflated": (zipped(arrays, zipfile.ZIP_DEFLATED), "b.npz", [*ANY, zip_claim]),
        "zip": (zipped(files, zipfile.ZIP_STORED), "a.zip", [*ANY, zip_claim, zip_claim, zip_content]),
        "tar": (tar(), "a.tar", [*ANY, tar_claim, tar_claim]),
    }
    if importlib.util.find_spec("pyarrow"):
        found["parquet"] = (parquet("none"), "a.parquet", ANY)
        found["parquet snappy"] = (parquet("snappy"), "b.parquet", ANY)
    if importlib.util.find_spec("datasets"):
        content = arrow_folder(folder / "saved")
        found["arrow"] = (content, str(next((folder / "saved").glob("*.arrow")).relative_to(folder)), ANY)
    return found


def source_of(path: Path) -> Path:
    return path.parent if path.suffix in (".png", ".jpg", ".webp", ".arrow") else path


def problem_of(source: Path, resolution: int | None) -> str | None:
    """Opens and reads; what is wrong with how that ended, or None."""
    try:
        dataset = open_dataset(source, resolution=resolution)
        count = min(len(dataset), 64)
        images, labels = dataset.batch(torch.arange(count))
        assert images.shape == (count, *dataset.shape) and images.dtype == torch.uint8
        assert labels is None or int(labels.max()) < dataset.num_classes
        return None
    except ALLOWED as error:
        chain, cause = [], error
        while cause is not None and cause not in chain:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(isinstance(link, MemoryError) for link in chain):
            return f"allocates what a header claims: {chain}"
        return None if str(source) in str(error) else f"does not name the file: {error!r}"
    except BaseException as error:
        return f"is no documented error: {error!r}"


def main(folder: Path, first: int, count: int) -> None:
    faulthandler.enable()
    warnings.simplefilter("ignore")
    found = cases(folder)
    for name, (content, place, _) in found.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_bytes(content)
        assert problem_of(source_of(folder / place), None) is None, name
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for seed in range(first, first + count):
        for name, (content, place, mutations) in found.items():
            rng = random.Random(f"{name} {seed}")
            mutation = rng.choice(mutations)
            path = folder / place
            path.write_bytes(mutation(content, rng))
            case = f"{name} {seed} {mutation.__name__}"
            (folder / "current").write_text(case)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            os.environ["PROGDISTILL_DATA_CACHE_BYTES"] = rng.choice(["0", str(2**31)])
            problem = problem_of(source_of(path), rng.choice([None, None, 8]))
            faulthandler.cancel_dump_traceback_later()
            if problem is not None:
                print(json.dumps({"case": case, "problem": problem[:600]}), flush=True)
    # Not of getrusage, which begins with the memory of the process that this one was started from.
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak": int(peak.split()[1]) * 1024}))
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
