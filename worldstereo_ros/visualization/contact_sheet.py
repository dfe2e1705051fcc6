"""Contact sheets: labelled grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.visualization.images import depth_image, provenance_overlay
from worldstereo_ros.visualization.text import FAINT, INK, PAPER, draw_text, text_width

if TYPE_CHECKING:
    from worldstereo_ros.panorama.imagine import ImaginedPanorama

MARGIN_PX, GAP_PX = 24, 8  # around the sheet, between its cells
ROW_TITLE_WIDTH_PX = 92
LEGEND_SQUARE_PX = 14
PANORAMA_GAP_PX = 6


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    legend: Sequence[tuple[Sequence[int], str]] = (),
    cell_width: int = 260,
) -> np.ndarray:
    """Draws a labelled grid of images.

    Args:
        rows: images (H, W, 3) uint8 of one aspect ratio; None leaves a cell empty.
        column_titles: one for each column.
        row_titles: one for each row; lines after the first are drawn in grey.
        title: heading of the sheet.
        subtitle: line below the heading.
        legend: (RGB colour, meaning), drawn at the upper right.
        cell_width: pixels.

    Returns:
        (H, W, 3) uint8.
    """
    first = next(cell for row in rows for cell in row if cell is not None)
    cell_height = round(cell_width * first.shape[0] / first.shape[1])
    left, top = MARGIN_PX + ROW_TITLE_WIDTH_PX, 108 if subtitle else 84
    height = top + len(rows) * (cell_height + GAP_PX) + MARGIN_PX
    width = left + len(column_titles) * (cell_width + GAP_PX) + MARGIN_PX - GAP_PX
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    draw_text(sheet, title, (MARGIN_PX, 38), 0.8, INK, 2)
    if subtitle:
        draw_text(sheet, subtitle, (MARGIN_PX, 62), 0.46, FAINT)
    _draw_legend(sheet, legend, width - MARGIN_PX, 38)
    for column, text in enumerate(column_titles):
        position = (left + column * (cell_width + GAP_PX), top - 12)
        _draw_fitted(sheet, text, position, 0.5, INK, cell_width)
    for r, (row, text) in enumerate(zip(rows, row_titles, strict=True)):
        y = top + r * (cell_height + GAP_PX)
        for line_number, line in enumerate(text.split("\n")):
            colour = INK if line_number == 0 else FAINT
            _draw_fitted(sheet, line, (MARGIN_PX, y + 20 + 20 * line_number), 0.46, colour, ROW_TITLE_WIDTH_PX - GAP_PX)
        for column, cell in enumerate(row):
            if cell is None:
                continue
            x = left + column * (cell_width + GAP_PX)
            resized = resize_image(cell, cell_width, cell_height, enlarge=cv2.INTER_CUBIC)
            sheet[y : y + cell_height, x : x + cell_width] = resized
    return sheet


def _draw_legend(sheet: np.ndarray, legend: Sequence[tuple[Sequence[int], str]], right: int, baseline: int) -> None:
    """Draws squares with their meaning in one line that ends at column `right`."""
    for colour, text in reversed(legend):
        left = right - text_width(text, 0.5) - LEGEND_SQUARE_PX - GAP_PX
        sheet[baseline - LEGEND_SQUARE_PX + 1 : baseline + 1, left : left + LEGEND_SQUARE_PX] = colour
        draw_text(sheet, text, (left + LEGEND_SQUARE_PX + GAP_PX, baseline), 0.5, INK)
        right = left - 2 * GAP_PX


def _draw_fitted(
    sheet: np.ndarray, text: str, position: tuple[int, int], size: float, colour: Sequence[int], max_width: int
) -> None:
    """Draws a line of text, smaller if it is wider than `max_width` pixels."""
    width = text_width(text, size)
    draw_text(sheet, text, position, size * min(1.0, max_width / max(width, 1)), colour)


def panorama_sheet(
    observed: np.ndarray, imagined: ImaginedPanorama, ground_truth: np.ndarray | None = None
) -> np.ndarray:
    """Draws four panoramas, two by two: observed, imagined; provenance, and the ground truth or the distances.

    Args:
        observed: (H, 2 H, 3) uint8, the panorama that was observed.
        imagined: the panorama that was imagined from it.
        ground_truth: (H, 2 H, 3) uint8; None for the distances instead.

    Returns:
        (H, W, 3) uint8.
    """
    panorama = imagined.panorama
    size = (2 * panorama.height, panorama.height)
    last = ground_truth
    if last is None:
        last = depth_image(np.zeros(size[::-1], np.float32) if panorama.distance is None else panorama.distance)
    cells = [observed, panorama.image, provenance_overlay(panorama.image, panorama.provenance), last]
    cells = [cv2.resize(cell, size, interpolation=cv2.INTER_AREA) for cell in cells]
    column_gap = np.full((size[1], PANORAMA_GAP_PX, 3), 255, np.uint8)
    rows = [np.concatenate([cells[i], column_gap, cells[i + 1]], axis=1) for i in (0, 2)]
    row_gap = np.full((PANORAMA_GAP_PX, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([rows[0], row_gap, rows[1]])
