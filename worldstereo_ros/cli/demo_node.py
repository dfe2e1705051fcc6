"""The node of the demos: a process of its own, with its log in the folder of the results."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worldstereo_ros.utils.errors import WorldStereoError
from worldstereo_ros.utils.resources import find_resource

NODE_NAME = "/worldstereo"
BUNDLED_STARTUP_TIMEOUT_S, CHECKPOINT_STARTUP_TIMEOUT_S = 60.0, 900.0


class DemoError(WorldStereoError, RuntimeError):
    """The demo could not run; the message says why and what to do."""


def check_ros(*packages: str) -> None:
    """Checks that ROS 2, this package's messages, and message packages are there.

    Args:
        packages: names of message packages beside those that the node needs.

    Raises:
        DemoError: one is missing.
    """
    try:
        from worldstereo_ros.ros.client import recorder  # noqa: F401
    except ImportError as error:
        raise DemoError(f"The demo runs the real node, which needs ROS 2 ({error}). Run `make setup`.") from error
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        debian = " ".join(f"ros-$ROS_DISTRO-{name.replace('_', '-')}" for name in missing)
        raise DemoError(
            f"The demo needs the messages of {' and '.join(missing)}. Run `make setup`; with a full ROS, install "
            f"{debian}."
        )


@contextmanager
def run_node(out: Path, parameters: Mapping[str, object]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the node in a process of its own, its log in node.log; ends it when the block is left.

    Args:
        out: folder of the log and of saved maps, absolute.
        parameters: of the node, beside its folder and the frame of the camera.
    """
    command = [sys.executable, "-m", "worldstereo_ros.ros.node", "--ros-args", "-r", f"__node:={NODE_NAME[1:]}"]
    frames = {"map_directory": out, "camera_frame": "camera_optical_frame"}
    for name, value in {**frames, **parameters}.items():
        command += ["-p", f"{name}:={value}"]
    configure_middleware()
    with (out / "node.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def configure_middleware() -> None:
    """Sets up discovery and transport for one machine, for this process and the node, unless the user set them."""
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    # The profile has room for whole images in shared memory. Without it they are sent as fragments over UDP, which a
    # busy machine loses.
    profiles = find_resource("config/fastdds.xml")
    if profiles is not None:
        os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(profiles))


def wait_until_ready(client: Any, model: str, log: Path) -> None:
    """Waits until the node is active, or fails at once if its log says that it cannot be configured.

    Raises:
        DemoError: the node cannot be configured, or is not active in time.
    """
    from worldstereo_ros.ros.client.client import NodeTimeoutError

    timeout = BUNDLED_STARTUP_TIMEOUT_S if model in pipeline_names() else CHECKPOINT_STARTUP_TIMEOUT_S
    deadline = time.monotonic() + timeout
    while True:
        try:
            return client.wait_until_ready(2.0)
        except NodeTimeoutError as error:
            reason = re.search(r"Not configured\. (.*)", log.read_text(errors="replace"))
            if reason:
                raise DemoError(f"The node could not be configured. {reason[1]}") from None
            if time.monotonic() > deadline:
                raise DemoError(
                    f"The node was not ready within {timeout:g} s; its log is {log}. If that has no error, the machine "
                    "is busy: try again when it is idle."
                ) from error


def pipeline_names() -> tuple[str, ...]:
    """Names of the pipelines that need no checkpoint of the user."""
    from worldstereo_ros.pipelines.auto import NAMES

    return NAMES
