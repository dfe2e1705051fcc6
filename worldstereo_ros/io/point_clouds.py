"""Reads and writes point clouds (PLY, PCD), with checks against the size of the file.

PLY files are read here, because Open3D's reader returns uninitialised points for a truncated file. PCD files are read
and all files are written by Open3D.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.utils.errors import WorldStereoError

SUFFIXES = (".ply", ".pcd")
MAX_POINTS = 100_000_000
MAX_HEADER_BYTES = 64 * 1024
ATTRIBUTES = ("provenance", "observed", "confidence", "depth_confidence", "weight")
_PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4", "float": "f4",
    "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip


class CloudFileError(WorldStereoError, ValueError):
    """A point cloud file that cannot be read or written."""


@dataclass(frozen=True)
class CloudFile:
    """The content of a point cloud file.

    Attributes:
        points: (N, 3) float32, in the unit of the file. They may be NaN or infinite, as in organised clouds.
        colours: (N, 3) uint8, light grey if the file has none.
        provenance: (N,) uint8 values of `Provenance`; None if the file does not have it.
        confidence: (N,) float32 in 0..1, of the colour; None if the file does not have it.
        depth_confidence: (N,) float32 in 0..1; None if the file does not have it.
    """

    points: np.ndarray
    colours: np.ndarray
    provenance: np.ndarray | None = None
    confidence: np.ndarray | None = None
    depth_confidence: np.ndarray | None = None


def read_point_cloud(path: str | Path) -> CloudFile:
    """Reads a .ply (ASCII or binary, vertices first) or .pcd file.

    Attributes of the same name, but with values that are not those of this package, are ignored. Files that say only
    `observed` (1 or 0) have the provenance observed and imagined.

    Raises:
        CloudFileError: the file has no points, another format, is damaged or truncated.
    """
    path = Path(path)
    try:
        columns = _read_ply(path) if path.suffix.lower() == ".ply" else _read_pcd(path)
    except OSError as error:
        raise CloudFileError(f"{path} cannot be read: {error.strerror}.") from error
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise CloudFileError(
            f"{path} has no {', '.join(missing)} among its fields {', '.join(columns)}, so it is not a point cloud."
        )
    points = np.stack([columns[axis] for axis in "xyz"], axis=1).astype(np.float32)
    if len(points) == 0:
        raise CloudFileError(f"{path} has no points.")
    return CloudFile(
        points,
        _colours(columns, len(points)),
        _provenance(columns),
        _confidence(columns.get("confidence")),
        _confidence(columns.get("depth_confidence")),
    )


def _provenance(columns: dict[str, np.ndarray]) -> np.ndarray | None:
    kinds = columns.get("provenance")
    if kinds is not None and np.isin(kinds, [int(kind) for kind in Provenance]).all():
        return kinds.astype(np.uint8)
    observed = columns.get("observed")
    if observed is None:
        return None
    return np.where(observed > 0, np.uint8(Provenance.OBSERVED), np.uint8(Provenance.IMAGINED))


def _confidence(values: np.ndarray | None) -> np.ndarray | None:
    if values is None or values.dtype.kind != "f" or not ((values >= 0) & (values <= 1)).all():
        return None
    return values.astype(np.float32)


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


def _ply_header(file: BinaryIO, path: Path) -> tuple[str, int, list[tuple[str, str]]]:
    """Reads the header: (format, number of vertices, [(property, type)]); leaves the file at the start of the data."""
    lines: list[list[str]] = []
    while not lines or lines[-1] != ["end_header"]:
        line = file.readline(MAX_HEADER_BYTES)
        if not line.endswith(b"\n") or file.tell() > MAX_HEADER_BYTES or (not lines and line.strip() != b"ply"):
            raise CloudFileError(f"{path} has no PLY header, so it is not a point cloud.")
        lines.append(line.decode("latin-1").split())
    kind = next((words[1] for words in lines if words[:1] == ["format"] and len(words) > 1), "")
    elements = [at for at, words in enumerate(lines) if words[:1] == ["element"]]
    if kind not in ("ascii", "binary_little_endian", "binary_big_endian") or not elements:
        raise CloudFileError(f"{path} has no valid PLY header: its format is '{kind}'.")
    first, after = elements[0], (*elements[1:], len(lines) - 1)[0]
    if len(lines[first]) != 3 or lines[first][1] != "vertex" or not lines[first][2].isdigit():
        raise CloudFileError(f"{path} starts with '{' '.join(lines[first])}'; 'element vertex COUNT' was expected.")
    properties = [words for words in lines[first + 1 : after] if words[:1] == ["property"]]
    names = [words[-1] for words in properties]
    if not names or any(len(p) != 3 or p[1] not in _PLY_TYPES for p in properties) or len(set(names)) < len(names):
        raise CloudFileError(
            f"{path} has vertices with lists, unknown types or duplicate names; numbers were expected."
        )
    return kind, int(lines[first][2]), [(words[2], words[1]) for words in properties]


def _read_pcd(path: Path) -> dict[str, np.ndarray]:
    import open3d as o3d

    with path.open("rb") as file:
        header = file.read(MAX_HEADER_BYTES)
    at = header.find(b"\nDATA ")
    words = {line.split()[0]: line.split()[1:] for line in header[:at].decode("latin-1").splitlines() if line.split()}
    data = header[at + 6 :].split(b"\n", 1)[0].strip()
    if at < 0 or len(words.get("POINTS", [])) != 1 or not words["POINTS"][0].isdigit():
        raise CloudFileError(f"{path} has no PCD header, so it is not a point cloud.")
    count = int(words["POINTS"][0])
    # LZF compresses repeated bytes by a factor of about 250 at most.
    _check_count(path, count, 250 * path.stat().st_size if data == b"binary_compressed" else path.stat().st_size, 6)
    if data == b"ascii":
        with path.open("rb") as file:
            file.seek(at + 1)
            lines = sum(1 for line in file if line.strip()) - 1
        if lines < count:
            raise _truncated(path, count, f"{lines:,} lines")
    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        cloud = o3d.t.io.read_point_cloud(str(path))
    if "positions" not in cloud.point or len(cloud.point.positions) != count:
        raise _truncated(path, count, f"{path.stat().st_size:,} bytes")
    arrays = {name: cloud.point[name].numpy() for name in cloud.point}
    columns = {axis: arrays["positions"][:, at] for at, axis in enumerate("xyz")}
    if "colors" in arrays:
        columns |= {name: arrays["colors"][:, at] for at, name in enumerate(("red", "green", "blue"))}
    columns |= {name: arrays[name].reshape(count, -1)[:, 0] for name in ATTRIBUTES if name in arrays}
    return columns


def _check_count(path: Path, count: int, available: int, point_bytes: int) -> None:
    """Checks, before memory is allocated, that the points of the header fit into the available bytes."""
    if count > MAX_POINTS:
        raise CloudFileError(f"{path} declares {count:,} points; at most {MAX_POINTS:,} are accepted.")
    if count * point_bytes > available:
        raise _truncated(path, count, f"{available:,} bytes")


def _truncated(path: Path, count: int, available: str) -> CloudFileError:
    return CloudFileError(f"{path} declares {count:,} points, but has only {available}; it is truncated or damaged.")


class Cloud(Protocol):
    """Arrays of a cloud to be written; `CloudMemory` is one. Properties, so that a memory may compute them."""

    @property
    def points(self) -> np.ndarray:
        """(N, 3) float32 metres in the world frame."""

    @property
    def colours(self) -> np.ndarray:
        """(N, 3) uint8 RGB."""

    @property
    def provenance(self) -> np.ndarray:
        """(N,) uint8 values of `Provenance`."""

    @property
    def weight(self) -> np.ndarray:
        """(N,) float32 accumulated fusion weight, above 0."""

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, probability that the colour is right."""

    @property
    def depth_confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, probability that the distance is right within 25 %."""


def write_point_cloud(cloud: Cloud, path: str | Path) -> None:
    """Writes a cloud with its colours and attributes.

    The attributes are `provenance` (1 = imagined, 2 = estimated, 3 = observed), `observed` (1 = observed, 0 = not, for
    programs that filter by yes or no), `confidence`, `depth_confidence` and `weight`.

    Args:
        cloud: points in the world frame, metres.
        path: .ply or .pcd file to write (binary), atomically: a partial file is never visible.

    Raises:
        CloudFileError: another suffix, no points, arrays of different lengths or not finite, or a write error.
    """
    import open3d as o3d

    path = Path(path)
    _check_suffix(path)
    # Each array is read once, because a memory may compute it.
    points, colours, provenance = (np.asarray(a) for a in (cloud.points, cloud.colours, cloud.provenance))
    attributes = {
        "provenance": provenance.astype(np.uint8),
        "observed": (provenance == Provenance.OBSERVED).astype(np.uint8),
        "confidence": np.asarray(cloud.confidence, dtype=np.float32),
        "depth_confidence": np.asarray(cloud.depth_confidence, dtype=np.float32),
        "weight": np.asarray(cloud.weight, dtype=np.float32),
    }
    count = len(points)
    shapes = (points.shape, colours.shape, *(array.shape for array in attributes.values()))
    if shapes != ((count, 3), (count, 3), *((count,) for _ in attributes)):
        raise CloudFileError(
            f"The cloud has arrays of shapes {shapes}; (N, 3), (N, 3) and (N,) for each attribute were expected."
        )
    if count == 0:
        raise CloudFileError(f"The cloud has no points, so {path} was not written.")
    if not np.isfinite(points).all():
        raise CloudFileError("The cloud has points that are not finite.")
    tensor = o3d.t.geometry.PointCloud()
    tensor.point["positions"] = o3d.core.Tensor.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    tensor.point["colors"] = o3d.core.Tensor.from_numpy(np.ascontiguousarray(colours, dtype=np.uint8))
    for name, array in attributes.items():
        tensor.point[name] = o3d.core.Tensor.from_numpy(np.ascontiguousarray(array)[:, None])
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix.lower()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            written = o3d.t.io.write_point_cloud(partial, tensor)
        # Open3D does not report every failed write; check the file size.
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
        raise CloudFileError(f"{path} has the suffix '{path.suffix}'; {' or '.join(SUFFIXES)} was expected.")
