"""Saved maps: both memories in one file, written atomically and verified when read.

The file is a safetensors container (any safetensors reader opens it) with the arrays of both memories. Its header holds
a manifest with the version, the metadata and the SHA-256 of every array. The file is written beside the old one,
synced, and renamed over it, so that a complete file exists at any moment, even if the process is killed. It is read
without memory mapping: access to a mapped file that was truncated would end the process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from worldstereo_ros.memory._cloud_state import ARRAYS
from worldstereo_ros.utils.atomic_files import WriteError, atomic_file
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.file_kinds import explain_unreadable

if TYPE_CHECKING:
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

logger = logging.getLogger(__name__)

SUFFIX = ".wsmap"
FORMAT = "worldstereo_ros map"
# Version 2 renamed the cloud's fusion weight to `weight` and its confidence to `confidence`; version 3 has the class
# `provenance` of each point and its `depth_confidence`.
VERSION = 3
MAX_BYTES = 4 * 2**30
OVERSIZE = 4  # a map of a memory this many times larger is still loaded, in parts
MIN_ACCEPTED_BYTES = 64 * 2**20
MAX_HEADER_BYTES = 16 * 2**20
MAX_ARRAYS = 100_000
MAX_SETTING_SIZE = 16  # numbers in a setting, such as a camera centre

_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}

State = dict[str, np.ndarray]


class ArchiveError(WorldStereoError, RuntimeError):
    """A map that cannot be saved or loaded."""


@dataclass(frozen=True)
class Archive:
    """Content of a saved map: both memories and the metadata."""

    cloud: CloudMemory
    bank: ViewBank
    metadata: dict[str, Any]


def archive_path(map_directory: str | Path, name: str) -> Path:
    """Returns the file of a named map; it always lies inside the map directory.

    Args:
        map_directory: folder of all maps; it may be a symbolic link itself.
        name: letters, digits, space, '_', '-' and '.', starting with a letter or digit, at most 100 characters. The
            suffix '.wsmap' is added if it is missing.

    Raises:
        ArchiveError: the name is invalid, or the file is a symbolic link to a place outside the map directory.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9_. -]{0,98}[A-Za-z0-9_-])?", name):
        shortened = repr(name) if len(repr(name)) <= 80 else repr(name)[:77] + "..."
        raise ArchiveError(
            f"{shortened} is not a valid map name: up to 100 letters, digits, spaces, '_', '-' and '.' were expected, "
            "starting with a letter or digit. Give a name inside the map directory, not a path."
        )
    folder = Path(map_directory).resolve()
    path = folder / (name if name.endswith(SUFFIX) else name + SUFFIX)
    try:
        inside = path.resolve().parent == folder
    except (OSError, RuntimeError):  # a cycle of links
        inside = False
    if not inside:
        raise ArchiveError(f"The map '{name}' is a symbolic link to a place outside the map directory {folder}.")
    return path


def save_archive(path: str | Path, cloud: CloudMemory, bank: ViewBank, metadata: Mapping[str, Any]) -> None:
    """Saves both memories atomically: an existing file is replaced only when the new one is complete.

    Args:
        path: file to write; its folder is created if it does not exist.
        cloud, bank: memories whose `state()` is saved.
        metadata: content that can be encoded as JSON.

    Raises:
        ArchiveError: the file could not be written (disk full, read-only, ...); an existing file is unchanged.
    """
    write_archive(path, cloud.state(), bank.state(), metadata)


def acceptable_bytes(cloud: CloudMemory, bank: ViewBank) -> int:
    """Returns the size of a map file up to which it is worth reading into memories with these limits.

    A file is read as a whole before what does not fit is left out, so that its size bounds the memory this takes. What
    memories with these limits can hold and save is always read.
    """
    bytes_per_point = sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in ARRAYS.values())
    own = cloud.max_points * bytes_per_point + bank.max_bytes + MIN_ACCEPTED_BYTES
    return max(own, min(MAX_BYTES, OVERSIZE * own))


