"""Saved maps: atomic writes, verification of damaged and foreign files, valid names."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldstereo_ros.memory import archive
from worldstereo_ros.memory.archive import ArchiveError, archive_path, read_archive, write_archive
from worldstereo_ros.utils.atomic_files import atomic_file


def _states(seed: int = 0, points: int = 50) -> tuple[dict, dict, dict]:
    rng = np.random.default_rng(seed)
    cloud = {
        "points": rng.normal(size=(points, 3)).astype(np.float32),
        "observed": rng.random(points) < 0.5,
        "stamp_ns": rng.integers(0, 2**60, points),
        "max_radius": np.float64(np.inf),
        "voxel_size": np.float64(0.01),
    }
    bank = {"images": rng.integers(0, 256, (2, 4, 6, 3), dtype=np.uint8), "none": np.zeros((0, 4, 4))}
    return cloud, bank, {"pipeline": "geometric", "seed": seed, "text": "Küche"}


def _equal(found: tuple, expected: tuple) -> bool:
    for a, b in zip(found[:2], expected[:2], strict=True):
        if a.keys() != b.keys():
            return False
        for key, value in b.items():
            value = np.asarray(value)
            if a[key].dtype != value.dtype or not np.array_equal(a[key], value):
                return False
    return found[2] == expected[2]


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "kitchen.wsmap"
    write_archive(path, *_states())
    return path


def test_read_archive_restores_written_states(saved):
    assert _equal(read_archive(saved), _states())


def test_archive_is_a_safetensors_file(saved):
    from safetensors.numpy import load_file

    arrays = load_file(saved)
    cloud, bank, _ = _states()
    assert set(arrays) == {f"cloud/{k}" for k in cloud} | {f"bank/{k}" for k in bank}
    np.testing.assert_array_equal(arrays["cloud/points"], cloud["points"])
    np.testing.assert_array_equal(arrays["bank/images"], bank["images"])


def test_write_archive_accepts_strided_and_big_endian_arrays(tmp_path):
    points = np.arange(24, dtype=">f4").reshape(6, 4).T[::2]
    write_archive(tmp_path / "a.wsmap", {"points": points}, {}, {})
    cloud, bank, metadata = read_archive(tmp_path / "a.wsmap")
    np.testing.assert_array_equal(cloud["points"], points)
    assert (bank, metadata) == ({}, {})


@pytest.mark.parametrize("bad", [np.array(["text"]), np.array([object()]), np.zeros(2, np.complex64)])
def test_write_archive_rejects_arrays_of_other_types(tmp_path, bad):
    with pytest.raises(ArchiveError, match="numbers or bools were expected"):
        write_archive(tmp_path / "a.wsmap", {"x": bad}, {}, {})
    assert list(tmp_path.iterdir()) == []


def test_write_archive_rejects_metadata_that_json_cannot_encode(saved):
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(ArchiveError, match="JSON"):
            write_archive(saved, {}, {}, bad)
    assert _equal(read_archive(saved), _states())


# --- damage ----------------------------------------------------------------------------------------------------------


def test_read_archive_rejects_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(ArchiveError, match="There is no map"):
        read_archive(tmp_path / "none.wsmap")
    with pytest.raises(ArchiveError, match="is not a regular file"):
        read_archive(tmp_path)
    os.mkfifo(tmp_path / "pipe.wsmap")
    with pytest.raises(ArchiveError, match="is not a regular file"):
        read_archive(tmp_path / "pipe.wsmap")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_read_archive_detects_any_changed_byte(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("flip") / "a.wsmap"
    write_archive(path, *_states(points=5))
    raw = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    try:
        found = read_archive(path)
    except ArchiveError:
        return
    assert _equal(found, _states(points=5))


def test_read_archive_rejects_truncated_files(saved):
    raw = saved.read_bytes()
    for length in [*range(0, len(raw) - 1, 7), len(raw) - 1]:
        saved.write_bytes(raw[:length])
        with pytest.raises(ArchiveError, match=r"truncated|not a worldstereo_ros map"):
            read_archive(saved)
    saved.write_bytes(raw + b"more")
    with pytest.raises(ArchiveError, match="damaged"):
        read_archive(saved)


def test_read_archive_rejects_other_file_formats(tmp_path):
    from safetensors.numpy import save_file

    save_file({"cloud/points": np.zeros((2, 3), np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ArchiveError, match="with other content"):
        read_archive(tmp_path / "other.safetensors")
    for name, content in {
        "text": b"hello, this is not a map at all",
        "zeros": bytes(4096),
        "png": b"\x89PNG" * 99,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArchiveError, match=r"not a worldstereo_ros map"):
            read_archive(tmp_path / name)
    nested = b"[" * 5000
    (tmp_path / "deep").write_bytes(struct.pack("<Q", len(nested)) + nested)
    with pytest.raises(ArchiveError, match="not a worldstereo_ros map"):
        read_archive(tmp_path / "deep")


def _rewrite(path: Path, change) -> None:
    """Rewrites the archive with a changed header and valid header checksums."""
    import hashlib

    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    about = header.pop("__metadata__")
    manifest = json.loads(about["manifest"])
    change(about, manifest, header)
    manifest["tensors"] = header
    about["manifest"] = json.dumps(manifest)
    about["manifest_sha256"] = hashlib.sha256(about["manifest"].encode()).hexdigest()
    text = json.dumps({"__metadata__": about, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def test_read_archive_asks_to_update_for_newer_versions(saved):
    _rewrite(saved, lambda about, manifest, header: about.update(version="4"))
    with pytest.raises(ArchiveError, match=r"version 4.*reads up to 3.*Update"):
        read_archive(saved)


def _huge_shape(about, manifest, header):
    header["cloud/points"]["shape"] = [2**40, 3]


def _negative(about, manifest, header):
    header["cloud/points"]["shape"] = [-50, -3]


def _hole(about, manifest, header):
    header["cloud/observed"]["data_offsets"] = [10_000_000_000, 10_000_000_050]


def _object(about, manifest, header):
    header["cloud/points"]["dtype"] = "O"


@pytest.mark.parametrize("change", [_huge_shape, _negative, _hole, _object])
def test_read_archive_rejects_wrong_sizes_before_allocating(saved, change, monkeypatch):
    _rewrite(saved, change)
    monkeypatch.setattr(
        np, "empty", lambda *a, **k: pytest.fail("an array was allocated before the sizes were checked")
    )
    with pytest.raises(ArchiveError, match="damaged"):
        read_archive(saved)


def test_read_archive_rejects_oversized_files(saved):
    with pytest.raises(ArchiveError, match="at most 100 are accepted"):
        read_archive(saved, max_bytes=100)
    with saved.open("ab") as file:
        file.truncate(archive.MAX_BYTES + 1)  # sparse: uses no disk space
    with pytest.raises(ArchiveError, match="are accepted"):
        read_archive(saved)


def test_read_archive_rejects_numbers_that_are_not_finite(tmp_path):
    path = tmp_path / "a.wsmap"
    write_archive(path, {"points": np.array([[0.0, np.nan, 1.0]])}, {}, {})
    with pytest.raises(ArchiveError, match=r"'cloud/points' that are not finite"):
        read_archive(path)


# --- saving that fails -----------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys
import numpy as np
from worldstereo_ros.memory.archive import ArchiveError, write_archive
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_archive(sys.argv[1], {"points": np.ones((100_000, 3), np.float32)}, {}, {})
except ArchiveError as error:
    print(error)
else:
    print("saved")
"""


