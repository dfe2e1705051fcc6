"""A robot's side of the node: show it what the camera sees, ask it for the views along a path.

with WorldStereoClient() as client:
    client.wait_until_ready()
    client.show(view)                      # a View: image, depth, camera, pose
    result = client.imagine(path, views=21)
    for view in result.views:              # ImaginedView: image, depth, observed, confidence
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
from worldstereo_ros.geometry.calibration import calibration_from_info
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.msg import ImaginedView as ImaginedViewMessage
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import (
    colour_message,
    confidence_array,
    depth_array,
    depth_message,
    image_array,
    info_message,
    nanoseconds,
    pose_matrix,
    pose_message,
    transform_message,
)
from worldstereo_ros.srv import LoadMap, SaveMap
from worldstereo_ros.utils.errors import WorldStereoError

# A camera in the middle of the robot that looks ahead: x right, y down, z forward of the camera in REP 103 axes.
BASE_FROM_CAMERA = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=np.float64)

Feedback = Callable[[ImaginePath.Feedback], None]


class NodeSilentError(WorldStereoError, RuntimeError):
    """The node did not answer in time."""


@dataclass
class ImagineResult:
    """What came of one path.

    Attributes:
        views: the imagined views in order.
        error_code, error_msg: of the action; 0 and empty where all went well.
        seconds: from acceptance to the last view. seconds_to_first: to the first one.
        arrivals: seconds from the request to the arrival of each view, in order.
    """

    views: list[ImaginedView]
    error_code: int
    error_msg: str
    seconds: float
    seconds_to_first: float
    arrivals: list[float] = field(default_factory=list)


class WorldStereoClient:
    """Talks to a running node; spins in a thread of its own.

    Args:
        node_name: fully qualified name of the node.
        world_frame, base_frame, camera_frame: as the node is configured.
        base_from_camera: (4, 4) where the camera sits on the robot, sent as a static transform.
        context: an rclpy context; None makes one that ends with the client.
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
        self._tf_static.publish(
            TFMessage(
                transforms=[
                    transform_message(self.base_from_camera, Header(frame_id=self.base_frame), self.camera_frame)
                ]
            )
        )
        many = qos.COMMAND
        node.create_subscription(ImaginedViewMessage, f"{name}/view", self._on_view, many)
        node.create_subscription(Image, f"{name}/conditioning", self._on_conditioning, many)
        node.create_subscription(Header, f"{name}/remembered", self._on_remembered, qos.MAP)
        self._action = ActionClient(node, ImaginePath, f"{name}/imagine_path")
        self._state = node.create_client(GetState, f"{name}/get_state")
        self._reset = node.create_client(Trigger, f"{name}/reset")
        self._save = node.create_client(SaveMap, f"{name}/save_map")
        self._load = node.create_client(LoadMap, f"{name}/load_map")

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
        """Ends the thread and the connections."""
        self._executor.shutdown(timeout_sec=2)
        self._thread.join(timeout=2)
        self.node.destroy_node()
        if self._owns_context:
            self.context.try_shutdown()

    # --- calls ---

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits until the node is active and has the topics of this client.

        Raises:
            NodeSilentError: it was not within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        state = "not found on the graph"
        while time.monotonic() < deadline:
            if self._state.service_is_ready():
                answer = self._wait(self._state.call_async(GetState.Request()), 2.0)
                state = "silent" if answer is None else answer.current_state.label
                if state == "active" and self._heard() and self._action.server_is_ready():
                    return
            time.sleep(0.05)
        raise NodeSilentError(f"The node {self.node_name} was not active within {timeout:g} s; it is {state}.")

    def _heard(self) -> bool:
        """Whether the node listens to every topic of this client and all connections stand."""
        name = self.node_name.rsplit("/", 1)[1]
        for publisher in (self._image, self._depth, self._info, self._tf, self._tf_static):
            listeners = self.node.get_subscriptions_info_by_topic(publisher.topic_name)
            if not any(listener.node_name == name for listener in listeners):
                return False
            if publisher.get_subscription_count() < len(listeners):
                return False
        return True

    def publish_view(self, view: View) -> int:
        """Publishes what the camera sees, with TF, as a driver would. Returns the stamp in nanoseconds (now)."""
        stamp = self.node.get_clock().now()
        header = Header(stamp=stamp.to_msg(), frame_id=self.camera_frame)
        world = Header(stamp=header.stamp, frame_id=self.world_frame)
        world_from_base = view.world_from_camera @ invert_pose(self.base_from_camera)
        self._tf.publish(TFMessage(transforms=[transform_message(world_from_base, world, self.base_frame)]))
        self._info.publish(info_message(view.camera, header))
        if view.depth is not None:
            self._depth.publish(depth_message(view.depth, header))
        self._image.publish(colour_message(view.image, header))
        return stamp.nanoseconds

    def add_observation(self, view: View, *, timeout: float = 10.0, attempts: int = 3) -> int:
        """Shows a view and waits until the node remembers it; shows it again where it was lost on the way.

        Args:
            view: what the camera sees.
            timeout: seconds to wait for each attempt.
            attempts: how often to show it.

        Returns:
            The stamp that it is remembered by, nanoseconds.

        Raises:
            NodeSilentError: the node remembered none of them.
        """
        for _ in range(attempts):
            stamp = self.publish_view(view)
            if self._remembers(stamp, timeout):
                return stamp
        raise NodeSilentError(
            f"The node {self.node_name} did not remember a view that it was shown {attempts} times, {timeout:g} s "
            "apart; its log says why."
        )

    def imagine(
        self,
        world_from_camera: np.ndarray,
        *,
        views: int = 0,
        prompt: str = "",
        seed: int = 0,
        remember: bool = False,
        on_feedback: Feedback | None = None,
        timeout: float = 600.0,
    ) -> ImagineResult:
        """Asks for the views along a path of camera poses and waits for all of them.

        Args:
            world_from_camera: (N, 4, 4) poses of the camera (sent as poses of the base).
            views: number of views along the path; 0 = one a pose.
            prompt, seed, remember: as in the action.
            on_feedback: called with every feedback message, in another thread.
            timeout: seconds until this gives up (the goal is cancelled then).

        Raises:
            NodeSilentError: the node did not take or end the goal in time.
        """
        with self._lock:
            self._views.clear()
            self._conditioning.clear()
        goal = ImaginePath.Goal(views=views, prompt=prompt, seed=seed, remember=remember)
        goal.path = self.path_message(world_from_camera)
        begin = time.monotonic()
        feedback = None if on_feedback is None else (lambda message: on_feedback(message.feedback))
        handle = self._wait(self._action.send_goal_async(goal, feedback_callback=feedback), 10.0)
        if handle is None:
            raise NodeSilentError(f"The node {self.node_name} did not answer the goal within 10 s.")
        if not handle.accepted:
            return ImagineResult([], 304, "The node refused the goal: it is not active.", 0.0, 0.0)
        answer = self._wait(handle.get_result_async(), timeout)
        if answer is None:
            handle.cancel_goal_async()
            raise NodeSilentError(f"The node {self.node_name} did not end the goal within {timeout:g} s.")
        result = answer.result
        views_done = self._collect(result.views_done)
        with self._lock:
            arrivals = [at - begin for at, _ in self._views]
        return ImagineResult(
            views_done, result.error_code, result.error_msg, result.seconds, result.seconds_to_first, arrivals
        )

    def path_message(self, world_from_camera: np.ndarray) -> Path:
        """A path of the base for poses (N, 4, 4) of the camera."""
        header = Header(stamp=self.node.get_clock().now().to_msg(), frame_id=self.world_frame)
        base = world_from_camera @ invert_pose(self.base_from_camera)
        return Path(header=header, poses=[PoseStamped(header=header, pose=pose_message(pose)) for pose in base])

    def save_map(self, name: str, timeout: float = 60.0) -> tuple[bool, str]:
        """Saves both memories under `name` in the node's map directory: (success, message)."""
        answer = self._call(self._save, SaveMap.Request(name=name), timeout)
        return answer.success, answer.message

    def load_map(self, name: str, timeout: float = 60.0) -> tuple[bool, str]:
        """Loads both memories: (success, message)."""
        answer = self._call(self._load, LoadMap.Request(name=name), timeout)
        return answer.success, answer.message

    def reset(self, timeout: float = 30.0) -> tuple[bool, str]:
        """Forgets everything: (success, message)."""
        answer = self._call(self._reset, Trigger.Request(), timeout)
        return answer.success, answer.message

    def _call(self, client, request, timeout: float):
        answer = self._wait(client.call_async(request), timeout) if client.wait_for_service(timeout_sec=5) else None
        if answer is None:
            raise NodeSilentError(f"The service {client.srv_name} did not answer within {timeout:g} s.")
        return answer

    @staticmethod
    def _wait(future: Future, timeout: float):
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        return future.result() if done.wait(timeout) else None

    # --- what comes back ---

    def _remembers(self, stamp: int, timeout: float) -> bool:
        """Waits until the node has said that it remembers an image of this time or later; whether it did."""
        with self._remembered_condition:
            return self._remembered_condition.wait_for(lambda: self._last_remembered_ns >= stamp, timeout)

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

    def _collect(self, count: int, timeout: float = 10.0) -> list[ImaginedView]:
        """The views of the last goal; they may arrive a little after its result."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with self._lock:
                if len(self._views) >= count and len(self._conditioning) >= count:
                    break
            time.sleep(0.01)
        with self._lock:
            views = [(message, self._conditioning.get(nanoseconds(message.header.stamp))) for _, message in self._views]
        return [view_from_message(message, conditioning) for message, conditioning in views]


def view_from_message(message: ImaginedViewMessage, conditioning: np.ndarray | None = None) -> ImaginedView:
    """The view in a message of `~/view`; `conditioning` is the picture of `~/conditioning` with the same stamp."""
    observed = image_array(message.observed)
    observed = (observed[..., 0] if observed.ndim == 3 else observed) > 127
    return ImaginedView(
        image=image_array(message.image),
        camera=calibration_from_info(message.camera_info).camera,
        world_from_camera=pose_matrix(message.pose.pose),
        depth=depth_array(message.depth),
        observed=observed,
        stamp_ns=nanoseconds(message.observation_stamp),
        confidence=confidence_array(message.confidence),
        conditioning=conditioning,
        index=message.index,
        count=message.count,
    )
