"""Receives the stereo pairs of a node, each one whole.

receiver = StereoReceiver(client.node, client.node_name)  # from now on the node makes pairs
pair = receiver.wait()
pair.left, pair.right, pair.camera, pair.base
receiver.close()                                          # and from now on not any more
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image

from worldstereo_ros.geometry.calibration import calibration_from_info
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.ros.client.requests import NodeTimeoutError
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.conversions.stereo import base_from_info

TOPICS: dict[str, type] = {
    "left/image_rect": Image,
    "left/camera_info": CameraInfo,
    "right/image_rect": Image,
    "right/camera_info": CameraInfo,
    "right/source": Image,
}
KEPT_PAIRS = 8  # that are not whole yet


@dataclass(frozen=True)
class ReceivedPair:
    """A stereo pair.

    Attributes:
        left: (H, W, 3) uint8 RGB, the camera's image without distortion.
        right: (H, W, 3) uint8 RGB, made of it: no measurement.
        source: (H, W) uint8, where each pixel of the right eye comes from: 255 seen now, 128 seen in a past frame, 0
            painted.
        camera: intrinsics of the left eye. right_camera: of the right one.
        base: distance of the eyes that the disparities have, metres.
        stamp_ns: stamp of the camera's image. frame_id: its optical frame, which both eyes have.
    """

    left: np.ndarray
    right: np.ndarray
    source: np.ndarray
    camera: Camera
    right_camera: Camera
    base: float
    stamp_ns: int
    frame_id: str


class StereoReceiver:
    """Subscribes to the stereo topics of a node until it is closed. The node makes pairs only while someone does.

    Args:
        node: ROS node that spins on another thread, such as that of a `WorldStereoClient`.
        node_name: fully qualified name of the node that makes the pairs; its parameter `stereo.enabled` must be set.
    """

    def __init__(self, node: Node, node_name: str = "/worldstereo") -> None:
        self._node, self._name = node, "/" + node_name.strip("/")
        self._changed = threading.Condition()
        self._parts: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._newest: dict[str, Any] | None = None
        self._subscriptions = [
            node.create_subscription(kind, f"{self._name}/stereo/{topic}", self._receives(topic), qos.VIEW)
            for topic, kind in TOPICS.items()
        ]

    def __enter__(self) -> StereoReceiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribes."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []

    def _receives(self, topic: str) -> Callable[[Any], None]:
        def receive(message: Any) -> None:
            stamp_ns = messages.nanoseconds(message.header.stamp)
            with self._changed:
                parts = self._parts.setdefault(stamp_ns, {})
                parts[topic] = message
                if len(parts) == len(TOPICS):
                    self._newest = self._parts.pop(stamp_ns)
                    self._changed.notify_all()
                while len(self._parts) > KEPT_PAIRS:
                    self._parts.popitem(last=False)

        return receive

    def wait(self, timeout: float = 10.0) -> ReceivedPair:
        """Waits for the next pair, which is returned once.

        Args:
            timeout: seconds.

        Raises:
            NodeTimeoutError: no pair came in time; the message says what was seen of the node.
            InputError: the messages of the pair cannot be read.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._newest is not None, timeout):
                raise NodeTimeoutError(self._why_none(timeout))
            parts, self._newest = self._newest, None
        assert parts is not None
        header = parts["left/image_rect"].header
        return ReceivedPair(
            left=messages.image_array(parts["left/image_rect"]),
            right=messages.image_array(parts["right/image_rect"]),
            source=messages.grey_array(parts["right/source"]),
            camera=calibration_from_info(parts["left/camera_info"]).camera,
            right_camera=calibration_from_info(parts["right/camera_info"]).camera,
            base=base_from_info(parts["right/camera_info"]),
            stamp_ns=messages.nanoseconds(header.stamp),
            frame_id=header.frame_id,
        )

    def _why_none(self, timeout: float) -> str:
        topic = f"{self._name}/stereo/right/image_rect"
        if not self._node.count_publishers(topic):
            return (
                f"No stereo pair within {timeout:g} s: nothing publishes {topic}. Start the node with stereo.enabled "
                "true; it publishes once it is configured."
            )
        return (
            f"No stereo pair within {timeout:g} s, although {topic} has a publisher. Is the node active, and does it "
            "get images with camera_info? The diagnostics count them."
        )
