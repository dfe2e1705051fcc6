"""What an MCAP file holds, by its records: for the diagnosis of files that `rosbags` refuses, and for their bounds.

Records are walked in the file (https://mcap.dev/spec); messages are not read, and chunks not unpacked.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from worldstereo_ros.io.bags.compression import check_unpacked_size

MAGIC = b"\x89MCAP0\r\n"
ROS1_ADVICE = "Convert the .bag that it was made of: `pip install rosbags`, then `rosbags-convert --src A.bag --dst B`."
_NOT_ROS2 = ("protobuf", "jsonschema", "flatbuffer", "ros1msg")  # encodings of schemas
_HEADER, _SCHEMA, _CHANNEL, _CHUNK = 0x01, 0x03, 0x04, 0x06


@dataclass(frozen=True)
class McapChannel:
    """A topic with the encoding of its messages and the name and encoding of its schema."""

    topic: str
    encoding: str
    schema: str
    schema_encoding: str


@dataclass
class McapContents:
    """Contents of an MCAP file.

    Attributes:
        profile: "ros2", "ros1", or what the writer stated.
        channels: topics, as far as they are stated outside chunks.
        complete: the file ends as an MCAP does.
    """

    profile: str = ""
    channels: list[McapChannel] = field(default_factory=list)
    complete: bool = False


def read_contents(path: Path) -> McapContents:
    """Reads the contents of an MCAP file, as far as it is intact. Raises OSError."""
    contents, schemas = McapContents(), dict[int, tuple[str, str]]()
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < len(MAGIC):
            return contents
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            contents.complete = size >= 2 * len(MAGIC) and data[-len(MAGIC) :] == MAGIC
            for opcode, start, end in _records(data):
                if opcode not in (_HEADER, _SCHEMA, _CHANNEL):
                    continue
                try:
                    with data[start:end] as record:
                        _add(contents, schemas, opcode, record)
                except (struct.error, UnicodeDecodeError):
                    continue
    return contents


def _add(contents: McapContents, schemas: dict[int, tuple[str, str]], opcode: int, record: memoryview) -> None:
    if opcode == _HEADER:
        contents.profile = _strings(record, 0, 1)[0]
    elif opcode == _SCHEMA:
        name, encoding = _strings(record, 2, 2)
        schemas[struct.unpack_from("<H", record)[0]] = name, encoding
    else:
        topic, encoding = _strings(record, 4, 2)
        channel = McapChannel(topic, encoding, *schemas.get(struct.unpack_from("<H", record, 2)[0], ("", "")))
        if channel not in contents.channels:  # repeated in the summary
            contents.channels.append(channel)


def check_chunks(path: Path, index: Iterable[tuple[int, str, int]] = ()) -> None:
    """Checks that no chunk of an MCAP file unpacks to more than memory holds.

    Args:
        path: the file.
        index: (offset of the packed bytes, compression, their number) of chunks as an index states them, which may be
            others than those that follow one another in the file.

    Raises:
        UnpackError: a chunk is too large.
        OSError: the file cannot be read.
    """
    if path.stat().st_size < len(MAGIC):
        return
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as data,
    ):
        for opcode, start, end in _records(data):
            if opcode != _CHUNK or end - start < 40:
                continue
            (name_length,) = struct.unpack_from("<I", data, start + 28)  # after two times, the size, and the checksum
            compression = bytes(data[start + 32 : start + 32 + min(name_length, 16)]).decode("latin-1")
            with data[min(start + 32 + name_length + 8, end) : end] as content:
                check_unpacked_size(content, compression, f"A chunk of {path} at byte {start - 9}")
        for start, compression, size in index:
            with data[min(start, len(data)) : min(start + size, len(data))] as content:
                check_unpacked_size(content, compression, f"A chunk of {path} at byte {start}")


def _records(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yields (opcode, start, end) of the content of each record, up to the first that the file cuts off."""
    at = len(MAGIC)
    if data[:at] != MAGIC:
        return
    while at + 9 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at + 1)
        start, end = at + 9, at + 9 + length
        if end > len(data):
            return
        yield data[at], start, end
        at = end


def _strings(record: memoryview, at: int, count: int) -> list[str]:
    """Reads strings with their lengths before them."""
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from("<I", record, at)
        if at + 4 + length > len(record):
            raise struct.error("cut off")
        found.append(bytes(record[at + 4 : at + 4 + length]).decode("utf-8"))
        at += 4 + length
    return found


def explain_mcap(path: Path) -> str:
    """Says why an MCAP file is not read as a ROS 2 recording, and the one thing to do; empty if its records are fine.

    Raises:
        OSError: the file cannot be read.
    """
    contents = read_contents(path)
    other = [c for c in contents.channels if c.encoding not in ("cdr", "") or c.schema_encoding in _NOT_ROS2]
    encodings = sorted({c.encoding if c.encoding not in ("cdr", "") else c.schema_encoding for c in other})
    if contents.profile == "ros1" or any(e.startswith("ros1") for e in encodings):
        return f"It holds messages of ROS 1 (encoding 'ros1'). {ROS1_ADVICE}"
    if other:
        named = ", ".join(f"{c.topic} ({c.schema or 'no schema'})" for c in other[:4]) + (", ..." if other[4:] else "")
        if len(other) < len(contents.channels):
            exclude = "|".join(c.topic for c in other[:4])
            return (
                f"Some of its messages are encoded as {' and '.join(encodings)}, not as CDR, the encoding of ROS 2: "
                f"{named}. Leave these topics out: `mcap filter {path} -o ros2.mcap -n '{exclude}'`."
            )
        return (
            f"Its messages are encoded as {' and '.join(encodings)}, not as CDR, the encoding of ROS 2: {named}. "
            "Convert them to sensor_msgs, for example in Python: read with `pip install mcap` (and "
            "mcap-protobuf-support), write with `pip install mcap-ros2-support`."
        )
    if contents.profile != "ros2" and contents.channels:
        return (
            f"Its profile is '{contents.profile}', not 'ros2', though its messages are encoded as ROS 2's. Rewrite it "
            "with `ros2 bag convert`."
        )
    if not contents.complete:
        return (
            "It ends without the index that closes a recording (power failure, disk full, or a copy cut off). Restore "
            f"it: `mcap recover {path} -o recovered.mcap`."
        )
    return ""
