"""The node: a lifecycle around one worker thread that remembers and imagines.

    subscriptions ─► Intake ──(mailbox, newest wins)──► Worker ─► Relay ─► Outputs
    action, services, path ─► Requests ──(one runs, one waits)──┘

Callbacks run on one executor thread and only check and hand on. See docs/node.md for the interface.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

from worldstereo_ros.pipelines.diffusion.distributed import is_worker, process_count, run_worker, stop_workers
from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, JobResult
from worldstereo_ros.ros.node.logging_bridge import NodeLogHandler
from worldstereo_ros.ros.node.parameter_server import ParameterServer
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.publishers import Publishers
from worldstereo_ros.ros.node.servers import Servers
from worldstereo_ros.ros.node.subscriptions import Subscriptions
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer, open_transforms
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.ros.node.worker_events import WorkerEventHandler
from worldstereo_ros.ros.node.world_factory import build_world, depth_sentence

TICK = 0.05  # seconds between two looks at what waits
STOP_BOUND = 3.0  # seconds that running work has to end when the node is deactivated or shut down
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class WorldStereoNode(LifecycleNode):
    """Remembers what it is shown and imagines what it is asked for.

    Attributes:
        settings: the parameters now. frames: where things are. health: counts and sentences for the diagnostics.
        worker: owns the model and the memories. relay: what the worker tells.
        active: whether it takes seeds and jobs.
    """

    def __init__(self, name: str = "worldstereo", **options: Any) -> None:
        super().__init__(name, **options)
        self.active = False
        self._configured = False
        self._intake: Subscriptions | None = None
        self._outputs: Publishers | None = None
        self._transforms: Any = None
        self.settings = NodeParameters()
        self.frames = PoseResolver(TransformBuffer(), self.settings)
        self.health = NodeDiagnostics(lambda sentence: self.get_logger().warning(sentence))
        self.relay = WorkerEventHandler(self.health, lambda sentence: self.get_logger().info(sentence))
        self.worker = self._new_worker()
        self._log = NodeLogHandler(self.get_logger())
        self._parameter_server = ParameterServer(self, configured=lambda: self._configured, apply=self._apply)
        self._requests = Servers(self)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._diagnosed_at = 0.0
        self._clock_silent_since: float | None = None
        self._map_asked: Future = Future()  # the newest request to publish the map
        self._map_asked.set_result(None)
        self._make_lifecycle_survive_bad_requests()
        # Steady: with use_sim_time and no /clock a timer on ROS time would never fire.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(TICK, self.guarded("tick", self._tick), clock=self._steady)
        back = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-0.5), on_clock_change=True)
        self._jump = self.get_clock().create_jump_callback(back, post_callback=self._time_jumped)

    def _new_worker(self) -> Worker:
        return Worker(self.relay, self.relay.camera_for)

    # --- the lifecycle --------------------------------------------------------------------------------------------

    @property
    def state_label(self) -> str:
        """unconfigured, inactive, active or finalized."""
        return self._state_machine.current_state[1]

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reads the parameters and loads the model. A bad configuration is a failure with a sentence."""
        started = time.monotonic()
        try:
            self.settings = self.relay.settings = self._parameter_server.read()
            self._transforms = open_transforms(self, self.settings.tf_cache_time, self._transforms_set_back)
            self.frames = PoseResolver(self._transforms, self.settings)
            self._outputs = Publishers(self, self.settings, self.frames)
            worker = self.worker
            world = self._ask_worker(lambda: build_world(self.settings))
            self._ask_worker(lambda: worker.adopt(world))
        except Exception as error:
            known = isinstance(error, ConfigurationError)
            sentence = str(error) if known else f"{type(error).__name__}: {error}"
            self.health.problem = f"Not configured. {sentence}"
            self.get_logger().error(self.health.problem)
            self._release()
            return FAILURE
        self.relay.outputs = self._outputs
        self._configured = True
        self.health.problem = ""
        self.get_logger().info(
            f"Configured in {time.monotonic() - started:.1f} s: model '{world.pipeline.name}' on {world.device}, "
            f"world frame '{self.settings.world_frame}', base frame '{self.settings.base_frame}', "
            f"transforms from {'tf2_ros' if 'tf2_ros' in sys.modules else '/tf and /tf_static'}. "
            f"{depth_sentence(self.settings)}"
        )
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Takes seeds and jobs from now on."""
        super().on_activate(state)
        offer = self.worker.offer_observation
        self._intake = Subscriptions(self, self.settings, self.frames, self.health, offer, self.guarded)
        self.active = True
        topics = ", ".join(self._intake.topics.values())
        name = self.get_fully_qualified_name()
        self.get_logger().info(f"Active. Listening on {topics}. Imagines on {name}/imagine_path and on a path topic.")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends what runs and takes nothing more; what is remembered stays."""
        self._end_work("The node was deactivated.")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Lets the model and the memories go."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends everything."""
        self._end_work("The node shuts down.")
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """After an exception in a transition: back to unconfigured."""
        self._end_work("The node failed in a transition.")
        self._release()
        return SUCCESS

    def _end_work(self, why: str) -> None:
        self.active = False
        if self._intake is not None:
            self._intake.close()
            self._intake = None
        self.worker.end_all(ErrorCode.INACTIVE, why)
        if not self.worker.wait_idle(STOP_BOUND):
            self.get_logger().error(f"The running job did not stop within {STOP_BOUND:g} s; it is left behind.")

    def _release(self) -> None:
        self._configured = False
        self.relay.outputs = None
        worker = self.worker
        try:
            # Where a job still runs, it was waited for already.
            bound = 0.1 if worker.running is not None else STOP_BOUND
            self._ask_worker(lambda: worker.adopt(None), timeout=bound)
        except TimeoutError:
            # It hangs inside the model. A thread cannot be killed, but a new one can take its place.
            self.get_logger().error("The worker hangs; a new one takes its place.")
            worker.stop(0)
            self.worker = self._new_worker()
        if self._outputs is not None:
            self._outputs.close()
            self._outputs = None
        if self._transforms is not None:
            self._transforms.close()
            self._transforms = None
            self.frames = PoseResolver(TransformBuffer(), self.settings)

    def _ask_worker(self, function: Callable[[], Any], timeout: float | None = None) -> Any:
        return self.worker.call(function).result(timeout)

    def start(self) -> None:
        """Configures and activates, as `autostart` says."""
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def close(self) -> bool:
        """Ends everything, running work too; False where the worker hangs."""
        self._end_work("The node shuts down.")
        ended = self.worker.stop(STOP_BOUND)
        if not ended:
            for job in self.worker.overdue(-1e9):
                job.end(JobResult(ErrorCode.INACTIVE, "The node shuts down."))
        return ended

    def destroy_node(self) -> None:
        """Takes everything back."""
        self._log.close()
        self._jump.unregister()
        self._requests.destroy()
        super().destroy_node()

    # --- keeping alive --------------------------------------------------------------------------------------------

    def guarded(self, where: str, callback: Callable) -> Callable:
        """The callback, with its exceptions told instead of raised: rclpy would end the process."""

        @functools.wraps(callback)
        def safe(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                self.health.fault(where, error)
                return None

        return safe

    def _make_lifecycle_survive_bad_requests(self) -> None:
        """Rclpy raises out of the executor when a transition is asked for that the state does not have."""
        service = self._service_change_state
        change = service.callback

        def change_or_refuse(request: ChangeState.Request, response: ChangeState.Response) -> ChangeState.Response:
            wanted, possible = request.transition, self._state_machine.available_transitions
            if not any(wanted.label == label if wanted.label else wanted.id == id_ for id_, label, *_ in possible):
                names = ", ".join(label for _, label, *_ in possible) or "none"
                self.get_logger().warning(
                    f"The transition '{wanted.label or wanted.id}' is not possible while {self.state_label}; "
                    f"possible: {names}."
                )
                response.success = False
                return response
            return change(request, response)

        service.callback = change_or_refuse

    def _apply(self, settings: NodeParameters) -> None:
        self.settings = self.relay.settings = settings
        self.frames.apply(settings)
        for part in (self._intake, self._outputs):
            if part is not None:
                part.apply(settings)

    def _time_jumped(self, jump: object) -> None:
        self.health.warn("The clock jumped; what waited for its partner is forgotten, the memories stay.", key="time")
        if self._intake is not None:
            self._intake.time_went_back(self.get_clock().now().nanoseconds)

    def _transforms_set_back(self) -> None:
        self.health.warn("The stamps of /tf went back; the older transforms are forgotten.", key="tf time")

    def _tick(self) -> None:
        now = time.monotonic()
        self._requests.tick()
        self._watch_for_hangs()
        if self._intake is not None:
            self._intake.tick()
            self._intake.say_if_quiet()
            self._say_if_clock_is_silent(now)
        if self._outputs is not None and self._map_asked.done() and self._outputs.map_due():
            self._map_asked = self.worker.call(self._publish_map)
        if now - self._diagnosed_at >= self.settings.diagnostics_period:
            self._diagnosed_at = now
            self._diagnose()

    def _publish_map(self) -> None:
        if self.worker.world is not None:
            self.relay.between_steps(self.worker.world)

    def _watch_for_hangs(self) -> None:
        for job in self.worker.overdue(self.settings.watchdog_grace):
            job.end(JobResult(ErrorCode.TIMEOUT, job.timeout_sentence()))
            self.health.problem = (
                f"The worker did not stop {self.settings.watchdog_grace:g} s after a job's timeout: it hangs in the "
                "model. "
                "New jobs wait for it. Clean the node up and configure it again (a new worker takes over), or restart."
            )
            self.get_logger().error(self.health.problem)
        if self.health.problem and self._configured and self.worker.running is None:
            self.health.problem = ""
            self.get_logger().info("The worker goes on.")

    def _say_if_clock_is_silent(self, now: float) -> None:
        silent = self.get_parameter("use_sim_time").value and self.get_clock().now().nanoseconds == 0
        if not silent:
            self._clock_silent_since = None
            return
        self._clock_silent_since = self._clock_silent_since or now
        if now - self._clock_silent_since > self.settings.no_input_warning_period:
            self._clock_silent_since = now
            self.health.warn(
                "use_sim_time is set and nothing comes on /clock, so stamps are 0. Start the simulator or play the bag "
                "with --clock, or set use_sim_time to false.",
                key="clock",
            )

    def _diagnose(self) -> None:
        facts: dict[str, object] = {
            "model": self.settings.model,
            "device": self.settings.device,
            "seeds taken": self.worker.observations_done,
            "seeds dropped": self.worker.observations_dropped + (self._intake.gave_up if self._intake else 0),
            "running": self.worker.running.origin if self.worker.running else "nothing",
            **self.relay.facts,
        }
        if self.frames.used_fallback:
            facts["camera on the robot"] = "by the parameter base_to_camera: TF does not say"
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status = self.health.statuses(self.get_fully_qualified_name(), self.state_label, facts)
        self._diagnostics.publish(array)


def spin(node: WorldStereoNode, executor: SingleThreadedExecutor, until: Callable[[], bool]) -> None:
    """Spins until told to stop; no exception of a callback ends it."""
    while rclpy.ok() and not until():
        try:
            executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            return
        except Exception as error:  # from rclpy's own callbacks; ours are guarded
            node.health.fault("executor", error)


def main(arguments: list[str] | None = None) -> None:
    """Runs the node until SIGINT or SIGTERM; then running work is ended, its clients are told, within a bound."""
    if is_worker():  # of several processes only the first is a node
        run_worker()
        return
    rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # asked twice: now
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    node = WorldStereoNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    if node.get_parameter("autostart").value:
        node.start()
    spin(node, executor, stop.is_set)
    ended = node.close()
    flushed = time.monotonic() + 0.3  # for the results of what was ended
    spin(node, executor, lambda: time.monotonic() > flushed)
    if not ended:
        node.get_logger().error("The worker hangs; the process ends without it.")
        os._exit(1)
    executor.shutdown(timeout_sec=1.0)
    node.destroy_node()
    rclpy.try_shutdown()
    if process_count() > 1:
        stop_workers()
