"""A node in its own process, for the benchmarks of the node."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def running_node(**parameters: str) -> Iterator[None]:
    """Runs the node, with these parameters, in a process of its own; its log is discarded."""
    command = [sys.executable, "-m", "worldstereo_ros.ros.node", "--ros-args"]
    for name, value in parameters.items():
        command += ["-p", f"{name}:={value}"]
    node = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        node.terminate()
        try:
            node.wait(10)
        except subprocess.TimeoutExpired:
            node.kill()
            node.wait()
