"""What a drive leaves behind: what the robot did and saw, and what it was told, at each moment."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from worldstereo_ros.geometry.views import ImaginedView, View


@dataclass(frozen=True)
class MapSnapshot:
    """The grids of one moment; each has cells (Y, X) int8, x and y of its low corner, and the edge of a cell in metres.

    Attributes:
        graded: P(occupied) in percent, -1 = unknown.
        source: 0 = observed, 50 = estimated, 100 = imagined, -1 = unknown.
        slow: speed mask in percent, 0 = no limit.
        low: (2,) metres.
        resolution: metres.
    """

    graded: np.ndarray
    source: np.ndarray
    slow: np.ndarray
    low: np.ndarray
    resolution: float


@dataclass(frozen=True)
class PathChoice:
    """The answer to which path is best.

    Attributes:
        seconds: when it arrived.
        paths: name -> (N, 2) points.
        collision: name -> probability of a collision.
        winner: name of the best one.
        taken: name of the one that the robot follows.
        reason: a sentence.
    """

    seconds: float
    paths: dict[str, np.ndarray]
    collision: dict[str, float]
    winner: str
    taken: str
    reason: str


@dataclass(frozen=True)
class DriveSample:
    """One moment.

    Attributes:
        seconds: since the start of the drive, of the robot's time.
        x, y, yaw: pose of the robot; metres, radians.
        speed: metres a second. limit: share of the full speed that the mask allows.
        view, imagined, map, choice: index of the newest one; -1 = none yet.
        stopped_for: metres to what stands in the way; infinite if nothing does.
    """

    seconds: float
    x: float
    y: float
    yaw: float
    speed: float
    limit: float
    view: int
    imagined: int
    map: int
    choice: int
    stopped_for: float


@dataclass
class DriveRecording:
    """A whole drive.

    Attributes:
        title: one line of text.
        full_speed: metres a second.
        radius: of the robot's circle, metres.
        fov: horizontal angle of its camera, radians.
        bounds: ((x0, y0), (x1, y1)) of the world, metres.
        corner: (2,) where the walls meet that hide what is behind them.
        samples: the moments, in order, equally far apart.
        views: what the camera saw. imagined: views that the node imagined. maps, choices: what it answered.
        messages: number of messages received, by topic.
    """

    title: str
    full_speed: float
    radius: float
    fov: float
    bounds: tuple[tuple[float, float], tuple[float, float]]
    corner: np.ndarray
    samples: list[DriveSample] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    imagined: list[ImaginedView] = field(default_factory=list)
    maps: list[MapSnapshot] = field(default_factory=list)
    choices: list[PathChoice] = field(default_factory=list)
    messages: dict[str, int] = field(default_factory=dict)
