"""What the node's tests share."""

import importlib.util

import pytest

HAS_ROS = importlib.util.find_spec("rclpy") is not None
collect_ignore_glob = [] if HAS_ROS else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "test_node" in item.nodeid or "test_launch" in item.nodeid:
            item.add_marker(pytest.mark.ros)
