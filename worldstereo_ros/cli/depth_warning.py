"""A warning of measured depth in a wrong unit, for commands that take frame after frame."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from worldstereo_ros.geometry.cameras import Camera

MAX_FRAMES, STEP = 20, 2  # of the first frames every second is looked at: neighbours hardly move


def warn_of_depth(
    console: Console,
    frames: Iterable[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]],
    camera: Camera | None,
    name: str,
    *,
    posed: bool = True,
    metric: bool = True,
) -> None:
    """Says if the depth of the first frames is implausible, as `worldstereo imagine` says it of the views it observes.

    Args:
        console: for the warning.
        frames: (image, measured depth or None, world_from_camera or None) of each frame, read as far as needed.
        camera: intrinsics; None if they are unknown, so that only the size of the depth tells.
        name: of the source.
        posed: the poses are known; else only the first frame with depth is looked at.
        metric: depth is in metres.
    """
    import math

    import numpy as np
    from rich.markup import escape

    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.depth_units import check_depth
    from worldstereo_ros.geometry.views import View

    views: list[View] = []
    for image, depth, pose in islice(frames, 0, MAX_FRAMES, STEP):
        if depth is None:
            continue
        known = posed and pose is not None and camera is not None
        if views and not known:
            break
        seen_by = camera or Camera.from_fov(image.shape[1], image.shape[0], math.radians(60))
        views.append(View(image, seen_by, pose if known and pose is not None else np.eye(4), depth, metric=metric))
        if not known:
            break
    if warning := check_depth(views, f"The depth of {name}", "--depth-unit"):
        console.print(f"[yellow]{escape(warning)}[/]", highlight=False)
