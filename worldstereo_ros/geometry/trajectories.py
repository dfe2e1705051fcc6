"""Preset camera trajectories: straight lines, an orbit, a turn in place."""

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
    """Builds a preset camera trajectory that starts at a pose.

    Args:
        name: one of `TRAJECTORIES`. forward, left, right, up: a straight line, looking ahead; orbit: an arc of `angle`
            around the point `radius` ahead, looking at it; turn: a turn in place to the right by `angle`.
        world_from_camera: (4, 4) first pose of the trajectory.
        count: number of poses.
        distance: length of the straight lines, metres.
        angle: angle of orbit and turn, radians, positive to the right.
        radius: radius of the orbit, metres.

    Returns:
        (count, 4, 4) world_from_camera.

    Raises:
        InputError: the name is unknown, or the start pose is not a rigid transform.
    """
    from scipy.spatial.transform import Rotation

    start = check_poses(np.asarray(world_from_camera)[None])[0]
    fraction = np.linspace(0.0, 1.0, count)
    camera_from_step = np.tile(np.eye(4), (count, 1, 1))
    directions = {"forward": (0, 0, 1), "left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0)}
    if name in directions:
        camera_from_step[:, :3, 3] = fraction[:, None] * distance * np.array(directions[name])
    elif name == "turn":
        camera_from_step[:, :3, :3] = Rotation.from_rotvec(fraction[:, None] * angle * np.array([0, 1, 0])).as_matrix()
    elif name == "orbit":
        # Moving to the right around a point ahead turns the camera to the left.
        rotation = Rotation.from_rotvec(fraction[:, None] * angle * np.array([0, -1, 0])).as_matrix()
        centre = np.array([0, 0, radius])
        camera_from_step[:, :3, :3] = rotation
        camera_from_step[:, :3, 3] = centre - rotation @ centre
    else:
        raise InputError(f"The trajectory '{name}' is unknown; one of {', '.join(TRAJECTORIES)} was expected.")
    return start @ camera_from_step
