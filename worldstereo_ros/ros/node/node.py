"""The lifecycle node: wires its inputs, its outputs and the worker thread that owns the model and the memories.

    topics ─► Subscriptions ──(mailbox, newest wins)──► Worker ─► WorkerEventHandler ─► Publishers
    action, services, path ─► Servers ──(one runs, one waits)──┘

All callbacks run on one executor thread; they check their message and pass it on. docs/reference/node.md describes the
interface.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # another class than TimeoutError in Python 3.10
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from worldstereo_ros.ros.conversions import qos
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, JobResult
from worldstereo_ros.ros.node.logging_bridge import NodeLogHandler
from worldstereo_ros.ros.node.occupancy_publishers import OccupancyPublishers
from worldstereo_ros.ros.node.parameter_server import ParameterServer
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters
from worldstereo_ros.ros.node.pointmap_loading import offer_to, open_pointmaps
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.publishers import OUTPUTS, Publishers
from worldstereo_ros.ros.node.qos_overrides import unknown_qos_overrides
from worldstereo_ros.ros.node.servers import Servers
from worldstereo_ros.ros.node.stereo_loading import open_stereo
from worldstereo_ros.ros.node.subscriptions import INPUTS, Subscriptions
from worldstereo_ros.ros.node.surroundings import SurroundingsCheck
from worldstereo_ros.ros.node.tf_buffer import TransformBuffer, TransformSource
from worldstereo_ros.ros.node.tf_listener import open_transforms
from worldstereo_ros.ros.node.transition_checks import check_transitions
from worldstereo_ros.ros.node.watchdog import Watchdog
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.ros.node.worker_events import WorkerEventHandler
from worldstereo_ros.ros.node.world_factory import build_world, describe_depth_source

if TYPE_CHECKING:
    from worldstereo_ros.ros.node.pointmaps import PointmapOutput
    from worldstereo_ros.ros.node.stereo import StereoOutput

TICK_PERIOD_S = 0.05
STOP_TIMEOUT_S = 3.0  # for running work when the node is deactivated or shut down
HUNG_STOP_TIMEOUT_S = 0.1  # for work that was waited for already
POLL_PERIOD_S = 0.1  # between two looks whether the process was asked to end
CLOCK_JUMP_S = 0.5  # a clock that jumps back by more clears what waits
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class WorldStereoNode(LifecycleNode):
    """Remembers observations and imagines views along requested paths.

    Args:
        name: name of the node.
        stop_requested: returns whether the process was asked to end; a configuration that runs is then given up.
        options: of `rclpy.lifecycle.LifecycleNode`.

    Attributes:
        parameters: current values.
        pose_resolver: looks up poses in TF.
        diagnostics: counters and messages for /diagnostics.
        worker: owns the model and the memories.
        worker_events: forwards the worker's events to the publishers and the diagnostics.
    """

    # rclpy's Node has `_subscriptions`, `_publishers` and `_services` of its own; the attributes here avoid them.

    def __init__(
        self, name: str = "worldstereo", *, stop_requested: Callable[[], bool] = lambda: False, **options: Any
    ) -> None:
        super().__init__(name, **options)
        self._stop_requested = stop_requested
        self._configured = False
        self._input_subscriptions: Subscriptions | None = None
        self._output_publishers: Publishers | None = None
        self._stereo: StereoOutput | None = None
        self._pointmaps: PointmapOutput | None = None
        self._occupancy: OccupancyPublishers | None = None
        self._transforms: TransformSource = TransformBuffer()
        self.parameters = NodeParameters()
        self.diagnostics = NodeDiagnostics(lambda text: self.get_logger().warning(text))
        self.pose_resolver = PoseResolver(
            self._transforms, self.parameters, lambda text, key: self.diagnostics.warn(text, key=key)
        )
        self.worker_events = WorkerEventHandler(self.diagnostics, lambda text: self.get_logger().info(text))
        self.worker = self._start_worker()
        self._watchdog = Watchdog(self.diagnostics, self.get_logger().error, self.get_logger().info)
        self._log_handler = NodeLogHandler(self.get_logger())
        self._parameter_server = ParameterServer(self, is_configured=lambda: self._configured, apply=self._apply)
        self._servers = Servers(
            self,
            self.parameters,
            self.pose_resolver,
            self.diagnostics,
            get_worker=lambda: self.worker,
            get_state=lambda: self.state_label,
            on_reset=self._on_reset,
            on_memory_replaced=self.worker_events.on_memory_replaced,
            guarded=self.guarded,
        )
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, "/diagnostics", qos.DIAGNOSTICS)
        self._diagnostics_published_at = 0.0
        self._surroundings = SurroundingsCheck(self, self.diagnostics)
        self._map_request: Future = Future()  # the newest request to publish the maps
        self._map_request.set_result(None)
        check_transitions(self)
        # A steady clock, because with use_sim_time and no /clock a timer on ROS time never fires.
        self._steady_clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._timer = self.create_timer(TICK_PERIOD_S, self.guarded("timer", self._tick), clock=self._steady_clock)
        backward = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-CLOCK_JUMP_S), on_clock_change=True)
        self._jump_handle = self.get_clock().create_jump_callback(backward, post_callback=self._on_clock_jump)

    def _start_worker(self) -> Worker:
        return Worker(self.worker_events, self.worker_events.camera_for)

    # --- lifecycle ---

    @property
    def state_label(self) -> str:
        """Label of the lifecycle state: unconfigured, inactive, active or finalized."""
        return self._state_machine.current_state[1]

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reads the parameters and loads the model. Fails with an error message if a parameter is not usable."""
        started = time.monotonic()
        try:
            self._apply(self._parameter_server.read())
            self._transforms = open_transforms(
                self,
                self.parameters.tf_cache_time,
                self._on_tf_jump,
                lambda text, key: self.diagnostics.warn(text, key=key),
            )
            self.pose_resolver.reset(self._transforms, self.parameters)
            self._output_publishers = Publishers(self, self.parameters, self.pose_resolver)
            self._stereo = open_stereo(self, self.parameters, self.diagnostics)
            common = self, self.parameters, self.pose_resolver, self.diagnostics, self.guarded
            self._pointmaps = open_pointmaps(*common, lambda: self.worker, self.worker_events.on_memory_moved)
            self._occupancy = OccupancyPublishers(
                self, self.parameters, self.diagnostics, self._servers.planner, self._memory_revision
            )
            worker = self.worker
            world = self._wait_for(worker.call(lambda: build_world(self.parameters)))
            self._wait_for(worker.call(lambda: worker.set_world(world)))
        except Exception as error:
            expected = isinstance(error, ConfigurationError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            self.diagnostics.problem = f"Not configured. {reason}"
            self.get_logger().error(self.diagnostics.problem)
            self._release()
            return FAILURE
        self.worker_events.publishers = self._output_publishers
        self._configured = True
        self.diagnostics.problem = ""
        self.get_logger().info(
            f"Configured in {time.monotonic() - started:.1f} s: model '{world.pipeline.name}' on {world.device}, "
            f"world frame '{self.parameters.world_frame}', base frame '{self.parameters.base_frame}', "
            f"transforms from {'tf2_ros' if 'tf2_ros' in sys.modules else '/tf and /tf_static'}. "
            f"{describe_depth_source(self.parameters)}"
        )
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribes to the inputs and accepts jobs. Fails with an error message if a topic cannot be subscribed to."""
        super().on_activate(state)
        try:
            self._input_subscriptions = Subscriptions(
                self,
                self.parameters,
                self.pose_resolver,
                self.diagnostics,
                self.worker.offer_observation,
                self.guarded,
                on_matched=offer_to(self._stereo, self._pointmaps),
                placed_by_pointmaps=lambda: self._pointmaps is not None and self._pointmaps.places_images,
            )
        except Exception as error:  # rclpy would go through on_error without a word
            self.diagnostics.problem = f"Not activated. {type(error).__name__}: {error}"
            self.get_logger().error(self.diagnostics.problem)
            super().on_deactivate(state)
            return FAILURE
        self.diagnostics.problem = ""
        self._warn_of_qos_overrides()
        self._servers.accept_jobs = True
        topics = ", ".join(self._input_subscriptions.topics.values())
        action = f"{self.get_fully_qualified_name()}/imagine_path"
        self.get_logger().info(f"Active. Subscribed to {topics}. Send goals to {action} or paths to the topic path.")
        return SUCCESS

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends the running job and accepts no input. The memories are kept."""
        self._end_work("The node was deactivated.")
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Releases the model and the memories."""
        self._release()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Ends the running job and releases the model and the memories."""
        self._end_work("The node is shutting down.")
        self._release()
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Returns to unconfigured after an exception in a transition."""
        self._end_work("A transition of the node failed.")
        self._release()
        return SUCCESS

    def _end_work(self, reason: str) -> None:
        self._servers.stop_accepting(reason)
        if self._input_subscriptions is not None:
            self._input_subscriptions.close()
            self._input_subscriptions = None
        self.worker.end_all(ErrorCode.INACTIVE, reason)
        current = self.worker.current
        if not self._stop_requested() and not self.worker.wait_idle(STOP_TIMEOUT_S) and current is not None:
            self.get_logger().error(f"The worker did not end {current.description} within {STOP_TIMEOUT_S:g} s.")

    def _release(self) -> None:
        self._configured = False
        self.worker_events.publishers = None
        worker = self.worker
        try:
            timeout = HUNG_STOP_TIMEOUT_S if worker.current is not None else STOP_TIMEOUT_S
            worker.call(lambda: worker.set_world(None)).result(timeout)
        except FutureTimeoutError:
            # It hangs inside the model. Python cannot end a thread, but a new one can replace it.
            if not self._stop_requested():
                self.get_logger().error("The worker thread hangs; started a new one.")
            worker.abandon()
            self.worker = self._start_worker()
        self._close_outputs()
        for part in (self._output_publishers, self._occupancy):
            if part is not None:
                part.close()
        self._output_publishers = self._occupancy = None
        self._transforms.close()
        self._transforms = TransformBuffer()
        self.pose_resolver.reset(self._transforms, self.parameters)

    def _close_outputs(self) -> None:
        for name, output in (("stereo pairs", self._stereo), ("point maps", self._pointmaps)):
            if output is not None and not output.close() and not self._stop_requested():
                self.get_logger().error(f"The thread of the {name} still works; it ends with the process.")
        self._stereo = self._pointmaps = None

    def _on_reset(self) -> None:
        if self._input_subscriptions is not None:
            self._input_subscriptions.drop_images()
        if self._pointmaps is not None:
            self._pointmaps.restart()

    def _wait_for(self, future: Future) -> Any:
        """The result of a call of the worker. Raises ConfigurationError as soon as the process is asked to end."""
        while not self._stop_requested():
            with contextlib.suppress(FutureTimeoutError):
                return future.result(POLL_PERIOD_S)
            if future.done():  # with a TimeoutError of its own
                return future.result()
        raise ConfigurationError("The process was asked to end while the model was being loaded.")

    def start(self) -> None:
        """Configures and activates the node, for `autostart`."""
        if self.trigger_configure() == SUCCESS and not self._stop_requested():
            self.trigger_activate()

    def close(self) -> bool:
        """Ends all work and the worker thread. Returns False if the worker hangs."""
        self._end_work("The node is shutting down.")
        self._close_outputs()
        stopped = self.worker.stop(STOP_TIMEOUT_S)
        if not stopped:
            for job in self.worker.overdue(grace=-float("inf")):
                job.end(JobResult(ErrorCode.INACTIVE, "The node is shutting down."))
        return stopped

    def destroy_node(self) -> None:
        """Destroys the node and what belongs to it."""
        self._log_handler.close()
        self._jump_handle.unregister()
        self._servers.destroy()
        super().destroy_node()

    # --- errors ---

    def guarded(self, name: str, callback: Callable) -> Callable:
        """Wraps a callback so that its exceptions are reported; rclpy would end the process.

        Args:
            name: where the exception happened, for the report.
            callback: the callback.
        """

        @functools.wraps(callback)
        def wrapper(*arguments: Any) -> Any:
            try:
                return callback(*arguments)
            except Exception as error:
                self.diagnostics.on_fault(name, error)
                return None

        return wrapper

    # --- parameters and time ---

    def _apply(self, parameters: NodeParameters) -> None:
        self.parameters = parameters
        for part in (
            self.pose_resolver,
            self.worker_events,
            self._servers,
            self._input_subscriptions,
            self._output_publishers,
            self._stereo,
            self._pointmaps,
            self._occupancy,
        ):
            if part is not None:
                part.apply(parameters)

    def _on_clock_jump(self, jump: object) -> None:
        self.diagnostics.warn("The clock jumped. Dropped the waiting messages; the memories are kept.", key="time")
        if self._input_subscriptions is not None:
            self._input_subscriptions.on_time_jump(self.get_clock().now().nanoseconds)

    def _on_tf_jump(self) -> None:
        self.diagnostics.warn("The stamps of /tf jumped back; removed the older transforms.", key="tf time")

    # --- timer ---

    def _tick(self) -> None:
        now = time.monotonic()
        self._servers.expire()
        self._watchdog.check(self.worker, self.parameters)
        if self._input_subscriptions is not None:
            self._input_subscriptions.process_pending()
            self._input_subscriptions.warn_if_no_input()
            self._surroundings.check_clock(now, self.parameters.no_input_warning_period)
        if self._output_publishers is not None and self._map_request.done() and self._output_publishers.map_due():
            self._map_request = self.worker.call(self._publish_maps)
        if self._occupancy is not None:
            self._occupancy.tick()
        if now - self._diagnostics_published_at >= self.parameters.diagnostics_period:
            self._diagnostics_published_at = now
            self._surroundings.check_namesakes()
            self._publish_diagnostics()

    def _memory_revision(self) -> object:
        """A value that changes with the memories."""
        status = self.worker_events.memory_status
        return self.worker.observations_done, status.get("points"), status.get("views in the bank")

    def _publish_maps(self) -> None:
        if self.worker.world is not None:
            self.worker_events.between_steps(self.worker.world)

    def _warn_of_qos_overrides(self) -> None:
        topics = [(self.resolve_topic_name(name), "subscription") for name, *_ in INPUTS]
        outputs = [name for name, *_ in OUTPUTS]
        for part in (self._stereo, self._pointmaps, self._occupancy):
            outputs += [] if part is None else part.names
        topics += [(self.resolve_topic_name(name), "publisher") for name in outputs]
        for warning in unknown_qos_overrides(self._parameter_overrides, topics):
            self.get_logger().warning(warning)

    def _publish_diagnostics(self) -> None:
        waiting_dropped = self._input_subscriptions.dropped if self._input_subscriptions else 0
        values: dict[str, object] = {
            "model": self.parameters.model,
            "device": self.parameters.device,
            "observations taken": self.worker.observations_done,
            "observations dropped": self.worker.observations_dropped + waiting_dropped,
            "running": running.origin if (running := self.worker.running) is not None else "nothing",
            "reconstruction": self._servers.reconstructions.progress,
            **self.worker_events.memory_status,
        }
        for part in (self._stereo, self._pointmaps):
            values |= {} if part is None else part.status
        if self.pose_resolver.used_fallback:
            values["camera extrinsics"] = "from the parameter base_to_camera, since TF has no transform"
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status = self.diagnostics.statuses(self.get_fully_qualified_name(), self.state_label, values)
        self._diagnostics_publisher.publish(array)
