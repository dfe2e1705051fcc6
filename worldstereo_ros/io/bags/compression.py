"""Bounds on what compressed parts of a recording unpack to, found before they are unpacked.

A few kilobytes of zstd unpack to gigabytes of zeros. The size that a chunk declares is no bound, and that in a frame's
header may lie as well; but no block of zstd unpacks to more than 128 KiB, and no byte of LZ4 to more than 255. The
bounds below add up the blocks (RFC 8878, section 3.1.1; LZ4 frame format 1.6.4).
"""

from __future__ import annotations

import mmap
import shutil
import sys
from pathlib import Path

from worldstereo_ros.utils.errors import WorldStereoError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A chunk holds whole messages: this is the largest image that is decoded (64 megapixels) with four bytes a pixel.
MAX_UNPACKED_BYTES = 256 * 2**20
_ZSTD_BLOCK_BYTES = 128 * 2**10
_ZSTD_MAGIC, _LZ4_MAGIC = 0xFD2FB528, 0x184D2204
_SKIPPABLE_MAGIC = range(0x184D2A50, 0x184D2A60)
_STEP_BYTES = 2**20


class UnpackError(WorldStereoError, ValueError):
    """Compressed data that is damaged or unpacks to too much."""


def unpacked_bound(data: memoryview, compression: str) -> int:
    """An upper bound of the size that data unpacks to, in bytes; of damaged data, of its intact part.

    Args:
        data: compressed bytes.
        compression: "zstd", "lz4", or "" for none.
    """
    try:
        if compression == "zstd":
            return _zstd_bound(data)
        if compression == "lz4":
            return _lz4_bound(data)
    except IndexError:  # cut off; the reader says so when it unpacks it
        return 0
    return len(data)


def check_unpacked_size(data: memoryview, compression: str, what: str, limit: int = MAX_UNPACKED_BYTES) -> None:
    """Raises UnpackError if data unpacks to more than `limit` bytes; `what` is the subject of the message."""
    if unpacked_bound(data, compression) <= limit:
        return
    # Many small blocks have a high bound: only unpacking them, piece by piece, tells.
    if compression == "zstd" and _zstd_size(data, limit) <= limit:
        return
    raise UnpackError(
        f"{what} has {len(data)} bytes and unpacks to more than {limit // 2**20} MiB ({compression}), more than any "
        "message of a camera has. The recording is damaged, or made to exhaust memory."
    )


def unpack_zstd(data: memoryview, what: str, limit: int = MAX_UNPACKED_BYTES) -> bytes:
    """Unpacks zstd data of at most `limit` bytes; data that is damaged to nothing.

    Raises:
        UnpackError: it unpacks to more; `what` is the subject of the message.
    """
    check_unpacked_size(data, "zstd", what, limit)
    try:
        return zstd.decompress(data)
    except zstd.ZstdError:
        return b""


def unpack_zstd_file(source: Path, target: Path) -> None:
    """Unpacks a zstd file to another file, if the disk has room for it.

    Raises:
        UnpackError: damaged, or larger than the free space of the disk.
        OSError: a file cannot be read or written.
    """
    free = shutil.disk_usage(target.parent).free * 9 // 10  # the rest is left to other programs
    with source.open("rb") as packed:
        with mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            size = unpacked_bound(data, "zstd")
        if size > free:
            raise UnpackError(
                f"{source} unpacks to {size // 2**20} MiB; the folder of temporary files has {free // 2**20} MiB. Free "
                "some space, or set TMPDIR to a folder on another disk."
            )
        try:
            with zstd.open(packed, "rb") as stream, target.open("wb") as unpacked:
                shutil.copyfileobj(stream, unpacked)
        except (zstd.ZstdError, EOFError) as error:
            raise UnpackError(f"{source} is damaged: {error}.") from error


def _zstd_bound(data: memoryview) -> int:
    total, at = 0, 0
    while at < len(data):
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic in _SKIPPABLE_MAGIC:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            continue
        if magic != _ZSTD_MAGIC:
            break
        descriptor = data[at + 4]
        single_segment = descriptor >> 5 & 1
        size_bytes = (single_segment, 2, 4, 8)[descriptor >> 6]
        at += 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3] + size_bytes
        while True:
            header = data[at] | data[at + 1] << 8 | data[at + 2] << 16
            size, kind = header >> 3, header >> 1 & 3
            total += _ZSTD_BLOCK_BYTES if kind == 2 else size  # 0: raw, 1: one byte repeated, 2: compressed
            at += 3 + (1 if kind == 1 else size)
            if header & 1:
                break
        at += 4 if descriptor & 4 else 0  # checksum
    return total


def _zstd_size(data: memoryview, limit: int) -> int:
    """Size of unpacked zstd data, counted until it exceeds `limit`; of damaged data, of its intact part."""
    total, rest = 0, bytes(data)
    while rest and total <= limit:
        frame = zstd.ZstdDecompressor()
        piece_in = rest
        try:
            while not frame.eof and total <= limit:
                piece = frame.decompress(piece_in, max_length=_STEP_BYTES)
                if not piece and frame.needs_input:
                    return total
                total, piece_in = total + len(piece), b""
        except zstd.ZstdError:
            return total
        rest = frame.unused_data if frame.eof else b""
    return total


def _lz4_bound(data: memoryview) -> int:
    total, at = 0, 0
    while int.from_bytes(data[at : at + 4], "little") == _LZ4_MAGIC:
        flags, block_bytes = data[at + 4], 1 << 2 * (data[at + 5] >> 4 & 7) + 8
        at += 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)  # size of the content, dictionary
        while header := int.from_bytes(data[at : at + 4], "little"):
            size = header & 0x7FFFFFFF
            total += size if header >> 31 else min(block_bytes, 255 * size)
            at += 4 + size + (4 if flags & 16 else 0)  # checksum of the block
        at += 4 + (4 if flags & 4 else 0)
    return total
