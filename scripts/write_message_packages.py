"""Writes interface packages into a folder that ROS from PyPI has no wheels of: tf2_msgs, map_msgs, nav2_msgs.

Each has only the messages that this package uses; a full ROS has the whole packages. The definition of tf2_msgs comes
from the type store of rosbags, which lacks the other two: their fields, which are facts of the interface, are here.
Usage: python write_message_packages.py FOLDER
"""

import sys
from pathlib import Path

from rosbags.typesys import Stores, get_typestore

OCCUPANCY_GRID_UPDATE = """std_msgs/Header header
int32 x
int32 y
uint32 width
uint32 height
int8[] data
"""
COSTMAP_FILTER_INFO = """std_msgs/Header header
uint8 type
string filter_mask_topic
float32 base
float32 multiplier
"""
PACKAGE_XML = """<?xml version="1.0"?>
<package format="3">
  <name>{name}</name>
  <version>0.0.0</version>
  <description>The message {message} of {name}, for environments without that package.</description>
  <maintainer email="maintainers@worldstereo-ros.dev">worldstereo_ros maintainers</maintainer>
  <license>{license}</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <depend>{dependency}</depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
CMAKE_LISTS = """cmake_minimum_required(VERSION 3.20)
project({name})
find_package(ament_cmake REQUIRED)
find_package({dependency} REQUIRED)
find_package(rosidl_default_generators REQUIRED)
rosidl_generate_interfaces(${{PROJECT_NAME}} "msg/{message}.msg" DEPENDENCIES {dependency})
ament_package()
"""


def main() -> None:
    """Writes the packages. Files that are up to date are not written, so that colcon does not build them again."""
    definition, _ = get_typestore(Stores.ROS2_JAZZY).generate_msgdef("tf2_msgs/msg/TFMessage", ros_version=2)
    transforms = definition.split("=" * 80)[0]  # the definitions of nested types follow
    for name, message, dependency, license_name, fields in (
        ("tf2_msgs", "TFMessage", "geometry_msgs", "BSD", transforms),
        ("map_msgs", "OccupancyGridUpdate", "std_msgs", "BSD", OCCUPANCY_GRID_UPDATE),
        ("nav2_msgs", "CostmapFilterInfo", "std_msgs", "Apache-2.0", COSTMAP_FILTER_INFO),
    ):
        folder = Path(sys.argv[1]) / name
        (folder / "msg").mkdir(parents=True, exist_ok=True)
        values = {"name": name, "message": message, "dependency": dependency, "license": license_name}
        for path, text in {
            folder / "package.xml": PACKAGE_XML.format(**values),
            folder / "CMakeLists.txt": CMAKE_LISTS.format(**values),
            folder / "msg" / f"{message}.msg": fields,
        }.items():
            if not path.exists() or path.read_text() != text:
                path.write_text(text)


if __name__ == "__main__":
    main()
