"""Arguments and nodes that all launch files share. The only module that imports `launch` and `launch_ros`."""

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
    """Returns the path of a file in the share folder of the package."""
    return PathJoinSubstitution([FindPackageShare(PACKAGE), *parts])


def arguments(**defaults: str) -> list[DeclareLaunchArgument]:
    """Declares the arguments of every launch file.

    Args:
        defaults: defaults by name; replace those below.
    """
    rows = (
        ("params_file", "", "YAML file that overrides config/worldstereo.yaml, such as config/cpu_demo.yaml."),
        ("namespace", "", "Namespace of the node and of its topics."),
        ("use_sim_time", "false", "Use the time of /clock, of a simulator or a bag played with --clock."),
        ("autostart", "true", "Configure and activate the node; false leaves that to a lifecycle manager."),
        ("log_level", "info", "debug, info, warn, error or fatal."),
        ("rviz", "false", "Start RViz with rviz/worldstereo.rviz."),
        ("device", "", "auto, cpu, cuda or cuda:N; empty = the value in the parameter files."),
        (
            "model",
            "",
            "geometric, small, or a checkpoint (a folder or a hub id); empty = the value in the parameter files.",
        ),
        ("stereo", "", "true: publish the stereo pairs of ~/stereo/*; empty = the value in the parameter files."),
        ("stereo_base", "", "Distance between their eyes in metres; empty = the value in the parameter files."),
        *((f"{name}_topic", name, f"Topic of the input '{name}'.") for name in INPUTS),
    )
    return [
        DeclareLaunchArgument(name, default_value=defaults.get(name, default), description=description)
        for name, default, description in rows
    ]


def shared_memory() -> SetEnvironmentVariable:
    """Makes Fast DDS use shared memory that holds whole images, unless its profiles are set already."""
    name = "FASTRTPS_DEFAULT_PROFILES_FILE"
    return SetEnvironmentVariable(name, EnvironmentVariable(name, default_value=share("config", "fastdds.xml")))


def nodes(context: LaunchContext) -> list[Node]:
    """Returns the node and RViz. Called by an `OpaqueFunction`, once the launch arguments have values."""

    def value_of(name: str) -> str:
        return LaunchConfiguration(name).perform(context).strip()

    parameters: list = [share("config", "worldstereo.yaml")]
    overlay = value_of("params_file")
    if overlay:
        if not Path(overlay).expanduser().is_file():
            raise RuntimeError(
                f"The params_file {overlay} does not exist; expected a YAML file, such as config/cpu_demo.yaml."
            )
        parameters.append(str(Path(overlay).expanduser()))
    overrides: dict[str, object] = {name: _parse_bool(name, value_of(name)) for name in ("use_sim_time", "autostart")}
    # Typed, because launch turns a value of digits alone into a number.
    overrides |= {
        name: ParameterValue(value_of(name), value_type=str) for name in ("device", "model") if value_of(name)
    }
    if value_of("stereo"):
        overrides["stereo.enabled"] = _parse_bool("stereo", value_of("stereo"))
    if value_of("stereo_base"):
        overrides["stereo.base"] = _parse_number("stereo_base", value_of("stereo_base"))
    parameters.append(overrides)
    remaps = [(name, value_of(f"{name}_topic")) for name in INPUTS if value_of(f"{name}_topic") != name]
    if "image_topic" in context.launch_configurations and value_of("image_topic") != "image":
        remaps.append(("image/compressed", value_of("image_topic").rstrip("/") + "/compressed"))
    return [
        Node(
            package=PACKAGE,
            executable="worldstereo_node",
            name="worldstereo",
            namespace=value_of("namespace"),
            parameters=parameters,
            remappings=remaps,
            arguments=["--ros-args", "--log-level", value_of("log_level")],
            output="screen",
            emulate_tty=True,
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            name="rviz",
            namespace=value_of("namespace"),
            arguments=["-d", share("rviz", "worldstereo.rviz")],
            parameters=[{"use_sim_time": overrides["use_sim_time"]}],
            condition=IfCondition(value_of("rviz")),
        ),
    ]


def _parse_bool(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise RuntimeError(f"The launch argument '{name}' is '{text}'; true or false was expected.")
    return text.lower() in ("true", "1")


def _parse_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RuntimeError(f"The launch argument '{name}' is '{text}'; a number was expected.") from None
