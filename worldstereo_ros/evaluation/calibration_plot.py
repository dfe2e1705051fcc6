"""Plots of calibration: confidence of colour and of depth against accuracy, expected against actual error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.evaluation.calibration_metrics import CalibrationRow
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.visualization.contact_sheet import FAINT, INK, PAPER
from worldstereo_ros.visualization.images import IMAGINED_COLOUR, OBSERVED_COLOUR
from worldstereo_ros.visualization.text import draw_text, text_width

PANEL_PX, LEFT_PX, TOP_PX, BOTTOM_PX, GAP_PX = 360, 92, 92, 64, 40  # of a panel and around it
MIN_FRACTION = 0.002  # fraction of all pixels below which a bin is not drawn
COLOURS = (OBSERVED_COLOUR, IMAGINED_COLOUR, (110, 90, 170), (60, 140, 80), FAINT)


def plot_calibration(rows: Sequence[CalibrationRow], tolerance: float) -> np.ndarray:
    """Plots three panels for each kind of data.

    They show the confidence of imagined pixels against their accuracy, of colour and of depth, and the expected against
    the actual error of all pixels. The area of a dot is the fraction of the pixels; dots of a perfectly calibrated
    pipeline lie on the diagonal.

    Args:
        rows: rows of whole kinds of data, see `Calibration.totals`.
        tolerance: largest error of a correct pixel, as a fraction of the colour range.

    Returns:
        (H, W, 3) uint8.
    """
    kinds = list(dict.fromkeys(row.data for row in rows))
    pipelines = list(dict.fromkeys(row.pipeline for row in rows))
    panel_width, row_height = LEFT_PX + PANEL_PX + GAP_PX, TOP_PX + PANEL_PX + BOTTOM_PX
    canvas = np.full((len(kinds) * row_height + 16, 3 * panel_width, 3), PAPER, np.uint8)
    max_error = max([0.1, *(max(part.predicted, part.actual) for row in rows for part in row.error_bins)])
    max_error = float(np.ceil(max_error * 20) / 20)
    panels = (
        ("imagined_bins", "confidence, imagined pixels", f"accuracy (error within {tolerance:g})", 1.0),
        ("depth_bins", "confidence of depth, imagined", f"accuracy (within a factor of {DEPTH_TOLERANCE:g})", 1.0),
        ("error_bins", "expected error", "actual error", max_error),
    )
    for number, kind in enumerate(kinds):
        top = number * row_height
        draw_text(canvas, kind, (LEFT_PX, top + 34), 0.7, INK, 2)
        members = [row for row in rows if row.data == kind]
        colours = [COLOURS[pipelines.index(row.pipeline) % len(COLOURS)] for row in members]
        for index, (row, colour) in enumerate(zip(members, colours, strict=True)):
            rank = "" if row.rank_imagined is None else f", rank {row.rank_imagined:.2f}"
            eces = [row.calibration_error_imagined, row.calibration_error_depth_imagined]
            ece = ", ".join("-" if value is None else f"{value:.2f}" for value in eces)
            x, y = LEFT_PX + index * 290, top + 66
            cv2.circle(canvas, (x + 6, y - 5), 6, colour, -1, cv2.LINE_AA)
            draw_text(canvas, f"{row.pipeline}: ECE {ece}{rank}", (x + 20, y), 0.46, INK)
        for column, (name, x_title, y_title, limit) in enumerate(panels):
            x0, y0 = LEFT_PX + column * panel_width, top + TOP_PX
            _draw_axes(canvas, x0, y0, limit, x_title, y_title)
            for row, colour in zip(members, colours, strict=True):
                bins = [part for part in getattr(row, name) if part.share >= MIN_FRACTION]
                points = [
                    (round(x0 + PANEL_PX * part.predicted / limit), round(y0 + PANEL_PX * (1 - part.actual / limit)))
                    for part in bins
                ]
                for start, end in itertools.pairwise(points):
                    cv2.line(canvas, start, end, colour, 2, cv2.LINE_AA)
                for part, point in zip(bins, points, strict=True):
                    cv2.circle(canvas, point, round(3 + 16 * float(np.sqrt(part.share))), colour, -1, cv2.LINE_AA)
    return canvas


def _draw_axes(canvas: np.ndarray, x0: int, y0: int, limit: float, x_title: str, y_title: str) -> None:
    cv2.rectangle(canvas, (x0, y0), (x0 + PANEL_PX, y0 + PANEL_PX), FAINT, 1)
    cv2.line(canvas, (x0, y0 + PANEL_PX), (x0 + PANEL_PX, y0), FAINT, 1, cv2.LINE_AA)
    for step in range(6):
        value, offset = limit * step / 5, PANEL_PX * step // 5
        draw_text(canvas, f"{value:.2g}", (x0 + offset - 10, y0 + PANEL_PX + 20), 0.42, FAINT)
        draw_text(canvas, f"{value:.2g}", (x0 - 38, y0 + PANEL_PX - offset + 5), 0.42, FAINT)
    draw_text(canvas, x_title, (x0 + PANEL_PX // 2 - 40, y0 + PANEL_PX + 44), 0.46, INK)
    # OpenCV draws horizontal text only: the title of the vertical axis is drawn on a strip and rotated.
    strip = np.full((20, PANEL_PX, 3), PAPER, np.uint8)
    draw_text(strip, y_title, ((PANEL_PX - text_width(y_title, 0.46)) // 2, 14), 0.46, INK)
    canvas[y0 : y0 + PANEL_PX, x0 - 66 : x0 - 46] = cv2.rotate(strip, cv2.ROTATE_90_COUNTERCLOCKWISE)
