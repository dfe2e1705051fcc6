"""PLY and PCD files as columns of numbers, with checks against the size of the file before memory is allocated.

PLY files are read here, because Open3D's reader returns uninitialised points for a truncated file; Open3D reads PCD.
Files are written here, because Open3D's writer reports files that a full disk cut off as written, and ends the process
on paths that are not UTF-8.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from worldstereo_ros.utils.atomic_files import atomic_file, readable_path
from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.file_kinds import explain_unreadable

SUFFIXES = (".ply", ".pcd")
MAX_POINTS = 100_000_000
PCD_TYPES = ("F4", "F8", "I1", "I2", "I4", "I8", "U1", "U2", "U4", "U8")
MAX_PCD_COUNT = 4096  # numbers of one field of a point; descriptors have a few hundred
MAX_HEADER_BYTES = 64 * 1024
Columns = dict[str, np.ndarray]  # (N,) numbers each, by name, in the order of the file
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
_PLY_NAMES = {np.dtype(code): name for name, code in reversed(_PLY_TYPES.items())}
_PCD_KINDS = {"f": "F", "u": "U", "i": "I"}


class CloudFileError(WorldStereoError, ValueError):
    """A point cloud file that cannot be read or written."""


def read_columns(path: Path) -> Columns:
    """Reads the points of a .ply (ASCII or binary, vertices first) or .pcd file, with the precision of the file.

    A PCD has x, y, z, red, green, blue, and those of its other fields that hold one number.

    Raises:
        CloudFileError: another suffix or format, or a damaged or truncated file.
    """
    check_suffix(path)
    try:
        return _read_ply(path) if path.suffix.lower() == ".ply" else _read_pcd(path)
    except OSError as error:
        raise CloudFileError(f"{path} cannot be read: {error.strerror}.") from error


def write_columns(path: Path, columns: Columns, *, comments: tuple[str, ...] = ()) -> None:
    """Writes points as a binary .ply or .pcd file, with `atomic_file`.

    Args:
        path: the file.
        columns: (N,) numbers each, by name; in a PCD, red, green and blue must be uint8 and become `rgb`.
        comments: lines for the header.

    Raises:
        CloudFileError: another suffix.
        WriteError: the file cannot be written.
    """
    check_suffix(path)
    is_ply = path.suffix.lower() == ".ply"
    columns = columns if is_ply else _pack_rgb(columns)
    count = len(next(iter(columns.values())))
    rows = np.empty(count, dtype=[(name, values.dtype.newbyteorder("<")) for name, values in columns.items()])
    for name, values in columns.items():
        rows[name] = values
    header = _ply_header(columns, count, comments) if is_ply else _pcd_header(columns, count, comments)
    with atomic_file(path) as file:
        file.write(header.encode())
        file.write(rows.view(np.uint8).data)


def check_suffix(path: Path) -> None:
    """Checks that a file is .ply or .pcd. Raises CloudFileError."""
    if path.suffix.lower() not in SUFFIXES:
        raise CloudFileError(f"{path} has the suffix '{path.suffix}'; {' or '.join(SUFFIXES)} was expected.")


def _ply_header(columns: Columns, count: int, comments: tuple[str, ...]) -> str:
    lines = ["ply", "format binary_little_endian 1.0", *(f"comment {text}" for text in comments)]
    lines += [f"element vertex {count}"]
    lines += [f"property {_PLY_NAMES[values.dtype]} {name}" for name, values in columns.items()]
    return "\n".join([*lines, "end_header", ""])


def _pcd_header(columns: Columns, count: int, comments: tuple[str, ...]) -> str:
    dtypes = [values.dtype for values in columns.values()]
    lines = ["# .PCD v0.7 - Point Cloud Data file format", *(f"# {text}" for text in comments), "VERSION 0.7"]
    lines += ["FIELDS " + " ".join(columns), "SIZE " + " ".join(str(dtype.itemsize) for dtype in dtypes)]
    lines += ["TYPE " + " ".join(_PCD_KINDS[dtype.kind] for dtype in dtypes), "COUNT " + " ".join("1" for _ in dtypes)]
    return "\n".join(
        [*lines, f"WIDTH {count}", "HEIGHT 1", "VIEWPOINT 0 0 0 1 0 0 0", f"POINTS {count}", "DATA binary", ""]
    )


def _pack_rgb(columns: Columns) -> Columns:
    """The columns with red, green and blue as one number, at the place of red."""
    packed = {}
    for name, values in columns.items():
        if name == "red":
            red, green, blue = (columns[channel].astype(np.uint32) for channel in ("red", "green", "blue"))
            packed["rgb"] = red << 16 | green << 8 | blue
        elif name not in ("green", "blue"):
            packed[name] = values
    return packed


def _read_ply(path: Path) -> Columns:
    with path.open("rb") as file:
        kind, count, properties = _parse_ply_header(file, path)
        remaining = path.stat().st_size - file.tell()
        endian = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(kind, "")
        fields = np.dtype([(name, endian + _PLY_TYPES[kind]) for name, kind in properties])
        # A number in ASCII takes at least two bytes: a digit and a space.
        _check_count(path, count, remaining, fields.itemsize if endian else 2 * len(properties))
        if count == 0:
            return {name: np.zeros(0, fields[name]) for name, _ in properties}
        if endian:
            rows = np.frombuffer(file.read(count * fields.itemsize), dtype=fields)
            return {name: rows[name].astype(rows[name].dtype.newbyteorder("=")) for name, _ in properties}
        try:
            table = np.loadtxt(file, dtype=np.float64, max_rows=count, usecols=range(len(properties)), ndmin=2)
        except (ValueError, UnicodeDecodeError) as error:
            raise CloudFileError(f"{path} is damaged: {str(error).rstrip('.')}.") from error
    if len(table) < count:
        raise _truncated(path, count, f"{len(table):,} lines")
    with np.errstate(invalid="ignore"):
        return {name: table[:, at].astype(fields[name]) for at, (name, _) in enumerate(properties)}


def _parse_ply_header(file: BinaryIO, path: Path) -> tuple[str, int, list[tuple[str, str]]]:
    """Reads the header: (format, number of vertices, [(property, type)]); leaves the file at the start of the data."""
    lines: list[list[str]] = []
    while not lines or lines[-1] != ["end_header"]:
        line = file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES or (not lines and line.strip() != b"ply"):
            why = explain_unreadable(path, "ply", "text")
            raise CloudFileError(f"{path} has no PLY header, so it is not a point cloud. {why}".rstrip())
        lines.append(line.decode("latin-1").split())
    kind = next((words[1] for words in lines if words[:1] == ["format"] and len(words) > 1), "")
    elements = [at for at, words in enumerate(lines) if words[:1] == ["element"]]
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian") or not elements:
        raise CloudFileError(f"{path} has no valid PLY header: its format is '{kind}'.")
    first, after = elements[0], (*elements[1:], len(lines) - 1)[0]
    if len(lines[first]) != 3 or lines[first][1] != "vertex" or not lines[first][2].isdecimal():
        raise CloudFileError(f"{path} starts with '{' '.join(lines[first])}'; 'element vertex COUNT' was expected.")
    properties = [words for words in lines[first + 1 : after] if words[:1] == ["property"]]
    names = [words[-1] for words in properties]
    if not names or any(len(p) != 3 or p[1] not in _PLY_TYPES for p in properties) or len(set(names)) < len(names):
        raise CloudFileError(
            f"{path} has vertices with lists, unknown types or duplicate names; numbers were expected."
        )
    return kind, int(lines[first][2]), [(words[2], words[1]) for words in properties]


def _read_pcd(path: Path) -> Columns:
    import open3d as o3d

    with path.open("rb") as file:
        header = file.read(MAX_HEADER_BYTES)
    at = header.find(b"\nDATA ")
    words = {line.split()[0]: line.split()[1:] for line in header[:at].decode("latin-1").splitlines() if line.split()}
    data = header[at + 6 :].split(b"\n", 1)[0].strip()
    if at < 0 or len(words.get("POINTS", [])) != 1 or not words["POINTS"][0].isdecimal():
        why = explain_unreadable(path, "text")
        raise CloudFileError(f"{path} has no PCD header, so it is not a point cloud. {why}".rstrip())
    _check_pcd_fields(path, words)
    count = int(words["POINTS"][0])
    # LZF compresses repeated bytes by a factor of about 250 at most.
    _check_count(path, count, 250 * path.stat().st_size if data == b"binary_compressed" else path.stat().st_size, 6)
    if data == b"ascii":
        with path.open("rb") as file:
            file.seek(at + 1)
            lines = sum(1 for line in file if line.strip()) - 1
        if lines < count:
            raise _truncated(path, count, f"{lines:,} lines")
    with readable_path(path) as name, o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        try:
            cloud = o3d.t.io.read_point_cloud(name, format="pcd")
        except (RuntimeError, UnicodeDecodeError) as error:  # its messages have several lines, and colours
            raise CloudFileError(f"{path} is damaged: {' '.join(str(error).split())[-120:]}") from None
    if "positions" not in cloud.point or len(cloud.point.positions) != count:
        raise _truncated(path, count, f"{path.stat().st_size:,} bytes")
    arrays = {name: cloud.point[name].numpy() for name in cloud.point}
    columns = {axis: arrays["positions"][:, at] for at, axis in enumerate("xyz")}
    if "colors" in arrays:
        columns |= {name: arrays["colors"][:, at] for at, name in enumerate(("red", "green", "blue"))}
    others = [name for name in arrays if name not in ("positions", "colors") and arrays[name].size == count]
    return columns | {name: arrays[name].reshape(count) for name in others}


def _check_pcd_fields(path: Path, words: dict[str, list[str]]) -> None:
    """Checks the lines that describe the fields: Open3D takes them as they are, and reads beyond its buffers."""
    fields = words.get("FIELDS", [])
    sizes, kinds = words.get("SIZE", []), words.get("TYPE", [])
    counts = words.get("COUNT", ["1"] * len(fields))
    if not (
        0 < len(fields) == len(sizes) == len(kinds) == len(counts)
        and all(name.isascii() for name in fields)
        and all(kind + size in PCD_TYPES for kind, size in zip(kinds, sizes, strict=True))
        and all(count.isdecimal() and 1 <= int(count[:9]) <= MAX_PCD_COUNT for count in counts)
    ):
        lines = "; ".join(f"{key} {' '.join(words.get(key, []))[:60]}" for key in ("FIELDS", "SIZE", "TYPE", "COUNT"))
        raise CloudFileError(f"{path} describes no fields of a point cloud ({lines}); it is damaged.")


def _check_count(path: Path, count: int, available: int, point_bytes: int) -> None:
    """Checks, before memory is allocated, that the points of the header fit into the available bytes."""
    if count > MAX_POINTS:
        raise CloudFileError(f"{path} declares {count:,} points; at most {MAX_POINTS:,} are accepted.")
    if count * point_bytes > available:
        raise _truncated(path, count, f"{available:,} bytes")


def _truncated(path: Path, count: int, available: str) -> CloudFileError:
    return CloudFileError(f"{path} declares {count:,} points, but has only {available}; it is truncated or damaged.")
