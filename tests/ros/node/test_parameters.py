"""The parameter table, and that everything made from it agrees."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from helpers.paths import REPOSITORY

from worldstereo_ros.ros.node.parameters import (
    CONFIGURE,
    ConfigurationError,
    NodeParameters,
    check_value,
    kind,
    make_parameters,
    map_directory,
    table,
    to_markdown,
    to_yaml,
)
from worldstereo_ros.ros.node.subscriptions import INPUTS

ROWS = {row.name: row for row in table()}


def test_every_row_says_what_it_is():
    for row in table():
        info = row.metadata
        assert info["description"].endswith(".") or info["description"][-1].isalpha(), row.name
        assert len(info["description"]) > 15, row.name
        numeric = kind(row) in ("integer", "double")
        assert numeric == (info["low"] is not None and info["high"] is not None), f"{row.name} has no range"
        assert row.name.islower()


@pytest.mark.parametrize("name", ROWS)
def test_default_passes_its_own_check(name):
    row = ROWS[name]
    assert check_value(row, row.metadata["default"]) == row.metadata["default"]


def test_defaults_go_together():
    assert make_parameters({}) == NodeParameters()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.metadata["low"] is not None])
def test_range_is_kept(name):
    row = ROWS[name]
    low, high = row.metadata["low"], row.metadata["high"]
    assert check_value(row, low) == low
    assert check_value(row, high) == high
    for value in (low - 1, high + 1):
        with pytest.raises(ConfigurationError, match=f"'{name}'.*between"):
            check_value(row, value)
    if kind(row) == "double":
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
    ],
)
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=f"'{name}'"):
        check_value(ROWS[name], value)


def test_whole_numbers_pass_for_doubles():
    assert check_value(ROWS["tf_timeout"], 1) == 1.0
    assert check_value(ROWS["base_to_camera"], [0, 0, 0, 0, 0, 0, 1]) == [0, 0, 0, 0, 0, 0, 1]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigurationError, match="different frames"):
        make_parameters({"world_frame": "base_link"})
    with pytest.raises(ConfigurationError, match="depth_model"):
        make_parameters({"depth_source": "model", "depth_model": "none"})
    assert make_parameters({"depth_source": "model"}).depth_model == ""  # the network that ships


def test_map_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("ROS_HOME", str(tmp_path))
    assert map_directory(NodeParameters()) == tmp_path / "worldstereo"
    assert map_directory(NodeParameters(map_directory="~/maps")) == Path.home() / "maps"


# --- what is made from it ---


def test_yaml_gives_the_defaults_back():
    loaded = yaml.safe_load(to_yaml())["/**"]["ros__parameters"]
    assert list(loaded) == list(ROWS)
    for name, value in loaded.items():
        default = ROWS[name].metadata["default"]
        assert value == default, name
        assert type(value) is type(default), name
    assert make_parameters(loaded) == NodeParameters()


def test_shipped_yaml_is_the_table():
    assert (REPOSITORY / "config" / "worldstereo.yaml").read_text() == to_yaml()


@pytest.mark.parametrize("path", sorted((REPOSITORY / "config").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_overlays_name_only_parameters_that_exist(path):
    content = yaml.safe_load(path.read_text())
    if "ros__parameters" not in content.get("/**", {}):
        pytest.skip("parameters of another node")
    values = content["/**"]["ros__parameters"]
    overrides = values.pop("qos_overrides", {})
    assert set(overrides) <= {f"/{name}" for name, *_ in INPUTS}
    assert all(set(override) == {"subscription"} for override in overrides.values())
    make_parameters(values)


def test_markdown_has_every_row():
    text = to_markdown()
    for row in table():
        assert f"| `{row.name}` | {kind(row)} |" in text
    assert len(text.strip().splitlines()) == len(ROWS) + 2


def test_declaration_in_ros_agrees_with_the_table():
    import rclpy
    from rclpy.parameter import Parameter

    from worldstereo_ros.ros.node.parameter_server import ParameterServer

    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "-p", "voxel_size:=1", "-p", "path_pose_frame:=wheel"])
    applied: list[NodeParameters] = []
    configured = [False]
    try:
        node = rclpy.create_node("table", context=context)
        server = ParameterServer(node, configured=lambda: configured[0], apply=applied.append)
        types = {"bool": 1, "integer": 2, "double": 3, "string": 4, "double_array": 8}
        for row in table():
            parameter, descriptor = node.get_parameter(row.name), node.describe_parameter(row.name)
            assert parameter.type_.value == types[kind(row)], row.name
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
