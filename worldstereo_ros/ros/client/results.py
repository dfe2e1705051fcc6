"""The imagined views of a goal as they arrive, and the result made of them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

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


class Collection:
    """The views that a node publishes while a goal runs, of that goal and of others. Used by two threads."""

    def __init__(self) -> None:
        self._views: list[tuple[float, ImaginedViewMessage]] = []
        self._conditioning: dict[int, Image] = {}
        self._lock = threading.Lock()

    def add_view(self, message: ImaginedViewMessage) -> None:
        """Adds a view that arrived."""
        with self._lock:
            self._views.append((time.monotonic(), message))

    def add_conditioning(self, message: Image) -> None:
        """Adds the conditioning of a view."""
        with self._lock:
            self._conditioning[nanoseconds(message.header.stamp)] = message

    def collect(
        self, done: int, total: int, *, accepted_ns: int, seconds_to_first: float, since: float
    ) -> tuple[list[ImaginedView], list[float]]:
        """Returns the views of one goal that arrived, and waits for those of `done` that have not.

        Args:
            done: number of views that the node published for the goal.
            total: number of views that the goal asked for.
            accepted_ns: stamp of its acceptance, of the node's clock; 0 = not known.
            seconds_to_first: from its acceptance to its first view.
            since: `time.monotonic()` that arrivals count from.

        Returns:
            (views in the order of their path, seconds from `since` to the arrival of each).
        """
        deadline = time.monotonic() + LAST_VIEWS_TIMEOUT_S
        while True:
            with self._lock:
                arrived, conditioning = list(self._views), dict(self._conditioning)
            own = _views_of_goal([message for _, message in arrived], done, total, accepted_ns, seconds_to_first)
            stamps = {nanoseconds(arrived[index][1].header.stamp) for index in own}
            if (len(own) >= done and stamps <= conditioning.keys()) or time.monotonic() > deadline:
                break
            time.sleep(0.01)
        views = []
        for index in own:
            message = arrived[index][1]
            image = conditioning.get(nanoseconds(message.header.stamp))
            views.append(view_from_message(message, None if image is None else image_array(image)))
        return views, [arrived[index][0] - since for index in own]


def _views_of_goal(
    messages: list[ImaginedViewMessage], done: int, total: int, accepted_ns: int, seconds_to_first: float
) -> list[int]:
    """Indices of the messages that belong to a goal, in the order of its path.

    A node runs one goal at a time, but others may have run before or after, and messages do not say which. The views of
    a goal have its number of views, come after its acceptance, and are numbered from 0. A view of the goal before it
    may still come after its acceptance; then the number of views and the time of the first one tell.
    """
    stamps = [nanoseconds(message.header.stamp) for message in messages]
    fitting = [index for index, message in enumerate(messages) if message.count == total]
    later = [index for index in fitting if stamps[index] >= accepted_ns]
    runs: list[list[int]] = []
    previous = total
    for index in later or fitting:  # if all are earlier, the clock of a simulation jumped back
        if messages[index].index <= previous:
            runs.append([])
        previous = messages[index].index
        if previous < done:
            runs[-1].append(index)
    first_ns = accepted_ns + int(seconds_to_first * 1e9)

    def unlikeliness(run: list[int]) -> tuple[bool, int, int]:
        return messages[run[0]].index != 0, done - len(run), abs(stamps[run[0]] - first_ns)

    return min((run for run in runs if run), key=unlikeliness, default=[])


class ViewCollector:
    """Collects the views that a node publishes, for any number of goals at once.

    Args:
        node: ROS node that subscribes to them.
        name: fully qualified name of the node that imagines.
    """

    def __init__(self, node: Node, name: str) -> None:
        self._collections: list[Collection] = []
        self._lock = threading.Lock()
        node.create_subscription(ImaginedViewMessage, f"{name}/view", self._on_view, qos.VIEW_RECEIVER)
        node.create_subscription(Image, f"{name}/conditioning", self._on_conditioning, qos.VIEW_RECEIVER)

    def _on_view(self, message: ImaginedViewMessage) -> None:
        with self._lock:
            for collection in self._collections:
                collection.add_view(message)

    def _on_conditioning(self, message: Image) -> None:
        with self._lock:
            for collection in self._collections:
                collection.add_conditioning(message)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[Collection]:
        """Collects while the context lasts. Views that arrive at other times take no memory."""
        collection = Collection()
        with self._lock:
            self._collections.append(collection)
        try:
            yield collection
        finally:
            with self._lock:
                self._collections.remove(collection)
