"""Visualisation markers: one frustum per view and the path of the imagined views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from geometry_msgs.msg import Point
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View

# The same hues as in all figures of the project: blue = observed, yellow = estimated, orange = imagined.
OBSERVED = ColorRGBA(r=0.20, g=0.55, b=1.00, a=0.9)
ESTIMATED = ColorRGBA(r=1.00, g=0.90, b=0.25, a=0.9)
IMAGINED = ColorRGBA(r=1.00, g=0.60, b=0.15, a=0.9)
FRUSTUM_LENGTH_M = 0.25  # from the camera centre to the drawn image plane
_EDGES = ((0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1))


class Frustum(NamedTuple):
    """What is drawn of a view: its camera and its pose (4, 4) in the world frame. Keeps no image."""

    camera: Camera
    world_from_camera: np.ndarray


def frusta(bank: Sequence[View], imagined: Sequence[View | Frustum], header: Header) -> MarkerArray:
    """Draws the frusta of views and the path of the imagined ones.

    Always four markers, whatever the number of views: line lists draw fast, and an update replaces them.

    Args:
        bank: views of the view bank; imagined ones among them are skipped. Observations with estimated depth are drawn
            apart from those with measured depth.
        imagined: imagined views, in the order of their path.
        header: world frame and time.
    """
    observations = [view for view in bank if view.is_observation]
    is_estimated = [bool(view.estimated_mask.any()) for view in observations]
    observed = [view for view, estimated in zip(observations, is_estimated, strict=True) if not estimated]
    estimated = [view for view, estimated in zip(observations, is_estimated, strict=True) if estimated]
    return MarkerArray(
        markers=[
            _lines("observed views", observed, OBSERVED, header),
            _lines("estimated views", estimated, ESTIMATED, header),
            _lines("imagined views", imagined, IMAGINED, header),
            _path(imagined, header),
        ]
    )


def corners(view: View | Frustum, length: float = FRUSTUM_LENGTH_M) -> np.ndarray:
    """(5, 3) world points: the camera centre and the four image corners at `length` metres along the optical axis."""
    camera = view.camera
    pixels = np.array([[-0.5, -0.5], [camera.width - 0.5, -0.5], [camera.width - 0.5, camera.height - 0.5],
                       [-0.5, camera.height - 0.5]])  # fmt: skip
    local = np.zeros((5, 3))
    local[1:, 0] = (pixels[:, 0] - camera.cx) / camera.fx
    local[1:, 1] = (pixels[:, 1] - camera.cy) / camera.fy
    local[1:, 2] = 1
    pose = view.world_from_camera
    return local * length @ pose[:3, :3].T + pose[:3, 3]


def _lines(namespace: str, views: Sequence[View | Frustum], colour: ColorRGBA, header: Header) -> Marker:
    marker = _marker(namespace, Marker.LINE_LIST, 0.01, colour, header)
    for view in views:
        ends = [_point(corner) for corner in corners(view)]
        for a, b in _EDGES:
            marker.points += [ends[a], ends[b]]
    if not marker.points:
        marker.action = Marker.DELETE
    return marker


def _path(views: Sequence[View | Frustum], header: Header) -> Marker:
    marker = _marker("imagined path", Marker.LINE_STRIP, 0.02, IMAGINED, header)
    marker.points = [_point(view.world_from_camera[:3, 3]) for view in views]
    if len(marker.points) < 2:
        marker.points, marker.action = [], Marker.DELETE
    return marker


def _marker(namespace: str, kind: int, width: float, colour: ColorRGBA, header: Header) -> Marker:
    marker = Marker(header=header, ns=namespace, id=0, type=kind, action=Marker.ADD, color=colour)
    marker.scale.x = width
    marker.pose.orientation.w = 1.0
    marker.frame_locked = False
    return marker


def _point(xyz: np.ndarray) -> Point:
    return Point(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))
