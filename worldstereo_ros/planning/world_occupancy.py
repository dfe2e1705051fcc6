"""The occupancy of a world model: what it remembers, and what it imagines along paths with several random seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, interpolate_poses
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.planning.cells import RobotShape
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.occupancy_grid import OccupancyGrid
from worldstereo_ros.planning.occupancy_map import (
    MAX_HYPOTHESES,
    MAX_RANGE_M,
    RESOLUTION_M,
    OccupancyMap,
    PointStates,
    check_points,
)
from worldstereo_ros.utils.errors import InputError

if TYPE_CHECKING:
    from worldstereo_ros.pipelines.base import OnStep
    from worldstereo_ros.planning.remembered import RememberedWorld
    from worldstereo_ros.world import WorldModel

VIEWS_A_PATH = 8


def world_grid(
    world: WorldModel | RememberedWorld,
    paths: Mapping[str, np.ndarray] | Sequence[np.ndarray] = (),
    *,
    hypotheses: Sequence[Sequence[ImaginedView]] = (),
    robot: RobotShape | None = None,
    resolution: float = RESOLUTION_M,
    floor: float | None = None,
    up: np.ndarray | None = None,
    max_range: float = MAX_RANGE_M,
) -> OccupancyGrid:
    """The grid of what a world model remembers and imagines.

    Args:
        world: the world model, or a copy of what it remembers.
        paths: paths (N, 4, 4) that the map must contain, by name or in a sequence.
        hypotheses: the views that each random seed imagined, such as `imagine_hypotheses` returns.
        robot: the space that it needs; None: the default.
        resolution, floor, up, max_range: see `OccupancyMap.from_world` and `make_grid`.

    Raises:
        InputError: nothing was observed, no floor was found, a pose is not finite, or the map would be too large.
    """
    every = list(paths.values()) if isinstance(paths, Mapping) else list(paths)
    points = [check_poses(poses)[:, :3, 3] for poses in every]
    occupancy = OccupancyMap.from_world(
        world,
        resolution=resolution,
        up=up,
        max_range=max_range,
        include=np.concatenate(points) if points else None,
    )
    for views in hypotheses:
        occupancy.add_hypothesis(views)
    return make_grid(occupancy, robot, floor=floor)


def imagine_hypotheses(
    world: WorldModel,
    paths: Mapping[str, np.ndarray] | Sequence[np.ndarray],
    camera: Camera,
    *,
    seeds: Sequence[int] = (0,),
    views: int = VIEWS_A_PATH,
    prompt: str = "",
    on_step: OnStep | None = None,
) -> list[list[ImaginedView]]:
    """Imagines views along paths with several random seeds; memory is unchanged.

    Args:
        world: the world model.
        paths: paths (N, 4, 4), by name or in a sequence.
        camera: intrinsics and size of the views.
        seeds: random seeds of the model, one hypothesis each. A model without randomness gives the same for all, and
            what memory holds of views that were imagined before is the same for all.
        views: number of views of each path, spread evenly along it.
        prompt, on_step: see `WorldModel.imagine`.

    Returns:
        For each seed the views of all paths.

    Raises:
        InputError: there are no paths or seeds, too many seeds, a seed twice, or a pose is not finite.
        EmptyMemoryError, ModelError: see `WorldModel.imagine`.
    """
    every = list(paths.values()) if isinstance(paths, Mapping) else list(paths)
    if not every or not seeds or len(seeds) > MAX_HYPOTHESES or len(set(seeds)) != len(seeds):
        raise InputError(
            f"There are {len(every)} paths and the seeds {list(seeds)[: MAX_HYPOTHESES + 1]}; at least one path and 1 "
            f"to {MAX_HYPOTHESES} different seeds were expected."
        )
    if views < 1:
        raise InputError(f"{views} views a path were requested; at least 1 was expected.")
    thinned = [interpolate_poses(check_poses(poses), views) if len(poses) > views else poses for poses in every]
    return [
        [
            view
            for poses in thinned
            for view in world.imagine(poses, camera, prompt=prompt, seed=int(seed), on_step=on_step)
        ]
        for seed in seeds
    ]


def query_points(
    source: WorldModel | RememberedWorld | OccupancyMap, points: np.ndarray, *, resolution: float = RESOLUTION_M
) -> PointStates:
    """The state of points (see `CellState`), the probability that they are occupied, and the confidence of the state.

    Args:
        source: a world model, or its map where several questions are asked.
        points: (N, 3) world points, metres.
        resolution: of the map that is made of a world model, metres.

    Raises:
        InputError: the points are not finite, or see `OccupancyMap.from_world`.
    """
    if not isinstance(source, OccupancyMap):
        check_points(points)
        source = OccupancyMap.from_world(source, resolution=resolution)
    return source.query(points)
