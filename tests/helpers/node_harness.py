"""A node in its own process, and what a robot, a planner and a bystander do with it over DDS."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
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
from worldstereo_ros.ros.conversions import messages, qos

NODE = "/worldstereo"
WIDTH, HEIGHT = 96, 72
CAMERA = Camera(WIDTH, HEIGHT, 80.0, 80.0, 47.5, 35.5)
BASE_FROM_CAMERA = np.array([[0, 0, 1, 0.1], [-1, 0, 0, 0], [0, -1, 0, 0.3], [0, 0, 0, 1]], dtype=np.float64)
CAMERA_FRAME = "camera_optical_frame"
PATIENCE = 20.0  # seconds; a bound on waiting, never a claim about speed

_domains = iter(range(10_000))


def next_domain() -> int:
    """A ROS domain of its own for every node: tests hear nothing of each other."""
    return 1 + (os.getpid() * 7 + next(_domains)) % 100


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(image (H, W, 3) uint8, depth (H, W) float32 metres): a textured wall 2 m ahead with a box before it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 220, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    image = coarse.repeat(8, 0).repeat(8, 1)
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[24:56, 30:60] = 1.4
    image[24:56, 30:60] = (200, 60, 40)
    return np.ascontiguousarray(image), depth


class NodeProcess:
    """The node as a child process; its log is kept. Always killed at the end."""

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

    def wait_log(self, pattern: str, seconds: float = PATIENCE, since: int = 0) -> str:
        """The first line from line `since` on that matches; fails the test where none comes."""
        found = wait_for(lambda: next((line for line in self.lines[since:] if re.search(pattern, line)), None), seconds)
        assert found, f"the log never said /{pattern}/; it said:\n{self.log}"
        return found

    def resident_megabytes(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def processor_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self, seconds: float = PATIENCE) -> int | None:
        """SIGTERM; the return code, None where it did not end in time."""
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def kill(self) -> None:
        """Ends it in any case; politely first, since a killed process leaves its shared memory behind."""
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
        # Room for images in shared memory, as the launch files set it; a lost image is not what is tested.
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(REPOSITORY / "config" / "fastdds.xml"),
    }


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE):
    """The first true value of the condition; its last value where the time is up."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > until:
            return value
        time.sleep(0.01)


