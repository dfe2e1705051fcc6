"""Contact sheets: labelled grids of images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.panorama.imagine import ImaginedPanorama
from worldstereo_ros.visualization.images import depth_image, provenance_overlay

INK, PAPER, FAINT = (30, 34, 40), (250, 250, 248), (150, 154, 160)


_FONT = cv2.FONT_HERSHEY_SIMPLEX


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    *,
    title: str,
    subtitle: str = "",
    cell_width: int = 260,
) -> np.ndarray:
    """A labelled grid of pictures.

    Args:
        rows: pictures (H, W, 3) uint8 of one aspect ratio; None leaves a cell empty.
        column_titles: one for each column. row_titles: one for each row.

    Returns:
        (H, W, 3) uint8.
    """
    first = next(cell for row in rows for cell in row if cell is not None)
    cell_height = round(cell_width * first.shape[0] / first.shape[1])
    margin, gap, left, top = 24, 8, 92, 108 if subtitle else 84
    height = top + len(rows) * (cell_height + gap) + margin
    width = margin + left + len(column_titles) * (cell_width + gap) + margin - gap
    sheet = np.full((height, width, 3), PAPER, dtype=np.uint8)
    _write(sheet, title, (margin, 38), 0.8, INK, 2)
    if subtitle:
        _write(sheet, subtitle, (margin, 62), 0.46, FAINT)
    for column, text in enumerate(column_titles):
        _write(sheet, text, (margin + left + column * (cell_width + gap), top - 12), 0.5, INK)
    for r, (row, text) in enumerate(zip(rows, row_titles, strict=True)):
        y = top + r * (cell_height + gap)
        for line_number, line in enumerate(text.split("\n")):
            _write(sheet, line, (margin, y + 20 + 20 * line_number), 0.46, INK if line_number == 0 else FAINT)
        for column, cell in enumerate(row):
            if cell is None:
                continue
            x = margin + left + column * (cell_width + gap)
            shrink = cell.shape[1] > cell_width
            small = cv2.resize(
                cell, (cell_width, cell_height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC
            )
            sheet[y : y + cell_height, x : x + cell_width] = small
    return sheet


def _write(
    picture: np.ndarray, text: str, at: tuple[int, int], size: float, colour: Sequence[int], weight: int = 1
) -> None:
    cv2.putText(picture, text, at, _FONT, size, tuple(colour), weight, cv2.LINE_AA)


GAP = 6  # white pixels between pictures of a sheet


def panorama_sheet(given: np.ndarray, found: ImaginedPanorama, truth: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8: given, imagined, which is which, its distances or the truth; two by two.

    Args:
        given: (H, 2 H, 3) uint8, the panorama that was remembered.
        found: the one that was imagined.
        truth: (H, 2 H, 3) uint8 where it is known.
    """
    panorama = found.panorama
    size = (2 * panorama.height, panorama.height)
    last = truth
    if last is None:
        last = depth_image(np.zeros(size[::-1], np.float32) if panorama.distance is None else panorama.distance)
    cells = [given, panorama.image, provenance_overlay(panorama.image, panorama.observed), last]
    cells = [cv2.resize(cell, size, interpolation=cv2.INTER_AREA) for cell in cells]
    across = np.full((size[1], GAP, 3), 255, np.uint8)
    rows = [np.concatenate([cells[i], across, cells[i + 1]], axis=1) for i in (0, 2)]
    return np.concatenate([rows[0], np.full((GAP, rows[0].shape[1], 3), 255, np.uint8), rows[1]])
