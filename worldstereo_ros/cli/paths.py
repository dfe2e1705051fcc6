"""Paths of `worldstereo imagine`: presets, between and around the observed views, of the source, files of poses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worldstereo_ros.cli.sources import RecordedPath, Recording
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from worldstereo_ros.geometry.cameras import Camera

DEFAULT_VIEWS, DEFAULT_DISTANCE_M = 21, 1.0  # of preset paths
WITH_LENGTH = ("forward", "backward", "left", "right", "up", "spiral")  # presets
MAX_VIEWS = 1000
MAX_NAMES = 12  # in an error message
SAME_POSE_TOLERANCE = 1e-9  # metres, and of the entries of the rotation


@dataclass(frozen=True)
class ChosenPath:
    """The poses to imagine.

    Attributes:
        poses: (F, 4, 4) world_from_camera.
        camera: camera of the views.
        description: what the poses are, for the user and the results.
    """

    poses: np.ndarray
    camera: Camera
    description: str


def choose_path(name: str, recording: Recording, views: int | None, distance: float | None) -> ChosenPath:
    """Finds the poses to imagine by the name of a path.

    Args:
        name: a path of the source, a preset, one of `CAPTURE_PATHS`, a file of poses, or a folder with a poses.txt.
        recording: the source; presets start at its last observed view.
        views: number of views, spread evenly along the path; None: one for each pose of a recorded path.
        distance: length of a preset path, metres; None: 1 m.

    Raises:
        InputError: there is no such path (the message lists those that there are), it has too many poses, or an option
            does not fit it.
        DatasetError: the file of poses is invalid.
    """
    from worldstereo_ros.geometry.capture_paths import CAPTURE_PATHS
    from worldstereo_ros.geometry.trajectories import TRAJECTORIES, trajectory

    if distance is not None and not math.isfinite(distance):
        raise InputError(f"The distance is {distance}; a number of metres was expected.")
    if distance == 0 and name in WITH_LENGTH:
        raise InputError("The distance is 0: all views along the path would be the same. Give the length of the path.")
    last = recording.observed_views[-1]
    recorded = recording.find_path(name)
    if recorded is None and name in TRAJECTORIES:
        if distance is not None and name not in WITH_LENGTH:
            raise InputError(
                f"--distance is the length of {', '.join(WITH_LENGTH)}; the preset {name} has none. Remove it."
            )
        length = DEFAULT_DISTANCE_M if distance is None else distance
        poses = trajectory(name, last.world_from_camera, views or DEFAULT_VIEWS, distance=length)
        return ChosenPath(poses, last.camera, f"{len(poses)} views along the preset {name}")
    if recorded is None and name in CAPTURE_PATHS:
        if distance is not None:
            raise InputError(f"The length of the path '{name}' follows from the observed views; remove --distance.")
        return _of_captures(name, recording, views or DEFAULT_VIEWS)
    if recorded is None:
        recorded = _read_file(name, last.metric)
    if recorded is None:
        raise InputError(_unknown_path(name, recording, (*TRAJECTORIES, *CAPTURE_PATHS)))
    if distance is not None:
        raise InputError(f"--distance is the length of a preset path; the path '{name}' has its own. Remove it.")
    camera = last.camera if recorded.camera is None else recorded.camera.resized(last.camera.width, last.camera.height)
    return _along(name, recorded.poses, camera, views)


def _of_captures(name: str, recording: Recording, count: int) -> ChosenPath:
    """A path between or around the observed views."""
    import numpy as np

    from worldstereo_ros.geometry.capture_paths import capture_path
    from worldstereo_ros.geometry.poses import estimate_up_direction

    observed = recording.observed_views
    if len(observed) < 2:
        raise InputError(
            f"The path '{name}' is made from several observed views; {len(observed)} is observed. Observe more, such "
            "as --observations 8."
        )
    poses = np.stack([view.world_from_camera for view in observed])
    path = capture_path(name, poses, count, up=estimate_up_direction(poses))
    return ChosenPath(path, observed[-1].camera, f"{count} views {name} the {len(observed)} observed views")


def _along(name: str, recorded: np.ndarray, camera: Camera, views: int | None) -> ChosenPath:
    """The poses of a recorded path as they are, or a number of poses spread along it."""
    import numpy as np

    from worldstereo_ros.geometry.poses import interpolate_poses

    count = len(recorded)
    if views is not None and views > 1 and np.allclose(recorded, recorded[0], rtol=0, atol=SAME_POSE_TOLERANCE):
        same = f"the {count} poses of {name} are all the same" if count > 1 else f"{name} has one pose"
        return ChosenPath(recorded[:1], camera, f"1 view instead of {views}, since {same}")
    if views is not None:
        poses = interpolate_poses(recorded, views)
        return ChosenPath(poses, camera, f"{views} views spread along the {count} poses of {name}")
    if count > MAX_VIEWS:
        raise InputError(
            f"The path '{name}' has {count} poses; at most {MAX_VIEWS} views are imagined at once. Spread fewer along "
            "it with --views N."
        )
    return ChosenPath(recorded, camera, f"{count} views, one for each pose of {name}")


def _read_file(name: str, metric: bool) -> RecordedPath | None:
    """The poses of a file, or of a folder with a poses.txt; None if the name is neither.

    Raises:
        InputError: they are in metres and the source is not, or the other way round; `metric` is of the source.
    """
    from worldstereo_ros.io.path_files import POSES_FILE, read_path_file

    path = Path(name)
    file = path / POSES_FILE if path.is_dir() else path
    if not name or not file.is_file():
        return None
    content = read_path_file(file)
    if content.metric is not None and content.metric != metric:
        units = ("metres", "an arbitrary unit")
        path_unit, source_unit = units[::-1] if metric else units
        raise InputError(
            f"The poses of {file} are in {path_unit} by {content.metric_from}, and the lengths of the source are in "
            f"{source_unit}; the two are not mixed."
        )
    return RecordedPath(content.poses)


def _unknown_path(name: str, recording: Recording, presets: tuple[str, ...]) -> str:
    from worldstereo_ros.io.path_files import POSES_FILE

    names = recording.path_names
    listed = ", ".join(names[:MAX_NAMES]) + (f", and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else "")
    own = f"a path of {recording.name} ({listed})" if names else f"a path of {recording.name}, which has none"
    where = f"{name} is a folder without {POSES_FILE}: it" if name and Path(name).is_dir() else f"The path '{name}'"
    return (
        f"{where} is not a preset ({', '.join(presets)}), not {own}, and not a file of poses or a folder with a "
        f"{POSES_FILE}."
    )
