"""Contact sheets of depth: images, true depth and estimates side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from worldstereo_ros.evaluation.metrics import scaled_depth_error
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.images import write_image
from worldstereo_ros.visualization.images import depth_image

CELL_PX, MAX_COLUMNS = 260, 6  # width of an image, images side by side


def draw_sheet(examples: Sequence[tuple[View, dict[str, np.ndarray]]], names: Sequence[str], file: Path) -> None:
    """Draws a column for each example: image, true depth, and the depth of each of `names` after median scaling."""
    columns = []
    rows = max(round(CELL_PX * view.camera.height / view.camera.width) for view, _ in examples)
    for view, predictions in examples:
        assert view.depth is not None
        far = float(np.percentile(view.depth[view.depth > 0], 98))
        cells = [view.image, depth_image(view.depth, far)]
        for name in names:
            depth = predictions.get(name, np.zeros_like(view.depth))
            errors = scaled_depth_error(depth, view.depth)
            cells.append(depth_image(depth * np.float32(errors[4] if errors else 1), far))
        columns.append(np.concatenate([_fit_cell(cell, rows) for cell in cells]))
    per_band = -(-len(columns) // -(-len(columns) // MAX_COLUMNS))  # bands of nearly equal length
    bands = [columns[first : first + per_band] for first in range(0, len(columns), per_band)]
    blank = np.full_like(columns[0], 255)
    padded = [np.concatenate(band + [blank] * (per_band - len(band)), axis=1) for band in bands]
    write_image(file, np.concatenate(padded))


def _fit_cell(image: np.ndarray, rows: int) -> np.ndarray:
    """(rows, CELL_PX, 3): the image scaled to fit, on white."""
    factor = min(CELL_PX / image.shape[1], rows / image.shape[0]) * 0.98
    size = (round(image.shape[1] * factor), round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    cell = np.full((rows, CELL_PX, 3), 255, np.uint8)
    y, x = (rows - size[1]) // 2, (CELL_PX - size[0]) // 2
    cell[y : y + size[1], x : x + size[0]] = small
    return cell
