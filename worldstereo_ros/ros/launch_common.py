"""What the launch files share: their arguments and the node. Needs `launch` and `launch_ros`, and only they need it."""

from __future__ import annotations

from pathlib import Path

from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.conditions import IfCondition
from launch.launch_context import LaunchContext
from launch.substitutions import EnvironmentVariable, LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = "worldstereo_ros"
INPUTS = ("image", "camera_info", "depth", "panorama", "pose", "path")


def share(*parts: str) -> PathJoinSubstitution:
    """A file in the share folder of the package."""
    return PathJoinSubstitution([FindPackageShare(PACKAGE), *parts])


def arguments(**defaults: str) -> list[DeclareLaunchArgument]:
    """The arguments that all launch files of the project have, with other defaults where a file has them."""
    rows = (
        ("params_file", "", "Parameters on top of config/worldstereo.yaml, such as config/cpu_demo.yaml."),
        ("namespace", "", "Namespace of the node and of its topics."),
        ("use_sim_time", "false", "Take the time from /clock: with a simulator, or a bag played with --clock."),
        ("autostart", "true", "Configure and activate at the start; false leaves that to a lifecycle manager."),
        ("log_level", "info", "debug, info, warn, error or fatal."),
        ("rviz", "false", "Open RViz with the project's view."),
        ("device", "", "auto, cpu, cuda or cuda:N; empty = as the parameters say."),
        ("model", "", "geometric, small, or a checkpoint (a folder or a hub id); empty = as the parameters say."),
        *((f"{name}_topic", name, f"Topic that is taken for the input '{name}'.") for name in INPUTS),
    )
    return [
        DeclareLaunchArgument(name, default_value=defaults.get(name, default), description=description)
        for name, default, description in rows
    ]


def shared_memory() -> SetEnvironmentVariable:
    """Gives Fast DDS room for whole images in shared memory, unless its profiles were chosen already."""
    name = "FASTRTPS_DEFAULT_PROFILES_FILE"
    return SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=share("config", "fastdds.xml")))


def nodes(context: LaunchContext) -> list[Node]:
    """The node with its parameters and remaps, and RViz; for an `OpaqueFunction`, when the arguments have values."""

    def given(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    parameters: list = [share("config", "worldstereo.yaml")]
    overlay = given("params_file")
    if overlay:
        if not Path(overlay).expanduser().is_file():
            raise RuntimeError(f"There is no params_file {overlay}; name a YAML file, such as config/cpu_demo.yaml.")
        parameters.append(str(Path(overlay).expanduser()))
    overrides: dict[str, object] = {name: _truth(name, given(name)) for name in ("use_sim_time", "autostart")}
    # A value of digits alone would become a number: these are strings whatever they look like.
    overrides |= {name: ParameterValue(given(name), value_type=str) for name in ("device", "model") if given(name)}
    parameters.append(overrides)
    remaps = [(name, given(f"{name}_topic")) for name in INPUTS if given(f"{name}_topic") != name]
    if "image_topic" in context.launch_configurations and given("image_topic") != "image":
        remaps.append(("image/compressed", given("image_topic").rstrip("/") + "/compressed"))
    return [
        Node(
            package=PACKAGE,
            executable="worldstereo_node",
            name="worldstereo",
            namespace=given("namespace"),
            parameters=parameters,
            remappings=remaps,
            arguments=["--ros-args", "--log-level", given("log_level")],
            output="screen",
            emulate_tty=True,
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            name="rviz",
            namespace=given("namespace"),
            arguments=["-d", share("rviz", "worldstereo.rviz")],
            parameters=[{"use_sim_time": overrides["use_sim_time"]}],
            condition=IfCondition(given("rviz")),
        ),
    ]


def _truth(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise RuntimeError(f"The launch argument '{name}' is '{text}'; true or false was expected.")
    return text.lower() in ("true", "1")
