"""Warps an image to the other eye of a rectified pair, row by row, with z-order and holes.

A row of an image is a chain of surface points. Neighbours on one surface stay joined in the other eye, and the pixels
between them are interpolated; where the disparity jumps, the chain is cut, and what opens there is a hole. The nearest
surface wins. Where the chain runs backwards, the other eye sees the surface from behind: it is not drawn. Colours are
then sampled backwards at the source column of each pixel, so that they are resampled once.

Disparity is in pixels: left(x, y) is right(x - d, y), and a larger one is nearer. The loops warp to a right eye; the
left eye is its mirror image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

EYES = ("right", "left")
HOLE = np.float32(-1.0)  # disparity of a hole
JUMP_PX, JUMP_RATIO = 0.75, 0.06  # larger steps of disparity between neighbours cut the surface


@dataclass(frozen=True)
class WarpedEye:
    """An image as the other eye sees it.

    Attributes:
        image: (H, W, 3) uint8 RGB, undefined in holes.
        disparity: (H, W) float32 pixels between the eyes, in the other eye; `HOLE` in holes.
    """

    image: np.ndarray
    disparity: np.ndarray

    @property
    def hole(self) -> np.ndarray:
        """(H, W) bool, True where the image shows nothing."""
        return self.disparity < 0


def warp_to_eye(
    image: np.ndarray,
    disparity: np.ndarray,
    *,
    eye: str = "right",
    offset: float = 0.0,
    edge_px: int = 1,
    near_end: np.ndarray | None = None,
    threads: int = 2,
) -> WarpedEye:
    """Warps an image to the other eye.

    Args:
        image: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 pixels, at least 0; 0 is infinitely far.
        eye: the eye to make, right or left; the image is that of the other one.
        offset: pixels by which the made eye is shifted so that surfaces of this disparity have none on the screen
            (converged cameras by a shifted sensor); 0 for parallel ones. It does not change `disparity`.
        edge_px: nearer surfaces are widened by so many pixels first: the pixels at an edge mix both colours, and those
            left behind would draw a ghost of the edge on the background.
        near_end: (H, W) float32 pixels by which the nearer surface at an edge reaches beyond the middle of its last
            pixel: 0 where its edge is drawn apart (`soft_edges`); None: half a pixel, as the farther one.
        threads: number of threads.

    Raises:
        InputError: the arrays do not fit, a disparity is negative or not finite, or the eye is unknown.
    """
    check_warp_input(image, disparity, eye)
    if not np.isfinite(offset):
        raise InputError(f"The offset is {offset}; a finite number of pixels was expected.")
    source = np.ascontiguousarray(image if eye == "right" else image[:, ::-1])
    values = np.ascontiguousarray(disparity if eye == "right" else disparity[:, ::-1], np.float32)
    if edge_px > 0:
        values = widen_edges(values, edge_px)
    out, target = np.zeros_like(source), np.full(values.shape, HOLE, np.float32)
    column = np.zeros(values.shape, np.float32)
    settings = np.array([offset, JUMP_PX, JUMP_RATIO], np.float32)
    if near_end is None:
        ends = np.full_like(values, 0.5)
    else:
        ends = np.ascontiguousarray(near_end if eye == "right" else near_end[:, ::-1])
    calls = [(a, b, source, values, ends, settings, out, target, column) for a, b in split_range(len(values), threads)]
    run_in_threads(_warp_rows, calls)
    if eye == "left":
        out, target = np.ascontiguousarray(out[:, ::-1]), np.ascontiguousarray(target[:, ::-1])
    return WarpedEye(out, target)


def check_warp_input(image: np.ndarray, disparity: np.ndarray, eye: str) -> None:
    """Checks an image and its disparity. Raises InputError."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(f"The image is {image.dtype} of shape {image.shape}; uint8 of shape (H, W, 3) was expected.")
    if disparity.shape != image.shape[:2]:
        raise InputError(f"The disparity has shape {disparity.shape}; {image.shape[:2]}, the image's, was expected.")
    if not (np.isfinite(disparity).all() and (disparity >= 0).all()):
        raise InputError("The disparity has numbers that are negative, infinite or NaN; it is at least 0 everywhere.")
    if eye not in EYES:
        raise InputError(f"The eye is '{eye}'; {' or '.join(EYES)} was expected.")


