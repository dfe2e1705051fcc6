"""The grids that planners read: `~/occupancy` and what belongs to it. They are computed only while somebody listens."""

from __future__ import annotations

import contextlib
import copy
import importlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from nav_msgs.msg import OccupancyGrid as GridMessage
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions import grids, qos
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.grid_updates import GridChanges, all_take_updates
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.planner import Planner
from worldstereo_ros.ros.node.questions import Question
from worldstereo_ros.utils.errors import InputError

UpdateMessage: Any = None
FilterInfo: Any = None
with contextlib.suppress(ImportError):  # of a ROS without RViz; grids are sent as a whole
    UpdateMessage = importlib.import_module("map_msgs.msg").OccupancyGridUpdate
with contextlib.suppress(ImportError):  # of a ROS without Nav2
    FilterInfo = importlib.import_module("nav2_msgs.msg").CostmapFilterInfo

if TYPE_CHECKING:
    from worldstereo_ros.planning import OccupancyGrid

OCCUPANCY, OBSERVED = "~/occupancy", "~/occupancy/observed"
GRADED, CONFIDENCE, IMAGINED = "~/occupancy/graded", "~/occupancy/confidence", "~/occupancy/imagined"
VARIANCE = "~/occupancy/variance"
SPEED_MASK, SPEED_MASK_INFO = "~/speed_mask", "~/speed_mask_info"
UPDATES = "_updates"  # appended to the topic of a grid, as Nav2 and RViz expect
SPEED_FILTER_PERCENT = 1  # type of a mask that limits the speed to a share of the full one
OCCUPANCY_OUTPUTS: tuple[tuple[str, Any, Any, str], ...] = (
    # name, type, profile, description
    (
        OCCUPANCY,
        GridMessage,
        qos.MAP,
        "0 = free, 100 = occupied, -1 = unknown, by what was observed and, where it is clear, estimated and imagined",
    ),
    (OBSERVED, GridMessage, qos.MAP, "the same by what sensors saw and measured alone"),
    (GRADED, GridMessage, qos.MAP, "probability that a cell is occupied in percent, -1 = nothing is known"),
    (CONFIDENCE, GridMessage, qos.MAP, "probability in percent that the cell is what it is called; -1 = unknown"),
    (IMAGINED, GridMessage, qos.MAP, "who says so: 0 = observed, 50 = estimated, 100 = imagined, -1 = unknown"),
    (
        VARIANCE,
        GridMessage,
        qos.MAP,
        "how far the hypotheses (`planning.completions`) disagree: variance of P(occupied) in percent of the largest "
        "possible one, 0.25; 0 = observed, or they agree; -1 = unknown",
    ),
    (
        SPEED_MASK,
        GridMessage,
        qos.MAP,
        "mask of Nav2's speed filter (type 1): `planning.slow_speed` percent where nothing was observed and "
        "`planning.slow_distance` before it, 0 = no limit elsewhere",
    ),
)
# Topics whose changes are sent alone: those that Nav2's static layer may take. Its filters read no updates.
UPDATED = (OCCUPANCY, OBSERVED, GRADED)
if UpdateMessage is not None:
    OCCUPANCY_OUTPUTS += tuple(
        (name + UPDATES, UpdateMessage, qos.COMMAND, f"what has changed of `{name}`, if all of its subscribers listen")
        for name in UPDATED
    )
if FilterInfo is not None:
    OCCUPANCY_OUTPUTS += (
        (SPEED_MASK_INFO, FilterInfo, qos.MAP, "what `~/speed_mask` means; Nav2's speed filter asks for it"),
    )


