"""What a client can see of the node: its state, its parameters, its diagnostics and its connections."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.node import Node
from rclpy.publisher import Publisher

from worldstereo_ros.ros.client.node_settings import NAMES, NodeSettings
from worldstereo_ros.ros.client.requests import Requests
from worldstereo_ros.ros.conversions import qos

logger = logging.getLogger(__name__)


class NodeWatch:
    """Watches one node on behalf of its client.

    Args:
        node: ROS node of the client.
        name: fully qualified name of the watched node.
        requests: sends the requests.

    Attributes:
        name: fully qualified name of the watched node.
        settings: parameters of the watched node; the defaults until `read_settings`.
    """

    def __init__(self, node: Node, name: str, requests: Requests) -> None:
        self._node, self.name, self._requests = node, name, requests
        self.settings = NodeSettings()
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._state = "not found"
        self._get_state = node.create_client(GetState, f"{name}/get_state")
        self._get_parameters = node.create_client(GetParameters, f"{name}/get_parameters")
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, qos.DIAGNOSTICS)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            name, _, part = status.name.rpartition(": ")
            if name == self.name:
                self._statuses[part] = status

    def state(self, timeout: float) -> str:
        """Returns the label of the lifecycle state; "not found" or "not responding" if it cannot be asked."""
        if not self._get_state.service_is_ready():
            self._state = "not found"
        else:
            response = self._requests.call(self._get_state, GetState.Request(), timeout)
            self._state = "not responding" if response is None else response.current_state.label
        return self._state

    def read_settings(self, timeout: float) -> bool:
        """Reads `settings` from the node. Returns False if it does not answer within `timeout` seconds."""
        response = self._requests.call(self._get_parameters, GetParameters.Request(names=list(NAMES)), timeout)
        if response is not None:
            self.settings = NodeSettings.from_values(response.values)
        return response is not None

    def unmatched(self, publishers: Sequence[Publisher]) -> list[str]:
        """Returns the topics of those publishers that the node does not subscribe to, or is not connected to yet."""
        name = self.name.rsplit("/", 1)[1]
        topics = []
        for publisher in publishers:
            subscribers = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
            matched = publisher.get_subscription_count() >= len(subscribers)
            if not matched or all(subscriber.node_name != name for subscriber in subscribers):
                topics.append(publisher.topic_name)
        return topics

    def warn_of_duplicates(self) -> None:
        """Logs a warning if several nodes have the name of the node: both would answer each request."""
        namespace, name = self.name.rsplit("/", 1)
        count = self._node.get_node_names_and_namespaces().count((name, namespace or "/"))
        if count > 1:
            logger.warning(
                "%d nodes are named %s. All of them take the observations, and any of them answers. Stop all but one, "
                "or start them in different namespaces (-r __ns:=/robot1).",
                count,
                self.name,
            )

    def describe(self) -> str:
        """Describes in sentences what was seen of the node, for error messages."""
        if self._state == "not found":
            others = sorted(
                f"{namespace.rstrip('/')}/{name}"
                for name, namespace in self._node.get_node_names_and_namespaces()
                if name != self._node.get_name()
            )
            seen = ", ".join(others[:10]) or "none"
            return f"Nodes that can be seen: {seen}. Is it running, with the same ROS_DOMAIN_ID?"
        parts = [
            f"Its diagnostics ({part}): {status.message}." for part, status in self._statuses.items() if status.message
        ]
        return " ".join(parts) or "It published no diagnostics."

    def last_rejection(self) -> str:
        """Why the node rejected the last image, as its diagnostics say; empty if they do not."""
        return self.rejections("image")[1]

    def rejections(self, topic: str) -> tuple[int, str]:
        """(how many messages of a topic the node rejected, why the last one), as its diagnostics say."""
        status = self._statuses.get("input")
        values = {} if status is None else {item.key: item.value for item in status.values}
        return int(values.get(f"{topic} rejected", 0)), values.get(f"{topic} last rejection", "")
