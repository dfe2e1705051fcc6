"""The launch files, the RViz configuration and the Nav2 parameters. Launch files load only with `launch_ros`."""

from __future__ import annotations

import ast
import importlib.util

import pytest
import yaml
from helpers.paths import REPOSITORY

FILES = sorted((REPOSITORY / "launch").glob("*.launch.py"))
COMMON_ARGUMENTS = {"params_file", "namespace", "use_sim_time", "autostart", "log_level", "rviz", "device", "model"}
COMMON_ARGUMENTS |= {"stereo", "stereo_base"}
HAS_LAUNCH = importlib.util.find_spec("launch_ros") is not None


def test_launch_files_exist():
    assert [path.name for path in FILES] == ["demo.launch.py", "replay.launch.py", "worldstereo.launch.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_launch_file_defines_generate_launch_description(path):
    """Parses the file, without `launch`: it has a docstring and the function that launch calls."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert "generate_launch_description" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_standard_argument_is_declared_with_a_description():
    """Reads the source, without `launch`."""
    tree = ast.parse((REPOSITORY / "worldstereo_ros" / "ros" / "launch_common.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "arguments")
    rows = [
        [element.value for element in node.elts]
        for node in ast.walk(function)
        if isinstance(node, ast.Tuple) and all(isinstance(e, ast.Constant) for e in node.elts) and len(node.elts) == 3
    ]
    assert {row[0] for row in rows} >= COMMON_ARGUMENTS
    assert all(len(row[2]) > 15 for row in rows)


@pytest.mark.skipif(not HAS_LAUNCH, reason="launch_ros is not installed (it comes with a full ROS)")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_launch_file_creates_nodes(path, monkeypatch):
    from launch.actions import DeclareLaunchArgument, OpaqueFunction
    from launch.launch_description_sources import get_launch_description_from_python_launch_file
    from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
    from launch_ros.actions import Node

    from launch import LaunchContext

    description = get_launch_description_from_python_launch_file(str(path))
    context = LaunchContext()
    context.launch_configurations.update({"bag": "drive.mcap", "image_topic": "/camera/image", "device": "cpu"})
    declared, nodes = set(), []
    for entity in description.entities:
        if isinstance(entity, DeclareLaunchArgument):
            assert entity.description
            declared.add(entity.name)
            entity.execute(context)
        elif isinstance(entity, OpaqueFunction):
            nodes += [action for action in entity.execute(context) or [] if isinstance(action, Node)]
    assert declared >= COMMON_ARGUMENTS
    nodes[0]._perform_substitutions(context)
    executable = perform_substitutions(context, normalize_to_list_of_substitutions(nodes[0].cmd[0]))
    assert executable.endswith("worldstereo_node")
    remaps = set(nodes[0].expanded_remapping_rules)
    assert remaps == {("image", "/camera/image"), ("image/compressed", "/camera/image/compressed")}


# --- RViz ---


def displays() -> dict[str, dict]:
    content = yaml.safe_load((REPOSITORY / "rviz" / "worldstereo.rviz").read_text())
    return {display["Name"]: display for display in content["Visualization Manager"]["Displays"]}


def test_rviz_fixed_frame_is_world_frame():
    content = yaml.safe_load((REPOSITORY / "rviz" / "worldstereo.rviz").read_text())["Visualization Manager"]
    assert content["Global Options"]["Fixed Frame"] == "map"  # the default of the parameter world_frame


def test_rviz_qos_matches_publishers():
    """Every display has the reliability and durability of its topic; otherwise RViz shows no latched map."""
    from rclpy.qos import DurabilityPolicy

    from worldstereo_ros.ros.node.occupancy_publishers import OCCUPANCY_OUTPUTS
    from worldstereo_ros.ros.node.pointmap_publishers import POINTMAP_OUTPUTS
    from worldstereo_ros.ros.node.publishers import OUTPUTS
    from worldstereo_ros.ros.node.stereo import STEREO_OUTPUTS

    outputs = (*OUTPUTS, *STEREO_OUTPUTS, *POINTMAP_OUTPUTS, *OCCUPANCY_OUTPUTS)
    profiles = {name.replace("~", "/worldstereo"): profile for name, _, profile, _ in outputs}
    displayed = set()
    for name, display in displays().items():
        topic = display.get("Topic")
        if not isinstance(topic, dict) or topic["Value"] not in profiles:
            continue
        displayed.add(topic["Value"])
        latched = profiles[topic["Value"]].durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert topic["Durability Policy"] == ("Transient Local" if latched else "Volatile"), name
        assert topic["Reliability Policy"] == "Reliable", name
    names = ("map", "map/estimated", "map/imagined", "views", "image", "observed", "points")
    names += ("provenance", "provenance/colour", "stereo/sbs", "stereo/right/source", "occupancy", "occupancy/imagined")
    names += ("speed_mask",)
    names += ("odometry", "pointmaps/points", "pointmaps/depth", "pointmaps/dynamic", "pointmaps/path")
    assert displayed >= {f"/worldstereo/{name}" for name in names}


def test_rviz_shows_cloud_colours():
    clouds = [display for display in displays().values() if display["Class"] == "rviz_default_plugins/PointCloud2"]
    assert len(clouds) >= 3
    assert all(cloud["Color Transformer"] in ("RGB8", "Intensity") for cloud in clouds)


# --- Nav2 ---


def test_nav2_layer_marks_observed_points_only():
    from worldstereo_ros.ros.node.publishers import OUTPUTS

    content = yaml.safe_load((REPOSITORY / "config" / "nav2_costmap.yaml").read_text())
    layer = content["local_costmap"]["local_costmap"]["ros__parameters"]["worldstereo_layer"]
    sources = layer["observation_sources"].split()
    topics = {name.replace("~", "/worldstereo") for name, *_ in OUTPUTS}
    assert sources
    for name in sources:
        source = layer[name]
        assert source["topic"] in topics
        assert source["data_type"] == "PointCloud2"
        assert source["max_obstacle_height"] > source["min_obstacle_height"] > 0
        assert source["obstacle_max_range"] > 2.5
        assert not source["clearing"]
    assert layer["observed_map"]["marking"]
    # Of all topics only these two hold nothing but observed points.
    marked = {layer[name]["topic"] for name in sources if layer[name]["marking"]}
    assert marked <= {"/worldstereo/map", "/worldstereo/points/observed"}
    assert layer["observed_map"]["sensor_frame"] == "base_link"
    assert not layer["imagined_view"]["marking"]


def test_nav2_plans_on_observed_cells_and_slows_where_nothing_was_observed():
    from worldstereo_ros.ros.node.occupancy_publishers import (
        OBSERVED,
        OCCUPANCY_OUTPUTS,
        SPEED_MASK,
        SPEED_MASK_INFO,
        UPDATES,
    )

    content = yaml.safe_load((REPOSITORY / "config" / "nav2_imagination.yaml").read_text())
    costmap = content["global_costmap"]["global_costmap"]["ros__parameters"]
    assert costmap["static_layer"]["map_topic"] == OBSERVED.replace("~", "/worldstereo")
    assert costmap["static_layer"]["map_subscribe_transient_local"]
    assert costmap["static_layer"]["subscribe_to_updates"]
    outputs = {name: kind.__name__ for name, kind, *_ in OCCUPANCY_OUTPUTS}
    assert {outputs[OBSERVED], outputs[SPEED_MASK]} == {"OccupancyGrid"}
    assert outputs[OBSERVED + UPDATES] == "OccupancyGridUpdate"
    assert costmap["speed_filter"]["filter_info_topic"] == SPEED_MASK_INFO.replace("~", "/worldstereo")
    assert outputs[SPEED_MASK_INFO] == "CostmapFilterInfo"
    assert set(costmap["filters"]) == {"speed_filter"}