def test_full_disk_leaves_the_old_map_unchanged(saved):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(saved)], capture_output=True, text=True, check=True)
    assert f"could not be saved to {saved}" in done.stdout
    assert "unchanged" in done.stdout
    assert _equal(read_archive(saved), _states())
    assert list(saved.parent.iterdir()) == [saved]


def test_failing_sync_leaves_the_old_map_unchanged(saved, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArchiveError, match="No space left on device"):
        write_archive(saved, *_states(1))
    monkeypatch.undo()
    assert _equal(read_archive(saved), _states())
    assert list(saved.parent.iterdir()) == [saved]


def test_write_archive_rejects_read_only_folders(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArchiveError, match="could not be saved"):
        write_archive(tmp_path / "file" / "a.wsmap", *_states())

    def read_only(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(ArchiveError, match="Read-only file system"):
        write_archive(tmp_path / "a.wsmap", *_states())


def test_write_archive_removes_leftovers_of_killed_saves_only(saved):
    dead = saved.with_name(f".{saved.name}.0123456789abcdef.partial")
    dead.write_bytes(b"half")
    other = saved.with_name(".bedroom.wsmap.0123456789abcdef.partial")
    other.write_bytes(b"half")
    with atomic_file(saved) as file:  # a save that still runs
        (running,) = set(saved.parent.iterdir()) - {saved, dead, other}
        dead.write_bytes(b"half")
        write_archive(saved, *_states(1))
        assert not dead.exists()
        assert other.exists()
        assert running.exists()
        assert _equal(read_archive(saved), _states(1))
        file.write(b"the later save")
    assert saved.read_bytes() == b"the later save"


# One process imports numpy once and forks a saver per input line, so that 200 starts take seconds, not minutes.
SAVERS = """
import os, sys
import numpy as np
from worldstereo_ros.memory.archive import write_archive
path = sys.argv[1]
def state(value):
    points, images = np.full((200_000, 3), value, np.float32), np.full((4, 64, 64, 3), value, np.uint8)
    return {"points": points}, {"images": images}, {"value": value}
for line in sys.stdin:
    child = os.fork()
    if not child:
        value = int(line)
        while True:
            value = 3 - value
            write_archive(path, *state(value))
    print(child, flush=True)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_map_survives_two_hundred_kills_during_saves(tmp_path):
    path = tmp_path / "map.wsmap"
    states = {
        value: (
            {"points": np.full((200_000, 3), value, np.float32)},
            {"images": np.full((4, 64, 64, 3), value, np.uint8)},
            {"value": value},
        )
        for value in (1, 2)
    }
    write_archive(path, *states[1])
    rng = np.random.default_rng(0)
    current, in_the_middle, seen, longest, unfinished = 1, 0, set(), 0.02, 0
    with subprocess.Popen(
        [sys.executable, "-c", SAVERS, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as savers:
        try:
            for _ in range(200):
                savers.stdin.write(f"{current}\n")
                savers.stdin.flush()
                child = int(savers.stdout.readline())
                time.sleep(rng.uniform(0, longest))
                os.kill(child, signal.SIGKILL)
                assert savers.stdout.readline().strip() == "dead"
                in_the_middle += any(tmp_path.glob(".*.partial"))
                found = read_archive(path)
                unfinished = unfinished + 1 if found[2]["value"] == current else 0
                if unfinished == 20:  # saves take longer on a busy machine
                    longest, unfinished = 2 * longest, 0
                current = found[2]["value"]
                seen.add(current)
                assert _equal(found, states[current])
                assert len(list(tmp_path.iterdir())) <= 2
        finally:
            os.killpg(savers.pid, signal.SIGKILL)
    assert seen == {1, 2}, "no save finished, so nothing was tested"
    assert in_the_middle >= 20, f"only {in_the_middle} of 200 kills hit a save"
    write_archive(path, *states[1])
    assert list(tmp_path.iterdir()) == [path]


# --- names -----------------------------------------------------------------------------------------------------------


def test_archive_path_lies_inside_the_map_directory(tmp_path):
    assert archive_path(tmp_path, "kitchen") == tmp_path.resolve() / "kitchen.wsmap"
    assert archive_path(tmp_path, "kitchen.wsmap").name == "kitchen.wsmap"
    assert archive_path(tmp_path, "floor 2, east"[:7]).name == "floor 2.wsmap"
    assert archive_path(tmp_path, "v1.2-final_3").name == "v1.2-final_3.wsmap"


BAD_NAMES = ["", ".", "..", ".hidden", "../out", "a/b", "/etc/passwd", "a\\b", "a\0b", "a\n", "a b ", "~", "-rf"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "x" * 101, "Küche", None, 3])
def test_archive_path_rejects_invalid_names(tmp_path, name):
    with pytest.raises(ArchiveError, match="is not a valid map name"):
        archive_path(tmp_path, name)


def test_archive_path_rejects_links_to_the_outside(tmp_path):
    maps, outside = tmp_path / "maps", tmp_path / "outside"
    maps.mkdir()
    outside.mkdir()
    (outside / "secret.wsmap").write_bytes(b"x")
    (maps / "escape.wsmap").symlink_to(outside / "secret.wsmap")
    (maps / "nowhere.wsmap").symlink_to(outside / "new.wsmap")
    (maps / "ring.wsmap").symlink_to(maps / "ring.wsmap")
    for name in ("escape", "nowhere"):
        with pytest.raises(ArchiveError, match="a place outside"):
            archive_path(maps, name)
    # The map directory itself may be a link.
    (tmp_path / "link").symlink_to(maps)
    assert archive_path(tmp_path / "link", "kitchen") == maps.resolve() / "kitchen.wsmap"
