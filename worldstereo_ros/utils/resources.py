"""Finds files of the package that lie outside its Python modules: configurations, message definitions."""

from __future__ import annotations

import os
from pathlib import Path

import worldstereo_ros

PACKAGE = "worldstereo_ros"


def find_resource(relative: str) -> Path | None:
    """Finds a file or folder of the source checkout or the installed share folder.

    Searches, in this order: the checkout that holds the package, the install prefix above it
    (PREFIX/share/worldstereo_ros, where colcon installs), the prefixes in AMENT_PREFIX_PATH.

    Args:
        relative: path such as "config/fastdds.xml" or "msg/ImaginedView.msg".

    Returns:
        The first path that exists, or None.
    """
    packages = [Path(folder).resolve() for folder in worldstereo_ros.__path__]
    candidates = [folder.parent for folder in packages]
    candidates += [above / "share" / PACKAGE for folder in packages for above in folder.parents]
    prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    candidates += [Path(prefix) / "share" / PACKAGE for prefix in prefixes if prefix]
    return next((folder / relative for folder in candidates if (folder / relative).exists()), None)