def widen_edges(disparity: np.ndarray, pixels: int) -> np.ndarray:
    """Widens nearer surfaces at jumps of disparity (H, W) by some pixels; elsewhere nothing changes."""
    size = 2 * pixels + 1
    widened = cv2.dilate(disparity, np.ones((1, size), np.uint8))
    jump = np.maximum(np.float32(JUMP_PX), np.float32(JUMP_RATIO) * widened)
    return np.where(widened - disparity > jump, widened, disparity)


@compiled
def _joined(one, other, settings):
    """Whether neighbours of these disparities are on one surface."""
    return abs(one - other) <= max(settings[1], settings[2] * max(one, other))


@compiled
def _warp_rows(row0, row1, image, disparity, ends, settings, out, target, column):
    """Warps rows to the right eye.

    Args:
        row0, row1: first row and end of the rows.
        image: (H, W, 3) uint8.
        disparity: (H, W) float32 pixels.
        ends: (H, W) float32, near_end.
        settings: (3,) float32: offset, `JUMP_PX`, `JUMP_RATIO`.
        out: (H, W, 3) uint8, written where a surface is.
        target: (H, W) float32, holes at first; written likewise.
        column: (H, W) float32, source columns; scratch space.
    """
    width = disparity.shape[1]
    half, zero, one = np.float32(0.5), np.float32(0.0), np.float32(1.0)
    for y in range(row0, row1):
        for x in range(width):
            d0 = disparity[y, x]
            x0 = np.float32(x) - d0 + settings[0]
            end = x == width - 1
            if not end and _joined(d0, disparity[y, x + 1], settings):
                d1 = disparity[y, x + 1]
                length = one + d0 - d1
                if length > zero:
                    inverse = one / length
                    for t in range(max(0, int(np.ceil(x0))), min(width - 1, int(np.floor(x0 + length))) + 1):
                        f = (np.float32(t) - x0) * inverse
                        d = d0 + f * (d1 - d0)
                        if d > target[y, t]:
                            target[y, t] = d
                            column[y, t] = np.float32(x) + f
            else:  # the surface ends a little farther
                reach = half if end or d0 < disparity[y, x + 1] else ends[y, x]
                for t in range(max(0, int(np.ceil(x0))), min(width - 1, int(np.floor(x0 + reach))) + 1):
                    if d0 > target[y, t]:
                        target[y, t] = d0
                        column[y, t] = np.float32(x)
            if x == 0 or not _joined(d0, disparity[y, x - 1], settings):
                reach = half if x == 0 or d0 < disparity[y, x - 1] else ends[y, x]
                for t in range(max(0, int(np.ceil(x0 - reach))), min(width - 1, int(np.floor(x0))) + 1):
                    if d0 > target[y, t]:
                        target[y, t] = d0
                        column[y, t] = np.float32(x)
        for x in range(width):
            if target[y, x] < zero:
                continue
            u = column[y, x]
            i = int(u)
            f = u - np.float32(i)
            if f == zero:
                for c in range(3):
                    out[y, x, c] = image[y, i, c]
            elif (
                i > 0
                and i + 2 < width
                and _joined(disparity[y, i - 1], disparity[y, i], settings)
                and _joined(disparity[y, i + 1], disparity[y, i + 2], settings)
            ):
                # Catmull-Rom's cubic: linear interpolation between pixels would blur.
                w0 = half * f * (f * (np.float32(2.0) - f) - one)
                w1 = half * (f * f * (np.float32(3.0) * f - np.float32(5.0)) + np.float32(2.0))
                w2 = half * f * (f * (np.float32(4.0) - np.float32(3.0) * f) + one)
                w3 = half * f * f * (f - one)
                for c in range(3):
                    value = w0 * image[y, i - 1, c] + w1 * image[y, i, c] + w2 * image[y, i + 1, c]
                    value += w3 * image[y, i + 2, c]
                    out[y, x, c] = np.uint8(min(max(value, zero), np.float32(255.0)) + half)
            else:
                for c in range(3):
                    value = (one - f) * image[y, i, c] + f * image[y, i + 1, c]
                    out[y, x, c] = np.uint8(value + half)
