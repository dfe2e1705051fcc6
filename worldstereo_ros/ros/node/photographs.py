"""Photographs without poses: they come at any time and in any order, and are placed in the map by what they show.

    photograph, photograph/compressed ─► matched with photograph/camera_info ─► the worker's queue ─► placed ─► memories

They have topics of their own, since no TF frame belongs to them, depth images do not, and none of them may be lost: a
camera sends the next image, and a photograph is taken once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from worldstereo_ros.geometry.calibration import calibration_from_info, is_rectified
from worldstereo_ros.geometry.views import View
from worldstereo_ros.ros.conversions import messages
from worldstereo_ros.ros.node.diagnostics import NodeDiagnostics
from worldstereo_ros.ros.node.parameters import NodeParameters
from worldstereo_ros.ros.node.synchronizer import Observation, SyncedFrame, Synchronizer, check_sizes
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

if TYPE_CHECKING:
    from worldstereo_ros.reconstruction.placement import PhotographPlacer

PHOTOGRAPH_TOPICS = ("photograph", "photograph/compressed", "photograph/camera_info")
MAX_QUEUED = 64  # photographs that wait for the worker; further ones are rejected
MAX_UNPLACED = 16  # photographs that overlap nothing yet and are tried again; the newest are kept


class NotPlacedError(InputError):
    """A photograph has no pose that can be trusted; another time, when more is remembered, it may have one."""


class Placing:
    """Places photographs among the observations in memory. Used by the worker's thread only."""

    def __init__(self) -> None:
        self._placer: PhotographPlacer | None = None

    def remember(self, view: View, world: WorldModel) -> tuple[np.ndarray, str]:
        """Places a photograph and inserts it into the memories; all of its depth is labelled as estimated.

        Args:
            view: the photograph, without distortion; its pose is not used.
            world: the world model.

        Returns:
            (world_from_camera (4, 4), a sentence that says how well it is known).

        Raises:
            NotPlacedError: it has no pose that can be trusted. The memories are unchanged.
            ValueError: its depth is unknown.
        """
        # Numba's loops and SciPy, which a node without photographs does not load.
        from worldstereo_ros.reconstruction.placed_views import placed_view
        from worldstereo_ros.reconstruction.placement import PhotographPlacer

        if self._placer is None:
            self._placer = PhotographPlacer()
        captures = [other for other in world.bank.views if other.is_observation]
        placement = self._placer.place(view.image, view.camera, captures)
        if placement.world_from_camera is None:
            raise NotPlacedError(placement.reason)
        placed = placed_view(
            view.image,
            view.camera,
            placement,
            captures,
            stamp_ns=view.stamp_ns,
            metric=world.metric,
            estimator=world.depth_estimator,
            device=world.device,
        )
        if placed.depth is None or not (placed.depth > 0).any():
            placed = replace(placed, depth=None, estimated=None, depth_confidence=None)
        world.observe(placed)
        unit = "m" if world.metric else "units of the map"
        return placement.world_from_camera, (
            f"{len(placement.points)} of {placement.compared} shared points agree, and leave its position open by "
            f"{placement.position_error:.2g} {unit}, its rotation by {placement.rotation_error_deg:.2g} degrees"
        )


@dataclass(frozen=True)
class Photograph(Observation):
    """A photograph. Its `world_from_camera` is the identity until it is remembered, then the pose that was found.

    Attributes:
        placing: finds the pose.
        placed: how well the pose is known; empty until it is found.
        attempts: how often it was tried.
        retry_at: number of observations after which it is tried again.
    """

    placing: Placing = field(default_factory=Placing)
    placed: str = ""
    attempts: int = 0
    retry_at: int = 0

    def remember(self, world: WorldModel) -> None:
        """Places it and inserts it into the memories. Raises NotPlacedError, ValueError."""
        assert self.info is not None
        pose, placed = self.placing.remember(self.view(self.info), world)
        # What is found while it is remembered belongs to it; observations are frozen for those who send them.
        object.__setattr__(self, "world_from_camera", pose)
        object.__setattr__(self, "placed", placed)


