"""Axes of camera frames: optical (x right, y down, z forward; REP 103) or body (x forward, y left, z up).

Images belong to an optical frame by REP 103, whose name ends in `_optical` or `_optical_frame` by convention. Gazebo
stamps them with the frame of the link instead, which has body axes. An image does not say which axes its frame has.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from worldstereo_ros.utils.errors import InputError

AXES_CHOICES = ("auto", "optical", "body")
MAX_TILT_DEG = 30.0  # between the frame's z axis and up, of a frame with body axes on a robot
MAX_PITCH_DEG = 60.0  # the same, of one that is tilted downwards and nowhere else
MAX_ROLL_DEG = 15.0  # between the frame's y axis and the horizontal plane, of one that is tilted downwards
# Frames of a robot, by REP 105; z is up in what they are attached to. `map` and `world` do not tell: visual SLAM gives
# these names to the axes of its first image, in which z is forward.
_ROBOT_FRAME = re.compile(r"(^|[/_.])(base_link|base_footprint|base|odom|chassis)$")

# (4, 4) pose of the optical axes in body axes.
BODY_FROM_OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
BODY_FROM_OPTICAL.setflags(write=False)


def is_optical_name(frame: str) -> bool:
    """Whether a frame is optical by its name: `optical` is a word of it, as in camera_color_optical_frame."""
    return re.search(r"(^|[/_\-.])optical($|[/_\-.])", frame.lower()) is not None


def has_robot_frame(frames: Iterable[str]) -> bool:
    """Whether one of the frames between the world and a camera is that of a robot, so that z is up in the world."""
    return any(_ROBOT_FRAME.search(frame.lower()) is not None for frame in frames)


def resolve_camera_axes(
    setting: str, frame: str, world_from_frame: np.ndarray, *, z_up: bool, remedy: str
) -> tuple[bool, str]:
    """Decides whether a camera's frame has body axes.

    With "auto" the frame has optical axes, unless three things come together: its name does not say optical, the world
    has z up, and the camera would look straight up, within `MAX_TILT_DEG`, or up within `MAX_PITCH_DEG` with its image
    turned by a quarter: a body that is tilted downwards. One that is tilted further has its z axis near the horizontal,
    as a camera that was mounted upright has: it stays optical, with a warning.

    Args:
        setting: "auto", "optical" or "body".
        frame: frame_id of the images.
        world_from_frame: (4, 4) or (N, 4, 4) poses of the frame.
        z_up: z is known to point up in the world, see `has_robot_frame`.
        remedy: the option that sets the axes, for the warning.

    Returns:
        (True if the axes are those of a body, warning; empty if there is nothing to say).

    Raises:
        InputError: the setting is not one of `AXES_CHOICES`.
    """
    if setting not in AXES_CHOICES:
        raise InputError(f"The camera's axes are '{setting}'; one of {', '.join(AXES_CHOICES)} was expected.")
    if setting != "auto":
        return setting == "body", ""
    axes_up = np.asarray(world_from_frame, dtype=np.float64).reshape(-1, 4, 4)[:, 2, :3]
    if not len(axes_up) or not z_up:
        return False, ""
    x_up, y_up, z_up_share = np.median(axes_up, axis=0)
    upright = z_up_share >= np.cos(np.radians(MAX_TILT_DEG))
    turned = abs(y_up) <= np.sin(np.radians(MAX_ROLL_DEG)) and x_up < 0  # x, to the right of images, points down
    tilted = turned and z_up_share >= np.cos(np.radians(MAX_PITCH_DEG))
    named = is_optical_name(frame)
    looks = "look straight up" if upright else "look up with its image turned by a quarter"
    if (upright or tilted) and not named:
        return True, (
            f"The frame '{frame}' of the images is taken to have body axes (x forward, z up): it is not named optical, "
            f"and with optical axes the camera would {looks}. If it does, say so ({remedy} optical)."
        )
    if upright or tilted:
        return False, (
            f"With the optical axes that its name states, the camera '{frame}' would {looks}. If it does not, its "
            f"frame has body axes (x forward, z up): say so ({remedy} body)."
        )
    if turned and not named and x_up <= -np.cos(np.radians(MAX_TILT_DEG)):
        return False, (
            f"The frame '{frame}' of the images is not named optical, and with optical axes their image is turned by a "
            f"quarter. If the camera looks down instead, its frame has body axes (x forward, z up): say so ({remedy} "
            "body)."
        )
    return False, ""
