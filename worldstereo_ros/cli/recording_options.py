"""Options that say what a recording does not: units, axes, tolerances and frames."""

from __future__ import annotations

from typing import Annotated

import typer

from worldstereo_ros.cli.options import INPUT, PATH

BAG = "Bag"

DepthUnit = Annotated[
    str,
    typer.Option(
        metavar="UNIT",
        help="Unit of the stored depth: m, mm, 0.1mm, or a number of metres; auto: as its type or the recording says.",
        rich_help_panel=INPUT,
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
