"""The imagined views of a goal as they arrive, and the result made of them."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image

from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import image_array, nanoseconds, view_from_message

LAST_VIEWS_TIMEOUT_S = 10.0  # for views that arrive after the result of their goal


@dataclass
class ImagineResult:
    """Result of `WorldStereoClient.imagine`.

    Attributes:
        views: the imagined views in the order of the path.
        error_code, error_msg: error code and message of the action; 0 and empty if it succeeded.
        observed_fraction, estimated_fraction: means over the views, 0..1.
        seconds: time from acceptance of the goal to its end. seconds_to_first: time to the first view.
        arrivals: seconds from the request to the arrival of each view.
        views_done: number of views that the node imagined and published.
    """

    views: list[ImaginedView]
    error_code: int
    error_msg: str
    seconds: float
    seconds_to_first: float
    arrivals: list[float] = field(default_factory=list)
    observed_fraction: float = 0.0
    estimated_fraction: float = 0.0
    views_done: int = 0

    @property
    def views_lost(self) -> int:
        """Number of views that the node published and the client did not receive."""
        return max(self.views_done - len(self.views), 0)


class ViewCollector:
    """Collects the views that a node publishes.

    Args:
        node: ROS node that subscribes to them.
        name: fully qualified name of the node that imagines.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._views: list[tuple[float, ImaginedViewMessage]] = []
        self._conditioning: dict[int, np.ndarray] = {}
        self._collecting = False
        self._lock = threading.Lock()
        node.create_subscription(ImaginedViewMessage, f"{name}/view", self._on_view, qos.VIEW_RECEIVER)
        node.create_subscription(Image, f"{name}/conditioning", self._on_conditioning, qos.VIEW_RECEIVER)

    def _on_view(self, message: ImaginedViewMessage) -> None:
        with self._lock:
            if self._collecting:
                self._views.append((time.monotonic(), message))

    def _on_conditioning(self, message: Image) -> None:
        with self._lock:
            if self._collecting:
                self._conditioning[nanoseconds(message.header.stamp)] = image_array(message)

    def start(self) -> None:
        """Collects from now on. Views of other goals, before and after, take no memory."""
        with self._lock:
            self._collecting = True
            self._views.clear()
            self._conditioning.clear()

    def stop(self) -> None:
        """Forgets the views and collects no more."""
        with self._lock:
            self._collecting = False
            self._views.clear()
            self._conditioning.clear()

    def collect(self, count: int, since: float) -> tuple[list[ImaginedView], list[float]]:
        """Returns the views that arrived, and waits for those of `count` that have not.

        Args:
            count: number of views that were published.
            since: `time.monotonic()` that arrivals count from.

        Returns:
            (views in the order of their path, seconds from `since` to the arrival of each).
        """
        deadline = time.monotonic() + LAST_VIEWS_TIMEOUT_S
        while time.monotonic() < deadline:
            with self._lock:
                if len(self._views) >= count and len(self._conditioning) >= count:
                    break
            time.sleep(0.01)
        with self._lock:
            arrived = [
                (received_at, message, self._conditioning.get(nanoseconds(message.header.stamp)))
                for received_at, message in self._views
            ]
        views = [view_from_message(message, conditioning) for _, message, conditioning in arrived]
        return views, [received_at - since for received_at, *_ in arrived]
