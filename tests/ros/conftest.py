"""Fixtures of the tests of the node."""

import importlib.util

import pytest

HAS_ROS = importlib.util.find_spec("rclpy") is not None
collect_ignore_glob = [] if HAS_ROS else ["test_*.py", "*/test_*.py"]
# In node/; they start no node.
WITHOUT_PROCESSES = {
    "test_activity_log.py",
    "test_jobs.py",
    "test_parameters.py",
    "test_planner.py",
    "test_pose_resolver.py",
    "test_subscriptions.py",
    "test_tf_buffer.py",
    "test_thin_images.py",
    "test_worker_events.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        in_node = item.path.parent.name == "node" and item.path.name not in WITHOUT_PROCESSES
        if in_node or item.path.name == "test_launch.py":
            item.add_marker(pytest.mark.ros)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    """A node with small limits, its own map directory and one observation in memory, and a connected robot."""
    folder = tmp_path_factory.mktemp("maps")
    parameters = {
        "map_directory": str(folder),
        "max_path_poses": 20_000,
        "max_views": 200,
        "max_job_pixels": 2_000_000,
        "sync_timeout": 0.2,
        "view_width": 64,
    }
    from helpers.node_harness import running

    with running(parameters) as (node, robot):
        robot.folder = folder
        robot.publish_view()
        yield node, robot
