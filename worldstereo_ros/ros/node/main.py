"""Runs the node as a process: executor, signals and shutdown."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from worldstereo_ros.pipelines.diffusion.distributed import is_worker, process_count, run_worker, stop_workers
from worldstereo_ros.ros.node.node import WorldStereoNode
from worldstereo_ros.ros.node.worker import abandoned_work_runs
from worldstereo_ros.ros.process_environment import log_arguments, set_transport_profile

SPIN_PERIOD_S = 0.1
FLUSH_S = 0.3  # for sending the results of ended jobs before the process ends


def spin(node: WorldStereoNode, executor: SingleThreadedExecutor, until: Callable[[], bool]) -> None:
    """Spins until `until` returns True. Exceptions of callbacks are reported."""
    while rclpy.ok() and not until():
        try:
            executor.spin_once(timeout_sec=SPIN_PERIOD_S)
        except ExternalShutdownException:
            return
        except Exception as error:  # from callbacks of rclpy, which are not guarded
            node.diagnostics.on_fault("executor", error)


def main(arguments: list[str] | None = None) -> None:
    """Runs the node until SIGINT or SIGTERM, then ends running work and sends the results to its clients."""
    if is_worker():  # of several processes only the first one runs a node
        run_worker()
        return
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # the second signal ends the process at once
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    set_transport_profile()
    try:
        words = [*(sys.argv if arguments is None else arguments), *log_arguments()]
        rclpy.init(args=words, signal_handler_options=SignalHandlerOptions.NO)
        node = WorldStereoNode(stop_requested=stop.is_set)
    except Exception as error:  # arguments, a parameter file, a log folder or a name that ROS does not accept
        sys.exit(f"worldstereo_node: ROS could not start the node: {error}")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    if node.get_parameter("autostart").value:
        node.start()
    spin(node, executor, stop.is_set)
    stopped = node.close()
    flush_until = time.monotonic() + FLUSH_S
    spin(node, executor, lambda: time.monotonic() > flush_until)
    if not stopped:
        node.get_logger().error("The worker thread hangs; ending the process.")
        os._exit(1)
    executor.shutdown(timeout_sec=1.0)
    node.destroy_node()
    rclpy.try_shutdown()
    if process_count() > 1:
        stop_workers()
    if abandoned_work_runs():  # such as loading a model, which SIGTERM interrupted
        os._exit(0)
    gc.freeze()  # all is closed: the interpreter's last search for garbage in all modules would take most of a second
