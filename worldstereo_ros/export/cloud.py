"""The remembered cloud as PLY or PCD, through Open3D; CloudCompare, MeshLab and PCL open both."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Protocol

import numpy as np

SUFFIXES = (".ply", ".pcd")


class ExportError(RuntimeError):
    """A cloud that cannot be written. The message is a sentence."""


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
    def confidence(self) -> np.ndarray:
        """(N,) float32, how much a point was seen; above 0."""

    @property
    def certainty(self) -> np.ndarray:
        """(N,) float32 in 0..1, how sure it is of its colour."""


def export_cloud(cloud: Cloud, path: str | Path) -> None:
    """Writes every point with its colour, `observed` (1 = a sensor saw it, 0 = imagined), `confidence` and `weight`.

    As in the clouds that the node publishes, `confidence` is the certainty 0..1; `weight` is how much it was seen.

    Args:
        cloud: in the world frame, metres.
        path: a .ply or .pcd file; binary. It is written aside and renamed, so no half of it is ever seen.

    Raises:
        ExportError: another ending, no points, arrays that disagree or are not finite, or a disk that is full.
    """
    import open3d as o3d

    path = Path(path)
    _check_suffix(path)
    # Taken once: a memory may compute them.
    points, colours = np.asarray(cloud.points), np.asarray(cloud.colours)
    observed, confidence, weight = (np.asarray(a) for a in (cloud.observed, cloud.certainty, cloud.confidence))
    count = len(points)
    shapes = (points.shape, colours.shape, observed.shape, confidence.shape, weight.shape)
    if shapes != ((count, 3), (count, 3), (count,), (count,), (count,)):
        raise ExportError(f"The cloud has arrays of shapes {shapes}; twice (N, 3) and three times (N,) were expected.")
    if count == 0:
        raise ExportError(f"The cloud has no points, so {path} was not written.")
    if not np.isfinite(points).all():
        raise ExportError("The cloud has points that are not finite.")
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
            raise ExportError(f"The cloud could not be written to {path}: is the disk full, or the folder read-only?")
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"The cloud could not be written to {path}: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ExportError(f"{path} ends in '{path.suffix}'; clouds are {' or '.join(SUFFIXES)} files.")
