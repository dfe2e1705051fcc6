"""Publishes `~/odometry` and `~/pointmaps/*`; what has no subscriber is not made."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry, Path
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.ros.conversions.clouds import organised_message
from worldstereo_ros.ros.conversions.odometry import odometry_message
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pointmap_parameters import corrects_world, path_frame
from worldstereo_ros.ros.node.pointmap_path import PathFrame, adjoint, moved

ODOMETRY, WHEELS = "~/odometry", "odometry"
POINTS, DEPTH, DYNAMIC, INFO = (
    "~/pointmaps/points",
    "~/pointmaps/depth",
    "~/pointmaps/dynamic",
    "~/pointmaps/camera_info",
)
PATH = "~/pointmaps/path"
POINTMAP_OUTPUTS = (
    # name, type, profile, description
    (
        ODOMETRY,
        Odometry,
        qos.VIEW,
        "the path of base_frame, or of the camera if its place on the robot is unknown, by images alone; covariances "
        "by inliers and parallax, wide where lengths are a guess or the camera was lost",
    ),
    (
        POINTS,
        PointCloud2,
        qos.VIEW,
        "organised, a point for each pixel in the camera's optical frame with the stamp of the image: x y z rgb, "
        "confidence (that the distance is right within 25 %) and dynamic (1 = it moves); NaN where there is none",
    ),
    (DEPTH, Image, qos.VIEW, "32FC1 metres of the same image, estimated; NaN = unknown"),
    (DYNAMIC, Image, qos.VIEW, "mono8, 255 = it moves in the world"),
    (INFO, CameraInfo, qos.VIEW, "camera of ~/pointmaps/depth and dynamic, with the same header"),
    (
        PATH,
        Path,
        qos.MAP,
        "where base_frame, or the camera, was at each keyframe, corrected where a place was seen again: in world_frame "
        "with pose_source pointmaps, else in `pointmaps.odom_frame`; without parts whose place is not known",
    ),
)
POINTMAP_INPUTS = (
    (WHEELS, Odometry, qos.SENSOR, "wheel odometry, for the scale of point maps alone; only with `pointmaps.enabled`"),
)


class PointmapPublishers:
    """The topics of point maps, while the node is configured; they send while it is active.

    Args:
        node: node on which the publishers are created.

    Attributes:
        names: names of the topics.
    """

    def __init__(self, node: LifecycleNode) -> None:
        overrides = QoSOverridingOptions.with_default_policies()
        self._node = node
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, name, copy.copy(profile), qos_overriding_options=overrides)
            for name, kind, profile, _ in POINTMAP_OUTPUTS
        }
        self._tf = node.create_publisher(TFMessage, "/tf", qos.TF)
        self.names = list(self._publishers)
        self.restart()

    def restart(self) -> None:
        """Begins anew: the next pose has no velocity."""
        self._last_stamp_ns: int | None = None

    def close(self) -> None:
        """Destroys the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._tf)

    @property
    def active(self) -> bool:
        """Whether the node is active."""
        return self._publishers[ODOMETRY].is_activated

    def heard(self) -> frozenset[str]:
        """Names of the topics that have subscribers."""
        return frozenset(
            name
            for name, publisher in self._publishers.items()
            if publisher.is_activated and publisher.get_subscription_count() > 0
        )

    def publish_maps(
        self,
        maps: Pointmaps,
        factor: float,
        headers: Sequence[Header],
        image_of: Callable[[int], np.ndarray],
        stopping: Callable[[], bool],
    ) -> None:
        """Publishes points, depth and what moves.

        Args:
            maps: of F frames.
            factor: from their unit to that of the messages.
            headers: of the F images.
            image_of: returns the (H, W, 3) uint8 image of a frame, of the size of the point maps.
            stopping: returns whether to end.
        """
        heard = self.heard() - {ODOMETRY, PATH}
        if not heard:
            return
        depth = maps.depth * np.float32(factor)
        for index, header in enumerate(headers):
            made: dict[str, Callable[[], object]] = {
                INFO: partial(messages.info_message, maps.camera, header),
                DEPTH: partial(messages.depth_message, depth[index], header),
                DYNAMIC: partial(messages.mask_message, maps.dynamic[index], header),
                POINTS: partial(_points_message, maps, depth[index], index, image_of, header),
            }
            for name in [name for name in made if name in heard]:
                message = made[name]()
                if not stopping():
                    self._publishers[name].publish(message)

    def publish_odometry(
        self,
        where: PathFrame,
        header: Header,
        stamp_ns: int,
        base_from_camera: np.ndarray | None,
        world_from_path: np.ndarray,
        parameters: NodeParameters,
    ) -> None:
        """Publishes where the robot was, on the topic and, by the parameter, on /tf.

        Args:
            where: of the camera.
            header: of its image.
            stamp_ns: its stamp.
            base_from_camera: (4, 4) place of the camera on the robot; None if it is unknown: that of the camera is
                published.
            world_from_path: (4, 4) the correction; on /tf alone, so that the topic never jumps.
            parameters: of the node.
        """
        seconds = 0.0 if self._last_stamp_ns is None else (stamp_ns - self._last_stamp_ns) * 1e-9
        self._last_stamp_ns = stamp_ns
        child, mounted = header.frame_id, np.eye(4)
        if base_from_camera is not None:
            child, mounted = parameters.base_frame, base_from_camera
        pose = where.pose @ invert_pose(mounted)
        of_path = Header(stamp=header.stamp, frame_id=path_frame(parameters))
        if ODOMETRY in self.heard():
            velocity = velocity_covariance = None
            if where.increment is not None and seconds > 0:
                velocity = adjoint(mounted) @ velocity_of(where.increment, seconds)
                velocity_covariance = moved(where.increment_covariance, mounted) / seconds**2
            message = odometry_message(
                pose, moved(where.covariance, mounted), velocity, velocity_covariance, of_path, child
            )
            self._publishers[ODOMETRY].publish(message)
        if parameters.pointmaps.publish_tf and self.active:
            transforms = [messages.transform_message(pose, of_path, child)]
            if corrects_world(parameters):
                of_world = Header(stamp=header.stamp, frame_id=parameters.world_frame)
                transforms.append(messages.transform_message(world_from_path, of_world, of_path.frame_id))
            self._tf.publish(TFMessage(transforms=transforms))

    def publish_path(
        self,
        stamps_ns: np.ndarray,
        poses: np.ndarray,
        base_from_camera: np.ndarray | None,
        world_from_path: np.ndarray,
        parameters: NodeParameters,
    ) -> None:
        """Publishes where the robot was at the keyframes, as far as that is known now.

        Args:
            stamps_ns: (K,).
            poses: (K, 4, 4) of the camera in the world.
            base_from_camera, world_from_path, parameters: see `publish_odometry`.
        """
        if not self.active or not len(poses):
            return
        frame = parameters.world_frame
        if not corrects_world(parameters):  # what is known now, from where the robot is now
            frame, poses = path_frame(parameters), invert_pose(world_from_path) @ poses
        if base_from_camera is not None:
            poses = poses @ invert_pose(base_from_camera)
        path = Path(header=Header(stamp=messages.time_message(int(stamps_ns[-1])), frame_id=frame))
        for stamp_ns, pose in zip(stamps_ns, poses, strict=True):
            header = Header(stamp=messages.time_message(int(stamp_ns)), frame_id=frame)
            path.poses.append(PoseStamped(header=header, pose=messages.pose_message(pose)))
        self._publishers[PATH].publish(path)


def _points_message(
    maps: Pointmaps, depth: np.ndarray, index: int, image_of: Callable[[int], np.ndarray], header: Header
) -> PointCloud2:
    return organised_message(
        points_of(depth, maps), image_of(index), maps.confidence[index], maps.dynamic[index], header
    )


def points_of(depth: np.ndarray, maps: Pointmaps) -> np.ndarray:
    """(H, W, 3) float32 points in the camera's optical frame, NaN where depth (H, W) is 0."""
    return (maps.camera.rays() * np.where(depth > 0, depth, np.float32(np.nan))[..., None]).astype(np.float32)


def velocity_of(increment: np.ndarray, seconds: float) -> np.ndarray:
    """(6,) linear and angular velocity in the axes at the end of a motion (4, 4) of a rigid body."""
    from scipy.spatial.transform import Rotation

    rotation = increment[:3, :3]
    return np.concatenate([rotation.T @ increment[:3, 3], Rotation.from_matrix(rotation).as_rotvec()]) / seconds
