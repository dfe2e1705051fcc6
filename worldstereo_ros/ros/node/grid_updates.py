"""Grids as whole messages, or as updates of the part that changed (`map_msgs/OccupancyGridUpdate`)."""

from __future__ import annotations

import array
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from nav_msgs.msg import OccupancyGrid as GridMessage
from rclpy.node import Node
from std_msgs.msg import Header

from worldstereo_ros.ros.conversions import grids

if TYPE_CHECKING:
    from worldstereo_ros.planning import OccupancyGrid

MARGIN_CELLS = 20  # that a map which grew has to spare, so that it need not grow with each image
MAX_SPARE = 6.0  # times its cells that a map may have around it; more, and the next message is of its own size
MAX_SHARE = 0.5  # of the cells that an update may have; above it, the whole grid is sent


class GridChanges:
    """What was sent last on a topic of a grid, and what is to be sent next."""

    def __init__(self) -> None:
        self._low = np.zeros(2, np.int64)  # row and column of the first cell, in cells from the origin of the world
        self._cells = np.zeros((0, 0), np.int8)
        self._of: tuple[float, str] | None = None  # resolution and frame

    def forget(self) -> None:
        """The next message is of the whole grid."""
        self._of = None

    def next(self, cells: np.ndarray, grid: OccupancyGrid, header: Header, *, partial: bool) -> Any:
        """The message that brings subscribers up to date.

        Args:
            cells: (Y, X) int8, -1..100.
            grid: the grid that they belong to.
            header: stamp, and frame of the world.
            partial: an update of the part that changed will do. Maps then have unknown cells to spare around them.

        Returns:
            The whole grid, an `OccupancyGridUpdate`, or None if nothing has changed.

        Raises:
            InputError: the grid is not level in the frame of the world.
        """
        of = (grid.resolution, header.frame_id)
        low = np.rint(np.array(grid.origin)[::-1] / grid.resolution).astype(np.int64)
        if not partial:
            self._low, self._cells, self._of = low, cells, of
            return grids.grid_message(cells, grid, header)
        before = self._cells if of == self._of else None
        canvas_low, canvas = self._canvas(low, cells, known=before is not None)
        same = before is not None and (canvas_low == self._low).all() and before.shape == canvas.shape
        self._low, self._cells, self._of = canvas_low, canvas, of
        if same:
            assert before is not None
            rows, columns = np.nonzero(before != canvas)
            if not len(rows):
                return None
            i0, i1, j0, j1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            if (i1 - i0) * (j1 - j0) <= MAX_SHARE * canvas.size:
                return update_message(canvas[i0:i1, j0:j1], int(j0), int(i0), header)
        message = grids.grid_message(canvas, grid, header)
        message.info.origin.position.y, message.info.origin.position.x = (canvas_low * grid.resolution).tolist()
        return message

    def _canvas(self, low: np.ndarray, cells: np.ndarray, *, known: bool) -> tuple[np.ndarray, np.ndarray]:
        """(first row and column, cells with unknown ones around them): as large as before, or larger if need be."""
        high = low + cells.shape
        if known:
            old_low, old_high = self._low, self._low + self._cells.shape
            if (low >= old_low).all() and (high <= old_high).all():
                new_low, new_high = old_low, old_high
            else:
                new_low = np.where(low < old_low, low - MARGIN_CELLS, old_low)
                new_high = np.where(high > old_high, high + MARGIN_CELLS, old_high)
            if np.prod(new_high - new_low) > MAX_SPARE * cells.size:
                known = False
        if not known:
            new_low, new_high = low - MARGIN_CELLS, high + MARGIN_CELLS
        canvas = np.full(new_high - new_low, grids.UNKNOWN, np.int8)
        i, j = low - new_low
        canvas[i : i + cells.shape[0], j : j + cells.shape[1]] = cells
        return new_low, canvas


def update_message(cells: np.ndarray, x: int, y: int, header: Header) -> Any:
    """A `map_msgs/OccupancyGridUpdate` of cells (Y, X) int8 whose first is in column `x` and row `y` of the grid."""
    from map_msgs.msg import OccupancyGridUpdate

    height, width = cells.shape
    message = OccupancyGridUpdate(header=header, x=x, y=y, width=width, height=height)
    message.data = array.array("b", np.ascontiguousarray(cells, np.int8).tobytes())
    return message


def apply_update(message: GridMessage, update: Any) -> None:
    """Changes a grid in place by an update of it, as Nav2's static layer does.

    Raises:
        ValueError: the update reaches beyond the grid.
    """
    info = message.info
    if update.x < 0 or update.y < 0 or update.x + update.width > info.width or update.y + update.height > info.height:
        raise ValueError(
            f"An update of {update.width} x {update.height} cells at ({update.x}, {update.y}) reaches beyond the grid "
            f"of {info.width} x {info.height}."
        )
    cells = np.frombuffer(message.data, np.int8).reshape(info.height, info.width).copy()
    part = np.frombuffer(update.data, np.int8).reshape(update.height, update.width)
    cells[update.y : update.y + update.height, update.x : update.x + update.width] = part
    message.data = array.array("b", cells.tobytes())


def all_take_updates(node: Node, topic: str, updates_topic: str) -> bool:
    """Whether each node that subscribes to a grid also subscribes to its updates; one that does not would miss them."""
    whole, parts = (
        Counter((info.node_namespace, info.node_name) for info in node.get_subscriptions_info_by_topic(name))
        for name in (topic, updates_topic)
    )
    return bool(whole) and not whole - parts
