"""Launches the node on a robot that publishes camera images and TF.

ros2 launch worldstereo_ros worldstereo.launch.py image_topic:=/camera/color/image_raw \
    camera_info_topic:=/camera/color/camera_info depth_topic:=/camera/aligned_depth_to_color/image_raw
"""

from launch.actions import OpaqueFunction

from launch import LaunchDescription
from worldstereo_ros.ros.launch_common import arguments, nodes, shared_memory


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription([*arguments(), shared_memory(), OpaqueFunction(function=nodes)])
