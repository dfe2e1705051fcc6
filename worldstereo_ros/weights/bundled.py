"""Names, folders and files of the weights bundled with the package. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

import worldstereo_ros

BUNDLED = ("small",)
DEFAULT_MODEL = "small"


def bundled_folder(name: str) -> Path:
    """Returns the checkpoint folder of a bundled model.

    Args:
        name: one of `BUNDLED`.

    Returns:
        The folder; where it should be, if this installation lacks it.
    """
    return _bundled(name)


def bundled_file(name: str) -> Path:
    """Returns a file of `weights/`, such as confidence.json; where it should be, if this installation lacks it."""
    return _bundled(name)


def _bundled(name: str) -> Path:
    # The package may span several folders: a checkout, and the installation of its ROS messages.
    paths = [Path(folder) / "weights" / name for folder in worldstereo_ros.__path__]
    return next((path for path in paths if path.exists()), paths[0])


def has_bundled(part: str) -> bool:
    """Whether a part of the bundled model (a folder of its `base`, such as stereo) is in this installation."""
    return (bundled_folder(DEFAULT_MODEL) / "base" / part).is_dir()
