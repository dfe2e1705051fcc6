"""The parameter table and what is generated from it."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.paths import REPOSITORY

from worldstereo_ros.ros.node.folders import map_directory
from worldstereo_ros.ros.node.parameter_text import to_markdown, to_yaml
from worldstereo_ros.ros.node.parameters import (
    CONFIGURE,
    ConfigurationError,
    NodeParameters,
    check_value,
    make_parameters,
    ros_type,
    table,
)
from worldstereo_ros.ros.node.subscriptions import INPUTS

ROWS = {row.name: row for row in table()}


def test_every_row_is_documented():
    for row in table():
        info = row.metadata
        assert info["description"].endswith(".") or info["description"][-1].isalpha(), row.name
        assert len(info["description"]) > 15, row.name
        numeric = ros_type(row) in ("integer", "double")
        assert numeric == (info["low"] is not None and info["high"] is not None), f"{row.name} has no range"
        assert row.name.islower()


@pytest.mark.parametrize("name", ROWS)
def test_default_passes_check(name):
    row = ROWS[name]
    assert check_value(row, row.metadata["default"]) == row.metadata["default"]


def test_defaults_are_consistent():
    assert make_parameters({}) == NodeParameters()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.metadata["low"] is not None])
def test_range_is_checked(name):
    row = ROWS[name]
    low, high = row.metadata["low"], row.metadata["high"]
    assert check_value(row, low) == low
    assert check_value(row, high) == high
    for value in (low - 1, high + 1):
        with pytest.raises(ConfigurationError, match=f"'{name}'.*between"):
            check_value(row, value)
    if ros_type(row) == "double":
        with pytest.raises(ConfigurationError, match="between"):
            check_value(row, math.nan)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("autostart", 1),
        ("max_points", True),
        ("max_points", 5000.0),
        ("voxel_size", "fine"),
        ("model", 3),
        ("model", ""),
        ("base_to_camera", "1 2 3"),
        ("base_to_camera", [0.0] * 6),
        ("base_to_camera", [0, 0, 0, 0, 0, 0, 2]),
        ("base_to_camera", [math.inf, 0, 0, 0, 0, 0, 1]),
        ("base_to_camera", ["a"] * 7),
        ("path_pose_frame", "wheel"),
        ("device", "cuda:x"),
        ("world_frame", ""),
        ("view_width", 3),
        ("rectified", 1),
        ("rectified", "yes"),
        ("depth_unit", "feet"),
        ("depth_unit", True),
        ("depth_unit", 0),
        ("depth_unit", math.nan),
        ("camera_axes", "flu"),
        ("path_heading", "north"),
    ],
)
def test_invalid_values_are_rejected_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"'{name}'"):
        check_value(ROWS[name], value)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.metadata["choices"]])
def test_error_of_an_unknown_value_lists_the_allowed_ones(name):
    with pytest.raises(ConfigurationError, match=", ".join(ROWS[name].metadata["choices"])):
        check_value(ROWS[name], "no such value")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("rectified", True, "true"),
        ("rectified", False, "false"),
        ("depth_unit", 0.0001, "0.0001"),
        ("depth_unit", 1, "1"),
    ],
)
def test_unquoted_yaml_is_accepted_for_text(name, value, expected):
    assert check_value(ROWS[name], value) == expected


def test_integers_are_accepted_for_doubles():
    assert check_value(ROWS["tf_timeout"], 1) == 1.0
    assert check_value(ROWS["base_to_camera"], [0, 0, 0, 0, 0, 0, 1]) == [0, 0, 0, 0, 0, 0, 1]


def test_contradicting_values_are_rejected():
    with pytest.raises(ConfigurationError, match="different frames"):
        make_parameters({"world_frame": "base_link"})
    with pytest.raises(ConfigurationError, match="depth_model"):
        make_parameters({"depth_source": "model", "depth_model": "none"})
    assert make_parameters({"depth_source": "model"}).depth_model == ""  # the bundled network


def test_map_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_HOME", str(tmp_path))
    assert map_directory(NodeParameters()) == tmp_path / "worldstereo"
    assert map_directory(NodeParameters(map_directory="~/maps")) == Path.home() / "maps"


# --- generated files ---


def test_yaml_contains_defaults():
    loaded = yaml.safe_load(to_yaml())["/**"]["ros__parameters"]
    assert list(loaded) == list(ROWS)
    for name, value in loaded.items():
        default = ROWS[name].metadata["default"]
        assert value == default, name
        assert type(value) is type(default), name
    assert make_parameters(loaded) == NodeParameters()


def test_config_file_equals_table():
    assert (REPOSITORY / "config" / "worldstereo.yaml").read_text() == to_yaml()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_config_files_contain_existing_parameters_only(path):
    content = yaml.safe_load(path.read_text())
    if "ros__parameters" not in content.get("/**", {}):
        pytest.skip("parameters of another node")
    values = content["/**"]["ros__parameters"]
    overrides = values.pop("qos_overrides", {})
    assert set(overrides) <= {f"/{name}" for name, *_ in INPUTS}
    assert all(set(override) == {"subscription"} for override in overrides.values())
    make_parameters(values)


def test_markdown_contains_every_row():
    text = to_markdown()
    for row in table():
        assert f"| `{row.name}` | {ros_type(row)} |" in text
    assert len(text.strip().splitlines()) == len(ROWS) + 2


def test_ros_declaration_equals_table():
    import rclpy
    from rclpy.parameter import Parameter

    from worldstereo_ros.ros.node.parameter_server import ParameterServer

    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "-p", "voxel_size:=1", "-p", "path_pose_frame:=wheel"])
    applied: list[NodeParameters] = []
    configured = [False]
    try:
        node = rclpy.create_node("table", context=context)
        server = ParameterServer(node, is_configured=lambda: configured[0], apply=applied.append)
        types = {"bool": 1, "integer": 2, "double": 3, "string": 4, "double_array": 8}
        for row in table():
            parameter, descriptor = node.get_parameter(row.name), node.describe_parameter(row.name)
            assert parameter.type_.value == types[ros_type(row)], row.name
            assert row.metadata["description"] in descriptor.description
            ranges = [*descriptor.integer_range, *descriptor.floating_point_range]
            assert bool(ranges) == (row.metadata["low"] is not None)
            if ranges:
                assert (ranges[0].from_value, ranges[0].to_value) == (row.metadata["low"], row.metadata["high"])
        assert node.get_parameter("voxel_size").value == 1.0
        with pytest.raises(ConfigurationError, match="wheel"):
            server.read()
        node.set_parameters([Parameter("path_pose_frame", value="camera")])
        assert server.read() == NodeParameters(voxel_size=1.0, path_pose_frame="camera")
        # `ros2 param set` reads these as a bool and a number.
        dynamic = [Parameter("rectified", value=True), Parameter("depth_unit", value=0.0001)]
        assert all(result.successful for result in node.set_parameters(dynamic))
        assert (server.read().rectified, server.read().depth_unit) == ("true", "0.0001")
        assert not node.set_parameters([Parameter("depth_unit", value=-1)])[0].successful
        node.set_parameters([Parameter("rectified", value="auto"), Parameter("depth_unit", value="auto")])
        configured[0] = True
        assert not node.set_parameters([Parameter("autostart", value=False)])[0].successful
        for row in table():
            if row.metadata["applies"] == CONFIGURE:
                value = node.get_parameter(row.name).value
                assert not node.set_parameters([Parameter(row.name, value=value)])[0].successful, row.name
        assert not applied
        assert node.set_parameters([Parameter("tf_timeout", value=0.25)])[0].successful
        assert applied == [NodeParameters(voxel_size=1.0, path_pose_frame="camera", tf_timeout=0.25)]
        node.destroy_node()
    finally:
        context.try_shutdown()


def test_unknown_parameters_are_reported_with_a_suggestion():
    import rclpy

    from worldstereo_ros.ros.node.parameter_server import ParameterServer

    context = rclpy.Context()
    given = ["path_poses:=camera", "zzz:=1", "voxel_size:=0.02", "use_sim_time:=false", "qos_overrides./image.depth:=3"]
    rclpy.init(context=context, args=["--ros-args", *(word for value in given for word in ("-p", value))])
    warnings: list[str] = []
    try:
        node = rclpy.create_node("unknown", context=context)
        node.get_logger = lambda: SimpleNamespace(warning=warnings.append)
        server = ParameterServer(node, is_configured=lambda: False, apply=lambda _: None)
        assert server.read() == NodeParameters(voxel_size=0.02)
        node.destroy_node()
    finally:
        context.try_shutdown()
    path_poses, zzz = sorted(warnings)
    assert path_poses.startswith("The parameter 'path_poses' is unknown and has no effect. Similar names: ")
    assert "path_pose_frame" in path_poses
    assert zzz == "The parameter 'zzz' is unknown and has no effect."


@pytest.mark.parametrize("folder", ["", "~/maps"])
def test_map_directory_without_a_home_folder(monkeypatch, folder):
    monkeypatch.delenv("ROS_HOME", raising=False)

    def fail(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)  # as without HOME and an entry in passwd
    with pytest.raises(ConfigurationError, match="map_directory"):
        map_directory(NodeParameters(map_directory=folder))
