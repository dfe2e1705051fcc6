"""Point clouds as files (PLY, PCD): points and colours with the provenance and confidences of this package."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.point_cloud_formats import (
    SUFFIXES,
    CloudFileError,
    Columns,
    check_suffix,
    read_columns,
    write_columns,
)
from worldstereo_ros.utils.atomic_files import WriteError

__all__ = ["SUFFIXES", "Cloud", "CloudFile", "CloudFileError", "read_point_cloud", "write_point_cloud"]

# Beyond this, in units of the file, float32 rounds by more than half a thousandth: coordinates of a map projection.
MAX_FLOAT32_COORDINATE = 8192.0
OFFSET_STEP = 100.0  # offsets are multiples of it, so that they can be read and typed
SPHERICAL_HARMONIC_0 = 0.28209479177387814  # the constant one, sqrt(1 / (4 pi)), of the colours of 3D Gaussians
MIN_GAUSSIAN_OPACITY = 0.1  # fainter Gaussians are hardly seen when splatted, but look like surfaces as points


@dataclass(frozen=True)
class CloudFile:
    """The content of a point cloud file.

    Attributes:
        points: (N, 3) float32, in the unit of the file, after `offset` was subtracted. They may be NaN or infinite, as
            in organised clouds.
        colours: (N, 3) uint8, light grey if the file has none.
        provenance: (N,) uint8 values of `Provenance`; None if the file does not have it.
        confidence: (N,) float32 in 0..1, of the colour; None if the file does not have it.
        depth_confidence: (N,) float32 in 0..1; None if the file does not have it.
        offset: (3,) float64, multiples of 100: the origin of `points` in the file's coordinates. Other than zero where
            float32 would lose precision, as in UTM coordinates.
        notes: sentences for the user about what was left out or changed.
    """

    points: np.ndarray
    colours: np.ndarray
    provenance: np.ndarray | None = None
    confidence: np.ndarray | None = None
    depth_confidence: np.ndarray | None = None
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))
    notes: tuple[str, ...] = ()


def read_point_cloud(path: str | Path) -> CloudFile:
    """Reads a .ply (ASCII or binary, vertices first) or .pcd file.

    Attributes of the same name, but with values that are not those of this package, are ignored. Files that say only
    `observed` (1 or 0) have the provenance observed and imagined. Of 3D Gaussians (Kerbl et al. 2023), the centres are
    read, with the colour of all directions, and without those of an opacity below `MIN_GAUSSIAN_OPACITY`.

    Raises:
        CloudFileError: the file has no points, another format, is damaged or truncated.
    """
    path = Path(path)
    columns = read_columns(path)
    missing = [axis for axis in "xyz" if axis not in columns]
    if missing:
        raise CloudFileError(
            f"{path} has no {', '.join(missing)} among its fields {', '.join(columns)}, so it is not a point cloud."
        )
    notes: list[str] = []
    if {"f_dc_0", "f_dc_1", "f_dc_2", "opacity"} <= columns.keys():
        columns = _gaussian_points(columns, notes)
    if len(columns["x"]) == 0:
        raise CloudFileError(f"{path} has no points.")
    points, offset = _shift(columns, notes)
    return CloudFile(
        points,
        _colours(columns, len(points)),
        _provenance(columns),
        _confidence(columns.get("confidence")),
        _confidence(columns.get("depth_confidence")),
        offset,
        tuple(notes),
    )


def _gaussian_points(columns: Columns, notes: list[str]) -> Columns:
    """The centres of 3D Gaussians, with red, green and blue (0..1), without the faint ones."""
    with np.errstate(over="ignore"):
        opacity = 1 / (1 + np.exp(-columns["opacity"].astype(np.float64)))
    kept = opacity >= MIN_GAUSSIAN_OPACITY
    notes.append("The file holds 3D Gaussians; their centres are shown as points.")
    if not kept.all():
        notes.append(f"{int((~kept).sum()):,} Gaussians of an opacity below {MIN_GAUSSIAN_OPACITY:.0%} are left out.")
    columns = {name: values[kept] for name, values in columns.items()}
    for name, coefficient in zip(("red", "green", "blue"), ("f_dc_0", "f_dc_1", "f_dc_2"), strict=True):
        colour = 0.5 + SPHERICAL_HARMONIC_0 * np.nan_to_num(columns[coefficient].astype(np.float32))
        columns[name] = np.rint(255 * np.clip(colour, 0, 1)).astype(np.uint8)
    return columns


def _shift(columns: Columns, notes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) float32 points and their (3,) float64 offset, other than zero if float32 cannot hold the coordinates."""
    points = np.stack([columns[axis] for axis in "xyz"], axis=1)
    offset = np.zeros(3)
    if points.dtype.itemsize > 4 or points.dtype.kind != "f":
        for axis in range(3):
            values = points[:, axis][np.isfinite(points[:, axis])]
            if len(values) and np.abs(values).max() > MAX_FLOAT32_COORDINATE:
                offset[axis] = OFFSET_STEP * np.round(np.median(values) / OFFSET_STEP)
    if not offset.any():
        return points.astype(np.float32), offset
    origin = ", ".join(f"{value:.0f}" for value in offset)
    notes.append(f"Coordinates are relative to ({origin}): single precision cannot hold those of the file.")
    return (points - offset).astype(np.float32), offset


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


