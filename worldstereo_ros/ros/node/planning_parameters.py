"""The parameters `planning.*`: the robot that needs the space, and the grids that planners read. Imports no rclpy."""

from __future__ import annotations

from dataclasses import dataclass

from worldstereo_ros.ros.node.parameter_rows import row

AUTO = "auto"


@dataclass(frozen=True)
class PlanningParameters:
    """The values of `planning.*`; their names in ROS begin with `planning.`."""

    robot_radius: float = row(0.2, "Radius of the robot.", unit="m", low=0.01, high=10.0)
    robot_height: float = row(
        0.6, "Height of the robot; what is higher above the floor is no obstacle.", unit="m", low=0.05, high=10.0
    )
    max_step: float = row(0.1, "Height that the robot drives over.", unit="m", low=0.001, high=2.0)
    max_slope: float = row(0.35, "Slope of the floor that the robot climbs.", unit="rad", low=0.01, high=1.5)
    floor: str = row(AUTO, "Height of the floor in `world_frame` in metres; auto = found by itself.")
    resolution: float = row(0.1, "Edge of a cell of the grids.", unit="m", low=0.02, high=1.0)
    max_range: float = row(8.0, "Distance up to which depth counts.", unit="m", low=0.5, high=100.0)
    sensor_range: float = row(
        4.0, "Range of the robot's camera, for what a view would show.", unit="m", low=0.1, high=100.0
    )
    completions: int = row(
        0,
        "Random completions of what was not seen (drawn from what a network expects there) in the grids, "
        "in next_best_view, and in scores for which nothing is imagined; 0 = none. Observed cells never change.",
        low=0,
        high=32,
    )
    hypotheses: int = row(
        0,
        "Random seeds with which ~/score_paths imagines views along the paths where a request leaves its number of "
        "hypotheses at 0; scores are of all of them. 0 = nothing is imagined. Each takes as long as the first.",
        low=0,
        high=32,
    )
    view_width: int = row(
        160, "Width of the views that are imagined for scores; cells are larger than their pixels.",
        unit="pixels", low=16, high=4096,
    )  # fmt: skip
    period: float = row(2.0, "Minimum time between two published grids.", unit="s", low=0.1, high=3600.0)
    slow_speed: int = row(
        50,
        "Speed limit of ~/speed_mask where nothing was observed and before it, in percent of the full speed.",
        unit="%",
        low=1,
        high=100,
    )
    slow_distance: float = row(
        1.0,
        "Way over observed free space, before a place that was not observed and in which the robot has room, on which "
        "the speed limit holds: Nav2's speed filter reads the mask where the robot is, not where it is going.",
        unit="m",
        low=0.0,
        high=20.0,
    )
