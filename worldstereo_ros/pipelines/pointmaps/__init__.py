"""Point maps and camera poses from one moving camera's video.

    maps = estimate_pointmaps(frames, camera)
    maps.points, maps.poses, maps.ok, maps.messages

`PointmapStream` does the same frame by frame.
"""

from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
from worldstereo_ros.pipelines.pointmaps.windows import PointmapStream, estimate_pointmaps

__all__ = ["PointmapStream", "Pointmaps", "estimate_pointmaps"]
