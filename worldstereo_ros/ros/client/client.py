"""Client of the node: adds observations and requests imagined views.

with WorldStereoClient(publish_tf=True) as client:  # True: this program is the robot, there is no other
    client.wait_until_ready()
    client.add_observation(view)             # View: image, depth, camera, pose
    result = client.imagine(path, views=21)  # path: (N, 4, 4) camera poses
    for view in result.views:                # ImaginedView: image, depth, provenance, confidence
        ...
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus
from nav_msgs.msg import Path
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from worldstereo_ros.action import ImaginePath
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.client.node_watch import NodeWatch
from worldstereo_ros.ros.client.places import PlaceRequests, ProgressCallback, ReconstructionSummary
from worldstereo_ros.ros.client.remembered import RememberedStamps
from worldstereo_ros.ros.client.requests import NodeTimeoutError, Requests
from worldstereo_ros.ros.client.results import ImagineResult, ViewCollector
from worldstereo_ros.ros.client.sender import PoseAndImageSender
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.conversions.messages import nanoseconds
from worldstereo_ros.ros.process_environment import log_arguments, set_transport_profile
from worldstereo_ros.srv import LoadMap, SaveMap

logger = logging.getLogger(__name__)

GOAL_TIMEOUT_S = 15.0  # for the answer whether a goal is accepted
# Longer than the node's own, so that its answer arrives: what it answers as failed does not happen.
MAP_TIMEOUT_S = 90.0
CONNECT_TIMEOUT_S = 5.0  # for an active node to subscribe to the images of the client
_numbers = itertools.count()

FeedbackCallback = Callable[[ImaginePath.Feedback], None]


class WorldStereoClient:
    """Publishes observations to a running node and calls its action and services. Spins on its own thread.

    On a robot whose camera and TF the node uses, leave `publish_tf` at False: the client then publishes no transform,
    and `imagine` takes the camera's place on the robot from TF. Observations need a pose: set `publish_tf` if this
    program is the only source of poses, or run the node with `pose_source:=topic path_pose_frame:=camera`, to which the
    client sends them on the topic `pose`.

    Args:
        node_name: fully qualified name of the node.
        publish_tf: publish the pose of `base_frame` in the world and of the camera in `base_frame` with each
            observation. On a robot that publishes them itself, its TF tree would have two sources for them.
        world_frame, base_frame: frames; empty = those of the node's parameters.
        camera_frame: optical frame of the images that the client publishes.
        base_from_camera: (4, 4) pose of the camera on the robot. None = from TF or the node's parameter
            `base_to_camera`; with `publish_tf` a camera at the origin of the base that looks along x.
        context: an rclpy context; None creates one that `close` shuts down.
    """

    def __init__(
        self,
        node_name: str = "/worldstereo",
        *,
        publish_tf: bool = False,
        world_frame: str = "",
        base_frame: str = "",
        camera_frame: str = "camera_optical_frame",
        base_from_camera: np.ndarray | None = None,
        context: rclpy.Context | None = None,
    ) -> None:
        self.node_name = "/" + node_name.strip("/")
        self._profile = set_transport_profile()  # before the first node of the process
        self._owns_context = context is None
        self.context = rclpy.Context() if context is None else context
        if self._owns_context:
            rclpy.init(args=[*sys.argv, *log_arguments()], context=self.context)
        # A name of its own: tools confuse nodes of the same name.
        self.node = rclpy.create_node(f"worldstereo_client_{os.getpid()}_{next(_numbers)}", context=self.context)
        self._remembered = RememberedStamps()
        self._executor = SingleThreadedExecutor(context=self.context)
        self._requests = Requests(self._executor)
        self._watch = NodeWatch(self.node, self.node_name, self._requests)
        self._sender = PoseAndImageSender(
            self.node,
            self.node_name.rsplit("/", 1)[0],
            self._watch,
            publish_tf=publish_tf,
            frames=(world_frame, base_frame, camera_frame),
            base_from_camera=base_from_camera,
        )
        self._places = PlaceRequests(self.node, self.node_name, self._requests, self._watch)
        self._connect()
        self._executor.add_node(self.node)
        self._closed = False
        self._thread = threading.Thread(target=self._spin, name="worldstereo_client", daemon=True)
        self._thread.start()

    def _connect(self) -> None:
        node, name = self.node, self.node_name
        self._collector = ViewCollector(node, name)
        node.create_subscription(Header, f"{name}/remembered", self._on_remembered, qos.REMEMBERED_RECEIVER)
        self._action = ActionClient(
            node,
            ImaginePath,
            f"{name}/imagine_path",
            goal_service_qos_profile=qos.REQUESTS,
            result_service_qos_profile=qos.REQUESTS,
            cancel_service_qos_profile=qos.REQUESTS,
        )
        self._reset = node.create_client(Trigger, f"{name}/reset")
        self._save_map = node.create_client(SaveMap, f"{name}/save_map")
        self._load_map = node.create_client(LoadMap, f"{name}/load_map")

    def _spin(self) -> None:
        while not self._closed and self.context.ok():
            try:
                self._executor.spin()
                return
            except ExternalShutdownException:
                return
            except Exception:  # of a callback; the client continues
                if not self._closed:
                    logger.exception("Unexpected error in the thread of the client.")

    def __enter__(self) -> WorldStereoClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the thread and destroys the ROS node of the client."""
        self._closed = True
        self._executor.shutdown(timeout_sec=2)
        self._thread.join(timeout=2)
        self.node.destroy_node()
        if self._owns_context:
            self.context.try_shutdown()

    # --- requests ---

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits until the node is active and connected to this client, and reads the node's frames.

        Logs a warning if there are two nodes of this name, or if observations from this client cannot reach the node
        because its topics are remapped.

        Args:
            timeout: seconds.

        Raises:
            NodeTimeoutError: the node is not ready within `timeout`; the message says what was found.
        """
        deadline = time.monotonic() + timeout
        active_since: float | None = None
        state = "not found"
        while time.monotonic() < deadline:
            state = self._watch.state(2.0)
            connected = self._action.server_is_ready() and self.node.count_publishers(f"{self.node_name}/view") > 0
            if state == "active" and connected and self._watch.read_settings(2.0):
                now = time.monotonic()
                active_since = active_since or now
                unmatched = self._watch.unmatched(self._sender.publishers) if self._sender.can_publish else []
                if not unmatched or now - active_since > CONNECT_TIMEOUT_S:
                    self._watch.warn_of_duplicates()
                    if unmatched:
                        logger.warning(
                            "The node %s does not subscribe to %s, so it gets no observations from this client. If its "
                            "topics are remapped, remap those of this program alike (--ros-args -r image:=...).",
                            self.node_name,
                            ", ".join(unmatched),
                        )
                    return
            time.sleep(0.05)
        raise NodeTimeoutError(
            f"The node {self.node_name} was not ready within {timeout:g} s; it is {state}. {self._watch.describe()}"
        )

    def publish_view(self, view: View) -> int:
        """Publishes an observation as a camera driver would (image, depth, camera_info, pose), without waiting.

        The node may drop it when it is busy. `add_observation` waits until it is in the memories.

        Args:
            view: image, camera, pose and, optionally, depth. Only measured depth is published, since the node cannot
                tell estimated depth from it.

        Returns:
            Its stamp (now) in nanoseconds.

        Raises:
            InputError: the view is imagined, or the node takes no poses from this client.
        """
        return self._sender.publish_view(view)

    def add_observation(self, view: View, *, timeout: float = 10.0, attempts: int = 3) -> int:
        """Publishes an observation and waits until it is in the node's memories. Publishes it again if it got lost.

        A node that is busy keeps the newest observation only: where several threads or robots add some at once, or
        images come faster than they are remembered, one may take the place of another, which is then published again.
        A node that asks for reliable delivery has the depth before the image, so that it does not estimate depth in
        place of a depth image that is on its way.

        Args:
            view: see `publish_view`.
            timeout: seconds to wait after each attempt.
            attempts: number of attempts.

        Returns:
            Its stamp in nanoseconds.

        Raises:
            InputError: see `publish_view`.
            NodeTimeoutError: the node remembered none of the attempts; the message says what was seen of the node.
        """
        attempts = max(attempts, 1)
        for _ in range(attempts):
            stamp_ns = self._sender.publish_view(view, timeout)
            if self._remembered.wait_for(stamp_ns, timeout):
                return stamp_ns
        reason = self._watch.last_rejection()
        raise NodeTimeoutError(
            f"The node {self.node_name} did not remember an observation published {attempts} times, each waited for "
            f"{timeout:g} s at most. {self._sender.image.get_subscription_count()} nodes subscribe to "
            f"{self._sender.image.topic_name}. "
            + ("It remembered newer images of others in its place. " if self._remembered.newest_ns > stamp_ns else "")
            + (f"The node rejected an image: {reason}" if reason else self._watch.describe())
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
            world_from_camera: (N, 4, 4) poses of the camera, optical axes (sent as poses of the base, unless the node
                expects those of the camera).
            views: number of views, spread evenly along the path; 0 = one per pose.
            prompt: description of the place; models without a text encoder ignore it.
            seed: random seed; the same seed and memory give the same views.
            remember: insert the views into the memories, marked as imagined.
            on_feedback: called with every feedback message, on the client's thread; it must not call this client.
            timeout: seconds until the goal is cancelled.

        Returns:
            The views; with an error code if the goal was rejected, failed or was superseded. Logs a warning if views
            were lost on their way.

        Raises:
            InputError: the poses are no finite rigid transforms, or the camera's place on the robot is not known.
            NodeTimeoutError: the node did not answer or end the goal in time.
        """
        goal = ImaginePath.Goal(views=views, prompt=prompt, seed=seed, remember=remember)
        goal.path = self.path_message(world_from_camera)
        with self._collector.collecting() as collection:
            started = time.monotonic()
            sent = self._requests.send_goal(self._action, goal, on_feedback, GOAL_TIMEOUT_S)
            if sent is None:
                raise NodeTimeoutError(
                    f"The node {self.node_name} did not answer the goal within {GOAL_TIMEOUT_S:g} s. "
                    f"{self._watch.describe()}"
                )
            if not sent.accepted:
                message = "The server of the action refused the goal."
                return ImagineResult([], ImaginePath.Result.INACTIVE, message, 0.0, 0.0)
            response = self._requests.result(sent, timeout)
            if response is None:
                self._requests.run(sent.handle.cancel_goal_async)
                raise NodeTimeoutError(
                    f"The node {self.node_name} did not end the goal within {timeout:g} s. {self._watch.describe()}"
                )
            result = response.result
            if response.status == GoalStatus.STATUS_UNKNOWN:
                result.error_code = ImaginePath.Result.UNKNOWN
                result.error_msg = "The node does not know the goal any more; it was restarted, or its result got lost."
            imagined, arrivals = collection.collect(
                result.views_done,
                views or len(goal.path.poses),
                accepted_ns=nanoseconds(sent.handle.stamp),
                seconds_to_first=result.seconds_to_first,
                since=started,
            )
        outcome = ImagineResult(
            imagined,
            result.error_code,
            result.error_msg,
            result.seconds,
            result.seconds_to_first,
            arrivals,
            result.observed_fraction,
            result.estimated_fraction,
            result.views_done,
        )
        if outcome.views_lost:
            logger.warning(
                "%d of %d imagined views did not arrive. Both processes need room in shared memory for whole images "
                "(config/fastdds.xml); profiles of this one: %s.",
                outcome.views_lost,
                outcome.views_done,
                self._profile or "none",
            )
        return outcome

    def add_photograph(
        self, image: np.ndarray, camera: Camera, *, stamp_ns: int | None = None, timeout: float = 60.0
    ) -> np.ndarray:
        """Sends a photograph without a pose and waits until the node has placed it by what it shows.

        Args:
            image, camera: (H, W, 3) uint8 RGB, of any camera, and its intrinsics.
            stamp_ns: when it was taken, in any order; None = now. timeout: seconds.

        Returns:
            Its pose world_from_camera (4, 4).

        Raises:
            PhotographRejectedError: no pose is certain. It waits at the node, and is tried again when more is observed.
            NodeTimeoutError: the node did not answer in time.
        """
        return self._places.add_photograph(image, camera, stamp_ns, timeout)

    def reconstruct(
        self, name: str, *, on_progress: ProgressCallback | None = None, timeout: float = 3660.0, **options: Any
    ) -> ReconstructionSummary:
        """Reconstructs a place from what the node remembers; see `places.PlaceRequests.reconstruct`."""
        return self._places.reconstruct(name, options, on_progress, timeout)

    def path_message(self, world_from_camera: np.ndarray) -> Path:
        """Converts camera poses (N, 4, 4) to a path of the base or the camera, as the node expects, in the world frame.

        Raises:
            InputError: as `imagine`; the camera's place matters where the node expects poses of the base.
        """
        return self._sender.path_message(world_from_camera)

    def save_map(self, name: str, timeout: float = MAP_TIMEOUT_S) -> tuple[bool, str]:
        """Saves both memories to a file of this name in the node's `map_directory`.

        Returns:
            (success, message).

        Raises:
            NodeTimeoutError: no response within `timeout` seconds. With a timeout shorter than the node's (60 s) the
                map may be saved all the same.
        """
        return self._call(self._save_map, SaveMap.Request(name=name), timeout)

    def load_map(self, name: str, timeout: float = MAP_TIMEOUT_S) -> tuple[bool, str]:
        """Replaces both memories by those of a file that `save_map` wrote. Returns and raises as `save_map`."""
        return self._call(self._load_map, LoadMap.Request(name=name), timeout)

    def reset(self, timeout: float = MAP_TIMEOUT_S) -> tuple[bool, str]:
        """Clears both memories. Returns and raises as `save_map`."""
        return self._call(self._reset, Trigger.Request(), timeout)

    def _call(self, client: Client, request: Any, timeout: float) -> tuple[bool, str]:
        response = self._requests.call(client, request, timeout)
        if response is None:
            raise NodeTimeoutError(
                f"The service {client.srv_name} did not answer within {timeout:g} s. {self._watch.describe()}"
            )
        return response.success, response.message

    # --- messages ---

    @property
    def last_remembered_ns(self) -> int:
        """Stamp in nanoseconds of the newest image that the node remembered; 0 before the first."""
        return self._remembered.newest_ns

    def _on_remembered(self, message: Header) -> None:
        self._sender.image_frame = message.frame_id
        self._remembered.add(nanoseconds(message.stamp))
