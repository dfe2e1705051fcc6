"""Launches the node and plays a bag with its own clock.

ros2 launch worldstereo_ros replay.launch.py bag:=drive.mcap image_topic:=/camera/color/image_raw \
    camera_info_topic:=/camera/color/camera_info depth_topic:=/camera/aligned_depth_to_color/image_raw
"""

from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction
from launch.substitutions import LaunchConfiguration

from launch import LaunchDescription
from worldstereo_ros.ros.launch_common import arguments, nodes, shared_memory


def player(context) -> list[ExecuteProcess]:
    bag = LaunchConfiguration("bag").perform(context)
    rate = LaunchConfiguration("rate").perform(context)
    command = ["ros2", "bag", "play", bag, "--clock", "100", "--rate", rate]
    if LaunchConfiguration("loop").perform(context).lower() in ("true", "1"):
        command.append("--loop")
    return [ExecuteProcess(cmd=command, output="screen")]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *arguments(use_sim_time="true"),
            DeclareLaunchArgument("bag", description="The bag: a folder, or an MCAP or SQLite file."),
            DeclareLaunchArgument("rate", default_value="1.0", description="Playback rate."),
            DeclareLaunchArgument("loop", default_value="false", description="Play the bag in a loop."),
            shared_memory(),
            OpaqueFunction(function=nodes),
            OpaqueFunction(function=player),
        ]
    )
