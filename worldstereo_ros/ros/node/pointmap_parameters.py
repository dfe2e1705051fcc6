"""The parameters `pointmaps.*`: odometry, depth and a cloud from one moving camera. Imports no rclpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from worldstereo_ros.ros.node.parameter_rows import CONFIGURE, ConfigurationError, row


@dataclass(frozen=True)
class PointmapParameters:
    """The values of `pointmaps.*`; their names in ROS begin with `pointmaps.`."""

    enabled: bool = row(
        False,
        "Estimate the camera's path, depth and what moves from its images, on ~/odometry and ~/pointmaps/*, and for "
        "the memories where pose_source or depth_source say so. Everything is estimated, nothing measured.",
        applies=CONFIGURE,
    )
    method: str = row(
        "auto",
        "How: vo (odometry against estimated depth), map (poses, points and depth solved together), small (map, "
        "refined by the bundled network), or auto (small if its weights are installed, else map).",
        choices=("auto", "vo", "map", "small"),
    )
    width: int = row(
        480,
        "Width that images are reduced to; 0 = as they are. Smaller ones are faster.",
        unit="pixels",
        low=0,
        high=4096,
    )
    window: int = row(
        9,
        "Images that are solved together. The first result comes after as many, the next ones after each window - 4.",
        unit="images",
        low=6,
        high=33,
    )
    max_rate: float = row(
        10.0, "Most images a second; 0 = all. Steps between them should stay small.", unit="Hz", low=0.0, high=120.0
    )
    max_gap: float = row(
        2.0,
        "Time between two images from which on the path is broken: what follows is a part of its own.",
        unit="s",
        low=0.1,
        high=60.0,
    )
    odom_frame: str = row(
        "odom",
        "Frame of ~/odometry, in which it never jumps: where the robot was at first. With pose_source pointmaps and "
        "without close_loops it is world_frame.",
        applies=CONFIGURE,
    )
    close_loops: bool = row(
        True,
        "Correct the path where a place is seen again, and join what follows a break of the path to what was before. "
        "The past is corrected on ~/pointmaps/path and in the memories, never on ~/odometry (REP 105).",
        applies=CONFIGURE,
    )
    publish_tf: bool = row(
        False,
        "Publish the pose of base_frame (of the camera, if its place on the robot is unknown) in the frame of "
        "~/odometry on /tf. Only one node may: not beside wheel odometry or a localisation. With pose_source "
        "pointmaps and close_loops also that of odom_frame in world_frame, which corrections change.",
    )
    scale_frame: str = row(
        "",
        "Frame of TF in which base_frame moves, such as that of wheel odometry, for the scale alone. The topic "
        "odometry, poses of the images and measured depth tell it, too; without any, lengths are a guess.",
    )


class AllParameters(Protocol):
    """What the functions here read of `NodeParameters`, which holds the group above."""

    @property
    def pose_source(self) -> str:
        """See `NodeParameters`."""

    @property
    def depth_source(self) -> str:
        """See `NodeParameters`."""

    @property
    def depth_model(self) -> str:
        """See `NodeParameters`."""

    @property
    def world_frame(self) -> str:
        """See `NodeParameters`."""

    @property
    def pointmaps(self) -> PointmapParameters:
        """The group."""


def check_pointmaps(parameters: AllParameters) -> None:
    """Raises ConfigurationError if values contradict each other."""
    chosen = parameters.pointmaps
    for name in ("pose_source", "depth_source"):
        if getattr(parameters, name) == "pointmaps" and not chosen.enabled:
            raise ConfigurationError(
                f"{name} is 'pointmaps' but pointmaps.enabled is false; set it to true before the node is configured."
            )
    if parameters.depth_source == "pointmaps" and parameters.depth_model == "none":
        raise ConfigurationError(
            "depth_source is 'pointmaps' but depth_model is 'none', and point maps begin with estimated depth; set "
            "depth_model, or depth_source to 'sensor'."
        )
    if not chosen.odom_frame:
        raise ConfigurationError("The parameter 'pointmaps.odom_frame' is empty; the name of a TF frame was expected.")
    corrected = corrects_world(parameters)
    if chosen.enabled and corrected and chosen.odom_frame == parameters.world_frame:
        raise ConfigurationError(
            f"pointmaps.odom_frame is '{chosen.odom_frame}', and so is world_frame, which moves against it where a "
            "loop is closed. Name another frame, or set pointmaps.close_loops to false."
        )
    own_frames = [path_frame(parameters), *([parameters.world_frame] if corrected else [])]
    if chosen.enabled and chosen.publish_tf and chosen.scale_frame in own_frames:
        raise ConfigurationError(
            f"pointmaps.scale_frame is '{chosen.scale_frame}', in which pointmaps.publish_tf publishes: the scale "
            "would come from itself. Name the frame of the wheel odometry, or set publish_tf to false."
        )


def path_frame(parameters: AllParameters) -> str:
    """The frame of ~/odometry: that of the memories, if point maps place what is in them and never correct it."""
    own = parameters.pose_source == "pointmaps" and not parameters.pointmaps.close_loops
    return parameters.world_frame if own else parameters.pointmaps.odom_frame


def corrects_world(parameters: AllParameters) -> bool:
    """Whether point maps say where odom_frame is in world_frame: they place what is remembered, and close loops."""
    return parameters.pose_source == "pointmaps" and parameters.pointmaps.close_loops


def keeps_poses(parameters: AllParameters, posed: bool) -> bool:
    """Whether the poses that come with the images hold, and point maps give depth alone.

    Args:
        parameters: of the node.
        posed: the image has a pose of TF or a topic.
    """
    return posed and parameters.depth_source == "pointmaps" and parameters.pose_source != "pointmaps"


def feeds_memories(parameters: AllParameters, posed: bool) -> bool:
    """Whether the memories get images by point maps, for their poses, depth, or both. Arguments as `keeps_poses`."""
    if parameters.pose_source == "pointmaps" or (parameters.pose_source == "auto" and not posed):
        return True
    return keeps_poses(parameters, posed)


def remembered_depth(parameters: AllParameters) -> str:
    """The depth of remembered images that point maps place, as `depth_source`: none is estimated without a model."""
    return "sensor" if parameters.depth_model == "none" else parameters.depth_source
