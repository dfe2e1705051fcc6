"""What moves, frame by frame: the points of `worldstereo pointmaps` that are not part of the static map."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.images import read_image

if TYPE_CHECKING:
    import viser

POINTMAPS_FILE, DYNAMIC_FOLDER = "pointmaps.json", "dynamic"
MAX_MOVING_POINTS = 20_000  # of a frame: a browser gets them anew with each one
MOVING = 128  # of a pixel of dynamic/*.png, at least
MOVING_TINT, TINT_WEIGHT = np.array([225, 50, 90], np.float32), 0.35
CONFIDENCE_STEP = 1e-4
EMPTY = np.zeros((0, 3), np.float32)


@dataclass(frozen=True)
class MovingPoints:
    """Points of one frame that move.

    Attributes:
        points: (M, 3) float32 in the world.
        colours: (M, 3) uint8.
        confidence: (M,) float32 in 0..1, of the distances.
    """

    points: np.ndarray
    colours: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.points)


def read_moving(folder: Path, view: View, number: int) -> MovingPoints:
    """The moving points of a frame of a folder of point maps; none where the frame has no mask or no depth.

    Args:
        folder: folder of `worldstereo pointmaps`.
        view: the frame at full size.
        number: of the frame, as in the names of its files.

    Raises:
        ImageError: the mask is damaged or of another size.
    """
    file = folder / DYNAMIC_FOLDER / f"{number:06d}.png"
    if view.depth is None or not file.is_file():
        return MovingPoints(EMPTY, EMPTY.astype(np.uint8), np.zeros(0, np.float32))
    mask = read_image(file)
    mask = mask if mask.ndim == 2 else mask[..., 0]
    if mask.shape != view.depth.shape:
        raise ImageError(
            f"{file} is {mask.shape[1]}x{mask.shape[0]}; {view.depth.shape[1]}x{view.depth.shape[0]}, the size of its "
            "frame, was expected."
        )
    rows, columns = np.nonzero((mask >= MOVING) & (view.depth > 0))
    if len(rows) > MAX_MOVING_POINTS:
        kept = np.random.default_rng(0).choice(len(rows), MAX_MOVING_POINTS, replace=False)
        rows, columns = rows[kept], columns[kept]
    points = unproject(view.depth, view.camera, view.world_from_camera)[rows, columns]
    confidence = (
        np.ones(len(rows), np.float32) if view.depth_confidence is None else view.depth_confidence[rows, columns]
    )
    return MovingPoints(points, view.image[rows, columns], confidence.astype(np.float32))


class MovingNode:
    """The node of the page that shows the moving points of the selected frame.

    Attributes:
        frames: points of each frame.
        shown: whether they are shown at all.
        min_confidence: points of less are hidden.
        index: the selected frame.
    """

    def __init__(self, server: viser.ViserServer, frames: tuple[MovingPoints, ...], point_size: float) -> None:
        """Creates the node, of points of `point_size` world units."""
        self.frames, self.shown, self.min_confidence, self.index = frames, True, 0.0, 0
        self._handle: Any = None
        if any(len(frame) for frame in frames):
            first = next(frame for frame in frames if len(frame))
            self._handle = server.scene.add_point_cloud(
                "/moving", first.points, first.colours, point_size=point_size, point_shape="rounded",
                point_shading="flat", precision="float32", visible=False,
            )  # fmt: skip
            self.refresh()

    @property
    def handle(self) -> Any:
        """Handle of viser; None if nothing moves in any frame."""
        return self._handle

    def select(self, index: int) -> None:
        """Shows the points of frame `index`."""
        self.index = index
        self.refresh()

    def resize(self, point_size: float) -> None:
        """Draws points of `point_size` world units."""
        if self._handle is not None:
            self._handle.point_size = point_size

    def refresh(self) -> None:
        """Shows the points according to the attributes."""
        if self._handle is None:
            return
        frame = self.frames[self.index]
        kept = frame.confidence >= self.min_confidence - CONFIDENCE_STEP
        if not self.shown or not kept.any():
            self._handle.visible = False
            return
        self._handle.points = frame.points[kept]
        tinted = (1 - TINT_WEIGHT) * frame.colours[kept] + TINT_WEIGHT * MOVING_TINT
        self._handle.colors = tinted.astype(np.uint8)
        self._handle.visible = True
