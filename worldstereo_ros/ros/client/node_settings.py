"""The parameters of the node that decide what its client sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rcl_interfaces.msg import ParameterType, ParameterValue

from worldstereo_ros.ros.conversions.rotations import pose_from_quaternion

NAMES = (
    "world_frame",
    "base_frame",
    "camera_frame",
    "camera_axes",
    "path_pose_frame",
    "pose_source",
    "base_to_camera",
)


@dataclass(frozen=True)
class NodeSettings:
    """Frames of the node, and where it takes poses from; the fields are its parameters of the same names.

    Attributes:
        base_to_camera: (4, 4) pose of the camera on the robot; None if the node has it from TF only.
    """

    world_frame: str = "map"
    base_frame: str = "base_link"
    camera_frame: str = ""
    camera_axes: str = "auto"
    path_pose_frame: str = "base"
    pose_source: str = "auto"
    base_to_camera: np.ndarray | None = None

    @classmethod
    def from_values(cls, values: Sequence[ParameterValue]) -> NodeSettings:
        """Reads the values of `NAMES`, in this order; those that a node does not have keep their defaults."""
        fields: dict = {
            name: value.string_value
            for name, value in zip(NAMES, values, strict=False)
            if value.type == ParameterType.PARAMETER_STRING
        }
        if len(values) == len(NAMES):
            numbers = list(values[-1].double_array_value)
            if len(numbers) == 7 and any(numbers):
                fields["base_to_camera"] = pose_from_quaternion(numbers[:3], numbers[3:])
        return cls(**fields)
