"""Files that are complete or not there."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from worldstereo_ros.utils import atomic_files
from worldstereo_ros.utils.atomic_files import (
    WriteError,
    atomic_file,
    atomic_path,
    check_writable,
    write_bytes,
    write_json,
    write_text,
)

NOT_UTF8 = os.fsdecode(b"b\xff\xfed")


@pytest.mark.parametrize("name", ["a.bin", f"{NOT_UTF8}/{NOT_UTF8}.bin", "new/folder/a b.bin"])
def test_written_bytes_are_read_back_and_nothing_else_is_left(tmp_path, name):
    path = tmp_path / name
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_text_and_json_hold_names_that_are_not_utf8(tmp_path):
    write_text(tmp_path / "a.txt", f"see {NOT_UTF8}, Küche")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "see b\\udcff\\udcfed, Küche"
    write_json(tmp_path / "a.json", {"out": NOT_UTF8})
    assert (tmp_path / "a.json").read_bytes().startswith(b"{")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"psnr": float("nan")})
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("writer", [atomic_file, atomic_path])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_interrupted_writers_leave_the_old_file_alone(tmp_path, writer, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write_half():
        with writer(path) as target:
            (target.write if writer is atomic_file else target.write_bytes)(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


FULL = """
import os, resource, signal, sys
from pathlib import Path
from worldstereo_ros.utils.atomic_files import WriteError, atomic_path, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    write_bytes(sys.argv[1], bytes(100_000))
except WriteError as error:
    print(error.errno, error)
"""


def test_bytes_beyond_what_the_disk_takes_are_an_error(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} {path} could not be written: File too large.\n"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_that_the_disk_dropped_without_an_error_are_an_error(tmp_path, monkeypatch):
    def truncate(descriptor):
        os.ftruncate(descriptor, 3)

    monkeypatch.setattr(atomic_files.os, "fsync", truncate)
    with pytest.raises(WriteError, match="3 of its 8 bytes are on the disk"):
        write_bytes(tmp_path / "a.bin", b"contents")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "can be written to"), (errno.EACCES, "you may write to")],
)
def test_errors_of_the_disk_say_what_to_do(tmp_path, monkeypatch, code, words):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic_files.os, "open", fail)
    with pytest.raises(WriteError, match=words) as raised:
        write_bytes(tmp_path / "a.bin", b"")
    assert str(raised.value).startswith(f"{tmp_path / 'a.bin'} could not be written: {os.strerror(code)}. ")
    assert raised.value.errno == code
    assert not raised.value.replaced


def test_parents_that_are_files_are_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match="a part of this one is a file"):
        write_bytes(tmp_path / "file" / "a.bin", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WriteError, match="this one is a folder"):
        write_bytes(tmp_path / "folder", b"")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_targets_are_checked_before_anything_is_computed(tmp_path):
    (tmp_path / "file").write_text("mine")
    check_writable(tmp_path / "new" / "a.ply")
    check_writable(tmp_path / "file")
    with pytest.raises(WriteError, match="this one is a folder"):
        check_writable(tmp_path)
    with pytest.raises(WriteError, match=r"a\.ply could not be written: .* a part of this one is a file"):
        check_writable(tmp_path / "file" / "a.ply")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_writers_of_other_packages_get_a_path_with_the_suffix(tmp_path):
    with atomic_path(tmp_path / "new" / "a.mp4") as partial:
        assert partial.suffix == ".mp4"
        assert not partial.exists()
        partial.write_bytes(b"video")
    assert (tmp_path / "new" / "a.mp4").read_bytes() == b"video"
    with pytest.raises(WriteError, match="No such file"), atomic_path(tmp_path / "b.mp4"):
        pass
    with pytest.raises(WriteError, match="empty"), atomic_path(tmp_path / "b.mp4") as partial:
        partial.touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


KILLED = """
import os, signal, sys
from worldstereo_ros.utils.atomic_files import atomic_file
with atomic_file(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_parts_of_killed_writers_are_removed_by_the_next_one(tmp_path):
    path = tmp_path / "a.bin"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    write_bytes(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_found_before_anything_is_computed(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"a\.ply could not be written: No space left on device\. Free some space"):
        check_writable(tmp_path / "new" / "a.ply")
