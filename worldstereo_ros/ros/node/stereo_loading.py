"""Opens the stereo topics where they are enabled, so that a node without them loads nothing of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.lifecycle import LifecycleNode

from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters

if TYPE_CHECKING:
    from worldstereo_ros.ros.node.stereo import StereoOutput


def open_stereo(node: LifecycleNode, parameters: NodeParameters, diagnostics: NodeDiagnostics) -> StereoOutput | None:
    """Creates the stereo topics; None if they are not enabled.

    Raises:
        ConfigurationError: the package of their messages is missing.
    """
    if not parameters.stereo.enabled:
        return None
    try:
        from worldstereo_ros.ros.node.stereo import StereoOutput
    except ModuleNotFoundError as error:
        if error.name != "stereo_msgs":
            raise
        raise ConfigurationError(
            "stereo.enabled needs the package stereo_msgs, which is not installed. Install it (apt install "
            "ros-$ROS_DISTRO-stereo-msgs), or set stereo.enabled to false."
        ) from None
    return StereoOutput(node, parameters, diagnostics, lambda text: node.get_logger().info(text))
