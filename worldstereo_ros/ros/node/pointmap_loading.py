"""Opens the topics of point maps where they are enabled, so that a node without them loads nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from rclpy.lifecycle import LifecycleNode

from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.world import WorldModel

if TYPE_CHECKING:
    from worldstereo_ros.ros.node.pointmaps import PointmapOutput


class _Taker(Protocol):
    def offer(self, frame: Observation, posed: bool) -> None: ...


def open_pointmaps(
    node: LifecycleNode,
    parameters: NodeParameters,
    pose_resolver: PoseResolver,
    diagnostics: NodeDiagnostics,
    guarded: Callable[[str, Callable], Callable],
    get_worker: Callable[[], Worker],
    on_memory_moved: Callable[[WorldModel], None],
) -> PointmapOutput | None:
    """Creates the topics of point maps; None if they are not enabled.

    Args:
        node, parameters, pose_resolver, diagnostics, guarded: see `PointmapOutput`.
        get_worker: returns the worker, which may be another one each time.
        on_memory_moved: called on the worker's thread after the memories moved with a corrected path.
    """
    if not parameters.pointmaps.enabled:
        return None
    from worldstereo_ros.ros.node.pointmaps import PointmapOutput

    def with_memories(function: Callable[[WorldModel], None]) -> None:
        worker = get_worker()

        def run() -> None:
            if worker.world is not None:
                function(worker.world)
                on_memory_moved(worker.world)

        worker.call(guarded("moving the memories", run))

    log = lambda text: node.get_logger().info(text)  # noqa: E731
    offer = lambda observation: get_worker().offer_observation(observation)  # noqa: E731 - workers change
    return PointmapOutput(node, parameters, pose_resolver, diagnostics, log, offer, with_memories, guarded)


def offer_to(*takers: _Taker | None) -> Callable[[Observation, bool], None] | None:
    """A callback that offers an image to all that are there; None if none is."""
    there = [taker for taker in takers if taker is not None]
    if not there:
        return None

    def offer(frame: Observation, posed: bool) -> None:
        for taker in there:
            taker.offer(frame, posed)

    return offer
