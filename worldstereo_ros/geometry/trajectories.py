"""Preset camera trajectories: straight lines, an orbit, a turn."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.utils.errors import InputError

TRAJECTORIES = ("forward", "orbit", "left", "right", "up", "turn")


def trajectory(
    name: str,
    world_from_camera: np.ndarray,
    count: int,
    *,
    distance: float = 1.0,
    angle: float = np.pi / 3,
    radius: float = 2.0,
) -> np.ndarray:
    """A preset path that begins at a camera.

    Args:
        name: forward, left, right, up: a straight line, looking ahead; orbit: an arc of `angle` around the point
            `radius` ahead, looking at it; turn: a turn in place to the right by `angle`.
        world_from_camera: (4, 4) pose the path begins at; it is its first pose.
        count: number of poses.
        distance: length of the straight paths, metres.
        angle: of orbit and turn, radians, positive to the right.
        radius: of the orbit, metres.

    Returns:
        (count, 4, 4) world_from_camera.
    """
    from scipy.spatial.transform import Rotation

    start = check_poses(np.asarray(world_from_camera)[None])[0]
    fraction = np.linspace(0.0, 1.0, count)
    camera_from_step = np.tile(np.eye(4), (count, 1, 1))
    straight = {"forward": (0, 0, 1), "left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0)}
    if name in straight:
        camera_from_step[:, :3, 3] = fraction[:, None] * distance * np.array(straight[name])
    elif name == "turn":
        camera_from_step[:, :3, :3] = Rotation.from_rotvec(fraction[:, None] * angle * np.array([0, 1, 0])).as_matrix()
    elif name == "orbit":
        # Moving to the right around a point ahead turns the camera to the left.
        rotation = Rotation.from_rotvec(fraction[:, None] * angle * np.array([0, -1, 0])).as_matrix()
        centre = np.array([0, 0, radius])
        camera_from_step[:, :3, :3] = rotation
        camera_from_step[:, :3, 3] = centre - rotation @ centre
    else:
        raise InputError(f"The path '{name}' is not known; it is one of {', '.join(TRAJECTORIES)}.")
    return start @ camera_from_step
