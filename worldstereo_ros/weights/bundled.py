"""Models that come with the package. Imports nothing heavy: commands ask here before they load anything."""

from __future__ import annotations

from pathlib import Path

import worldstereo_ros

BUNDLED = ("small",)
DEFAULT_MODEL = "small"  # where nothing is said: the better one by the tables of docs/small_model.md


def bundled_folder(name: str) -> Path:
    """The checkpoint root of a model of `BUNDLED`; where it should be, if this installation lacks it."""
    # The package may lie in several folders: a checkout, and where its ROS messages were installed.
    folders = [Path(folder) / "weights" / name for folder in worldstereo_ros.__path__]
    return next((folder for folder in folders if folder.is_dir()), folders[0])
