"""What a process sets up before it starts ROS: shared memory that holds whole images, and where its log goes.

Imports no rclpy.
"""

from __future__ import annotations

import os
from pathlib import Path

from worldstereo_ros.utils.resources import find_resource

# Fast DDS 2 (Humble, Jazzy) and Fast DDS 3 (Kilted and later) name the same setting differently.
PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
# Read from the working folder without being asked for.
PROFILE_FILES = ("DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml")
LOG_VARIABLES = ("ROS_LOG_DIR", "ROS_HOME")


def set_transport_profile() -> str:
    """Makes Fast DDS use config/fastdds.xml in this process, unless the user chose profiles or other middleware.

    Fast DDS's own 512 kB of shared memory are less than one image of 640x480. It then sends fragments over UDP, which
    are lost where the receiver's buffer is small, and best effort (as cameras are received) sends none again. Call it
    before the first node of the process exists.

    Returns:
        The file of the profiles in use; empty if there is none, or none that is known here.
    """
    chosen = next((os.environ[name] for name in PROFILE_VARIABLES if os.environ.get(name)), "")
    if chosen:
        return chosen
    local = next((name for name in PROFILE_FILES if Path(name).is_file()), "")
    if local:
        return str(Path(local).absolute())
    if "fastrtps" not in os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp"):
        return ""
    profile = find_resource("config/fastdds.xml")
    if profile is None:
        return ""
    for name in PROFILE_VARIABLES:
        os.environ[name] = str(profile)
    return str(profile)


def log_arguments() -> list[str]:
    """Returns arguments for `rclpy.init` that keep the log out of the home folder unless ROS is set up there.

    ROS writes a file to ~/.ros/log. Without a home folder it does not start, and in a home folder that has no ~/.ros
    the user did not set ROS up; the log then goes to the console and to /rosout only.
    """
    if any(os.environ.get(name) for name in LOG_VARIABLES):
        return []
    # As ROS finds it: from the environment only.
    home = os.environ.get("HOME", "")
    if home and (Path(home) / ".ros").is_dir():
        return []
    return ["--ros-args", "--disable-external-lib-logs"]
