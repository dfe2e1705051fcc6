"""Where the camera is on a robot that publishes it itself, as its TF says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from rclpy.node import Node

from worldstereo_ros.geometry.camera_axes import BODY_FROM_OPTICAL, resolve_camera_axes
from worldstereo_ros.ros.node.tf_buffer import TransformSource, TransformUnavailableError
from worldstereo_ros.ros.node.tf_listener import open_transforms
from worldstereo_ros.utils.errors import InputError

CACHE_S = 10.0
TF_TIMEOUT_S = 3.0  # for the transforms of the robot to arrive after the first question


class Extrinsics:
    """Looks up the camera's pose on the robot. Subscribes to TF when it is first asked for.

    Args:
        node: ROS node that subscribes; another thread spins it.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._transforms: TransformSource | None = None
        self._lock = threading.Lock()

    def base_from_camera(
        self,
        base_frame: str,
        get_camera_frame: Callable[[], str],
        fallback: np.ndarray | None,
        *,
        camera_axes: str = "auto",
    ) -> np.ndarray:
        """Returns the newest pose (4, 4) of the camera's optical axes in the base frame, as the node finds it.

        Args:
            base_frame: frame of the robot.
            get_camera_frame: returns the frame of its images; empty while it is not known.
            fallback: the node's parameter `base_to_camera`, which it uses where TF has no transform; None if not set.
            camera_axes: the node's parameter: axes of that frame, see `geometry.camera_axes`.

        Raises:
            InputError: neither is available; the message says what to do.
        """
        with self._lock:  # two threads may ask for the first time
            if self._transforms is None:
                self._transforms = open_transforms(self._node, CACHE_S, lambda: None)
        deadline = time.monotonic() + TF_TIMEOUT_S
        while True:
            frame = get_camera_frame()
            reason = "The camera's frame is not known, since the node remembers no image yet."
            try:
                if frame:
                    pose = self._transforms.lookup(base_frame, frame, None)[0]
                    # The node has said what it assumes of the frame.
                    is_body, _ = resolve_camera_axes(camera_axes, frame, pose, z_up=True, remedy="camera_axes:")
                    return pose @ BODY_FROM_OPTICAL if is_body else pose
            except TransformUnavailableError as error:
                reason = str(error)
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        if fallback is not None:
            return fallback
        raise InputError(
            f"The node expects poses of '{base_frame}', and the camera's place on it is not known: {reason} Give "
            "base_from_camera to the client, publish the transform (static_transform_publisher), or run the node with "
            "path_pose_frame:=camera."
        )
