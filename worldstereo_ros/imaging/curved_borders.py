"""Curved black borders, which undistortion leaves around the picture of a lens.

A lens is smooth: so is the line where its picture ends. A border is cut off only if black begins at two opposite sides
of the image and ends sharply along smooth lines, which dark things in the place do not do.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.windows import largest_window

BLACK_LEVEL = 20  # a border is darker in all channels, also after JPEG compression
INSIDE_LEVEL = 40  # the picture is brighter in some channel, behind the border's end
MIN_BRIGHT_SHARE = 0.6  # of the border's lines that end in something bright
EDGE_PX = 3  # from the end of the border to where the picture is looked at
MIN_WIDTH_PX = 3  # of the border at its widest
MIN_CURVE_PX = 2  # between its widest and its narrowest place
MIN_LINES = 0.1  # of a side's length, that have a border
MAX_WIDTH = 0.35  # of the width or height of the image
DEGREE = 4  # of the polynomial that the border follows; distortion is an even polynomial of the radius
MAX_RESIDUAL_PX = 1.5
MIN_FITTING_SHARE = 0.9  # of the lines within the residual
CORNER = 0.12  # of a side's length at each end, which is not looked at
MARGIN_PX = 2  # next to the border: ringing of compression, interpolation of undistortion
MIN_KEPT = 0.4  # of the image's area; a window that is smaller is not cut out


def inside_curved_border(image: np.ndarray) -> tuple[slice, slice]:
    """Finds the largest window of an image inside its curved black border.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        Its rows and columns; the whole image if there is no such border.
    """
    height, width = image.shape[:2]
    whole = slice(0, height), slice(0, width)
    ends = [image[0], image[-1], image[:, 0], image[:, -1]]
    if not any(_has_black(ends[i]) and _has_black(ends[i + 1]) for i in (0, 2)):
        return whole
    brightest = np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])
    # The lines that begin at each side, one a row: top, bottom, left, right.
    sides = [brightest.T, brightest[::-1].T, brightest, brightest[:, ::-1]]
    widths = [_border(side) for side in sides]
    if not any(widths[i] is not None and widths[i + 1] is not None for i in (0, 2)):
        return whole
    if not any(found is not None and np.ptp(_middle(found)) >= MIN_CURVE_PX for found in widths):
        return whole  # straight borders: `borders.valid_area` decides
    valid = np.ones((height, width), dtype=bool)
    for found, mask in zip(widths, (valid.T, valid[::-1].T, valid, valid[:, ::-1]), strict=True):
        if found is not None:
            mask &= np.arange(mask.shape[1])[None, :] >= found[:, None]
    rows, columns_kept = largest_window(valid)
    if (rows.stop - rows.start) * (columns_kept.stop - columns_kept.start) < MIN_KEPT * height * width:
        return whole
    return rows, columns_kept


def _middle(line: np.ndarray) -> np.ndarray:
    corner = round(CORNER * len(line))
    return line[corner : len(line) - corner]


def _has_black(line: np.ndarray) -> bool:
    """Whether enough of the pixels (L, 3) at a side of the image are black."""
    return bool((line <= BLACK_LEVEL).all(axis=1).mean() >= MIN_LINES)


def _border(lines: np.ndarray) -> np.ndarray | None:
    """(N,) width of the border along a side, margin included, 0 where there is none; None if it has no border.

    Args:
        lines: (N, L) brightness of the lines that begin at the side.
    """
    black = lines <= BLACK_LEVEL
    width = np.where(black.all(axis=1), lines.shape[1], np.argmin(black, axis=1)).astype(np.float64)
    # At the corners the borders of two sides meet, and the lines run along the other one.
    middle = np.zeros(len(width), dtype=bool)
    _middle(middle)[:] = True
    bordered = middle & (width > 0)
    if bordered.sum() < MIN_LINES * len(width) or width[bordered].max() < MIN_WIDTH_PX:
        return None
    x = np.linspace(-1, 1, len(width))
    fitted, inliers = np.zeros_like(width), bordered & (width <= MAX_WIDTH * lines.shape[1])
    for _ in range(3):  # dark things at the border make some lines too wide
        if inliers.sum() <= 2 * DEGREE:
            return None
        fitted = np.maximum(np.polynomial.Polynomial.fit(x[inliers], width[inliers], DEGREE)(x), 0)
        inliers = bordered & (np.abs(width - fitted) <= 2 * MAX_RESIDUAL_PX)
    close = bordered & (np.abs(width - fitted) <= MAX_RESIDUAL_PX)
    missing = middle & ~bordered & (fitted > 2 * MAX_RESIDUAL_PX)  # by its shape, the border continues here
    if close.sum() < MIN_FITTING_SHARE * (bordered.sum() + missing.sum()) or fitted[close].max() < MIN_WIDTH_PX:
        return None
    rows = np.nonzero(close)[0]
    behind = np.minimum(width[rows].astype(int) + EDGE_PX, lines.shape[1] - 1)
    if (lines[rows, behind] >= INSIDE_LEVEL).mean() < MIN_BRIGHT_SHARE:
        return None
    cut = np.where(middle & ~close, fitted, width)
    return np.where(cut > 0, np.ceil(cut) + MARGIN_PX, 0)
