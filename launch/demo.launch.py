"""Launches the node and a simulated robot in a procedural world. Needs no camera, GPU or download.

ros2 launch worldstereo_ros demo.launch.py rviz:=true
"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from worldstereo_ros.ros.launch_common import PACKAGE, arguments, nodes, share, shared_memory


def robot(context) -> list[Node]:
    namespace = LaunchConfiguration("namespace").perform(context).strip("/")
    command = ["--node", f"/{namespace}/worldstereo" if namespace else "/worldstereo"]
    for name in ("scene", "seed", "views"):
        command += [f"--{name}", LaunchConfiguration(name).perform(context)]
    return [Node(package=PACKAGE, executable="worldstereo_robot", arguments=command, output="screen")]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *arguments(params_file="", device="cpu", rviz="true"),
            DeclareLaunchArgument("scene", default_value="room", description="room, corridor or warehouse."),
            DeclareLaunchArgument("seed", default_value="0", description="Random seed of the procedural world."),
            DeclareLaunchArgument("views", default_value="24", description="Views to imagine along the path."),
            DeclareLaunchArgument(
                "overlay", default_value=share("config", "cpu_demo.yaml"), description="Default of params_file."
            ),
            OpaqueFunction(function=set_default_params_file),
            shared_memory(),
            OpaqueFunction(function=nodes),
            OpaqueFunction(function=robot),
        ]
    )


def set_default_params_file(context) -> list:
    """Uses the overlay as params_file if none is given."""
    if not context.launch_configurations.get("params_file"):
        context.launch_configurations["params_file"] = LaunchConfiguration("overlay").perform(context)
    return []
