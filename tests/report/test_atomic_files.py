from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest

from progdistill.core.files import replace_atomic, write_bytes_atomic, write_json_atomic, write_text_atomic


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("old content")
    return path


def assert_untouched(old: Path) -> None:
    assert old.read_text() == "old content"
    assert list(old.parent.iterdir()) == [old]


def test_replaces_whole_content_and_leaves_nothing_else(old: Path) -> None:
    write_bytes_atomic(old, b"\x00\xff")
    assert old.read_bytes() == b"\x00\xff"
    write_text_atomic(old, "größer\r\n")
    assert old.read_bytes() == "größer\r\n".encode()
    write_text_atomic(str(old), "")
    assert old.read_bytes() == b""
    assert list(old.parent.iterdir()) == [old]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "a" / "b" / "new.txt", "x")
    assert (tmp_path / "a" / "b" / "new.txt").read_text() == "x"


def test_old_file_is_whole_until_the_body_is_done(old: Path) -> None:
    with replace_atomic(old) as temporary:
        assert temporary.parent == old.parent and temporary.suffix == ".tmp"
        temporary.write_text("half")
        assert old.read_text() == "old content"
    assert old.read_text() == "half"


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt])
def test_exception_in_the_body(old: Path, exception: type[BaseException]) -> None:
    with pytest.raises(exception), replace_atomic(old) as temporary:
        temporary.write_text("half")
        raise exception
    assert_untouched(old)


def test_body_that_writes_nothing(old: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing was written"), replace_atomic(old):
        pass
    assert_untouched(old)


def test_failed_flush(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(old, "new")
    assert_untouched(old)


def test_failed_rename(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise PermissionError(errno.EACCES, "denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        write_text_atomic(old, "new")
    assert_untouched(old)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX resource limits")
def test_disk_that_fills_up_while_writing(old: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OSError):
            write_bytes_atomic(old, bytes(3 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_untouched(old)


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be flushed on Windows")
def test_flushes_the_file_before_the_rename_and_the_folder_after(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}") if os.path.exists("/proc/self/fd") else ""
        events.append("folder" if name == str(old.parent) else "file")
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        events.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text_atomic(old, "new")
    assert events[:2] == ["file", "rename"] and len(events) == 3
    if os.path.exists("/proc/self/fd"):
        assert events[2] == "folder"


def test_file_system_that_cannot_flush_folders(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text_atomic(old, "new")
    assert old.read_text() == "new"


def test_folder_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="name a file inside it"):
        write_text_atomic(tmp_path, "x")


def test_file_mode_is_that_of_an_ordinary_file(tmp_path: Path) -> None:
    write_text_atomic(tmp_path / "atomic", "x")
    (tmp_path / "ordinary").write_text("x")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_json_reads_back_equal(old: Path) -> None:
    value = {"a": [1, 2.5, None, True, {"é": "\udc80 \u2028"}], "b": {}, "c": -0.1}
    write_json_atomic(old, value)
    assert json.loads(old.read_text()) == value
    assert old.read_text().startswith('{\n  "a": [\n    1,') and old.read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"rounds": [{"loss": 1.0}, {"loss": float("nan")}]}, ValueError, r"nan at rounds\[1\]\.loss"),
        ({"a": (1, float("-inf"))}, ValueError, r"-inf at a\[1\]"),
        (float("inf"), ValueError, "inf at the top level"),
        ({"path": {"x": Path("y")}}, TypeError, r"Path at path\.x"),
        ({"steps": {8: "a"}}, TypeError, "key 8 at steps is a int"),
    ],
)
def test_json_names_the_place_of_what_it_refuses(
    old: Path, value: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        write_json_atomic(old, value)
    assert_untouched(old)
