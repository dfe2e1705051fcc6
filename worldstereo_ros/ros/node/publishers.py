"""The node's publishers. A message is converted only if its topic has a subscriber."""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable

import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.ros.conversions import clouds, markers, messages, qos
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.tf_buffer import TransformUnavailableError
from worldstereo_ros.visualization.images import provenance_colours
from worldstereo_ros.world import WorldModel

OUTPUTS = (
    # name, type, profile, description
    ("~/image", Image, qos.VIEW, "imagined image, rgb8"),
    ("~/camera_info", CameraInfo, qos.VIEW, "camera of the imagined image, with the same header"),
    ("~/depth", Image, qos.VIEW, "depth of the imagined image, 32FC1 metres, NaN = unknown, with the same header"),
    (
        "~/observed",
        Image,
        qos.VIEW,
        "mono8 mask: 255 = observed (seen and measured by sensors), 0 = not, with the same header",
    ),
    (
        "~/provenance",
        Image,
        qos.VIEW,
        "mono8: 0 = unknown, 1 = imagined, 2 = estimated, 3 = observed, with the same header",
    ),
    (
        "~/provenance/colour",
        Image,
        qos.VIEW,
        "the same as rgb8, to look at: grey = unknown, orange = imagined, yellow = estimated, blue = observed",
    ),
    (
        "~/confidence",
        Image,
        qos.VIEW,
        "mono8: 255 * probability that the colour is right, with the same header; no pixels = unknown",
    ),
    (
        "~/depth_confidence",
        Image,
        qos.VIEW,
        "mono8: 255 * probability that the depth is right, with the same header; no pixels = unknown",
    ),
    ("~/view", ImaginedViewMessage, qos.VIEW, "an imagined view in one message"),
    ("~/conditioning", Image, qos.VIEW, "the memory rendered from the view's pose, rgb8; holes are grey"),
    ("~/map", PointCloud2, qos.MAP, "observed points (seen and measured by sensors) in `world_frame`: x y z rgb"),
    (
        "~/map/estimated",
        PointCloud2,
        qos.MAP,
        "estimated points (seen by a camera, at a distance that a model estimated) in `world_frame`: x y z rgb "
        "confidence depth_confidence",
    ),
    ("~/map/imagined", PointCloud2, qos.MAP, "imagined points in `world_frame`: x y z rgb confidence depth_confidence"),
    (
        "~/points",
        PointCloud2,
        qos.CLOUD,
        "points of the newest imagined view in `points_frame`: x y z rgb observed confidence depth_confidence, and the "
        "uint8 field provenance with the values of `~/provenance`",
    ),
    ("~/points/observed", PointCloud2, qos.CLOUD, "the observed points of `~/points` alone, with the same fields"),
    ("~/views", MarkerArray, qos.MAP, "frusta of the view bank and of the imagined views"),
    ("~/remembered", Header, qos.MAP, "stamp and frame_id of each image once it is in the memories"),
    (
        "~/photograph/pose",
        PoseStamped,
        qos.VIEW,
        "pose of the camera (optical axes) of each photograph that was placed, in `world_frame`, with its stamp",
    ),
)
MAP_CLASSES = {
    "~/map": Provenance.OBSERVED,
    "~/map/estimated": Provenance.ESTIMATED,
    "~/map/imagined": Provenance.IMAGINED,
}
MAPS = (*MAP_CLASSES, "~/views")
MAX_FRUSTA = 256  # imagined views in ~/views; older ones are removed


