"""MCAP files of any profile, encoding and compression, record by record (https://mcap.dev/spec)."""

import struct
from pathlib import Path

MAGIC = b"\x89MCAP0\r\n"


def _text(value: str) -> bytes:
    return struct.pack("<I", len(value)) + value.encode()


def record(opcode: int, content: bytes) -> bytes:
    return struct.pack("<BQ", opcode, len(content)) + content


def schema(name: str, encoding: str) -> bytes:
    return record(3, struct.pack("<H", 1) + _text(name) + _text(encoding) + struct.pack("<I", 0))


def channel(topic: str, encoding: str, number: int = 1, schema_number: int = 1) -> bytes:
    content = struct.pack("<HH", number, schema_number) + _text(topic) + _text(encoding) + struct.pack("<I", 0)
    return record(4, content)


def message(data: bytes, stamp_ns: int = 1, number: int = 1) -> bytes:
    return record(5, struct.pack("<HIQQ", number, 0, stamp_ns, stamp_ns) + data)


def chunk(packed: bytes, compression: str, size: int, crc: int = 0) -> bytes:
    content = struct.pack("<QQQI", 1, 1, size, crc) + _text(compression) + struct.pack("<Q", len(packed)) + packed
    return record(6, content)


def write_mcap(path: Path, *records: bytes, profile: str = "ros2", closed: bool = True) -> Path:
    """Writes a file without an index; `closed` adds the footer that a complete file ends with."""
    content = MAGIC + record(1, _text(profile) + _text("test")) + b"".join(records)
    if closed:
        content += record(15, struct.pack("<I", 0)) + record(2, struct.pack("<QQI", 0, 0, 0)) + MAGIC
    path.write_bytes(content)
    return path
