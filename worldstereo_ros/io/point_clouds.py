"""Point clouds of any origin as arrays: PLY read here, PCD through Open3D, both checked against the size of the file.

Open3D's PLY reader answers a file that is cut off with points it never read (whatever the memory held before), so a
viewer that must not show what nobody measured reads PLY itself.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from worldstereo_ros.utils.errors import WorldStereoError

SUFFIXES = (".ply", ".pcd")
MAX_POINTS = 100_000_000
MAX_HEADER_BYTES = 64 * 1024
_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


class CloudFileError(WorldStereoError, ValueError):
    """A cloud file that cannot be read or written. The message is a sentence."""


def read_point_cloud(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Points, colours and provenance of a .ply (ASCII or binary, vertices first) or .pcd file.

    Returns:
        (points (N, 3) float32, colours (N, 3) uint8, light grey where it has none, observed (N,) bool or None where
        the file has no such attribute). Coordinates may be NaN or infinite, as they are in organised clouds.

    Raises:
        CloudFileError: it has no points, is of neither kind, damaged, cut off, or promises more than it can hold.
    """
    path = Path(path)
    try:
        columns = _read_ply(path) if path.suffix.lower() == ".ply" else _read_pcd(path)
    except OSError as error:
        raise CloudFileError(f"{path} cannot be read: {error.strerror}.") from error
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise CloudFileError(f"{path} has no {', '.join(missing)} among {', '.join(columns)}, so it is no point cloud.")
    points = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)
    if len(points) == 0:
        raise CloudFileError(f"{path} has no points.")
    observed = columns.get("observed")
    return points, _colours(columns, len(points)), None if observed is None else observed > 0


def _colours(columns: dict[str, np.ndarray], count: int) -> np.ndarray:
    for prefix in ("", "diffuse_"):
        names = [prefix + name for name in ("red", "green", "blue")]
        if all(name in columns for name in names):
            colours = np.stack([columns[name] for name in names], axis=1)
            if colours.dtype == np.uint8:
                return colours
            colours = np.nan_to_num(colours.astype(np.float32))
            return np.clip(colours * (255 if colours.max() <= 1 else 1), 0, 255).round().astype(np.uint8)
    return np.full((count, 3), 190, dtype=np.uint8)


