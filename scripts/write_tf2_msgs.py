"""Writes the interface package tf2_msgs into a folder, for ROS from PyPI, which has no wheel of it.

The definition of its one message comes from the type store of rosbags.
Usage: python write_tf2_msgs.py FOLDER
"""

import sys
from pathlib import Path

from rosbags.typesys import Stores, get_typestore

PACKAGE_XML = """<?xml version="1.0"?>
<package format="3">
  <name>tf2_msgs</name>
  <version>0.0.0</version>
  <description>The TFMessage of tf2, for environments without tf2.</description>
  <maintainer email="maintainers@worldstereo-ros.dev">worldstereo_ros maintainers</maintainer>
  <license>BSD</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>geometry_msgs</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
CMAKE_LISTS = """cmake_minimum_required(VERSION 3.20)
project(tf2_msgs)
find_package(ament_cmake REQUIRED)
find_package(geometry_msgs REQUIRED)
find_package(rosidl_default_generators REQUIRED)
rosidl_generate_interfaces(${PROJECT_NAME} "msg/TFMessage.msg" DEPENDENCIES geometry_msgs)
ament_package()
"""


def main() -> None:
    """Writes the package. Files that are up to date are not written, so that colcon does not build them again."""
    folder = Path(sys.argv[1]) / "tf2_msgs"
    (folder / "msg").mkdir(parents=True, exist_ok=True)
    definition, _ = get_typestore(Stores.ROS2_JAZZY).generate_msgdef("tf2_msgs/msg/TFMessage", ros_version=2)
    own_fields = definition.split("=" * 80)[0]  # the definitions of nested types follow
    for path, text in {
        folder / "package.xml": PACKAGE_XML,
        folder / "CMakeLists.txt": CMAKE_LISTS,
        folder / "msg" / "TFMessage.msg": own_fields,
    }.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main()
