"""Places that are seen again while the node runs: where the path is in the world, and memories that move with it.

    pointmap thread: path ─► LiveLoopCloser ─► world_from_path ─► TF, ~/pointmaps/path
    worker's thread:              └─ PathCorrection ─► cloud and view bank moved; later views placed anew

Imports no rclpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.moving import move_memories
from worldstereo_ros.pipelines.pointmaps.live_loops import Closing, LiveLoopCloser
from worldstereo_ros.pipelines.pointmaps.types import GUESS, Pointmaps
from worldstereo_ros.ros.node.pointmap_path import PathFrame, PointmapPath
from worldstereo_ros.world import WorldModel

MOVE_EVERY = 4  # parts after which corrections reach the memories: moving 600,000 points takes half a second


class PointmapLoops:
    """Closes loops of a path, joins its parts, and moves the memories with it.

    Everything but `placed_by` is called on the thread of the point maps.

    Args:
        close_loops: False: the path is never corrected, and only its first part has a place.
        with_memories: runs a function of the world model on the worker's thread, before any waiting observation.
        log: logs a line at level info.
        is_log_due: whether a line with this key may be logged now; on a way back there is a correction at each window.

    Attributes:
        world_from_path: (4, 4) the correction at the newest pose that has a place.
        status: values for the diagnostics.
    """

    def __init__(
        self,
        close_loops: bool,
        with_memories: Callable[[Callable[[WorldModel], None]], None],
        log: Callable[[str], object],
        is_log_due: Callable[[str], bool] = lambda key: True,
    ) -> None:
        self.close_loops, self._with_memories, self._log = close_loops, with_memories, log
        self._is_log_due = is_log_due
        self._closer = LiveLoopCloser(close_loops=close_loops)
        self._first_shot: int | None = None
        self._scale_from = GUESS  # of the first shot
        self._waiting: list[Closing] = []  # that the memories do not have yet
        self._parts_since_move = 0
        self._in_memory: dict[int, Similarity] = {}  # world_from_chain as the memories have it; the worker's thread
        self.world_from_path = np.eye(4)
        self.status: dict[str, object] = {}
        self._update_status(None)

    def add(
        self,
        maps: Pointmaps,
        images: Sequence[np.ndarray],
        frames: Sequence[PathFrame],
        path: PointmapPath,
        stamps_ns: Sequence[int],
        *,
        remembered: bool,
    ) -> bool:
        """Takes the next frames of the path, whose shot is `path.broken`.

        Args:
            maps: of F frames.
            images: the F images (H, W, 3) uint8 of any size.
            frames: where they are on the path.
            path: with these frames.
            stamps_ns: of the images.
            remembered: the memories hold views of this path, which move with it.

        Returns:
            Whether the world changed: the path of the past is another one.
        """
        shot = path.broken
        poses = np.stack([each.pose for each in frames])
        closing = self._closer.add(
            maps, images, poses, shot=shot, stamps_ns=stamps_ns, factor=path.factor, measured=path.measured
        )
        if self._first_shot is None and self._closer.placed(shot):
            self._first_shot = shot
        if shot == self._first_shot:
            self._scale_from = path.scale_from
        self._parts_since_move += 1
        if closing is not None:
            self._tell(closing)
        # A new part is placed by what the memories will have, so that they must not lag behind.
        if self._parts_since_move >= MOVE_EVERY or (closing is not None and closing.joined):
            self.move_memories(remembered=remembered)
        self._update_status(shot)
        return closing is not None and (closing.moved or bool(closing.joined))

    def correct(self, pose: np.ndarray, path: PointmapPath) -> np.ndarray:
        """`world_from_path` (4, 4) at a new pose (4, 4) of the path; the one before where its place is not known."""
        if self.tied(path):
            self.world_from_path = self._closer.world_from_path(path.broken).poses(pose) @ invert_pose(pose)
        return self.world_from_path

    def finish_part(self, path: PointmapPath) -> None:
        """Called after the part was used: what follows has the unit of the shot that this one was joined to."""
        if self.tied(path) and path.broken != self._first_shot and not path.measured and not path.joined:
            ratio = self._closer.world_from_path(path.broken).scale
            path.join(ratio, self._scale_from)
            self._closer.path_rescaled(ratio)

    @property
    def begun(self) -> bool:
        """Whether a first part of the path has a place."""
        return self._first_shot is not None

    def tied(self, path: PointmapPath) -> bool:
        """Whether the place of the newest part of the path in the world is known."""
        return self._closer.placed(path.broken)

    def metric(self, path: PointmapPath) -> bool:
        """Whether lengths of the world are metres."""
        return path.metric if path.broken == self._first_shot else self._scale_from != GUESS

    def keyframe_path(self) -> tuple[np.ndarray, np.ndarray]:
        """See `LiveLoopCloser.keyframe_path`."""
        return self._closer.keyframe_path()

    def placed_by(self, path: PointmapPath) -> Callable[[View], View]:
        """Returns what takes views of the newest part from the path to the memories; it runs on the worker's thread."""
        shot, to_chain = path.broken, self._closer.chain_from_path(path.broken)

        def place(view: View) -> View:
            to_world = self._in_memory.get(shot, Similarity.identity()).after(to_chain)
            depth = None if view.depth is None else view.depth * np.float32(to_world.scale)
            return replace(view, world_from_camera=to_world.poses(view.world_from_camera), depth=depth)

        return place

    def _tell(self, closing: Closing) -> None:
        """Keeps what changed for the memories, and logs it."""
        if closing.moved or closing.joined:
            self._waiting.append(closing)
        if closing.moved and self._is_log_due("pointmaps loops"):
            self._log(f"pointmaps: A place was seen again: the path is corrected by {self._amount(closing)}.")
        if closing.joined:
            self._log(
                "pointmaps: The camera sees again what it saw before the path broke: the new part is joined to the "
                "first, and what it shows can be remembered again."
            )

    def move_memories(self, *, remembered: bool) -> None:
        """Moves the memories by the corrections that they do not have yet.

        Args:
            remembered: the memories hold views of this path.
        """
        waiting, self._waiting = self._waiting, []
        self._parts_since_move = 0
        if not waiting:
            return
        placed = self._closer.world_from_chain()
        corrections = [each.correction for each in waiting if each.correction is not None]
        if remembered and any(each.moved and each.correction is None for each in waiting):
            self._log("pointmaps: What is remembered is not corrected, since stamps ran back and tell no place.")

        def move(world: WorldModel) -> None:
            for correction in corrections if remembered else ():
                move_memories(world.cloud, world.bank, correction)
            self._in_memory = placed

        self._with_memories(move)

    def _update_status(self, shot: int | None) -> None:
        closer = self._closer
        last = closer.last_correction
        tied = shot is None or closer.placed(shot)
        self.status = {
            "point maps loops closed": closer.loops_closed,
            "point maps loops refused": closer.refused,
            "point maps shots joined": closer.shots_joined,
            "point maps last correction": "none" if last is None else self._amount(last),
            "point maps place": "known" if tied else "not known since the path broke; nothing is remembered",
            "point maps keyframes": len(closer),
        }

    def _amount(self, closing: Closing) -> str:
        unit = "m" if self._scale_from != GUESS else "(a guess, not metres)"
        return f"{closing.shift:.3f} {unit}, {closing.turn_deg:.2f} degrees"