def _read_ply(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        kind, count, properties = _ply_header(file, path)
        left = path.stat().st_size - file.tell()
        endian = {"binary_little_endian": "<", "binary_big_endian": ">"}.get(kind, "")
        fields = np.dtype([(name, endian + _TYPES[kind]) for name, kind in properties])
        # The shortest number of a text takes two bytes, its digit and a space.
        _check_count(path, count, left, fields.itemsize if endian else 2 * len(properties))
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
        raise _cut_off(path, count, f"{len(table):,} lines")
    with np.errstate(invalid="ignore"):
        return {name: table[:, at].astype(fields[name]) for at, (name, _) in enumerate(properties)}


def _ply_header(file: BinaryIO, path: Path) -> tuple[str, int, list[tuple[str, str]]]:
    """(format, number of vertices, [(property, type)]); leaves the file where the data begins."""
    lines: list[list[str]] = []
    while not lines or lines[-1] != ["end_header"]:
        line = file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES or (not lines and line.strip() != b"ply"):
            raise CloudFileError(f"{path} has no PLY header, so it is no point cloud.")
        lines.append(line.decode("latin-1").split())
    kind = next((words[1] for words in lines if words[:1] == ["format"] and len(words) > 1), "")
    elements = [at for at, words in enumerate(lines) if words[:1] == ["element"]]
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian") or not elements:
        raise CloudFileError(f"{path} has no PLY header that can be understood: its format is '{kind}'.")
    first, after = elements[0], (*elements[1:], len(lines) - 1)[0]
    if len(lines[first]) != 3 or lines[first][1] != "vertex" or not lines[first][2].isdigit():
        raise CloudFileError(f"{path} begins with '{' '.join(lines[first])}'; 'element vertex COUNT' was expected.")
    properties = [words for words in lines[first + 1 : after] if words[:1] == ["property"]]
    names = [words[-1] for words in properties]
    if not names or any(len(p) != 3 or p[1] not in _TYPES for p in properties) or len(set(names)) < len(names):
        raise CloudFileError(f"{path} has vertices with lists, unknown types or doubled names; numbers were expected.")
    return kind, int(lines[first][2]), [(words[2], words[1]) for words in properties]


def _read_pcd(path: Path) -> dict[str, np.ndarray]:
    import open3d as o3d

    with path.open("rb") as file:
        header = file.read(MAX_HEADER_BYTES)
    at = header.find(b"\nDATA ")
    words = {line.split()[0]: line.split()[1:] for line in header[:at].decode("latin-1").splitlines() if line.split()}
    data = header[at + 6 :].split(b"\n", 1)[0].strip()
    if at < 0 or len(words.get("POINTS", [])) != 1 or not words["POINTS"][0].isdigit():
        raise CloudFileError(f"{path} has no PCD header, so it is no point cloud.")
    count = int(words["POINTS"][0])
    # Compression packs repeated bytes, at best some 250 to 1.
    _check_count(path, count, 250 * path.stat().st_size if data == b"binary_compressed" else path.stat().st_size, 6)
    if data == b"ascii":
        with path.open("rb") as file:
            file.seek(at + 1)
            lines = sum(1 for line in file if line.strip()) - 1
        if lines < count:
            raise _cut_off(path, count, f"{lines:,} lines")
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        cloud = o3d.t.io.read_point_cloud(str(path))
    if "positions" not in cloud.point or len(cloud.point.positions) != count:
        raise _cut_off(path, count, f"{path.stat().st_size:,} bytes")
    arrays = {name: cloud.point[name].numpy() for name in cloud.point}
    columns = {axis: arrays["positions"][:, at] for at, axis in enumerate("xyz")}
    if "colors" in arrays:
        columns |= {name: arrays["colors"][:, at] for at, name in enumerate(("red", "green", "blue"))}
    if "observed" in arrays:
        columns["observed"] = arrays["observed"].reshape(count, -1)[:, 0]
    return columns


def _check_count(path: Path, count: int, available: int, each: int) -> None:
    """Before memory is taken: the points a header promises must fit into the bytes that are there."""
    if count > MAX_POINTS:
        raise CloudFileError(f"{path} says it has {count:,} points; at most {MAX_POINTS:,} are read.")
    if count * each > available:
        raise _cut_off(path, count, f"{available:,} bytes")


def _cut_off(path: Path, count: int, what: str) -> CloudFileError:
    return CloudFileError(f"{path} says it has {count:,} points, but has {what} of them; it is cut off or damaged.")


class Cloud(Protocol):
    """What is exported of a cloud; `CloudMemory` is one. All of it is read only: a memory may compute it."""

    @property
    def points(self) -> np.ndarray:
        """(N, 3) float32 metres in the world frame."""

    @property
    def colours(self) -> np.ndarray:
        """(N, 3) uint8 RGB."""

    @property
    def observed(self) -> np.ndarray:
        """(N,) bool, True = a sensor saw it, False = imagined."""

    @property
    def weight(self) -> np.ndarray:
        """(N,) float32, how much a point was seen; above 0."""

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, probability that its colour is right."""


def write_point_cloud(cloud: Cloud, path: str | Path) -> None:
    """Writes every point with its colour, `observed` (1 = a sensor saw it, 0 = imagined), `confidence` and `weight`.

    `confidence` is a probability, as in the clouds that the node publishes; `weight` is how much a point was seen.

    Args:
        cloud: in the world frame, metres.
        path: a .ply or .pcd file; binary. It is written aside and renamed, so no half of it is ever seen.

    Raises:
        CloudFileError: another ending, no points, arrays that disagree or are not finite, or a disk that is full.
    """
    import open3d as o3d

    path = Path(path)
    _check_suffix(path)
    # Taken once: a memory may compute them.
    points, colours = np.asarray(cloud.points), np.asarray(cloud.colours)
    observed, confidence, weight = (np.asarray(a) for a in (cloud.observed, cloud.confidence, cloud.weight))
    count = len(points)
    shapes = (points.shape, colours.shape, observed.shape, confidence.shape, weight.shape)
    if shapes != ((count, 3), (count, 3), (count,), (count,), (count,)):
        raise CloudFileError(
            f"The cloud has arrays of shapes {shapes}; twice (N, 3) and three times (N,) were expected."
        )
    if count == 0:
        raise CloudFileError(f"The cloud has no points, so {path} was not written.")
    if not np.isfinite(points).all():
        raise CloudFileError("The cloud has points that are not finite.")
    tensor = o3d.t.geometry.PointCloud()
    tensor.point["positions"] = o3d.core.Tensor.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    tensor.point["colors"] = o3d.core.Tensor.from_numpy(np.ascontiguousarray(colours, dtype=np.uint8))
    tensor.point["observed"] = o3d.core.Tensor.from_numpy(observed.astype(np.uint8)[:, None])
    tensor.point["confidence"] = o3d.core.Tensor.from_numpy(confidence.astype(np.float32)[:, None])
    tensor.point["weight"] = o3d.core.Tensor.from_numpy(weight.astype(np.float32)[:, None])
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            written = o3d.t.io.write_point_cloud(partial, tensor)
        # Open3D does not always say that a write failed: the size does.
        if not written or partial.stat().st_size < count * 15:
            raise CloudFileError(
                f"The cloud could not be written to {path}: is the disk full, or the folder read-only?"
            )
        partial.replace(path)
    except OSError as error:
        raise CloudFileError(f"The cloud could not be written to {path}: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise CloudFileError(f"{path} ends in '{path.suffix}'; clouds are {' or '.join(SUFFIXES)} files.")