class OccupancyPublishers:
    """Publishes grids of what is remembered when it changed, at most every `planning.period` seconds.

    Args:
        node: node on which the publishers are created; they send while it is active.
        parameters: parameters of the node.
        diagnostics: gets warnings.
        planner: computes the grids.
        get_revision: returns a value that changes with the memories.
    """

    def __init__(
        self,
        node: LifecycleNode,
        parameters: NodeParameters,
        diagnostics: NodeDiagnostics,
        planner: Planner,
        get_revision: Callable[[], object],
    ) -> None:
        self._node, self._diagnostics = node, diagnostics
        self._planner, self._get_revision = planner, get_revision
        overrides = QoSOverridingOptions.with_default_policies()
        self._publishers = {
            name: node.create_lifecycle_publisher(kind, name, copy.copy(profile), qos_overriding_options=overrides)
            for name, kind, profile, _ in OCCUPANCY_OUTPUTS
        }
        self.names = list(self._publishers)
        for kind, package, lacks in (
            (UpdateMessage, "map_msgs", "grids are sent as a whole, without updates"),
            (FilterInfo, "nav2_msgs", f"{SPEED_MASK_INFO} is not published; run Nav2's costmap_filter_info_server"),
        ):
            if kind is None:
                node.get_logger().info(f"{package} is not installed: {lacks}.")
        self._changes = {name: GridChanges() for name in self._publishers}
        self._readers: dict[str, set[tuple[int, ...]]] = {}  # subscribers of grids of which updates are sent
        self._info_sent = False
        self._published: dict[str, object] = {}  # by topic: of what its last message is
        self._counts: dict[str, int] = {}
        self._pending: Question | None = None
        self._requested_at = -1e9
        self.apply(parameters)

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters

    def close(self) -> None:
        """Destroys the publishers."""
        if self._pending is not None:
            self._pending.stop(ErrorCode.INACTIVE, "The node was cleaned up.")
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._publishers = {}

    def tick(self) -> None:
        """Asks for grids that are due. Called by a timer."""
        self._publish_info()
        now = time.monotonic()
        if self._pending is not None or now - self._requested_at < self._parameters.planning.period:
            return
        revision = (self._get_revision(), self._parameters.planning)
        due = [name for name in self._heard() if self._published.get(name) != revision]
        if not due:
            return
        self._requested_at = now
        self._pending = Question(
            lambda question: self._publish(question, due, revision),
            lambda _, error: self._on_done(error, due, revision),
            self._parameters.job_timeout,
        )
        try:
            self._planner.submit(self._pending)
        except JobRejectedError:  # planners ask much; the grids come later
            self._pending = None

    def _publish_info(self) -> None:
        """Says what the speed mask means, once: the topic is latched."""
        publisher = self._publishers.get(SPEED_MASK_INFO)
        if publisher is None or self._info_sent or not publisher.is_activated:
            return
        self._info_sent = True
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._parameters.world_frame)
        mask = self._node.resolve_topic_name(SPEED_MASK)
        publisher.publish(
            FilterInfo(header=header, type=SPEED_FILTER_PERCENT, filter_mask_topic=mask, base=0.0, multiplier=1.0)
        )

    def _heard(self) -> list[str]:
        """Topics of grids with subscribers. A new one, which may be volatile, has the topic sent again."""
        heard = []
        for name, publisher in self._publishers.items():
            if name == SPEED_MASK_INFO or name.endswith(UPDATES):
                continue
            count = publisher.get_subscription_count() if publisher.is_activated else 0
            if self._has_new_reader(name) or count > self._counts.get(name, 0):
                self._published.pop(name, None)
                self._changes[name].forget()
            self._counts[name] = count
            if count:
                heard.append(name)
        return heard

    def _publish(self, question: Question, due: list[str], revision: object) -> None:
        """Computes and publishes grids. Called on the planner's thread."""
        grid = self._planner.grid(question)
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._parameters.world_frame)
        planning = self._parameters.planning
        cells: dict[str, Callable[[OccupancyGrid], np.ndarray]] = {
            OCCUPANCY: lambda grid: grid.trinary(),
            OBSERVED: lambda grid: grid.trinary(imagined=False),
            GRADED: lambda grid: grid.graded(),
            CONFIDENCE: grids.confidence_cells,
            IMAGINED: grids.imagined_cells,
            VARIANCE: grids.variance_cells,
            SPEED_MASK: lambda grid: grids.speed_cells(grid, planning.slow_speed, planning.slow_distance),
        }
        for name in due:
            question.check()
            publisher = self._publishers.get(name)
            if publisher is None:
                continue
            message = self._changes[name].next(cells[name](grid), grid, header, partial=self._takes_updates(name))
            if isinstance(message, GridMessage):
                publisher.publish(message)
            elif message is not None:
                self._publishers[name + UPDATES].publish(message)
            self._published[name] = revision

    def _has_new_reader(self, name: str) -> bool:
        """Whether a subscriber of a grid of which updates were sent is new: what is latched may lack some of them.

        Their number does not say so when one takes the place of another, as a node does that restarts.
        """
        updates = self._publishers.get(name + UPDATES)
        if updates is None or not updates.get_subscription_count():
            return False
        infos = self._node.get_subscriptions_info_by_topic(self._node.resolve_topic_name(name))
        readers = {tuple(info.endpoint_gid) for info in infos}
        before, self._readers[name] = self._readers.get(name, set()), readers
        return not readers <= before

    def _takes_updates(self, name: str) -> bool:
        """Whether changes of a grid may be sent alone."""
        updates = self._publishers.get(name + UPDATES)
        if updates is None or not updates.get_subscription_count():
            return False
        topics = [self._node.resolve_topic_name(topic) for topic in (name, name + UPDATES)]
        return all_take_updates(self._node, *topics)

    def _on_done(self, error: Exception | None, due: list[str], revision: object) -> None:
        self._pending = None
        if error is None:
            return
        if isinstance(error, JobRejectedError):
            if error.code not in (ErrorCode.NO_OBSERVATION, ErrorCode.INACTIVE):
                self._diagnostics.warn(f"The occupancy was not published. {error}", key="occupancy")
        elif isinstance(error, InputError):  # such as: no floor was found; the next view may show it
            self._diagnostics.warn(f"The occupancy was not published. {error}", key="occupancy")
            self._published.update(dict.fromkeys(due, revision))
        else:
            self._diagnostics.on_fault("occupancy", error)