def load_archive(
    path: str | Path,
    *,
    max_bytes: int = MAX_BYTES,
    cloud_like: CloudMemory | None = None,
    bank_like: ViewBank | None = None,
) -> Archive:
    """Loads both memories after verifying all sizes and checksums of the file.

    Logs a warning for a map of a version that did not tell estimated points from observed ones, and for one that does
    not fit the limits of the given memories.

    Args:
        path: file to read.
        max_bytes: largest accepted file size in bytes.
        cloud_like, bank_like: memories whose settings and limits apply; the file says nothing about them then. None =
            those that the file was saved with.

    Raises:
        ArchiveError: the file is missing, truncated, damaged, too large, of another format or of a newer version, or
            its arrays are not the state of a memory.
    """
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    cloud, bank, metadata = read_archive(path, max_bytes=max_bytes)
    try:
        archive = Archive(
            CloudMemory.from_state(cloud, cloud_like), ViewBank.from_state(bank, like=bank_like), metadata
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArchiveError(
            f"The map {path} is intact, but its arrays are not a valid memory state: {error}."
        ) from error
    saved = np.asarray(cloud["keys"]).size, int(np.asarray(bank["count"]).reshape(-1)[0])
    kept = len(archive.cloud), len(archive.bank)
    if saved != kept:
        logger.warning(
            "The map %s has %d points and %d views; %d points and %d views remain with the voxels of %g m and the "
            "limits of this memory (at most %d points, %d views, %d MB of views).",
            path, *saved, *kept, archive.cloud.voxel_size, archive.cloud.max_points, archive.bank.max_views,
            archive.bank.max_bytes // 10**6,
        )  # fmt: skip
    if "provenance" not in cloud and archive.cloud.observed_count:
        logger.warning(
            "The map %s is of a version that did not mark estimated depth: if depth of its images was estimated, their "
            "points count as observed. Observe the place again unless a sensor measured all of it.",
            path,
        )
    return archive


# --- writing ---------------------------------------------------------------------------------------------------------


def write_archive(path: str | Path, cloud: State, bank: State, metadata: Mapping[str, Any]) -> None:
    """Writes two dictionaries of arrays (numbers or bools, any shape) and metadata; see `save_archive`."""
    path = Path(path)
    arrays = {f"cloud/{key}": value for key, value in cloud.items()}
    arrays |= {f"bank/{key}": value for key, value in bank.items()}
    header, parts = _header(arrays, metadata)
    try:
        with atomic_file(path) as file:
            file.write(header)
            for part in parts:
                file.write(part)
    except WriteError as error:
        if error.replaced:
            raise ArchiveError(
                f"The map was saved to {path}, but the folder could not be synced ({error.reason}): "
                "after a power failure the previous map may reappear."
            ) from error
        raise ArchiveError(
            f"The map could not be saved to {path}: {error.reason}. An existing map there is unchanged."
        ) from error


def _header(arrays: State, metadata: Mapping[str, Any]) -> tuple[bytes, list[memoryview]]:
    """Builds the container's header, and the bytes of the arrays in the order of the header."""
    tensors: dict[str, Any] = {}
    checksums: dict[str, str] = {}
    parts = []
    offset = 0
    for name, value in arrays.items():
        array = np.asarray(value)
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise ArchiveError(f"The array '{name}' is of {array.dtype}; numbers or bools were expected.")
        array = np.asarray(array, dtype=dtype, order="C")
        data = array.reshape(-1).view(np.uint8).data
        tensors[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        checksums[name] = hashlib.sha256(data).hexdigest()
        parts.append(data)
        offset += len(data)
    try:
        manifest = json.dumps(
            {"metadata": dict(metadata), "sha256": checksums, "tensors": tensors}, allow_nan=False, sort_keys=True
        )
    except (TypeError, ValueError) as error:
        raise ArchiveError(f"The metadata of the map cannot be written as JSON: {error}.") from error
    format_metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "manifest": manifest,
        "manifest_sha256": hashlib.sha256(manifest.encode()).hexdigest(),
    }
    header = json.dumps({"__metadata__": format_metadata, **tensors}).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER_BYTES or len(arrays) > MAX_ARRAYS:
        raise ArchiveError(
            f"The map has {len(arrays)} arrays and a header of {len(header)} bytes; the limits are {MAX_ARRAYS} arrays "
            f"and {MAX_HEADER_BYTES} bytes."
        )
    return struct.pack("<Q", len(header)) + header, parts


# --- reading ---------------------------------------------------------------------------------------------------------


def read_archive(path: str | Path, *, max_bytes: int = MAX_BYTES) -> tuple[State, State, dict[str, Any]]:
    """Reads and verifies the arrays of a saved map.

    No array is allocated before the sizes in the header agree with the file size and with `max_bytes`.

    Returns:
        (arrays of the cloud, arrays of the bank, metadata).

    Raises:
        ArchiveError: see `load_archive`.
    """
    path = Path(path)
    try:
        # Non-blocking: opening a named pipe would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ArchiveError(f"There is no map {path}.") from None
    except OSError as error:
        raise ArchiveError(f"The map {path} cannot be opened: {error.strerror}.") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ArchiveError(f"{path} is not a regular file, so it is not a saved map.")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > max_bytes:
            raise ArchiveError(
                f"The map {path} has {status.st_size} bytes; at most {max_bytes} are accepted with these limits of the "
                "memories (max_points, max_bank_memory)."
            )
        try:
            tensors, manifest = _read_header(file, status.st_size, path)
            arrays = {name: _read_array(file, name, tensors[name], manifest["sha256"][name], path) for name in tensors}
        except OSError as error:
            raise ArchiveError(f"The map {path} cannot be read: {error.strerror}.") from error
    states: dict[str, State] = {"cloud": {}, "bank": {}}
    for name, array in arrays.items():
        memory, _, key = name.partition("/")
        if memory not in states or not key:
            raise ArchiveError(f"The map {path} has an array '{name}'; its name should start with 'cloud/' or 'bank/'.")
        states[memory][key] = array
    return states["cloud"], states["bank"], manifest["metadata"]


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (array descriptions in file order, manifest), verified, and leaves the file at the first array."""
    foreign = f"{path} is not a worldstereo_ros map"
    if why := explain_unreadable(path, "safetensors", "empty", "zeros", "text"):
        raise ArchiveError(f"{foreign}. {why}")
    prefix = file.read(8)
    if len(prefix) < 8:
        raise ArchiveError(f"The map {path} is truncated: it has {size} bytes.")
    length = struct.unpack("<Q", prefix)[0]
    if length > MAX_HEADER_BYTES:
        raise ArchiveError(f"{foreign}: its header length is {length} bytes; at most {MAX_HEADER_BYTES} are accepted.")
    if 8 + length > size:
        raise ArchiveError(f"The map {path} is truncated, or is not a map: it has {size} bytes.")
    header = _json(file.read(length), foreign)
    format_metadata = header.pop("__metadata__", None)
    if not isinstance(format_metadata, dict) or format_metadata.get("format") != FORMAT:
        raise ArchiveError(f"{foreign}: it is a safetensors file with other content.")
    version = format_metadata.get("version", "")
    if not isinstance(version, str) or not version.isascii() or not version.isdigit() or len(version) > 9:
        raise ArchiveError(f"The map {path} is damaged: it has no version.")
    if int(version) > VERSION:
        raise ArchiveError(
            f"The map {path} has version {version}; this release reads up to {VERSION}. Update worldstereo_ros."
        )
    text = format_metadata.get("manifest")
    damaged = f"The map {path} is damaged"
    if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest() != format_metadata.get("manifest_sha256"):
        raise ArchiveError(f"{damaged}: the checksum of its manifest does not match.")
    manifest = _json(text.encode(), damaged)
    checksums = manifest.get("sha256")
    if manifest.get("tensors") != header or not isinstance(checksums, dict) or set(checksums) != set(header):
        raise ArchiveError(f"{damaged}: its header and its manifest disagree.")
    if not isinstance(manifest.get("metadata"), dict) or len(header) > MAX_ARRAYS:
        raise ArchiveError(f"{damaged}: its manifest is incomplete.")
    expected = 0
    for name, tensor in header.items():
        expected = _check_tensor(tensor, expected, f"{damaged}: its array '{name}'")
    if 8 + length + expected != size:
        state = "truncated" if 8 + length + expected > size else "damaged"
        raise ArchiveError(f"The map {path} is {state}: it has {size} bytes, {8 + length + expected} were expected.")
    return header, manifest


def _check_tensor(tensor: object, begin: int, what: str) -> int:
    """Returns the end offset of an array that must start at `begin` and be as long as its shape says."""
    if not isinstance(tensor, dict) or set(tensor) != {"dtype", "shape", "data_offsets"}:
        raise ArchiveError(f"{what} lacks dtype, shape or data_offsets.")
    shape, offsets = tensor["shape"], tensor["data_offsets"]
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(shape) <= 8 and len(offsets) == 2
    if tensor["dtype"] not in _DTYPES or not lists or any(type(n) is not int or n < 0 for n in shape + offsets):
        raise ArchiveError(f"{what} has invalid dtype {tensor['dtype']!r}, shape {shape} or offsets {offsets}.")
    count = 1
    for extent in shape:
        count *= extent
    if offsets != [begin, begin + count * np.dtype(_DTYPES[tensor["dtype"]]).itemsize]:
        raise ArchiveError(f"{what} of shape {shape} has offsets {offsets}, which do not fit its size.")
    return offsets[1]


def _read_array(file: BufferedReader, name: str, tensor: dict[str, Any], checksum: str, path: Path) -> np.ndarray:
    array = np.empty(tensor["shape"], dtype=_DTYPES[tensor["dtype"]])
    data = array.reshape(-1).view(np.uint8)
    if file.readinto(data.data) != data.size:
        raise ArchiveError(f"The map {path} is truncated: it ends within '{name}'.")
    if hashlib.sha256(data.data).hexdigest() != checksum:
        raise ArchiveError(f"The map {path} is damaged: the checksum of '{name}' does not match.")
    if array.dtype == np.bool_ and data.size and data.max() > 1:
        raise ArchiveError(f"The map {path} has values other than 0 and 1 in the bool array '{name}'.")
    # Settings may be infinite or NaN, which mean "no limit" and "not set".
    setting = array.ndim < 2 and array.size <= MAX_SETTING_SIZE
    if array.dtype.kind == "f" and not setting and not np.isfinite(array).all():
        raise ArchiveError(f"The map {path} has numbers in '{name}' that are not finite.")
    return array


def _json(data: bytes, problem: str) -> dict[str, Any]:
    """Parses a JSON object; `problem` begins the error message."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise ArchiveError(f"{problem}: its header is not a JSON object.") from None
    if not isinstance(content, dict):
        raise ArchiveError(f"{problem}: its header is not a JSON object.")
    return content
