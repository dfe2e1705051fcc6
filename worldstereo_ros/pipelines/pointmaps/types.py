"""What the estimation of point maps returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose

GUESS, GIVEN_POSES, GIVEN_DEPTH, GIVEN_ODOMETRY = "depth network", "given poses", "given depth", "odometry"


@dataclass(frozen=True)
class Pointmaps:
    """Point maps of F frames in the axes of the first camera of each shot.

    All of it is *estimated*; a static map takes pixels that are `valid` and not `dynamic`.

    Attributes:
        points: (F, H, W, 3) float32 in the world; NaN where `valid` is False.
        confidence: (F, H, W) float32 in 0..1, probability that the distance is right within 25 %, once the scale is.
        valid: (F, H, W) bool: there is a surface, and the pose of the frame is known.
        dynamic: (F, H, W) bool: the point moves in the world.
        poses: (F, 4, 4) float64 world_from_camera, OpenCV axes; of a frame that is not `frame_ok` that of the one
            before.
        camera: intrinsics of the maps; of smaller size than the frames, if these were large.
        scale_from: what the unit of length is from: given poses, given depth, odometry, or the depth network, a guess.
        frame_ok: (F,) bool: the pose was found.
        shot: (F,) int64, number of the shot; each has a world of its own.
        pose_covariance: (F, 6, 6) float64 of the camera's position and rotation in its own axes (x, y, z, and about
            x, y, z), square of the unit and radians; infinite where the pose is not known.
        messages: sentences about what was found or failed.
        method: vo, map or small.
    """

    points: np.ndarray
    confidence: np.ndarray
    valid: np.ndarray
    dynamic: np.ndarray
    poses: np.ndarray
    camera: Camera
    scale_from: str
    frame_ok: np.ndarray
    shot: np.ndarray
    pose_covariance: np.ndarray
    messages: tuple[str, ...] = ()
    method: str = "map"

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def ok(self) -> bool:
        """Whether the poses of all frames were found."""
        return bool(self.frame_ok.all())

    @property
    def metric(self) -> bool:
        """Whether lengths are metres that something measured; False if they are a guess of the depth network."""
        return self.scale_from != GUESS

    @property
    def depth(self) -> np.ndarray:
        """(F, H, W) float32 depth along the optical axis, 0 where it is not valid."""
        camera_from_world = invert_pose(self.poses)
        row, offset = camera_from_world[:, 2, :3].astype(np.float32), camera_from_world[:, 2, 3].astype(np.float32)
        z = np.einsum("fhwi,fi->fhw", np.where(self.valid[..., None], self.points, 0), row) + offset[:, None, None]
        return np.where(self.valid, z, 0).astype(np.float32)