class ColouredCloud(Protocol):
    """Arrays of a cloud with provenance; `CloudMemory` is one. Properties, so that a memory may compute them."""

    @property
    def points(self) -> np.ndarray:
        """(N, 3) float32 in the world frame; metres, if the memory is metric."""

    @property
    def colours(self) -> np.ndarray:
        """(N, 3) uint8 RGB."""

    @property
    def provenance(self) -> np.ndarray:
        """(N,) uint8 values of `Provenance`."""


class Cloud(ColouredCloud, Protocol):
    """Arrays of a cloud to be written."""

    @property
    def weight(self) -> np.ndarray:
        """(N,) float32 accumulated fusion weight, above 0."""

    @property
    def confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, probability that the colour is right."""

    @property
    def depth_confidence(self) -> np.ndarray:
        """(N,) float32 in 0..1, probability that the distance is right within 25 %."""


def write_point_cloud(cloud: Cloud, path: str | Path, *, offset: np.ndarray | None = None) -> None:
    """Writes a cloud with its colours and attributes.

    The attributes are `provenance` (1 = imagined, 2 = estimated, 3 = observed), `observed` (1 = observed, 0 = not, for
    programs that filter by yes or no), `confidence`, `depth_confidence` and `weight`.

    Args:
        cloud: points in the world frame, metres.
        path: .ply or .pcd file to write (binary), atomically: a partial file is never visible.
        offset: (3,) float64 added to the points, as in `CloudFile.offset`; other than zero, the file has coordinates in
            double precision, and a comment that names the offset.

    Raises:
        CloudFileError: another suffix, no points, arrays of different lengths or not finite, or a write error.
    """
    path = Path(path)
    check_suffix(path)
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
    origin = np.zeros(3) if offset is None else np.asarray(offset, dtype=np.float64)
    if origin.shape != (3,) or not np.isfinite(origin).all():
        raise CloudFileError(f"The offset of the cloud is {origin}; three finite numbers were expected.")
    shifted = points.astype(np.float64) + origin if origin.any() else points.astype(np.float32)
    columns: Columns = {axis: shifted[:, at] for at, axis in enumerate("xyz")}
    columns |= {name: colours[:, at].astype(np.uint8) for at, name in enumerate(("red", "green", "blue"))}
    comments = (f"offset {' '.join(f'{value:.15g}' for value in origin)}",) if origin.any() else ()
    try:
        write_columns(path, columns | attributes, comments=comments)
    except WriteError as error:
        raise CloudFileError(f"The cloud was not exported: {error}") from error
