"""Options that say what a recording does not: units, axes, tolerances and frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from worldstereo_ros.cli.options import INPUT, PATH
from worldstereo_ros.utils.errors import InputError

BAG = "Bag"

DepthUnit = Annotated[
    str,
    typer.Option(
        metavar="UNIT",
        help="Unit of the stored depth: m, mm, 0.1mm, or a number of metres; auto: as its type or the recording says.",
        rich_help_panel=INPUT,
    ),
]
ImageTopic = Annotated[
    str,
    typer.Option(metavar="TOPIC", help="Colour images.", show_default="first topic of images", rich_help_panel=BAG),
]
DepthTopic = Annotated[
    str,
    typer.Option(
        metavar="TOPIC",
        help="Depth images, registered to the colour images.",
        show_default="that of the images, if these are detected",
        rich_help_panel=BAG,
    ),
]
CameraInfoTopic = Annotated[
    str,
    typer.Option(
        metavar="TOPIC", help="Camera intrinsics.", show_default="beside the image topic", rich_help_panel=BAG
    ),
]
PoseTopic = Annotated[
    str,
    typer.Option(
        metavar="TOPIC",
        help="Camera poses, PoseStamped or Odometry.",
        show_default="TF",
        rich_help_panel=BAG,
    ),
]
WorldFrame = Annotated[
    str,
    typer.Option(
        metavar="FRAME", help="Fixed frame of the poses from TF.", show_default="root of TF", rich_help_panel=BAG
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        help="Largest difference between stamps of colour, depth and poses that belong together.",
        min=0,
        rich_help_panel=BAG,
    ),
]
Rectified = Annotated[
    str,
    typer.Option(
        metavar="CHOICE",
        help="Whether images are rectified: true (P of camera_info holds, no distortion), false (K and D), or auto, by "
        "the topic's name.",
        rich_help_panel=BAG,
    ),
]
CameraAxes = Annotated[
    str,
    typer.Option(
        metavar="AXES",
        help="Axes of the images' frame: optical (z forward), body (x forward, z up, as from Gazebo), or auto, by its "
        "name and pose.",
        rich_help_panel=BAG,
    ),
]
BaseFrame = Annotated[
    str,
    typer.Option(
        metavar="FRAME",
        help="Frame that PoseStamped poses and paths belong to.",
        show_default="poses: the camera; paths: base_link, or what the camera is fixed to",
        rich_help_panel=BAG,
    ),
]
PathPoseFrame = Annotated[
    str,
    typer.Option(
        metavar="WHOSE",
        help="Whose poses a nav_msgs/Path holds: base (they reach the camera by TF) or camera.",
        rich_help_panel=PATH,
    ),
]
PathHeading = Annotated[
    str,
    typer.Option(
        metavar="HEADING",
        help="Where views along a nav_msgs/Path look: pose, tangent (along it), or auto, along it if it has no "
        "headings.",
        rich_help_panel=PATH,
    ),
]

_DEFAULTS: dict[str, Any] = {
    "tolerance": 0.03,
    "rectified": "auto",
    "camera_axes": "auto",
    "depth_unit": "auto",
    "path_pose_frame": "base",
    "path_heading": "auto",
}


def check_no_bag_options(view_options: Mapping[str, Any], *, named: bool = True, **path_options: Any) -> None:
    """Checks that no option of bags is given for another source, where it would be without effect.

    Args:
        view_options, path_options: values of the options by their names. The unit of depth is for other sources, too.
        named: a bag is named with --bag; else the source itself may be a bag.

    Raises:
        InputError: one differs from its default.
    """
    for name, value in (*view_options.items(), *path_options.items()):
        if value == _DEFAULTS.get(name, "") or name == "depth_unit":
            continue
        option = f"--{name.replace('_', '-')} is an option of bags"
        raise InputError(
            f"{option}; name the bag with --bag, or remove it."
            if named
            else f"{option}, and the source is none. Remove it."
        )


def check_no_path_options(**options: Any) -> None:
    """Checks that no option of recorded paths is given with another path, where it would be without effect.

    Args:
        options: values of the options by their names.

    Raises:
        InputError: one differs from its default.
    """
    for name, value in options.items():
        if value != _DEFAULTS.get(name, ""):
            use = "poses of --pose-topic and " if name == "base_frame" else ""
            raise InputError(
                f"--{name.replace('_', '-')} is for {use}paths of a bag, and --path names none of these. Remove it."
            )
