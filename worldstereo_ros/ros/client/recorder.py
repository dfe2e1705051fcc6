"""Records the topics of the node into an MCAP bag, without rosbag2."""

from __future__ import annotations

import time
from pathlib import Path
from types import TracebackType

from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from worldstereo_ros.io.bags.files import BagWriter
from worldstereo_ros.msg import ImaginedView
from worldstereo_ros.ros.client.client import WorldStereoClient
from worldstereo_ros.ros.conversions import qos


class Recorder:
    """Context manager that records the inputs and outputs of a node.

    Messages are written as the middleware delivers them, without deserialisation, on the client's thread.

    Args:
        client: client of the node to record; its ROS node subscribes to the topics.
        folder: folder of the bag; must not exist.
    """

    def __init__(self, client: WorldStereoClient, folder: Path) -> None:
        self._client, self._folder = client, folder
        self._writer: BagWriter | None = None
        self._subscriptions: list = []

    def __enter__(self) -> Recorder:
        self._writer = BagWriter(self._folder)
        name, namespace = self._client.node_name, self._client.node_name.rsplit("/", 1)[0]
        views = QoSProfile(depth=50)
        for topic, kind, profile in (
            (f"{namespace}/image", Image, views),
            (f"{namespace}/depth", Image, views),
            (f"{namespace}/camera_info", CameraInfo, views),
            (f"{namespace}/path", PathMessage, qos.COMMAND),
            ("/tf", TFMessage, qos.TF),
            ("/tf_static", TFMessage, qos.TF_STATIC),
            ("/diagnostics", DiagnosticArray, qos.DIAGNOSTICS),
            (f"{name}/image", Image, views),
            (f"{name}/camera_info", CameraInfo, views),
            (f"{name}/depth", Image, views),
            (f"{name}/observed", Image, views),
            (f"{name}/provenance", Image, views),
            (f"{name}/confidence", Image, views),
            (f"{name}/depth_confidence", Image, views),
            (f"{name}/conditioning", Image, views),
            (f"{name}/view", ImaginedView, views),
            (f"{name}/points", PointCloud2, qos.CLOUD),
            (f"{name}/map", PointCloud2, qos.MAP),
            (f"{name}/map/estimated", PointCloud2, qos.MAP),
            (f"{name}/map/imagined", PointCloud2, qos.MAP),
            (f"{name}/views", MarkerArray, qos.MAP),
        ):
            self._record(topic, kind, profile)
        return self

    def _record(self, topic: str, kind: type, profile: QoSProfile) -> None:
        assert self._writer is not None
        package = kind.__module__.split(".")[0]
        self._writer.add_topic(topic, f"{package}/msg/{kind.__name__}", latched=profile in (qos.MAP, qos.TF_STATIC))

        def write(message: bytes) -> None:
            if self._writer is not None:
                self._writer.write(topic, message, time.time_ns())

        node = self._client.node
        self._subscriptions.append(node.create_subscription(kind, topic, write, profile, raw=True))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        for subscription in self._subscriptions:
            self._client.node.destroy_subscription(subscription)
        if writer is not None:
            writer.close()