class PhotographQueue:
    """Photographs that wait for the worker, and those that wait for a map that they overlap. Its owner locks."""

    def __init__(self) -> None:
        self._waiting: deque[Photograph] = deque()
        self._unplaced: deque[Photograph] = deque()

    def put(self, photograph: Photograph) -> bool:
        """Adds one at the end. Returns False if too many wait."""
        if len(self._waiting) >= MAX_QUEUED:
            return False
        self._waiting.append(photograph)
        return True

    def peek(self) -> Photograph | None:
        """The one that is next, None if none waits."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> Photograph:
        """Removes and returns the one that is next."""
        return self._waiting.popleft()

    def keep(self, photograph: Photograph, observations: int) -> Photograph | None:
        """Keeps one that overlaps nothing yet, to be tried again. Returns one that was given up for it.

        Args:
            photograph: the photograph.
            observations: number of observations so far. The next attempt comes when a quarter more were remembered.
        """
        retry_at = observations + max(1, observations // 4)
        self._unplaced.append(replace(photograph, attempts=photograph.attempts + 1, retry_at=retry_at))
        return self._unplaced.popleft() if len(self._unplaced) > MAX_UNPLACED else None

    def retry(self, observations: int) -> None:
        """Puts one whose next attempt is due at the end of the queue; not all at once, since images wait meanwhile."""
        for index, photograph in enumerate(self._unplaced):
            if observations >= photograph.retry_at:
                if self.put(replace(photograph, accepted_at=time.monotonic())):
                    del self._unplaced[index]
                return

    def clear(self) -> None:
        """Removes all."""
        self._waiting.clear()
        self._unplaced.clear()


class PhotographInput:
    """Matches photographs with their camera_info and offers them to the worker.

    Args:
        diagnostics: counts rejections.
        offer: takes a complete photograph.
        topics: resolved topic by the name of the input.
    """

    def __init__(
        self, diagnostics: NodeDiagnostics, offer: Callable[[Photograph], None], topics: dict[str, str]
    ) -> None:
        self._diagnostics, self._offer, self._topics = diagnostics, offer, topics
        self._parameters = NodeParameters()
        self._synchronizer = Synchronizer()
        self._synchronizer.depth_policy = "ignored"
        self._placing = Placing()
        self._last: tuple[str, int] | None = None

    def apply(self, parameters: NodeParameters) -> None:
        """Applies new parameters."""
        self._parameters = parameters
        self._synchronizer.tolerance_ns = int(parameters.sync_tolerance * 1e9)
        self._synchronizer.timeout = parameters.sync_timeout

    def clear(self) -> None:
        """Drops all waiting messages."""
        self._synchronizer.clear()

    def drop_images(self) -> None:
        """Drops the photographs that wait for their camera_info."""
        self._synchronizer.drop_images()

    def on_image(self, name: str, message: Image | CompressedImage) -> None:
        """Takes a photograph. Raises ValueError if it is not usable."""
        if isinstance(message, Image):
            messages.check_image(message, self._parameters.max_image_pixels)
        else:
            messages.check_compressed_image(message, self._parameters.max_image_pixels)
        dropped = self._synchronizer.add_image(message, name, time.monotonic())
        if dropped is not None:
            self._diagnostics.on_rejected(dropped.topic, "Too many photographs wait for their camera_info.")

    def on_info(self, name: str, message: CameraInfo) -> None:
        """Takes the calibration of photographs."""
        self._synchronizer.add_info(message)

    def process_pending(self, now: float) -> None:
        """Offers photographs whose camera_info is there, and rejects those whose time is up."""
        ready, rejected = self._synchronizer.pop_ready(now)
        for frame, reason in rejected:
            hint = (
                f" Send it on {self._topics['photograph/camera_info']}. The service reconstruct, which finds the "
                "intrinsics of photographs in files, needs none."
            )
            self._diagnostics.on_rejected(frame.topic, reason + hint)
        for frame in ready:
            try:
                self._dispatch(frame)
            except ValueError as error:
                self._diagnostics.on_rejected(frame.topic, str(error))

    def _dispatch(self, frame: SyncedFrame) -> None:
        assert frame.info is not None
        rectified = is_rectified(self._parameters.rectified, self._topics[frame.topic])
        camera = calibration_from_info(frame.info, rectified=rectified).camera
        if isinstance(frame.image, Image):
            check_sizes(camera, frame.image.width, frame.image.height)
        frame_and_stamp = (frame.image.header.frame_id, frame.stamp_ns)
        if frame.stamp_ns and frame_and_stamp == self._last:
            return  # a driver that publishes raw and compressed images sends each one twice
        self._last = frame_and_stamp
        self._offer(
            Photograph(
                frame.image,
                frame.info,
                None,
                np.eye(4),
                frame.stamp_ns,
                frame.topic,
                rectified=rectified,
                placing=self._placing,
            )
        )
