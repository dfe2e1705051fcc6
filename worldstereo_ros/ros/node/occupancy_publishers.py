"""The grids that planners read: `~/occupancy` and what belongs to it. They are computed only while somebody listens."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from nav_msgs.msg import OccupancyGrid as GridMessage
from rclpy.lifecycle import LifecycleNode
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions import grids, qos
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.planner import Planner
from worldstereo_ros.ros.node.questions import Question
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.planning import OccupancyGrid

OCCUPANCY, OBSERVED = "~/occupancy", "~/occupancy/observed"
GRADED, CONFIDENCE, IMAGINED = "~/occupancy/graded", "~/occupancy/confidence", "~/occupancy/imagined"
SPEED_MASK = "~/speed_mask"
OCCUPANCY_OUTPUTS = (
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
        SPEED_MASK,
        GridMessage,
        qos.MAP,
        "mask of Nav2's speed filter (type 1): 0 = no limit where it was observed, else `planning.slow_speed` percent",
    ),
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

    def _heard(self) -> list[str]:
        """Topics with subscribers. A new one, which may be volatile, has the topic sent again."""
        heard = []
        for name, publisher in self._publishers.items():
            count = publisher.get_subscription_count() if publisher.is_activated else 0
            if count > self._counts.get(name, 0):
                self._published.pop(name, None)
            self._counts[name] = count
            if count:
                heard.append(name)
        return heard

    def _publish(self, question: Question, due: list[str], revision: object) -> None:
        """Computes and publishes grids. Called on the planner's thread."""
        grid = self._planner.grid(question)
        header = Header(stamp=self._node.get_clock().now().to_msg(), frame_id=self._parameters.world_frame)
        slow = self._parameters.planning.slow_speed
        cells: dict[str, Callable[[OccupancyGrid], np.ndarray]] = {
            OCCUPANCY: lambda grid: grid.trinary(),
            OBSERVED: lambda grid: grid.trinary(imagined=False),
            GRADED: lambda grid: grid.graded(),
            CONFIDENCE: grids.confidence_cells,
            IMAGINED: grids.imagined_cells,
            SPEED_MASK: lambda grid: grids.speed_cells(grid, slow),
        }
        for name in due:
            question.check()
            publisher = self._publishers.get(name)
            if publisher is not None:
                publisher.publish(grids.grid_message(cells[name](grid), grid, header))
                self._published[name] = revision

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
