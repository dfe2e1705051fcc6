"""Opens the topics of point maps where they are enabled, so that a node without them loads nothing of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from rclpy.lifecycle import LifecycleNode

from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.pose_resolver import PoseResolver
from worldstereo_ros.ros.node.synchronizer import Observation

if TYPE_CHECKING:
    from worldstereo_ros.ros.node.pointmaps import PointmapOutput


class _Taker(Protocol):
    def offer(self, frame: Observation, posed: bool) -> None: ...


def open_pointmaps(
    node: LifecycleNode,
    parameters: NodeParameters,
    pose_resolver: PoseResolver,
    diagnostics: NodeDiagnostics,
    offer_observation: Callable[[Observation], None],
    guarded: Callable[[str, Callable], Callable],
) -> PointmapOutput | None:
    """Creates the topics of point maps; None if they are not enabled. See `PointmapOutput` for the arguments."""
    if not parameters.pointmaps.enabled:
        return None
    from worldstereo_ros.ros.node.pointmaps import PointmapOutput

    log = lambda text: node.get_logger().info(text)  # noqa: E731
    return PointmapOutput(node, parameters, pose_resolver, diagnostics, log, offer_observation, guarded)


def offer_to(*takers: _Taker | None) -> Callable[[Observation, bool], None] | None:
    """A callback that offers an image to all that are there; None if none is."""
    there = [taker for taker in takers if taker is not None]
    if not there:
        return None

    def offer(frame: Observation, posed: bool) -> None:
        for taker in there:
            taker.offer(frame, posed)

    return offer
