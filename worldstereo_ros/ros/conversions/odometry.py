"""Converts a path with covariances to `nav_msgs/Odometry`."""

from __future__ import annotations

import numpy as np
from nav_msgs.msg import Odometry
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions.messages import pose_message

UNKNOWN_VARIANCE = 1e6  # of a velocity that is not known; filters take it as no information


def odometry_message(
    pose: np.ndarray,
    covariance: np.ndarray,
    velocity: np.ndarray | None,
    velocity_covariance: np.ndarray | None,
    header: Header,
    child_frame: str,
) -> Odometry:
    """Packs a pose and a velocity.

    Args:
        pose: (4, 4) pose of the child frame in the header's frame.
        covariance: (6, 6) of its position and rotation in the child's own axes; the message has them in those of the
            header's frame (REP 103, x y z and about x y z).
        velocity: (6,) linear and angular, in the child's axes; None if unknown.
        velocity_covariance: (6, 6) of it.
        header: frame and time.
        child_frame: frame of the velocity.
    """
    message = Odometry(header=header, child_frame_id=child_frame)
    message.pose.pose = pose_message(pose)
    turn = np.zeros((6, 6))
    turn[:3, :3] = turn[3:, 3:] = pose[:3, :3]
    turned = turn @ covariance @ turn.T
    message.pose.covariance = (0.5 * (turned + turned.T)).reshape(-1)
    if velocity is None or velocity_covariance is None:
        message.twist.covariance = (np.eye(6) * UNKNOWN_VARIANCE).reshape(-1)
        return message
    linear, angular = message.twist.twist.linear, message.twist.twist.angular
    linear.x, linear.y, linear.z, angular.x, angular.y, angular.z = (float(value) for value in velocity)
    message.twist.covariance = (0.5 * (velocity_covariance + velocity_covariance.T)).reshape(-1)
    return message
