"""Views for the memories whose poses or depth are those of point maps. Imports no rclpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.pointmaps.session import MIN_MAP_CONFIDENCE
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps
from worldstereo_ros.ros.node.pointmap_path import PathFrame, PointmapPath
from worldstereo_ros.ros.node.synchronizer import Observation
from worldstereo_ros.world import WorldModel

MAX_VIEWS = 4  # of a part
MIN_STEP, MIN_TURN_DEG = 0.02, 2.0  # between two views that are remembered: in median depths, or the angle


@dataclass(frozen=True)
class PlacedObservation(Observation):
    """Images of a part of a path with what point maps say of them.

    Attributes:
        views: what is remembered of them, on the path; the other attributes are those of the newest.
        place: takes a view from the path to where it is in the memories, as they are when it is remembered.
    """

    views: tuple[View, ...] = ()
    place: Callable[[View], View] = field(default=lambda view: view)

    def remember(self, world: WorldModel) -> None:
        """Inserts the views into the memories. Raises ValueError if one is not usable; earlier ones stay."""
        for view in self.views:
            world.observe(self.place(view))


class MemoryFeed:
    """Chooses what of a path is remembered.

    Poses of point maps are in a frame of their own, that of the first part. What follows a break of the path is in
    another one, and is not remembered until it is joined to the first (`pointmap_loops`), or the memories are reset.

    Args:
        offer: takes an observation for the worker.
        warn: logs (text, key), sparingly for each key.

    Attributes:
        placed: the memories hold views that point maps placed.
    """

    def __init__(self, offer: Callable[[Observation], None], warn: Callable[[str, str], None]) -> None:
        self._offer, self._warn = offer, warn
        self.restart()

    def restart(self) -> None:
        """Begins anew, as after a reset of the memories."""
        self.placed = self._guess_reported = False
        self._last: np.ndarray | None = None  # pose of the view that was remembered last

    def accepts(self, path: PointmapPath, *, given: bool, tied: bool, may_join: bool) -> bool:
        """Whether a part of the path may be remembered; a warning says why not.

        Args:
            path: with its newest frames.
            given: its poses came with the images.
            tied: where this part is in what is remembered is known.
            may_join: it may become known, where the camera sees again what it saw before.
        """
        if given:
            return True
        if path.scale_awaited:
            self._warn(
                "pointmaps: Nothing is remembered yet: what tells the scale (wheel odometry, TF) has not moved by 1 "
                "cm. Drive a little.",
                "pointmaps scale awaited",
            )
            return False
        if not tied:
            until = "until the camera sees again what it saw before. Or call" if may_join else "any more. Call"
            self._warn(
                "pointmaps: The path is broken (a cut, a gap, or nothing to follow): where the camera is now in what "
                f"is remembered is not known, and nothing is remembered {until} ~/reset to begin anew here.",
                "pointmaps broken",
            )
            return False
        if not path.metric and not self._guess_reported:
            self._guess_reported = True
            self._warn(
                "pointmaps: Lengths are a guess of the depth network, not metres, and so are those of the "
                "memories: nothing tells the scale. Publish depth or wheel odometry (topic odometry), or set "
                "pointmaps.scale_frame, and call ~/reset.",
                "pointmaps guess",
            )
        return True

    def offer(self, observation: PlacedObservation, *, given: bool) -> None:
        """Hands an observation on to the worker."""
        self.placed = self.placed or not given
        self._offer(observation)

    def views(
        self,
        maps: Pointmaps,
        images: Sequence[View],
        path: Sequence[PathFrame],
        scale: PointmapPath,
        depth_source: str,
        *,
        given: bool,
        metric: bool,
    ) -> list[View]:
        """The views of a part that are worth remembering: those that show something from another place.

        Args:
            maps: of F frames.
            images: the F images; with measured depth, if there is some, and with their poses, if these are given.
            path: where they are.
            scale: the path, for its unit.
            depth_source: parameter of this name.
            given: the poses that came with the images hold.
            metric: lengths in the memories are metres.

        Returns:
            Views of the size of the point maps, on the path. Depth of point maps is *estimated*; what moves has none.
        """
        chosen: list[View] = []
        depth = maps.depth * np.float32(scale.factor)
        for index, (image, where) in enumerate(zip(images, path, strict=True)):
            if not where.found or not maps.valid[index].any():
                continue
            pose = image.world_from_camera if given else where.pose
            if not self._is_new(pose, depth[index]):
                continue
            self._last = pose
            small = image.resized(maps.camera.width, maps.camera.height)
            view = replace(small, world_from_camera=pose, depth=None, metric=given or metric)
            still = ~maps.dynamic[index]
            measured = small.depth if depth_source in ("auto", "sensor") else None
            if measured is not None and (measured > 0).any():
                view = replace(view, depth=np.where(still, measured, 0).astype(np.float32))
            elif depth_source in ("auto", "pointmaps"):
                sure = still & (maps.confidence[index] >= MIN_MAP_CONFIDENCE)
                view = replace(
                    view,
                    depth=np.where(sure, depth[index], 0).astype(np.float32),
                    estimated=np.ones(sure.shape, bool),
                    depth_confidence=maps.confidence[index],
                )
            chosen.append(view)
        return (
            [chosen[i] for i in np.unique(np.linspace(0, len(chosen) - 1, MAX_VIEWS).round().astype(int))]
            if (chosen)
            else []
        )

    def _is_new(self, pose: np.ndarray, depth: np.ndarray) -> bool:
        if self._last is None:
            return True
        step = invert_pose(self._last) @ pose
        known = depth[depth > 0]
        far = float(np.median(known)) if known.size else 1.0
        angle = np.degrees(np.arccos(np.clip((np.trace(step[:3, :3]) - 1) / 2, -1, 1)))
        return bool(np.linalg.norm(step[:3, 3]) > MIN_STEP * far or angle > MIN_TURN_DEG)
