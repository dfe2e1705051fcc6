"""Runs a node in its own process, and a robot, camera and planner that talk to it over DDS."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import Path as PathMessage
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.action import ActionClient
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from worldstereo_ros.action import ImaginePath
from worldstereo_ros.srv import ImagineView, LoadMap, SaveMap

from helpers.paths import REPOSITORY
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.ros.client.requests import Requests
from worldstereo_ros.ros.conversions import messages, qos

NODE = "/worldstereo"
WIDTH, HEIGHT = 96, 72
CAMERA = Camera(WIDTH, HEIGHT, 80.0, 80.0, 47.5, 35.5)
BASE_FROM_CAMERA = np.array([[0, 0, 1, 0.1], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]], dtype=np.float64)
CAMERA_FRAME = "camera_optical_frame"
TIMEOUT_S = 20.0  # limit of every wait; says nothing about speed

_domains = iter(range(10_000))


def next_domain() -> int:
    """Returns another ROS domain at each call, from 1 to 90."""
    return 1 + (os.getpid() * 7 + next(_domains)) % 90


@contextlib.contextmanager
def reserved_domain() -> Iterator[int]:
    """Reserves a ROS domain that no other test process of this machine uses, so that nodes do not hear each other."""
    for _ in range(90):
        domain = next_domain()
        with (Path(tempfile.gettempdir()) / f"worldstereo_ros_{os.getuid()}_domain_{domain}.lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield domain
            return
    raise RuntimeError("All ROS domains from 1 to 90 are in use by other tests.")


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns (image (H, W, 3) uint8, depth (H, W) float32 metres) of a textured wall at 2 m with a box in front."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 220, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    image = coarse.repeat(8, 0).repeat(8, 1)
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[24:56, 30:60] = 1.4
    image[24:56, 30:60] = (200, 60, 40)
    return np.ascontiguousarray(image), depth


class NodeProcess:
    """Runs the node as a child process and collects its log."""

    def __init__(self, domain: int, parameters: dict[str, object] | None = None, script: Path | None = None) -> None:
        start = [str(script)] if script else ["-m", "worldstereo_ros.ros.node"]
        command = [sys.executable, *start, "--ros-args"]
        for name, value in (parameters or {}).items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += ["-p", f"{name}:={text}"]
        environment = {**os.environ, **environment_of(domain), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_log(self, pattern: str, seconds: float = TIMEOUT_S, since: int = 0) -> str:
        """Returns the first line from line `since` on that matches; fails the test after `seconds`."""
        found = wait_for(lambda: next((line for line in self.lines[since:] if re.search(pattern, line)), None), seconds)
        assert found, f"no line of the log matches /{pattern}/:\n{self.log}"
        return found

    def resident_megabytes(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self, seconds: float = TIMEOUT_S) -> int | None:
        """Sends SIGTERM and returns the return code; None if the process did not end in time."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def kill(self) -> None:
        """Ends the process; by SIGTERM first, because a killed process leaves its shared memory behind."""
        if self.alive:
            self.terminate(5)
        if self.alive:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)


def environment_of(domain: int) -> dict[str, str]:
    return {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        # Shared memory that holds whole images, as in the launch files, so that tests do not lose images.
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(REPOSITORY / "config" / "fastdds.xml"),
    }


