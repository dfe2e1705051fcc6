"""Folders that requests may name things in: maps, places and photographs. Imports no rclpy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from worldstereo_ros.memory.archive import SUFFIX, archive_path
from worldstereo_ros.ros.node.parameters import ConfigurationError, NodeParameters
from worldstereo_ros.utils.errors import InputError

MAX_NAMED = 1000  # photographs and folders in a request


def map_directory(parameters: NodeParameters) -> Path:
    """Returns the folder of save_map and load_map. It exists only once a map was saved.

    Raises:
        ConfigurationError: there is no home folder that the parameter, or its default, is in.
    """
    try:
        if parameters.map_directory:
            return Path(parameters.map_directory).expanduser()
        return Path(os.environ.get("ROS_HOME") or Path.home() / ".ros") / "worldstereo"
    except RuntimeError:
        raise ConfigurationError(
            "The user has no home folder, so there is no folder for maps. Set `map_directory` to an absolute path, or "
            "ROS_HOME."
        ) from None


def photograph_directory(parameters: NodeParameters) -> Path:
    """Returns the folder of photographs that requests may name. Raises ConfigurationError as `map_directory`."""
    try:
        if parameters.photograph_directory:
            return Path(parameters.photograph_directory).expanduser()
    except RuntimeError:
        raise ConfigurationError(
            "The user has no home folder. Set `photograph_directory` to an absolute path."
        ) from None
    return map_directory(parameters) / "photographs"


def place_folder(parameters: NodeParameters, name: str) -> Path:
    """Returns the folder of a reconstructed place, inside the map directory.

    Raises:
        InputError: the name is no valid name of a map (`memory.archive.archive_path`), or the folder is a symbolic link
            to a place outside.
    """
    file = archive_path(map_directory(parameters), name)
    folder = file.with_name(file.name.removesuffix(SUFFIX))
    if folder.resolve().parent != file.parent or folder == photograph_directory(parameters).resolve():
        raise InputError(
            f"'{name}' is no folder of its own in the map directory {file.parent}: it is the folder of photographs, or "
            "a symbolic link to a place outside. Choose another name."
        )
    return folder


def photograph_paths(parameters: NodeParameters, names: Sequence[str]) -> list[Path]:
    """Returns the files and folders of photographs that a request names; they lie inside the photograph directory.

    Args:
        parameters: of the node.
        names: paths relative to the photograph directory, "." = all of it; absolute ones inside it are accepted, too.

    Raises:
        InputError: a name is empty, does not exist, or leads outside, also by a symbolic link.
    """
    if len(names) > MAX_NAMED:
        raise InputError(f"{len(names)} photographs are named; at most {MAX_NAMED} were expected. Name their folder.")
    directory = photograph_directory(parameters).resolve()
    paths = []
    for name in names:
        shortened = name if len(name) <= 100 else f"{name[:97]}..."
        try:
            path = (directory / name).resolve()
            inside = bool(name) and (path == directory or directory in path.parents)
            exists = inside and path.exists()
        except (OSError, RuntimeError, ValueError):  # a cycle of links, a name that is too long, a null byte
            inside = exists = False
        if not inside:
            raise InputError(
                f"'{shortened}' is not inside the folder of photographs {directory} (parameter "
                "`photograph_directory`). Name photographs, or folders of them, relative to it."
            )
        if not exists:
            raise InputError(f"There is no photograph or folder '{shortened}' in {directory}.")
        paths.append(path)
    return paths
