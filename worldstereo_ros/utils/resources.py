"""Finds files that come with the package but outside its Python modules: configurations, message definitions."""

from __future__ import annotations

import os
from pathlib import Path

import worldstereo_ros

PACKAGE = "worldstereo_ros"


def find_resource(relative: str) -> Path | None:
    """The file or folder `relative` ("config/fastdds.xml", "msg/ImaginedView.msg"), or None where it is missing.

    Looked for in this order: the checkout that holds the package, the install prefix above it
    (PREFIX/share/worldstereo_ros, where colcon installs), the prefixes of AMENT_PREFIX_PATH.
    """
    folders = [Path(folder).resolve() for folder in worldstereo_ros.__path__]
    places = [folder.parent for folder in folders]
    places += [above / "share" / PACKAGE for folder in folders for above in folder.parents]
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    places += [Path(prefix) / "share" / PACKAGE for prefix in prefixes if prefix]
    return next((place / relative for place in places if (place / relative).exists()), None)