def wait_for(condition: Callable[[], object], seconds: float = TIMEOUT_S):
    """Returns the first true value of the condition, or its last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.01)


class Robot:
    """A client of the node: camera, TF, planner and listener in one, with its own context and thread."""

    def __init__(self, domain: int, name: str = "robot") -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node(name, context=self.context)
        create = self.node.create_publisher
        self.image = create(Image, "/image", qos.VIEW)
        self.info = create(CameraInfo, "/camera_info", qos.VIEW)
        self.depth = create(Image, "/depth", qos.VIEW)
        self.pose = create(PoseStamped, "/pose", qos.COMMAND)
        self.path = create(PathMessage, "/path", qos.COMMAND)
        self.tf = create(TFMessage, "/tf", qos.TF)
        self.tf_static = create(TFMessage, "/tf_static", qos.TF_STATIC)
        self.action = ActionClient(self.node, ImaginePath, f"{NODE}/imagine_path")
        self.services = {
            name: self.node.create_client(kind, f"{NODE}/{name}")
            for name, kind in (
                ("imagine_view", ImagineView),
                ("reset", Trigger),
                ("save_map", SaveMap),
                ("load_map", LoadMap),
                ("change_state", ChangeState),
                ("set_parameters_atomically", SetParametersAtomically),
                ("get_state", GetState),
            )
        }
        self.prompt = ""  # selects the behaviour of the fault injection pipeline
        self.received: dict[str, list] = {}
        self._subscriptions: dict[str, object] = {}
        self._discovered: set[str] = set()
        self.subscribe("/diagnostics", DiagnosticArray, qos.DIAGNOSTICS)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._closed = False
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while self.context.ok() and not self._closed:
            try:
                self._executor.spin()
                return
            except ExternalShutdownException:
                return
            except InvalidHandle:  # `subscribe` destroyed a subscription while the executor collected what to wait for
                continue

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown(timeout_sec=2)
        self._thread.join(2)
        self.node.destroy_node()
        self.context.try_shutdown()

    # --- outputs of the node ---

    def subscribe(self, topic: str, kind: type, profile: object) -> list:
        """Returns a list that collects the messages of a topic from now on. Replaces an earlier subscription."""
        if topic in self._subscriptions:
            self.node.destroy_subscription(self._subscriptions[topic])
        received = self.received[topic] = []
        self._subscriptions[topic] = self.node.create_subscription(kind, topic, received.append, profile)
        return received

    def diagnostics(self) -> dict[str, str]:
        """Values of the newest diagnostics, with its messages (`node`, `input`) and levels (`level node`, ...)."""
        values: dict[str, str] = {}
        if self.received["/diagnostics"]:
            for status in self.received["/diagnostics"][-1].status:
                values[status.name.rsplit(": ", 1)[1]] = status.message
                values["level " + status.name.rsplit(": ", 1)[1]] = str(int.from_bytes(status.level, "little"))
                values.update({item.key: item.value for item in status.values})
        return values

    # --- services ---

    def on_executor(self, function):
        """Runs a function on the executor's thread; rclpy drops answers that arrive while another thread asks."""
        return Requests(self._executor).run(function, TIMEOUT_S)

    def wait(self, future, seconds: float = TIMEOUT_S):
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(seconds), "no response in time"
        return future.result()

    def call(self, service: str, request, seconds: float = TIMEOUT_S):
        client = self.services[service]
        assert client.wait_for_service(timeout_sec=seconds), f"no service {service}"
        if service not in self._discovered:
            # The node discovers reply channels after request channels, in the order of their creation, and a response
            # before that is lost. That of `get_state` is the last one, and `state` asks again.
            if service == "get_state":
                time.sleep(0.3)
                self._discovered.add(service)
            else:
                self.state(seconds)
                self._discovered.update(self.services)
        return self.wait(self.on_executor(lambda: client.call_async(request)), seconds)

    def state(self, seconds: float = TIMEOUT_S) -> str:
        """The label of the node's state. Asks again: the answer to the first request of a client may be lost."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.call("get_state", GetState.Request(), min(seconds, 5.0)).current_state.label
            except AssertionError:
                if time.monotonic() > deadline:
                    raise

    def transition(self, label: str, seconds: float = TIMEOUT_S) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        return self.call("change_state", request, seconds).success

    def set(self, **values) -> tuple[bool, str]:
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        result = self.call("set_parameters_atomically", request).result
        return result.successful, result.reason

    def wait_ready(self, seconds: float = 120.0) -> None:
        """Waits until the node is active and connected. It does not respond while it loads its model."""
        assert wait_for(lambda: self.services["get_state"].service_is_ready(), seconds), "the node did not start"
        assert wait_for(lambda: self.state(seconds) == "active", seconds), "the node did not become active"
        # The node discovers reply channels in the order of their creation; it has answered on the last one.
        self._discovered.update(self.services)
        publishers = (self.image, self.info, self.depth, self.tf, self.tf_static, self.path, self.pose)
        assert wait_for(lambda: all(p.get_subscription_count() for p in publishers), seconds), (
            "the node did not subscribe"
        )
        assert wait_for(self.action.server_is_ready, seconds), "the node has no action server"

    # --- the camera ---

    def now(self):
        return self.node.get_clock().now().to_msg()

    def send_tf(self, x: float = 0.0, stamp=None) -> None:
        """Publishes the pose of the robot at x, looking along x; its camera is 0.1 m ahead and 0.3 m up."""
        stamp = stamp or self.now()
        base = np.eye(4)
        base[0, 3] = x
        self.tf_static.publish(
            TFMessage(
                transforms=[messages.transform_message(BASE_FROM_CAMERA, Header(frame_id="base_link"), CAMERA_FRAME)]
            )
        )
        world = Header(stamp=stamp, frame_id="map")
        self.tf.publish(TFMessage(transforms=[messages.transform_message(base, world, "base_link")]))

    def view(self, x: float = 0.0, seed: int = 0, stamp=None) -> tuple[Image, CameraInfo, Image]:
        """Returns the messages (image, camera_info, depth) of one view."""
        image, depth = scene(seed)
        header = Header(stamp=stamp or self.now(), frame_id=CAMERA_FRAME)
        return (
            messages.colour_message(image, header),
            messages.info_message(CAMERA, header),
            messages.depth_message(depth, header),
        )

    def observations_taken(self) -> int:
        """Number of observations in the newest diagnostics."""
        return int(self.diagnostics().get("observations taken", 0))

    def publish_view(self, x: float = 0.0, seed: int = 0) -> None:
        """Publishes one view and waits until it is in memory."""
        before = self.observations_taken()
        image, info, depth = self.view(x, seed)
        self.send_tf(x, image.header.stamp)
        self.info.publish(info)
        self.depth.publish(depth)
        self.image.publish(image)
        assert wait_for(lambda: self.observations_taken() > before), f"no observation: {self.diagnostics()}"

    # --- the planner ---

    def goal(self, length: float = 0.4, poses: int = 5, **values) -> ImaginePath.Goal:
        """Returns a goal with a path of the base, straight ahead from the origin."""
        goal = ImaginePath.Goal(path=straight_path(length, poses, self.now()), prompt=self.prompt)
        for name, value in values.items():
            setattr(goal, name, value)
        return goal

    def send(self, goal: ImaginePath.Goal, feedback: list | None = None):
        """Sends a goal and returns the handle of the accepted goal."""
        collect = None if feedback is None else (lambda message: feedback.append(message.feedback))
        handle = self.wait(self.on_executor(lambda: self.action.send_goal_async(goal, feedback_callback=collect)))
        assert handle.accepted
        return handle

    def result(self, handle, seconds: float = TIMEOUT_S):
        """Waits for a goal and returns (status, result)."""
        answer = self.wait(self.on_executor(handle.get_result_async), seconds)
        return answer.status, answer.result

    def imagine(self, goal: ImaginePath.Goal | None = None, seconds: float = TIMEOUT_S):
        return self.result(self.send(goal or self.goal()), seconds)


def straight_path(length: float, poses: int, stamp, frame: str = "map") -> PathMessage:
    header = Header(stamp=stamp, frame_id=frame)
    path = PathMessage(header=header)
    for x in np.linspace(0, length, poses):
        pose = PoseStamped(header=header)
        pose.pose.position.x = float(x)
        pose.pose.orientation.w = 1.0
        path.poses.append(pose)
    return path


def camera_at(x: float) -> np.ndarray:
    """world_from_camera of the robot at x."""
    base = np.eye(4)
    base[0, 3] = x
    return base @ BASE_FROM_CAMERA


def assert_goal_succeeds(robot: Robot) -> None:
    """A valid goal succeeds, as it must after every fault."""
    status, result = robot.imagine(robot.goal(poses=1))
    assert (status, result.error_msg) == (GoalStatus.STATUS_SUCCEEDED, "")


@contextlib.contextmanager
def running(
    parameters: dict[str, object] | None = None, *, script: Path | None = None, ready: bool = True
) -> Iterator[tuple[NodeProcess, Robot]]:
    """Runs a node in its own process and domain, and a robot that is connected to it."""
    with reserved_domain() as domain, pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(domain).items():
            patch.setenv(name, value)
        # Most tests are about the node and not the model, so they use the pipeline that loads fastest.
        defaults: dict[str, object] = {
            "model": "geometric",
            "diagnostics_period": 0.1,
            "map_period": 0.1,
            "tf_timeout": 0.3,
        }
        # Tests count messages; best effort loses some on a busy machine.
        cameras = (
            "image",
            "image/compressed",
            "camera_info",
            "depth",
            "panorama",
            "photograph",
            "photograph/camera_info",
        )
        for topic in cameras:
            defaults[f"qos_overrides./{topic}.subscription.reliability"] = "reliable"
        node = NodeProcess(domain, {**defaults, **(parameters or {})}, script)
        robot = Robot(domain)
        try:
            if ready:
                robot.wait_ready()
            yield node, robot
        except BaseException:
            print(node.log)
            raise
        finally:
            robot.close()
            node.kill()


__all__ = [
    "CAMERA",
    "NODE",
    "TIMEOUT_S",
    "NodeProcess",
    "Robot",
    "assert_goal_succeeds",
    "camera_at",
    "next_domain",
    "reserved_domain",
    "running",
    "scene",
    "straight_path",
    "wait_for",
]