class Publishers:
    """Publishes imagined views when they are finished, and the maps when they changed and have subscribers.

    The publishers exist while the node is configured and send while it is active. The worker's thread, which owns the
    memories, calls `publish_view`, `publish_remembered` and `publish_maps`.

    Args:
        node: node on which the publishers are created.
        parameters: parameters of the node.
        pose_resolver: gives the robot's pose for `~/points`.
    """

    def __init__(self, node: LifecycleNode, parameters: NodeParameters, pose_resolver: PoseResolver) -> None:
        self._node, self._pose_resolver = node, pose_resolver
        self.apply(parameters)
        overrides = QoSOverridingOptions.with_default_policies()
        self._publishers = {
            # A copy, because rclpy writes the overrides of one topic into the profile, which others share.
            name: node.create_lifecycle_publisher(kind, name, copy.copy(profile), qos_overriding_options=overrides)
            for name, kind, profile, _ in OUTPUTS
        }
        self._tf = node.create_publisher(TFMessage, "/tf", qos.TF)
        self._stale = set(MAPS)
        self._subscriber_counts: dict[str, int] = {}
        self._maps_published_at = -1e9
        self._imagined: deque[markers.Frustum] = deque(maxlen=MAX_FRUSTA)

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters

    def close(self) -> None:
        """Destroys the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._tf)

    def _has_subscribers(self, name: str) -> bool:
        return self._publishers[name].is_activated and self._publishers[name].get_subscription_count() > 0

    def _now(self) -> Time:
        return self._node.get_clock().now().to_msg()

    def publish_remembered(self, stamp_ns: int, frame_id: str) -> None:
        """Publishes the stamp and frame of an image that was inserted into the memories."""
        if self._publishers["~/remembered"].is_activated:
            header = Header(stamp=messages.time_message(stamp_ns), frame_id=frame_id)
            self._publishers["~/remembered"].publish(header)

    def publish_photograph_pose(self, stamp_ns: int, world_from_camera: np.ndarray) -> None:
        """Publishes where a photograph was taken (4, 4)."""
        if self._publishers["~/photograph/pose"].is_activated:
            header = Header(stamp=messages.time_message(stamp_ns), frame_id=self._parameters.world_frame)
            pose = messages.pose_message(world_from_camera)
            self._publishers["~/photograph/pose"].publish(PoseStamped(header=header, pose=pose))

    # --- views ---

    def publish_view(self, view: ImaginedView) -> None:
        """Publishes an imagined view on every topic that has subscribers, and its pose on /tf."""
        header = Header(stamp=self._now(), frame_id=self._parameters.imagined_frame)
        if self._parameters.publish_tf and self._publishers["~/image"].is_activated:
            self._publish_transform(view, header)
        images = messages.ViewImages(view, header)
        converters: dict[str, Callable[[], object]] = {
            "~/view": lambda: messages.view_message(view, header, self._parameters.world_frame, images),
            "~/camera_info": lambda: images.camera_info,
            "~/depth": lambda: images.depth,
            "~/observed": lambda: images.observed,
            "~/provenance": lambda: images.provenance,
            "~/provenance/colour": lambda: messages.colour_message(provenance_colours(view.provenance), header),
            "~/confidence": lambda: images.confidence,
            "~/depth_confidence": lambda: images.depth_confidence,
            "~/image": lambda: images.image,
            "~/points": lambda: self._points_message(view, header),
            "~/points/observed": lambda: self._points_message(view, header, Provenance.OBSERVED),
        }
        if view.conditioning is not None:
            conditioning = view.conditioning
            converters = {"~/conditioning": lambda: messages.colour_message(conditioning, header), **converters}
        for name, convert in converters.items():
            if self._has_subscribers(name):
                self._publishers[name].publish(convert())
        self._imagined.append(markers.Frustum(view.camera, view.world_from_camera))
        self._stale.add("~/views")

    def _publish_transform(self, view: ImaginedView, header: Header) -> None:
        world = Header(stamp=header.stamp, frame_id=self._parameters.world_frame)
        transform = messages.transform_message(view.world_from_camera, world, self._parameters.imagined_frame)
        self._tf.publish(TFMessage(transforms=[transform]))

    def _points_message(
        self, view: ImaginedView, header: Header, lowest: Provenance = Provenance.UNKNOWN
    ) -> PointCloud2:
        """The view's points in the base frame at the stamp of its newest transform, as a costmap needs them.

        In the imagined camera's frame if `points_frame` says so or TF has no transform of the base. Only points of the
        class `lowest` and higher ones.
        """
        depth = messages.view_depth(view)
        pose = np.eye(4)
        if self._parameters.points_frame == "base":
            try:
                base_from_world, stamp_ns = self._pose_resolver.base_from_world()
                pose = base_from_world @ view.world_from_camera
                stamp = messages.time_message(stamp_ns) if stamp_ns else header.stamp
                header = Header(stamp=stamp, frame_id=self._parameters.base_frame)
            except TransformUnavailableError:
                pass
        points = unproject_depth(depth, view.camera, pose).reshape(-1, 3)
        provenance = view.provenance
        kept = np.flatnonzero((depth > 0) & (provenance >= lowest))
        kept = kept[clouds.subsample(len(kept), self._parameters.cloud_points)]
        index = slice(None) if len(kept) == depth.size else kept  # without a copy if all are kept
        provenance = provenance.reshape(-1)[index]
        # Without an estimate, what a camera saw and what a sensor measured have confidence 1, and the rest 0.
        colour, measure = view.confidence, view.depth_confidence
        return clouds.cloud_message(
            points[index],
            view.image.reshape(-1, 3)[index],
            header,
            observed=provenance == Provenance.OBSERVED,
            confidence=provenance >= Provenance.ESTIMATED if colour is None else colour.reshape(-1)[index],
            depth_confidence=provenance == Provenance.OBSERVED if measure is None else measure.reshape(-1)[index],
            provenance=provenance,
        )

    # --- maps ---

    def memory_changed(self) -> None:
        """Marks the maps as stale."""
        self._stale = set(MAPS)

    def memory_replaced(self) -> None:
        """Marks the maps as stale and removes the imagined views from `~/views`."""
        self._imagined.clear()
        self.memory_changed()

    def map_due(self) -> bool:
        """Returns whether a stale map has subscribers and the last maps are `map_period` old.

        A map without subscribers stays stale. A late subscriber gets the last message from the middleware; since a
        volatile one (Nav2, RViz by default) does not, the maps are published again whenever a subscriber joins.
        """
        if time.monotonic() - self._maps_published_at < self._parameters.map_period:
            return False
        for name in MAPS:
            count = self._publishers[name].get_subscription_count()
            if count > self._subscriber_counts.get(name, 0):
                self._stale.add(name)
            self._subscriber_counts[name] = count
        return any(self._has_subscribers(name) for name in tuple(self._stale))

    def publish_maps(self, world: WorldModel) -> None:
        """Publishes the stale ones of the maps and the frusta. Called on the worker's thread."""
        self._maps_published_at = time.monotonic()
        header = Header(stamp=self._now(), frame_id=self._parameters.world_frame)
        for name in [name for name in MAPS if name in self._stale and self._has_subscribers(name)]:
            self._stale.discard(name)
            self._publishers[name].publish(self._map_message(name, world, header))

    def _map_message(self, name: str, world: WorldModel, header: Header) -> MarkerArray | PointCloud2:
        if name == "~/views":
            return markers.frusta(world.bank.views, self._imagined, header)
        cloud = world.cloud
        index = np.flatnonzero(cloud.provenance == MAP_CLASSES[name])
        index = index[clouds.subsample(len(index), self._parameters.cloud_points)]
        points, colours = cloud.points[index], cloud.colours[index]
        if name == "~/map":
            return clouds.cloud_message(points, colours, header)
        confidences = cloud.confidence_at(index), cloud.depth_confidence_at(index)
        return clouds.cloud_message(points, colours, header, confidence=confidences[0], depth_confidence=confidences[1])


def unproject_depth(depth: np.ndarray, camera: Camera, pose: np.ndarray) -> np.ndarray:
    """Unprojects a depth image and transforms the points; in float32 and one coordinate at a time, for speed.

    Args:
        depth: (H, W) float32 metres.
        camera: intrinsics.
        pose: (4, 4) rigid transform from the camera to the frame of the points.

    Returns:
        (H, W, 3) float32 metres.
    """
    x = depth * ((np.arange(camera.width) - camera.cx) / camera.fx).astype(np.float32)[None]
    y = depth * ((np.arange(camera.height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
    points = np.empty((*depth.shape, 3), np.float32)
    for axis, (a, b, c, t) in enumerate(pose[:3].astype(np.float32)):
        points[..., axis] = a * x + b * y + (c * depth + t)
    return points
