"""Sends observations and paths in the frames that the node expects."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.client.extrinsics import Extrinsics
from worldstereo_ros.ros.client.node_watch import NodeWatch
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import (
    colour_message,
    depth_message,
    info_message,
    pose_message,
    transform_message,
)
from worldstereo_ros.utils.errors import InputError

# A camera at the origin of the base that looks along x: optical axes (x right, y down, z forward) in REP 103 axes.
BASE_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


class PoseAndImageSender:
    """The publishers of a client: images, and their poses on TF or on the topic `pose`.

    Args:
        node: ROS node of the client.
        namespace: namespace of the topics.
        watch: has the frames of the node.
        publish_tf, base_from_camera: as of `WorldStereoClient`.
        frames: (world_frame, base_frame, camera_frame) as of `WorldStereoClient`.

    Attributes:
        image: publisher of the colour images.
        publishers: all publishers.
        image_frame: optical frame of the newest image that the node remembered; empty before the first.
    """

    def __init__(
        self,
        node: Node,
        namespace: str,
        watch: NodeWatch,
        *,
        publish_tf: bool,
        frames: tuple[str, str, str],
        base_from_camera: np.ndarray | None,
    ) -> None:
        self._node, self._watch, self._publish_tf = node, watch, publish_tf
        *self._frames, self._camera_frame = frames
        self._base_from_camera = BASE_FROM_CAMERA if publish_tf and base_from_camera is None else base_from_camera
        self._extrinsics = Extrinsics(node)
        self._extrinsics_published = False
        self.image_frame = ""
        self.image = node.create_publisher(Image, f"{namespace}/image", qos.VIEW)
        self._depth = node.create_publisher(Image, f"{namespace}/depth", qos.VIEW)
        self._info = node.create_publisher(CameraInfo, f"{namespace}/camera_info", qos.VIEW)
        self.publishers = [self.image, self._depth, self._info]
        if publish_tf:
            self._tf = node.create_publisher(TFMessage, "/tf", qos.TF)
            self._tf_static = node.create_publisher(TFMessage, "/tf_static", qos.TF_STATIC)
            self.publishers += [self._tf, self._tf_static]
        else:
            self._pose = node.create_publisher(PoseStamped, f"{namespace}/pose", qos.COMMAND)
            self.publishers.append(self._pose)

    @property
    def can_publish(self) -> bool:
        """Whether the node takes the poses of images from this client."""
        return self._publish_tf or self._watch.settings.pose_source == "topic"

    @property
    def world_frame(self) -> str:
        """Frame of the poses."""
        return self._frames[0] or self._watch.settings.world_frame

    @property
    def base_frame(self) -> str:
        """Frame of the robot."""
        return self._frames[1] or self._watch.settings.base_frame

    def _publish_extrinsics(self) -> None:
        """Publishes the camera's place on the robot, once: the topic is latched."""
        if self._extrinsics_published or self._base_from_camera is None:
            return
        self._extrinsics_published = True
        extrinsics = transform_message(self._base_from_camera, Header(frame_id=self.base_frame), self._camera_frame)
        self._tf_static.publish(TFMessage(transforms=[extrinsics]))

    def publish_view(self, view: View, arrival_timeout: float = 0.0) -> int:
        """See `WorldStereoClient.publish_view`.

        Args:
            view: see there.
            arrival_timeout: seconds to wait for subscribers that ask for reliable delivery to have the camera_info and
                the depth before the image is sent. A large depth image that has to be sent again arrives seconds after
                its image, for which the node has then estimated depth.
        """
        if not view.is_observation:
            raise InputError("The view is imagined; the node would remember it as observed. Publish observations only.")
        if not self.can_publish:
            raise InputError(
                f"The node {self._watch.name} takes the poses of images from TF (its pose_source is "
                f"'{self._watch.settings.pose_source}'), and this client publishes none. If no robot publishes them, "
                "create it with publish_tf=True; else run the node with pose_source:=topic path_pose_frame:=camera, to "
                "which the client sends its poses."
            )
        stamp = self._node.get_clock().now()
        header = Header(stamp=stamp.to_msg(), frame_id=self._camera_frame)
        world = Header(stamp=header.stamp, frame_id=self.world_frame)
        if self._publish_tf and self._base_from_camera is not None:
            self._publish_extrinsics()
            world_from_base = view.world_from_camera @ invert_pose(self._base_from_camera)
            self._tf.publish(TFMessage(transforms=[transform_message(world_from_base, world, self.base_frame)]))
        else:
            pose = self._sent_poses(view.world_from_camera)
            self._pose.publish(PoseStamped(header=world, pose=pose_message(pose)))
        self._info.publish(info_message(view.camera, header))
        depth = view.depth
        if depth is not None and view.estimated is not None:
            depth = np.where(view.estimated, np.float32(0), depth) if (depth[~view.estimated] > 0).any() else None
        if depth is not None:
            self._depth.publish(depth_message(depth, header))
        if arrival_timeout > 0:
            for publisher in (self._info, self._depth):
                publisher.wait_for_all_acked(Duration(seconds=arrival_timeout))
        self.image.publish(colour_message(view.image, header))
        return stamp.nanoseconds

    def path_message(self, world_from_camera: np.ndarray) -> Path:
        """See `WorldStereoClient.path_message`."""
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self.world_frame)
        checked = check_poses(world_from_camera)  # only rotations have a quaternion
        poses = [PoseStamped(header=header, pose=pose_message(pose)) for pose in self._sent_poses(checked)]
        return Path(header=header, poses=poses)

    def _sent_poses(self, world_from_camera: np.ndarray) -> np.ndarray:
        """Camera poses (..., 4, 4) as the node expects poses: of the base or of the camera."""
        settings = self._watch.settings
        if settings.path_pose_frame == "camera":
            return world_from_camera
        base_from_camera = self._base_from_camera
        if base_from_camera is None:
            base_from_camera = self._extrinsics.base_from_camera(
                self.base_frame,
                lambda: settings.camera_frame or self.image_frame,
                settings.base_to_camera,
                camera_axes=settings.camera_axes,
            )
        return world_from_camera @ invert_pose(base_from_camera)
