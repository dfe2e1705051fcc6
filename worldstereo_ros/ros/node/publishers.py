"""The node's outputs: every publisher, and the messages made for it where somebody listens."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.ros.conversions import clouds, markers, messages, qos
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.tf_buffer import TransformUnavailableError
from worldstereo_ros.world import WorldModel

OUTPUTS = (
    # name, type, profile, what
    ("~/image", Image, qos.VIEW, "imagined picture, rgb8"),
    ("~/camera_info", CameraInfo, qos.VIEW, "its camera, the same header"),
    ("~/depth", Image, qos.VIEW, "its depth, 32FC1 metres, NaN = unknown, the same header"),
    ("~/observed", Image, qos.VIEW, "mono8: 255 = shows what a sensor saw, 0 = imagined, the same header"),
    ("~/confidence", Image, qos.VIEW, "mono8: 255 = surely the right colour, 0 = surely not, the same header"),
    ("~/view", ImaginedViewMessage, qos.VIEW, "all of a view in one message"),
    ("~/conditioning", Image, qos.VIEW, "what memory alone gives of the view, rgb8; holes are grey"),
    ("~/map", PointCloud2, qos.MAP, "observed points in `world_frame`: x y z rgb"),
    ("~/map/imagined", PointCloud2, qos.MAP, "imagined points in `world_frame`: x y z rgb confidence"),
    ("~/points", PointCloud2, qos.CLOUD, "points of the last view in `points_frame`: x y z rgb observed confidence"),
    ("~/views", MarkerArray, qos.MAP, "frusta of the bank and of the imagined views"),
    ("~/remembered", Header, qos.MAP, "stamp and frame of each image, once it is in memory"),
)
MAPS = ("~/map", "~/map/imagined", "~/views")
SHOWN_VIEWS = 256  # frusta of the imagined views that are drawn; older ones go


class Publishers:
    """Publishes views as they come, and the map when it changed and somebody listens.

    The publishers are made when the node is configured and send only while it is active. `view` and `between_steps`
    are called on the worker's thread, which owns the memories.
    """

    def __init__(self, node: LifecycleNode, settings: NodeParameters, frames: PoseResolver) -> None:
        self._node, self._frames = node, frames
        self.apply(settings)
        overrides = QoSOverridingOptions.with_default_policies()
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, name, profile, qos_overriding_options=overrides)
            for name, kind, profile, _ in OUTPUTS
        }
        self._tf = node.create_publisher(TFMessage, "/tf", qos.TF)
        self._stale = set(MAPS)
        self._listeners: dict[str, int] = {}
        self._map_at = -1e9
        self._shown: list[ImaginedView] = []

    def apply(self, settings: NodeParameters) -> None:
        """Takes up parameters."""
        self._settings = settings

    def close(self) -> None:
        """Takes the publishers back."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._tf)

    def _wanted(self, name: str) -> bool:
        return self._publishers[name].is_activated and self._publishers[name].get_subscription_count() > 0

    def _send(self, name: str, message: object) -> None:
        self._publishers[name].publish(message)

    def observation_remembered(self, stamp_ns: int, frame_id: str) -> None:
        """Says that an image is in memory now."""
        if self._publishers["~/remembered"].is_activated:
            self._send("~/remembered", Header(stamp=messages.time_message(stamp_ns), frame_id=frame_id))

    # --- views ----------------------------------------------------------------------------------------------------

    def view(self, view: ImaginedView) -> None:
        """Publishes an imagined view on every topic that has a listener."""
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._settings.imagined_frame)
        if self._settings.publish_tf and self._publishers["~/image"].is_activated:
            world = Header(stamp=header.stamp, frame_id=self._settings.world_frame)
            pose: TransformStamped = messages.transform_message(
                view.world_from_camera, world, self._settings.imagined_frame
            )
            self._tf.publish(TFMessage(transforms=[pose]))
        pictures = messages.Pictures(view, header)
        makers: dict[str, Callable[[], object]] = {
            "~/view": lambda: messages.view_message(view, header, self._settings.world_frame, pictures),
            "~/camera_info": lambda: pictures.camera_info,
            "~/depth": lambda: pictures.depth,
            "~/observed": lambda: pictures.observed,
            "~/confidence": lambda: pictures.confidence,
            "~/image": lambda: pictures.image,
            "~/points": lambda: self._points(view, header),
        }
        if view.conditioning is not None:
            conditioning = view.conditioning
            makers = {"~/conditioning": lambda: messages.colour_message(conditioning, header), **makers}
        for name, make in makers.items():
            if self._wanted(name):
                self._send(name, make())
        self._shown = [*self._shown, view][-SHOWN_VIEWS:]
        self._stale.add("~/views")

    def _points(self, view: ImaginedView, header: Header) -> PointCloud2:
        """The view's points where a costmap can use them: in the robot's frame, at a time that TF knows."""
        depth = messages.view_depth(view)
        pose = np.eye(4)
        if self._settings.points_frame == "base":
            try:
                base_from_world, stamp_ns = self._frames.base_from_world()
                pose = base_from_world @ view.world_from_camera
                stamp = messages.time_message(stamp_ns) if stamp_ns else header.stamp
                header = Header(stamp=stamp, frame_id=self._settings.base_frame)
            except TransformUnavailableError:
                pass  # no robot in TF: the imagined camera's frame is
        points = unprojected(depth, view.camera, pose).reshape(-1, 3)
        colours, observed = view.image.reshape(-1, 3), view.observed_mask.reshape(-1)
        # Where nobody said how sure an imagined pixel is, it is not.
        confidence = observed if view.confidence is None else view.confidence.reshape(-1)
        index = np.flatnonzero(depth > 0)
        if len(index) < depth.size or len(index) > self._settings.cloud_points:
            index = index[clouds.thinned(len(index), self._settings.cloud_points)]
            points, colours, observed, confidence = (a[index] for a in (points, colours, observed, confidence))
        return clouds.cloud_message(points, colours, header, observed=observed, confidence=confidence)

    # --- the map --------------------------------------------------------------------------------------------------

    def memory_changed(self) -> None:
        """What was published last is not what memory holds."""
        self._stale = set(MAPS)

    def memory_cleared(self) -> None:
        """Nothing is remembered any more; the imagined views are not shown any more either."""
        self._shown = []
        self.memory_changed()

    def map_due(self) -> bool:
        """Whether to publish maps now: one that somebody listens to is stale, and the last ones are old enough.

        What nobody listens to stays stale. Whoever comes later gets the last one from the middleware, and where the
        listener is volatile (Nav2, RViz unless told otherwise) and so would not, it is published again.
        """
        if time.monotonic() - self._map_at < self._settings.map_period:
            return False
        for name in MAPS:
            listeners = self._publishers[name].get_subscription_count()
            if listeners > self._listeners.get(name, 0):
                self._stale.add(name)
            self._listeners[name] = listeners
        return any(self._wanted(name) for name in tuple(self._stale))

    def map(self, world: WorldModel) -> None:
        """Publishes both maps and the frusta where they are stale; on the worker's thread."""
        self._map_at = time.monotonic()
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._settings.world_frame)
        for name in [name for name in MAPS if name in self._stale and self._wanted(name)]:
            self._stale.discard(name)
            if name == "~/views":
                self._send(name, markers.frusta(world.bank.views, self._shown, header))
                continue
            cloud = world.cloud
            observed = np.asarray(cloud.observed)
            index = np.flatnonzero(observed if name == "~/map" else ~observed)
            index = index[clouds.thinned(len(index), self._settings.cloud_points)]
            confidence = cloud.confidence_at(index) if name == "~/map/imagined" else None
            message = clouds.cloud_message(cloud.points[index], cloud.colours[index], header, confidence=confidence)
            self._send(name, message)


def unprojected(depth: np.ndarray, camera: Camera, pose: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 points of a depth image, moved by a rigid (4, 4) transform; column by column, for speed."""
    x = depth * ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)[None]
    y = depth * ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
    points = np.empty((*depth.shape, 3), np.float32)
    for axis, (a, b, c, t) in enumerate(pose[:3].astype(np.float32)):
        points[..., axis] = a * x + b * y + (c * depth + t)
    return points
