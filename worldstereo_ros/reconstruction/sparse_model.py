"""The result of registration: cameras, poses and triangulated points, with what each photograph sees of them."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.utils.atomic_files import write_bytes


@dataclass(frozen=True)
class SparseModel:
    """Registered photographs and the points that were triangulated from their features.

    Attributes:
        photographs: (N,) int64 ascending, numbers of the registered photographs in the list of all.
        calibrations: intrinsics of each at the size of its working copy.
        world_from_camera: (N, 4, 4) float64.
        points: (P, 3) float64.
        colours: (P, 3) uint8.
        errors: (P,) float64, mean reprojection error in pixels.
        observed_by: (M,) int64 row of the photograph of each observation, 0..N-1.
        observed_point: (M,) int64 point of each observation.
        pixels: (M, 2) float64, where it was seen, in the photograph as it came (with its lens distortion).
        metric: lengths are metres.
        notes: sentences for the user.
        other_answers: (N, 2) float64, how far other solutions that explain the photographs nearly as well are from each
            pose: distance of the centre in the unit of the model, and degrees; 0 if none is known.
    """

    photographs: np.ndarray
    calibrations: tuple[CameraCalibration, ...]
    world_from_camera: np.ndarray
    points: np.ndarray
    colours: np.ndarray
    errors: np.ndarray
    observed_by: np.ndarray
    observed_point: np.ndarray
    pixels: np.ndarray
    metric: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)
    other_answers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.photographs)

    def points_of(self, row: int) -> np.ndarray:
        """Indices of the points that a photograph sees."""
        return self.observed_point[self.observed_by == row]

    def depths_of(self, row: int) -> np.ndarray:
        """Depths along the optical axis of the points that a photograph sees."""
        camera_from_world = invert_pose(self.world_from_camera[row])
        return self.points[self.points_of(row)] @ camera_from_world[2, :3] + camera_from_world[2, 3]

    def moved(self, similarity: Similarity, *, metric: bool | None = None) -> SparseModel:
        """The model in another frame."""
        return replace(
            self,
            world_from_camera=similarity.poses(self.world_from_camera),
            points=similarity.points(self.points),
            metric=self.metric if metric is None else metric,
            other_answers=None if self.other_answers is None else self.other_answers * [similarity.scale, 1],
        )

    def subset(self, rows: np.ndarray) -> SparseModel:
        """The model with some of its photographs (ascending rows), and the points that two of them at least see."""
        new_row = np.full(len(self), -1)
        new_row[rows] = np.arange(len(rows))
        kept = new_row[self.observed_by] >= 0
        seen = np.bincount(self.observed_point[kept], minlength=len(self.points))
        new_point = np.cumsum(seen >= 2) - 1
        kept &= (seen >= 2)[self.observed_point]
        points = seen >= 2
        return replace(
            self,
            photographs=self.photographs[rows],
            calibrations=tuple(self.calibrations[row] for row in rows),
            world_from_camera=self.world_from_camera[rows],
            points=self.points[points],
            colours=self.colours[points],
            errors=self.errors[points],
            observed_by=new_row[self.observed_by[kept]],
            observed_point=new_point[self.observed_point[kept]],
            pixels=self.pixels[kept],
            other_answers=None if self.other_answers is None else self.other_answers[rows],
        )

    def save(self, path: Path) -> None:
        """Writes the model as one .npz file."""
        cameras = [(c.camera.width, c.camera.height, c.camera.fx, c.camera.fy, c.camera.cx, c.camera.cy)
                   for c in self.calibrations]  # fmt: skip
        coefficients = np.zeros((len(self), 14))
        for row, calibration in enumerate(self.calibrations):
            coefficients[row, : calibration.coefficients.size] = calibration.coefficients
        names = ("photographs", "world_from_camera", "points", "colours", "errors", "observed_by", "observed_point")
        arrays = {name: getattr(self, name) for name in (*names, "pixels")}
        file = io.BytesIO()
        np.savez(
            file,
            **arrays,
            cameras=np.array(cameras, np.float64).reshape(-1, 6),
            coefficients=coefficients,
            coefficient_counts=np.array([c.coefficients.size for c in self.calibrations], np.int64),
            models=np.array([c.model for c in self.calibrations], dtype="U32"),
            metric=np.array(self.metric),
            notes=np.array(self.notes, dtype=np.str_),
            other_answers=np.zeros((0, 2)) if self.other_answers is None else self.other_answers,
        )
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, path: Path) -> SparseModel:
        """Reads `save`. Raises DatasetError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                calibrations = tuple(
                    CameraCalibration(Camera(int(c[0]), int(c[1]), *(float(v) for v in c[2:])), row[:count], str(model))
                    for c, row, count, model in zip(
                        file["cameras"], file["coefficients"], file["coefficient_counts"], file["models"], strict=True
                    )
                )
                return cls(
                    file["photographs"], calibrations, file["world_from_camera"], file["points"], file["colours"],
                    file["errors"], file["observed_by"], file["observed_point"], file["pixels"],
                    bool(file["metric"]), tuple(str(note) for note in file["notes"]),
                    file["other_answers"] if "other_answers" in file and len(file["other_answers"]) else None,
                )  # fmt: skip
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise DatasetError(f"{path} is damaged: {error}.") from None


def triangulation_angles(model: SparseModel) -> np.ndarray:
    """(P,) largest angle in radians between the rays to each point, from the cameras that see it.

    The angle between the first ray and the ray farthest from it, which is at least half of the largest one and equal to
    it for two rays.
    """
    centres = model.world_from_camera[:, :3, 3]
    rays = model.points[model.observed_point] - centres[model.observed_by]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-12)
    order = np.argsort(model.observed_point, kind="stable")
    first = np.zeros((len(model.points), 3))
    first[model.observed_point[order[::-1]]] = rays[order[::-1]]
    cosine = np.clip((rays * first[model.observed_point]).sum(axis=1), -1, 1)
    lowest = np.ones(len(model.points))
    np.minimum.at(lowest, model.observed_point, cosine)
    return np.arccos(lowest)
