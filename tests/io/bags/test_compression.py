"""Compressed recordings: read whole, and refused where they unpack to more than memory holds."""

import struct
import tracemalloc

import lz4.frame
import numpy as np
import pytest
import yaml
from helpers.mcap_files import channel, chunk, message, schema, write_mcap
from helpers.recordings import START, record
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from worldstereo_ros.io.bags import compression
from worldstereo_ros.io.bags.compression import UnpackError, check_unpacked_size, unpack_zstd, unpacked_bound, zstd
from worldstereo_ros.io.bags.views import Bag, BagError, read_views

GIGABYTE = 1_000_000_000
RANDOM = np.random.default_rng(0).bytes(300_000)
CHANNEL = schema("std_msgs/msg/String", "ros2msg") + channel("/a", "cdr")


@pytest.fixture(scope="module")
def zeros() -> bytes:
    """A gigabyte of zeros in about 30 kB of zstd."""
    packer = zstd.ZstdCompressor()
    piece = bytes(GIGABYTE // 100)
    return b"".join(packer.compress(piece) for _ in range(100)) + packer.flush()


def _repacked(source, target, mode: CompressionMode, plugin: StoragePlugin) -> None:
    """Writes a bag again with a compression mode of rosbag2."""
    with Reader(source) as reader:
        writer = Writer(target, version=9, storage_plugin=plugin)
        writer.set_compression(mode, CompressionFormat.ZSTD)
        with writer:
            connections = {
                c.topic: writer.add_connection(c.topic, c.msgtype, msgdef=c.msgdef.data, rihs01=c.digest)
                for c in reader.connections
            }
            for connection, stamp, raw in reader.messages():
                writer.write(connections[connection.topic], stamp, raw)


@pytest.mark.parametrize(
    ("mode", "plugin"),
    [
        (CompressionMode.FILE, StoragePlugin.MCAP),
        (CompressionMode.FILE, StoragePlugin.SQLITE3),
        (CompressionMode.MESSAGE, StoragePlugin.MCAP),
        (CompressionMode.MESSAGE, StoragePlugin.SQLITE3),
        (CompressionMode.STORAGE, StoragePlugin.MCAP),
    ],
)
def test_compressed_recordings_are_read_as_plain_ones(tmp_path, mode, plugin):
    record(tmp_path / "plain")
    _repacked(tmp_path / "plain", tmp_path / "packed", mode, plugin)
    plain, packed = (list(read_views(tmp_path / name)) for name in ("plain", "packed"))
    assert len(plain) == len(packed) == 5
    for one, other in zip(plain, packed, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.depth, other.depth)
    with Bag(tmp_path / "packed") as bag:  # twice, as the first pass and the second do
        passes = [[bytes(raw) for _, _, raw in bag.messages(["/cam/image"])] for _ in range(2)]
    assert passes[0] == passes[1] != []


# --- bounds ---


@pytest.mark.parametrize("data", [b"", b"a" * 5, bytes(1_000_000), RANDOM, RANDOM + bytes(500_000)])
def test_the_bound_is_never_below_the_size_and_hardly_above_it(data):
    for level in (1, 19):
        packed = zstd.compress(data, level)
        assert len(data) <= unpacked_bound(memoryview(packed), "zstd") <= len(data) + 2 * 128 * 1024
    packer = zstd.ZstdCompressor()  # the size is not in the header, and blocks are cut
    packed = packer.compress(data[:1000]) + packer.flush(packer.FLUSH_BLOCK) + packer.compress(data[1000:])
    assert unpacked_bound(memoryview(packed + packer.flush()), "zstd") >= len(data)
    packed = zstd.compress(data) + struct.pack("<II", 0x184D2A51, 3) + b"abc" + zstd.compress(data)
    assert unpacked_bound(memoryview(packed), "zstd") >= 2 * len(data)
    packed = lz4.frame.compress(data)
    assert len(data) <= unpacked_bound(memoryview(packed), "lz4") <= max(len(data) + 4 * 2**20, 255 * len(packed))
    assert unpacked_bound(memoryview(data), "") == len(data)


def test_many_small_blocks_are_measured_and_not_refused_by_their_bound():
    packer, piece = zstd.ZstdCompressor(), b"ab" * 50
    packed = b"".join(packer.compress(piece) + packer.flush(packer.FLUSH_BLOCK) for _ in range(100)) + packer.flush()
    assert unpacked_bound(memoryview(packed), "zstd") > 1_000_000
    check_unpacked_size(memoryview(packed), "zstd", "It", limit=10_000)
    assert unpack_zstd(memoryview(packed), "It", limit=10_000) == piece * 100
    with pytest.raises(UnpackError, match="unpacks to more than"):
        check_unpacked_size(memoryview(packed), "zstd", "It", limit=9999)


def test_bounds_of_damaged_data_end():
    rng = np.random.default_rng(3)
    for packed, kind in (
        (zstd.compress(RANDOM[:3000] + bytes(9000)), "zstd"),
        (lz4.frame.compress(RANDOM[:3000]), "lz4"),
    ):
        for end in range(0, len(packed), 37):
            assert unpacked_bound(memoryview(packed[:end]), kind) >= 0
        for _ in range(200):
            damaged = bytearray(packed)
            damaged[rng.integers(len(packed))] = rng.integers(256)
            assert unpacked_bound(memoryview(bytes(damaged)), kind) >= 0


# --- bombs ---


def _peak(call) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("declared", [GIGABYTE, 100])
def test_a_chunk_that_unpacks_to_a_gigabyte_is_refused(tmp_path, zeros, declared):
    """Whatever size it declares: the reader unpacks it before it compares."""
    file = write_mcap(tmp_path / "a.mcap", CHANNEL, chunk(zeros, "zstd", declared))

    def read():
        with pytest.raises(BagError, match=r"A chunk of .* unpacks to more than 256 MiB \(zstd\)"), Bag(file):
            pass

    assert _peak(read) < 50_000_000


def test_an_lz4_chunk_that_unpacks_to_a_gigabyte_is_refused(tmp_path):
    packer = lz4.frame.LZ4FrameCompressor(block_size=lz4.frame.BLOCKSIZE_MAX4MB)
    piece = bytes(4 * 2**20)
    packed = packer.begin() + b"".join(packer.compress(piece) for _ in range(80)) + packer.flush()
    file = write_mcap(tmp_path / "a.mcap", CHANNEL, chunk(packed, "lz4", 80 * len(piece)))
    with pytest.raises(BagError, match=r"unpacks to more than 256 MiB \(lz4\)"), Bag(file):
        pass


def test_a_chunk_of_ordinary_size_is_read(tmp_path):
    """The same file as above, but with a message in its chunk."""
    content = message(b"\0\1\0\0" + struct.pack("<I", 3) + b"hi\0")
    file = write_mcap(tmp_path / "a.mcap", CHANNEL, chunk(zstd.compress(content), "zstd", len(content)))
    with Bag(file) as bag:
        ((topic, _, raw),) = bag.messages(["/a"])
        assert bag.decode(topic, raw).data == "hi"


def test_a_message_that_unpacks_to_a_gigabyte_is_refused(tmp_path, zeros):
    record(tmp_path / "plain")
    writer = Writer(tmp_path / "packed", version=9, storage_plugin=StoragePlugin.SQLITE3)
    with Reader(tmp_path / "plain") as reader, writer:
        (image,) = (c for c in reader.connections if c.topic == "/cam/image")
        connection = writer.add_connection(image.topic, image.msgtype, msgdef=image.msgdef.data, rihs01=image.digest)
        writer.write(connection, START, zeros)
    metadata = yaml.safe_load((tmp_path / "packed/metadata.yaml").read_text())
    metadata["rosbag2_bagfile_information"] |= {"compression_mode": "MESSAGE", "compression_format": "zstd"}
    (tmp_path / "packed/metadata.yaml").write_text(yaml.safe_dump(metadata))

    def read():
        with (
            Bag(tmp_path / "packed") as bag,
            pytest.raises(BagError, match=r"A message on '/cam/image' .* more than 256"),
        ):
            list(bag.messages(["/cam/image"]))

    assert _peak(read) < 50_000_000


def test_a_file_larger_than_the_disk_is_refused_before_it_is_unpacked(tmp_path, zeros, monkeypatch):
    record(tmp_path / "plain", storage="sqlite3")
    _repacked(tmp_path / "plain", tmp_path / "packed", CompressionMode.FILE, StoragePlugin.SQLITE3)
    (file,) = (tmp_path / "packed").glob("*.zstd")
    file.write_bytes(zeros)
    usage = compression.shutil.disk_usage(tmp_path)._replace(free=500_000_000)
    monkeypatch.setattr(compression.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(compression.shutil, "copyfileobj", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(BagError, match=r"unpacks to 95\d MiB; the folder of temporary files has 429 MiB"):
        Bag(tmp_path / "packed").__enter__()
