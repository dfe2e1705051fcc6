"""Requests of a client that concern places: reconstructions, and photographs without poses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from action_msgs.msg import GoalStatus
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from worldstereo_ros.action import Reconstruct
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.ros.client.node_watch import NodeWatch
from worldstereo_ros.ros.client.requests import NodeTimeoutError, Requests
from worldstereo_ros.ros.conversions import messages, qos
from worldstereo_ros.utils.errors import InputError

GOAL_TIMEOUT_S = 15.0  # for the answer whether a goal is accepted
PHOTOGRAPH_FRAME = "photograph"
KEPT_POSES = 100
POLL_PERIOD_S = 0.05

ProgressCallback = Callable[[Reconstruct.Feedback], None]


class PhotographRejectedError(InputError):
    """The node did not place a photograph; the message says why."""


@dataclass(frozen=True)
class ReconstructionSummary:
    """Summary of a reconstruction.

    Attributes:
        error_code, error_msg: error code and message of the action; 0 and empty if it succeeded.
        folder: folder of the results on the machine of the node; None if it failed.
        images, registered: numbers of views and photographs that were there, and of those that are used.
        left_out: name -> reason of the others.
        metric: lengths are in metres.
        points, mesh_triangles, splats: what was made; 0 = not made.
        notes: sentences about what was chosen or assumed.
        seconds: time from acceptance to the end.
    """

    error_code: int
    error_msg: str
    folder: Path | None = None
    images: int = 0
    registered: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    metric: bool = False
    points: int = 0
    mesh_triangles: int = 0
    splats: int = 0
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class PlaceRequests:
    """Sends photographs and asks for reconstructions on behalf of a client.

    Args:
        node: ROS node of the client.
        name: fully qualified name of the node that is asked.
        requests: sends the requests.
        watch: sees the node that is asked.
    """

    def __init__(self, node: Node, name: str, requests: Requests, watch: NodeWatch) -> None:
        self._node, self._requests, self._watch = node, requests, watch
        namespace = name.rsplit("/", 1)[0]
        self._image = node.create_publisher(Image, f"{namespace}/photograph", qos.VIEW)
        self._info = node.create_publisher(CameraInfo, f"{namespace}/photograph/camera_info", qos.VIEW)
        self._poses: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        node.create_subscription(PoseStamped, f"{name}/photograph/pose", self._on_pose, qos.VIEW_RECEIVER)
        self._action = ActionClient(
            node,
            Reconstruct,
            f"{name}/reconstruct",
            goal_service_qos_profile=qos.REQUESTS,
            result_service_qos_profile=qos.REQUESTS,
            cancel_service_qos_profile=qos.REQUESTS,
        )

    def _on_pose(self, message: PoseStamped) -> None:
        with self._lock:
            self._poses[messages.nanoseconds(message.header.stamp)] = messages.pose_matrix(message.pose)
            for stamp_ns in list(self._poses)[:-KEPT_POSES]:
                del self._poses[stamp_ns]

    def add_photograph(self, image: np.ndarray, camera: Camera, stamp_ns: int | None, timeout: float) -> np.ndarray:
        """See `WorldStereoClient.add_photograph`."""
        deadline = time.monotonic() + timeout
        publishers = self._image, self._info
        while not all(one.get_subscription_count() for one in publishers) and time.monotonic() < deadline:
            time.sleep(POLL_PERIOD_S)
        if stamp_ns is None:
            stamp_ns = self._node.get_clock().now().nanoseconds
        header = Header(stamp=messages.time_message(stamp_ns), frame_id=PHOTOGRAPH_FRAME)
        rejected, _ = self._watch.rejections("photograph")
        with self._lock:
            self._poses.pop(stamp_ns, None)
        self._info.publish(messages.info_message(camera, header))
        self._image.publish(messages.colour_message(image, header))
        while time.monotonic() < deadline:
            time.sleep(POLL_PERIOD_S)
            with self._lock:
                if stamp_ns in self._poses:
                    return self._poses.pop(stamp_ns)
            count, reason = self._watch.rejections("photograph")
            if count > rejected:
                raise PhotographRejectedError(f"The node did not place the photograph: {reason}")
        raise NodeTimeoutError(
            f"The node {self._watch.name} did not place the photograph within {timeout:g} s. "
            f"{self._image.get_subscription_count()} nodes subscribe to {self._image.topic_name}. "
            f"{self._watch.describe()}"
        )

    def reconstruct(
        self, name: str, options: dict[str, Any], on_progress: ProgressCallback | None, timeout: float
    ) -> ReconstructionSummary:
        """Reconstructs a place from what the node remembers, and waits for the end.

        Args:
            name: of the folder in the node's `map_directory` that gets the results.
            options: further fields of `action/Reconstruct.action`: photographs, ignore_poses, geometry, mesh, splats
                and splat_seconds.
            on_progress: called with every feedback message, on the client's thread; it must not call the client.
            timeout: seconds until it is cancelled.

        Returns:
            The summary; with an error code if it failed.

        Raises:
            InputError: an option is unknown.
            NodeTimeoutError: the node did not answer, or did not end it in time.
        """
        known = Reconstruct.Goal.get_fields_and_field_types()
        if unknown := sorted(set(options) - set(known)):
            raise InputError(f"{', '.join(unknown)} is no option of a reconstruction; known are {', '.join(known)}.")
        goal = Reconstruct.Goal(name=name)
        for field_name, value in options.items():
            setattr(goal, field_name, _converted(field_name, value))
        sent = self._requests.send_goal(self._action, goal, on_progress, GOAL_TIMEOUT_S)
        if sent is None or not sent.accepted:
            raise NodeTimeoutError(
                f"The node {self._watch.name} did not accept the request within {GOAL_TIMEOUT_S:g} s. "
                f"{self._watch.describe()}"
            )
        response = self._requests.result(sent, timeout)
        if response is None:
            self._requests.run(sent.handle.cancel_goal_async)
            raise NodeTimeoutError(
                f"The node {self._watch.name} did not end the reconstruction within {timeout:g} s; it was cancelled. "
                f"{self._watch.describe()}"
            )
        result = response.result
        if response.status == GoalStatus.STATUS_UNKNOWN:
            message = "The node does not know the request any more; it was restarted, or its result got lost."
            return ReconstructionSummary(Reconstruct.Result.UNKNOWN, message)
        return ReconstructionSummary(
            result.error_code,
            result.error_msg,
            Path(result.folder) if result.folder else None,
            result.images,
            result.registered,
            dict(zip(result.left_out, result.left_out_reasons, strict=True)),
            result.metric,
            result.points,
            result.mesh_triangles,
            result.splats,
            tuple(result.notes),
            result.seconds,
        )


def _converted(name: str, value: Any) -> Any:
    """The value of an option as its field expects it."""
    if name == "photographs":
        return [str(path) for path in value]
    return float(value) if name == "splat_seconds" else value
