"""What around a node may be wrong: another node of its name, and a clock that is silent."""

from __future__ import annotations

from rclpy.node import Node

from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics


class SurroundingsCheck:
    """Looks at what is around a node, and says what is wrong.

    Args:
        node: the node.
        diagnostics: takes the notice and the warnings.
    """

    def __init__(self, node: Node, diagnostics: NodeDiagnostics) -> None:
        self._node, self._diagnostics = node, diagnostics
        self._clock_silent_since: float | None = None

    def check_namesakes(self) -> None:
        """Says that another node has the same name: both would answer each request and take each image."""
        node = self._node
        name = node.get_fully_qualified_name()
        count = node.get_node_names_and_namespaces().count((node.get_name(), node.get_namespace()))
        notice = (
            f"{count} nodes are named {name}. Each request reaches all of them. Stop all but one, or start them in "
            "different namespaces (-r __ns:=/robot1). One that was killed is listed for some 20 s more."
            if count > 1
            else ""
        )
        if notice and notice != self._diagnostics.notice:
            node.get_logger().warning(notice)
        self._diagnostics.notice = notice

    def check_clock(self, now: float, period: float) -> None:
        """Warns if there is no /clock while the node is to use its time.

        Args:
            now: `time.monotonic()`.
            period: seconds of silence after which it is said, again and again.
        """
        silent = self._node.get_parameter("use_sim_time").value and self._node.get_clock().now().nanoseconds == 0
        if not silent:
            self._clock_silent_since = None
            return
        self._clock_silent_since = self._clock_silent_since or now
        if now - self._clock_silent_since > period:
            self._clock_silent_since = now
            self._diagnostics.warn(
                "use_sim_time is true but no message arrives on /clock, so all stamps are 0. Start the simulator, play "
                "the bag with --clock, or set use_sim_time to false.",
                key="clock",
            )