class Robot:
    """A client of the node: camera, TF, planner and bystander in one, with its own context and thread."""

    def __init__(self, domain: int, name: str = "robot") -> None:
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node(name, context=self.context)
        make = self.node.create_publisher
        self.image = make(Image, "/image", qos.VIEW)
        self.info = make(CameraInfo, "/camera_info", qos.VIEW)
        self.depth = make(Image, "/depth", qos.VIEW)
        self.pose = make(PoseStamped, "/pose", qos.COMMAND)
        self.path = make(PathMessage, "/path", qos.COMMAND)
        self.tf = make(TFMessage, "/tf", qos.TF)
        self.tf_static = make(TFMessage, "/tf_static", qos.TF_STATIC)
        self.action = ActionClient(self.node, ImaginePath, f"{NODE}/imagine_path")
        self.services = {
            name: self.node.create_client(kind, f"{NODE}/{name}")
            for name, kind in (
                ("imagine_view", ImagineView),
                ("reset", Trigger),
                ("save_map", SaveMap),
                ("load_map", LoadMap),
                ("change_state", ChangeState),
                ("get_state", GetState),
                ("set_parameters_atomically", SetParametersAtomically),
            )
        }
        self.prompt = ""  # the odd pipeline takes its behaviour from it
        self.heard: dict[str, list] = {}
        self._subscriptions: dict[str, object] = {}
        self._settled: set[str] = set()
        self.listen("/diagnostics", DiagnosticArray, qos.DIAGNOSTICS)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with contextlib.suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=2)
        self._thread.join(2)
        self.node.destroy_node()
        self.context.try_shutdown()

    # --- listening ---

    def listen(self, topic: str, kind: type, profile: object) -> list:
        """Collects the messages of a topic from now on; what an earlier call listened to ends."""
        if topic in self._subscriptions:
            self.node.destroy_subscription(self._subscriptions[topic])
        heard = self.heard[topic] = []
        self._subscriptions[topic] = self.node.create_subscription(kind, topic, heard.append, profile)
        return heard

    def diagnostics(self) -> dict[str, str]:
        """All values of the newest diagnostics, with `node`, `input` for the messages and `level` for the node's."""
        out: dict[str, str] = {}
        if self.heard["/diagnostics"]:
            for status in self.heard["/diagnostics"][-1].status:
                out[status.name.rsplit(": ", 1)[1]] = status.message
                out["level " + status.name.rsplit(": ", 1)[1]] = str(int.from_bytes(status.level, "little"))
                out.update({item.key: item.value for item in status.values})
        return out

    # --- asking ---

    def wait(self, future, seconds: float = PATIENCE):
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(seconds), "no answer in time"
        return future.result()

    def call(self, service: str, request, seconds: float = PATIENCE):
        client = self.services[service]
        assert client.wait_for_service(timeout_sec=seconds), f"no service {service}"
        if service not in self._settled:
            time.sleep(0.3)  # the way back is discovered after the way there; an answer without it is lost
            self._settled.add(service)
        return self.wait(client.call_async(request), seconds)

    def state(self, seconds: float = PATIENCE) -> str:
        return self.call("get_state", GetState.Request(), seconds).current_state.label

    def transition(self, label: str, seconds: float = PATIENCE) -> bool:
        request = ChangeState.Request()
        request.transition.label = label
        return self.call("change_state", request, seconds).success

    def set(self, **values) -> tuple[bool, str]:
        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        result = self.call("set_parameters_atomically", request).result
        return result.successful, result.reason

    def wait_ready(self, seconds: float = 120.0) -> None:
        """Until the node is active and hears this robot. While it loads its model it answers nothing."""
        assert wait_for(lambda: self.services["get_state"].service_is_ready(), seconds), "the node never came up"
        assert wait_for(lambda: self.state(seconds) == "active", seconds), "the node was never active"
        publishers = (self.image, self.info, self.depth, self.tf, self.tf_static, self.path, self.pose)
        assert wait_for(lambda: all(p.get_subscription_count() for p in publishers), seconds), "the node hears nothing"
        assert wait_for(self.action.server_is_ready, seconds), "the node has no action"

    # --- the camera ---

    def now(self):
        return self.node.get_clock().now().to_msg()

    def send_tf(self, x: float = 0.0, stamp=None) -> None:
        """The robot stands at x, looking along it; its camera is 0.1 m ahead and 0.3 m up."""
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
        """The messages of one RGB-D view."""
        image, depth = scene(seed)
        header = Header(stamp=stamp or self.now(), frame_id=CAMERA_FRAME)
        return (
            messages.colour_message(image, header),
            messages.info_message(CAMERA, header),
            messages.depth_message(depth, header),
        )

    def publish_view(self, x: float = 0.0, seed: int = 0) -> None:
        """Shows the node one view and waits until it is in memory."""
        before = int(self.diagnostics().get("seeds taken", 0))
        image, info, depth = self.view(x, seed)
        self.send_tf(x, image.header.stamp)
        self.info.publish(info)
        self.depth.publish(depth)
        self.image.publish(image)
        assert wait_for(lambda: int(self.diagnostics().get("seeds taken", 0)) > before), (
            f"the seed did not arrive: {self.diagnostics()}"
        )

    # --- the planner ---

    def goal(self, length: float = 0.4, poses: int = 5, **values) -> ImaginePath.Goal:
        """A path of the base, straight ahead from the origin."""
        goal = ImaginePath.Goal(path=straight_path(length, poses, self.now()), prompt=self.prompt)
        for name, value in values.items():
            setattr(goal, name, value)
        return goal

    def send(self, goal: ImaginePath.Goal, feedback: list | None = None):
        """The handle of an accepted goal."""
        keep = None if feedback is None else (lambda message: feedback.append(message.feedback))
        handle = self.wait(self.action.send_goal_async(goal, feedback_callback=keep))
        assert handle.accepted
        return handle

    def result(self, handle, seconds: float = PATIENCE):
        """(status, result) of a goal."""
        answer = self.wait(handle.get_result_async(), seconds)
        return answer.status, answer.result

    def imagine(self, goal: ImaginePath.Goal | None = None, seconds: float = PATIENCE):
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


def still_good(robot: Robot) -> None:
    """After a fault a good goal must be as good as ever."""
    status, result = robot.imagine(robot.goal(poses=1))
    assert (status, result.error_msg) == (GoalStatus.STATUS_SUCCEEDED, "")


@contextlib.contextmanager
def running(
    parameters: dict[str, object] | None = None, *, script: Path | None = None, ready: bool = True
) -> Iterator[tuple[NodeProcess, Robot]]:
    """A node in its own process and domain, with a robot beside it."""
    domain = next_domain()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(domain).items():
            patch.setenv(name, value)
        # Most tests are about the node and not about what imagines: the pipeline that loads at once.
        quick: dict[str, object] = {
            "model": "geometric",
            "diagnostics_period": 0.1,
            "map_period": 0.1,
            "tf_timeout": 0.3,
        }
        # Each message of a test counts; best effort loses some on a busy machine.
        for topic in ("image", "image/compressed", "camera_info", "depth", "panorama"):
            quick[f"qos_overrides./{topic}.subscription.reliability"] = "reliable"
        node = NodeProcess(domain, {**quick, **(parameters or {})}, script)
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
    "PATIENCE",
    "NodeProcess",
    "Robot",
    "camera_at",
    "next_domain",
    "running",
    "scene",
    "still_good",
    "straight_path",
    "wait_for",
]
