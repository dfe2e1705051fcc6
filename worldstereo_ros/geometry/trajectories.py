"""Preset camera trajectories from one pose: straight lines, an orbit, a turn in place, a spiral.

`geometry.capture_paths` has those that are made from several captures.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.poses import check_poses
from worldstereo_ros.utils.errors import InputError

TRAJECTORIES = ("forward", "backward", "orbit", "left", "right", "up", "turn", "spiral")
SPIRAL_TURNS = 2


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
        name: one of `TRAJECTORIES`. forward, backward, left, right, up: a straight line, looking ahead; orbit: an arc
            of `angle` around the point `radius` ahead, looking at it; turn: a turn in place to the right by `angle`;
            spiral: two turns in the plane of the image, ever wider, looking at the point `radius` ahead.
        world_from_camera: (4, 4) first pose of the trajectory.
        count: number of poses.
        distance: length of the straight lines, and width of the spiral, metres.
        angle: angle of orbit and turn, radians, positive to the right.
        radius: radius of the orbit, and distance of the point that the spiral looks at, metres.

    Returns:
        (count, 4, 4) world_from_camera.

    Raises:
        InputError: the name is unknown, or the start pose is not a rigid transform.
    """
    from scipy.spatial.transform import Rotation

    start = check_poses(np.asarray(world_from_camera)[None])[0]
    fraction = np.linspace(0.0, 1.0, count)
    camera_from_step = np.tile(np.eye(4), (count, 1, 1))
    directions = {
        "forward": (0, 0, 1),
        "backward": (0, 0, -1),
        "left": (-1, 0, 0),
        "right": (1, 0, 0),
        "up": (0, -1, 0),
    }
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
    elif name == "spiral":
        turns = 2 * np.pi * SPIRAL_TURNS * fraction
        centres = 0.5 * distance * fraction[:, None] * np.stack([np.cos(turns), np.sin(turns), 0 * turns], axis=1)
        for pose, centre in zip(camera_from_step, centres, strict=True):
            pose[:] = look_at(centre, np.array([0, 0, radius]), up=np.array([0, -1.0, 0]))
    else:
        raise InputError(f"The trajectory '{name}' is unknown; one of {', '.join(TRAJECTORIES)} was expected.")
    return start @ camera_from_step


def look_at(position: np.ndarray, target: np.ndarray, *, up: np.ndarray) -> np.ndarray:
    """Builds the pose of a camera that looks at a point and stands upright.

    Args:
        position, target: (3,) in the world.
        up: (3,) up direction of the world. Where the camera looks along it, any direction across is right.

    Returns:
        (4, 4) float64 world_from_camera.

    Raises:
        InputError: the camera is at the point, or `up` has no length.
    """
    forward, up = np.asarray(target, np.float64) - position, np.asarray(up, np.float64)
    if np.linalg.norm(forward) < 1e-9 or np.linalg.norm(up) < 1e-9:
        raise InputError(
            f"A camera at {np.asarray(position).tolist()} cannot look at that point with up {up.tolist()}."
        )
    forward, up = forward / np.linalg.norm(forward), up / np.linalg.norm(up)
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-6:
        right = np.cross(forward, np.eye(3)[np.abs(forward).argmin()])
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, position
    return pose
