"""Requests to score paths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from worldstereo_ros.pipelines.base import OnStep
from worldstereo_ros.planning import PathScores, RobotShape, imagine_hypotheses, score_paths, world_grid
from worldstereo_ros.planning.occupancy_map import MAX_HYPOTHESES
from worldstereo_ros.planning.visibility import Sensor
from worldstereo_ros.serving.limits import ServingLimits
from worldstereo_ros.serving.messages import array_of, check_known, number, text, unpack, whole
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import EmptyMemoryError, WorldModel

MAX_PATHS, MAX_NAME = 1000, 200
FIELDS = (
    "names", "hypotheses", "views", "view_width", "prompt", "robot_radius", "robot_height", "max_step", "max_slope",
    "sensor_range", "resolution", "max_range", "floor",
)  # fmt: skip

Scoring = Callable[[WorldModel, OnStep], PathScores]


def parse_scoring(body: bytes, limits: ServingLimits) -> Scoring:
    """Checks a request to score paths.

    Args:
        body: a message: `names`, the array `path.N` (F, 4, 4) of each, `up` (3,), and numbers as of the command score.
        limits: what is accepted.

    Returns:
        What scores them on a world model, calling an `on_step` while it imagines; raises EmptyMemoryError, InputError,
        ModelError.

    Raises:
        InputError, ServingError: the request is not usable, or too large.
    """
    fields, arrays = unpack(body)
    check_known(fields, FIELDS)
    paths = _paths(fields, arrays)
    limits.check_poses(sum(len(path) for path in paths.values()))
    hypotheses = whole(fields, "hypotheses", 0, 0, MAX_HYPOTHESES)
    views, width = whole(fields, "views", 8, 1, 1000), whole(fields, "view_width", 160, 16, 4096)
    limits.check_views(hypotheses * views * len(paths))
    prompt = text(fields, "prompt")
    robot = RobotShape(
        number(fields, "robot_radius", 0.2, 0.01, 10),
        number(fields, "robot_height", 0.6, 0.05, 10),
        number(fields, "max_step", 0.1, 0.001, 2),
        number(fields, "max_slope", 0.35, 0.01, 1.5),
    )
    sensor_range = number(fields, "sensor_range", 4, 0.1, 100)
    settings: dict[str, Any] = {
        "robot": robot,
        "resolution": number(fields, "resolution", 0.1, 0.02, 1),
        "max_range": number(fields, "max_range", 8, 0.5, 100),
        "floor": None if fields.get("floor") is None else number(fields, "floor", None, -1e6, 1e6),
        "up": array_of(arrays, "up", np.float64, 1) if "up" in arrays else None,
    }

    def score(world: WorldModel, on_step: OnStep) -> PathScores:
        newest = world.newest_observation
        if newest is None:
            raise EmptyMemoryError("Nothing was observed yet.")
        camera = newest.camera
        across = min(width, camera.width)
        small = camera.resized(across, max(1, round(camera.height * across / camera.width)))
        options: dict[str, Any] = {"seeds": range(hypotheses), "views": views, "prompt": prompt, "on_step": on_step}
        imagined = imagine_hypotheses(world, paths, small, **options) if hypotheses else []
        on_step("scoring", 0, 2)
        grid = world_grid(world, paths, hypotheses=imagined, **settings)
        on_step("scoring", 1, 2)
        return score_paths(grid, paths, sensor=Sensor.of_camera(camera, sensor_range))

    return score


def _paths(fields: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = fields.get("names")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_PATHS or not all(isinstance(n, str) for n in names):
        raise InputError(f"The field names is no list of 1 to {MAX_PATHS} names of paths.")
    if len(set(names)) != len(names) or max(map(len, names)) > MAX_NAME:
        raise InputError(f"The names of the paths are not all different, or longer than {MAX_NAME} characters.")
    return {name: array_of(arrays, f"path.{index}", np.float64, 3) for index, name in enumerate(names)}
