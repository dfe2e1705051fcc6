"""Client of the node: adds observations and requests imagined views.

with WorldStereoClient() as client:
    client.wait_until_ready()
    client.add_observation(view)             # View: image, depth, camera, pose
    result = client.imagine(path, views=21)  # path: (N, 4, 4) camera poses
    for view in result.views:                # ImaginedView: image, depth, provenance, confidence
        ...
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.srv import GetState
from nav_msgs.msg import Path
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from worldstereo_ros.action import ImaginePath
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import (
    colour_message,
    depth_message,
    image_array,
    info_message,
    nanoseconds,
    pose_message,
    transform_message,
    view_from_message,
)
from worldstereo_ros.srv import LoadMap, SaveMap
from worldstereo_ros.utils.errors import InputError, WorldStereoError

# A camera at the origin of the base that looks along x: optical axes (x right, y down, z forward) in REP 103 axes.
BASE_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)

GOAL_TIMEOUT_S = 10.0  # for the answer whether a goal is accepted
LAST_VIEWS_TIMEOUT_S = 10.0  # for views that arrive after the result of their goal

FeedbackCallback = Callable[[ImaginePath.Feedback], None]


class NodeTimeoutError(WorldStereoError, RuntimeError):
    """The node did not answer in time."""


@dataclass
class ImagineResult:
    """Result of `WorldStereoClient.imagine`.

    Attributes:
        views: the imagined views in the order of the path.
        error_code, error_msg: error code and message of the action; 0 and empty if it succeeded.
        observed_fraction, estimated_fraction: means over the views, 0..1.
        seconds: time from acceptance of the goal to its end. seconds_to_first: time to the first view.
        arrivals: seconds from the request to the arrival of each view.
    """

    views: list[ImaginedView]
    error_code: int
    error_msg: str
    seconds: float
    seconds_to_first: float
    arrivals: list[float] = field(default_factory=list)
    observed_fraction: float = 0.0
    estimated_fraction: float = 0.0


class WorldStereoClient:
    """Publishes observations to a running node and calls its action and services. Spins on its own thread.

    Args:
        node_name: fully qualified name of the node.
        world_frame, base_frame: frames, as in the parameters of the node.
        camera_frame: optical frame of the images.
        base_from_camera: (4, 4) pose of the camera on the robot, published as a static transform.
        context: an rclpy context; None creates one that `close` shuts down.
    """

    def __init__(
        self,
        node_name: str = "/worldstereo",
        *,
        world_frame: str = "map",
        base_frame: str = "base_link",
        camera_frame: str = "camera_optical_frame",
        base_from_camera: np.ndarray = BASE_FROM_CAMERA,
        context: rclpy.Context | None = None,
    ) -> None:
        self.node_name = node_name.rstrip("/")
        self.world_frame, self.base_frame, self.camera_frame = world_frame, base_frame, camera_frame
        self.base_from_camera = base_from_camera
        self._owns_context = context is None
        self.context = rclpy.Context() if context is None else context
        if self._owns_context:
            rclpy.init(context=self.context)
        self.node = rclpy.create_node("worldstereo_client", context=self.context)
        self._views: list[tuple[float, ImaginedViewMessage]] = []
        self._conditioning: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()
        self._remembered_condition = threading.Condition()
        self._last_remembered_ns = 0
        self._connect()
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="worldstereo_client", daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        node, name = self.node, self.node_name
        namespace = name.rsplit("/", 1)[0]
        self._image = node.create_publisher(Image, f"{namespace}/image", qos.VIEW)
        self._depth = node.create_publisher(Image, f"{namespace}/depth", qos.VIEW)
        self._info = node.create_publisher(CameraInfo, f"{namespace}/camera_info", qos.VIEW)
        self._tf = node.create_publisher(TFMessage, "/tf", qos.TF)
        self._tf_static = node.create_publisher(TFMessage, "/tf_static", qos.TF_STATIC)
        extrinsics = transform_message(self.base_from_camera, Header(frame_id=self.base_frame), self.camera_frame)
        self._tf_static.publish(TFMessage(transforms=[extrinsics]))
        node.create_subscription(ImaginedViewMessage, f"{name}/view", self._on_view, qos.VIEW)
        node.create_subscription(Image, f"{name}/conditioning", self._on_conditioning, qos.VIEW)
        node.create_subscription(Header, f"{name}/remembered", self._on_remembered, qos.MAP)
        self._action = ActionClient(node, ImaginePath, f"{name}/imagine_path")
        self._get_state = node.create_client(GetState, f"{name}/get_state")
        self._reset = node.create_client(Trigger, f"{name}/reset")
        self._save_map = node.create_client(SaveMap, f"{name}/save_map")
        self._load_map = node.create_client(LoadMap, f"{name}/load_map")

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def __enter__(self) -> WorldStereoClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread and destroys the ROS node of the client."""
        self._executor.shutdown(timeout_sec=2)
        self._thread.join(timeout=2)
        self.node.destroy_node()
        if self._owns_context:
            self.context.try_shutdown()

    # --- requests ---

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits until the node is active and connected to all topics of this client.

        Args:
            timeout: seconds.

        Raises:
            NodeTimeoutError: the node is not ready within `timeout`.
        """
        deadline = time.monotonic() + timeout
        state = "not found"
        while time.monotonic() < deadline:
            if self._get_state.service_is_ready():
                response = self._wait(self._get_state.call_async(GetState.Request()), 2.0)
                state = "not responding" if response is None else response.current_state.label
                if state == "active" and self._is_connected() and self._action.server_is_ready():
                    return
            time.sleep(0.05)
        raise NodeTimeoutError(f"The node {self.node_name} was not active within {timeout:g} s; it is {state}.")

    def _is_connected(self) -> bool:
        """Whether the node subscribes to every topic of this client and all subscribers are matched."""
        name = self.node_name.rsplit("/", 1)[1]
        for publisher in (self._image, self._depth, self._info, self._tf, self._tf_static):
            subscribers = self.node.get_subscriptions_info_by_topic(publisher.topic_name)
            if not any(subscriber.node_name == name for subscriber in subscribers):
                return False
            if publisher.get_subscription_count() < len(subscribers):
                return False
        return True

    def publish_view(self, view: View) -> int:
        """Publishes an observation as a camera driver would (image, depth, camera_info, TF), without waiting.

        The node may drop it when it is busy. `add_observation` waits until it is in the memories.

        Args:
            view: image, camera, pose and, optionally, depth. Only measured depth is published, since the node cannot
                tell estimated depth from it.

        Returns:
            Its stamp (now) in nanoseconds.

        Raises:
            InputError: the view is imagined.
        """
        if not view.is_observation:
            raise InputError("The view is imagined; the node would remember it as observed. Publish observations only.")
        stamp = self.node.get_clock().now()
        header = Header(stamp=stamp.to_msg(), frame_id=self.camera_frame)
        world = Header(stamp=header.stamp, frame_id=self.world_frame)
        world_from_base = view.world_from_camera @ invert_pose(self.base_from_camera)
        self._tf.publish(TFMessage(transforms=[transform_message(world_from_base, world, self.base_frame)]))
        self._info.publish(info_message(view.camera, header))
        depth = view.depth
        if depth is not None and view.estimated is not None:
            depth = np.where(view.estimated, np.float32(0), depth) if (depth[~view.estimated] > 0).any() else None
        if depth is not None:
            self._depth.publish(depth_message(depth, header))
        self._image.publish(colour_message(view.image, header))
        return stamp.nanoseconds

    def add_observation(self, view: View, *, timeout: float = 10.0, attempts: int = 3) -> int:
        """Publishes an observation and waits until it is in the node's memories. Publishes it again if it got lost.

        Args:
            view: see `publish_view`.
            timeout: seconds to wait after each attempt.
            attempts: number of attempts.

        Returns:
            Its stamp in nanoseconds.

        Raises:
            InputError: the view is imagined.
            NodeTimeoutError: the node remembered none of the attempts.
        """
        for _ in range(attempts):
            stamp_ns = self.publish_view(view)
            if self._wait_remembered(stamp_ns, timeout):
                return stamp_ns
        raise NodeTimeoutError(
            f"The node {self.node_name} did not remember an observation published {attempts} times, {timeout:g} s "
            "apart; see its log for the reason."
        )

    def imagine(
        self,
        world_from_camera: np.ndarray,
        *,
        views: int = 0,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        on_feedback: FeedbackCallback | None = None,
        timeout: float = 600.0,
    ) -> ImagineResult:
        """Imagines the views along a path of camera poses and waits for all of them.

        Args:
            world_from_camera: (N, 4, 4) poses of the camera, optical axes (sent as poses of the base).
            views: number of views, spread evenly along the path; 0 = one per pose.
            prompt: description of the place; models without a text encoder ignore it.
            seed: random seed; the same seed and memory give the same views.
            remember: insert the views into the memories, marked as imagined.
            on_feedback: called with every feedback message, on the client's thread.
            timeout: seconds until the goal is cancelled.

        Returns:
            The views; with an error code if the goal was rejected, failed or was superseded.

        Raises:
            NodeTimeoutError: the node did not answer or end the goal in time.
        """
        with self._lock:
            self._views.clear()
            self._conditioning.clear()
        goal = ImaginePath.Goal(views=views, prompt=prompt, seed=seed, remember=remember)
        goal.path = self.path_message(world_from_camera)
        started = time.monotonic()
        feedback_callback = None if on_feedback is None else (lambda message: on_feedback(message.feedback))
        handle = self._wait(self._action.send_goal_async(goal, feedback_callback=feedback_callback), GOAL_TIMEOUT_S)
        if handle is None:
            raise NodeTimeoutError(f"The node {self.node_name} did not answer the goal within {GOAL_TIMEOUT_S:g} s.")
        if not handle.accepted:
            message = "The node rejected the goal: it is not active."
            return ImagineResult([], ImaginePath.Result.INACTIVE, message, 0.0, 0.0)
        response = self._wait(handle.get_result_async(), timeout)
        if response is None:
            handle.cancel_goal_async()
            raise NodeTimeoutError(f"The node {self.node_name} did not end the goal within {timeout:g} s.")
        result = response.result
        imagined = self._collect_views(result.views_done)
        with self._lock:
            arrivals = [received_at - started for received_at, _ in self._views]
        return ImagineResult(
            imagined,
            result.error_code,
            result.error_msg,
            result.seconds,
            result.seconds_to_first,
            arrivals,
            result.observed_fraction,
            result.estimated_fraction,
        )

    def path_message(self, world_from_camera: np.ndarray) -> Path:
        """Converts camera poses (N, 4, 4) to a path of the base in the world frame."""
        header = Header(stamp=self.node.get_clock().now().to_msg(), frame_id=self.world_frame)
        world_from_base = world_from_camera @ invert_pose(self.base_from_camera)
        poses = [PoseStamped(header=header, pose=pose_message(pose)) for pose in world_from_base]
        for stamped in poses:
            if stamped.pose.orientation.w == 1:  # 0 0 0 1 is what planners send that set no heading; this is the same
                stamped.pose.orientation.w = -1.0
        return Path(header=header, poses=poses)

    def save_map(self, name: str, timeout: float = 60.0) -> tuple[bool, str]:
        """Saves both memories to a file of this name in the node's `map_directory`.

        Returns:
            (success, message).

        Raises:
            NodeTimeoutError: no response within `timeout` seconds.
        """
        response = self._call(self._save_map, SaveMap.Request(name=name), timeout)
        return response.success, response.message

    def load_map(self, name: str, timeout: float = 60.0) -> tuple[bool, str]:
        """Replaces both memories by those of a file that `save_map` wrote. Returns and raises as `save_map`."""
        response = self._call(self._load_map, LoadMap.Request(name=name), timeout)
        return response.success, response.message

    def reset(self, timeout: float = 30.0) -> tuple[bool, str]:
        """Clears both memories. Returns and raises as `save_map`."""
        response = self._call(self._reset, Trigger.Request(), timeout)
        return response.success, response.message

    def _call(self, client, request, timeout: float):
        response = self._wait(client.call_async(request), timeout) if client.wait_for_service(timeout_sec=5) else None
        if response is None:
            raise NodeTimeoutError(f"The service {client.srv_name} did not answer within {timeout:g} s.")
        return response

    @staticmethod
    def _wait(future: Future, timeout: float):
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        return future.result() if done.wait(timeout) else None

    # --- messages ---

    @property
    def last_remembered_ns(self) -> int:
        """Stamp in nanoseconds of the newest image that the node remembered; 0 before the first."""
        return self._last_remembered_ns

    def _wait_remembered(self, stamp_ns: int, timeout: float) -> bool:
        """Waits until the node remembered an image of this stamp or a newer one. Returns False after `timeout`."""
        with self._remembered_condition:
            return self._remembered_condition.wait_for(lambda: self._last_remembered_ns >= stamp_ns, timeout)

    def _on_remembered(self, message: Header) -> None:
        with self._remembered_condition:
            self._last_remembered_ns = max(self._last_remembered_ns, nanoseconds(message.stamp))
            self._remembered_condition.notify_all()

    def _on_view(self, message: ImaginedViewMessage) -> None:
        with self._lock:
            self._views.append((time.monotonic(), message))

    def _on_conditioning(self, message: Image) -> None:
        with self._lock:
            self._conditioning[nanoseconds(message.header.stamp)] = image_array(message)

    def _collect_views(self, count: int) -> list[ImaginedView]:
        """Returns the views of the last goal, some of which may arrive after its result."""
        deadline = time.monotonic() + LAST_VIEWS_TIMEOUT_S
        while time.monotonic() < deadline:
            with self._lock:
                if len(self._views) >= count and len(self._conditioning) >= count:
                    break
            time.sleep(0.01)
        with self._lock:
            views = [(message, self._conditioning.get(nanoseconds(message.header.stamp))) for _, message in self._views]
        return [view_from_message(message, conditioning) for message, conditioning in views]
