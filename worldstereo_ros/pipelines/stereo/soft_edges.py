"""Edges of nearer surfaces, whose pixels mix two colours: unmixed, moved with their coverage, and mixed anew.

A pixel at an edge shows a part of the nearer surface and a part of what lies behind. Moved as a whole, it would carry
the old background along, and the edge would snap to whole pixels. So the image is split there: a back layer, in which
the surface behind continues one pixel under the edge, and a front layer of the edge alone, with coverages. Coverage
follows from the colours on both sides (alpha matting along the line between two colours, as in Chuang et al. 2001 for
colours without spread). It also corrects a depth that ends a pixel too early or too late.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.pipelines.stereo.warp import HOLE, JUMP_PX, JUMP_RATIO, WarpedEye
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

REACH_PX = 2  # around an edge's pixel, in which the colours of both sides are looked for
MIN_CONTRAST = 12.0  # grey levels between both sides; of fewer, coverage cannot be told
MAX_RESIDUAL = 0.15  # of the contrast, by which a mixed colour may be beside the line between both
STEEP = 3.0  # times the steps beside it, that a jump down a column is larger
PURE = 0.08  # coverages this near to 0 or 1 count as such: noise


@dataclass(frozen=True)
class EdgeLayers:
    """An image in two layers.

    Attributes:
        image, disparity: (H, W, 3) uint8 and (H, W) float32 of the back layer: the image, but for the outermost pixels
            of nearer surfaces, which show what is behind them.
        front: (H, W, 3) uint8, the colours of nearer surfaces at their edges; elsewhere the image.
        front_disparity: (H, W) float32, `HOLE` where there is no edge.
        coverage: (H, W) float32, share of a pixel that the nearer surface covers; 0 where there is no edge.
    """

    image: np.ndarray
    disparity: np.ndarray
    front: np.ndarray
    front_disparity: np.ndarray
    coverage: np.ndarray

    def near_end(self) -> np.ndarray:
        """See `warp.warp_to_eye`: 0 beside pixels of the front layer."""
        edge = (self.front_disparity >= 0).view(np.uint8)
        return np.where(cv2.dilate(edge, np.ones((1, 3), np.uint8)) > 0, np.float32(0), np.float32(0.5))


@dataclass(frozen=True)
class DrawnEdges:
    """Edges as the other eye sees them.

    Attributes:
        image: (H, W, 3) uint8, colours of the nearer surface.
        disparity: (H, W) float32, `HOLE` where none is seen.
        coverage: (H, W) float32.
    """

    image: np.ndarray
    disparity: np.ndarray
    coverage: np.ndarray

    @property
    def owned(self) -> np.ndarray:
        """(H, W) bool, pixels that show more of the nearer surface than of what is behind."""
        return self.coverage >= 0.5

    def mix(self, image: np.ndarray) -> np.ndarray:
        """Mixes the edges into an eye (H, W, 3) uint8 without them; a new array."""
        out = image.copy()
        some = self.coverage > 0
        share = self.coverage[some][:, None]
        out[some] = np.rint(share * self.image[some] + (1 - share) * image[some]).astype(np.uint8)
        return out


def split_edges(image: np.ndarray, disparity: np.ndarray, *, threads: int = 2) -> EdgeLayers:
    """Splits an image at the edges of nearer surfaces.

    Args:
        image: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 pixels, at least 0.
        threads: number of threads.
    """
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    highest = cv2.dilate(disparity, cross)
    jump = np.maximum(np.float32(JUMP_PX), np.float32(JUMP_RATIO) * highest)
    band = find_edges(disparity).view(np.uint8)
    layers = EdgeLayers(
        image.copy(), disparity.copy(), image.copy(), np.full_like(disparity, HOLE), np.zeros_like(disparity)
    )
    settings = np.array([MIN_CONTRAST**2, MAX_RESIDUAL**2, PURE], np.float32)
    arrays = (layers.image, layers.disparity, layers.front, layers.front_disparity, layers.coverage)
    calls = [
        (*rows, image, disparity, highest, jump, band, settings, *arrays) for rows in split_range(len(image), threads)
    ]
    run_in_threads(_unmix, calls)
    return layers


def find_edges(disparity: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels beside a jump of disparity (H, W), of a row or of a column.

    Down a column, surfaces seen at a grazing angle have large steps, too: a jump is larger than the steps beside it.
    """
    band = np.zeros(disparity.shape, bool)
    limit = np.maximum(np.float32(JUMP_PX), np.float32(JUMP_RATIO) * disparity)
    across = np.abs(np.diff(disparity, axis=1)) > np.maximum(limit[:, 1:], limit[:, :-1])
    band[:, 1:] |= across
    band[:, :-1] |= across
    step = np.abs(np.diff(disparity, axis=0))
    down = step > np.maximum(limit[1:], limit[:-1])
    down[1:] &= step[1:] > STEEP * step[:-1]
    down[:-1] &= step[:-1] > STEEP * step[1:]
    band[1:] |= down
    band[:-1] |= down
    return band


def draw_edges(
    layers: EdgeLayers,
    eye: WarpedEye,
    disparity: np.ndarray,
    *,
    side: str = "right",
    offset: float = 0.0,
    threads: int = 2,
) -> DrawnEdges:
    """Draws the front layer as the other eye sees it.

    Args:
        layers: of the camera's image.
        eye: the back layer, warped.
        disparity: (H, W) float32 of the camera's image.
        side: the eye that is made, right or left.
        offset: see `warp.warp_to_eye`.
        threads: number of threads.
    """
    given = [layers.front, layers.front_disparity, layers.coverage, disparity, eye.disparity]
    if side == "left":
        given = [each[:, ::-1] for each in given]
    given = [np.ascontiguousarray(each) for each in given]
    drawn = np.zeros_like(layers.front), np.full_like(layers.coverage, HOLE), np.zeros_like(layers.coverage)
    settings = np.array([offset, JUMP_PX, JUMP_RATIO, PURE / 2], np.float32)
    run_in_threads(_draw_rows, [(*rows, *given, settings, *drawn) for rows in split_range(len(disparity), threads)])
    if side == "left":
        return DrawnEdges(*(np.ascontiguousarray(each[:, ::-1]) for each in drawn))
    return DrawnEdges(*drawn)


@compiled
def _unmix(
    row0, row1, image, disparity, highest, jump, band, settings,
    back, back_disparity, front, front_disparity, coverage,
):  # fmt: skip
    """Colours and coverages of the pixels at edges.

    Args:
        row0, row1: first row and end of the rows.
        image, disparity: of the camera.
        highest: (H, W) float32, largest disparity of the 3x3 pixels around each.
        jump: (H, W) float32, smallest step of disparity that counts as an edge.
        band: (H, W) uint8, 1 = at an edge.
        settings: (3,) float32: squares of `MIN_CONTRAST` and `MAX_RESIDUAL`, and `PURE`.
        back, back_disparity, front, front_disparity, coverage: see `EdgeLayers`, updated at edges.
    """
    height, width = disparity.shape
    zero, half, one = np.float32(0.0), np.float32(0.5), np.float32(1.0)
    near_colour, far_colour = np.zeros(3, np.float32), np.zeros(3, np.float32)
    for y in range(row0, row1):
        for x in range(width):
            if band[y, x] == 0:
                continue
            top, limit = highest[y, x], jump[y, x]
            near = top - disparity[y, x] <= limit
            near_weight, far_weight, behind, count = zero, zero, zero, zero
            least, most, layered = top, zero, True
            beside_near = (x > 0 and disparity[y, x - 1] >= top - limit) or (
                x + 1 < width and disparity[y, x + 1] >= top - limit
            )
            for c in range(3):
                near_colour[c], far_colour[c] = zero, zero
            for q in range(max(0, y - REACH_PX), min(height - 1, y + REACH_PX) + 1):
                for p in range(max(0, x - REACH_PX), min(width - 1, x + REACH_PX) + 1):
                    value = disparity[q, p]
                    far = value < top - limit
                    layered = layered and value <= top + limit
                    if far:
                        least, most = min(least, value), max(most, value)
                    if far and abs(q - y) <= 1 and abs(p - x) <= 1:
                        count += one
                        behind += value
                    if band[q, p] != 0 or value > top + limit:
                        continue
                    weight = one / np.float32((q - y) * (q - y) + (p - x) * (p - x))
                    if far:
                        far_weight += weight
                        for c in range(3):
                            far_colour[c] += weight * image[q, p, c]
                    else:
                        near_weight += weight
                        for c in range(3):
                            near_colour[c] += weight * image[q, p, c]
            layered = layered and near_weight > zero and far_weight > zero and count > zero and most - least <= limit
            share, contrast, along, residual = zero, zero, zero, zero
            if layered:
                for c in range(3):
                    near_colour[c] /= near_weight
                    far_colour[c] /= far_weight
                    step = near_colour[c] - far_colour[c]
                    contrast += step * step
                    along += step * (image[y, x, c] - far_colour[c])
                share = min(max(along / max(contrast, one), zero), one)
                for c in range(3):
                    off = image[y, x, c] - far_colour[c] - share * (near_colour[c] - far_colour[c])
                    residual += off * off
            if not layered or contrast < settings[0] or residual > settings[1] * contrast:
                if not near and beside_near:  # as `warp.widen_edges`
                    back_disparity[y, x] = top
                continue
            share = zero if share < settings[2] else one if share > one - settings[2] else share
            if near or share > zero:
                front_disparity[y, x] = disparity[y, x] if near else top
                coverage[y, x] = share
                if share < one:
                    for c in range(3):
                        value = near_colour[c]
                        if share >= half:
                            value = (image[y, x, c] - (one - share) * far_colour[c]) / share
                        front[y, x, c] = np.uint8(min(max(value, zero), np.float32(255.0)) + half)
            if near:
                back_disparity[y, x] = behind / count
            if near or share > zero:
                for c in range(3):
                    back[y, x, c] = np.uint8(far_colour[c] + half)


@compiled
def _draw_rows(
    row0, row1, front, front_disparity, coverage, disparity, behind, settings, out, out_disparity, out_coverage
):  # fmt: skip
    """Draws edges to the right eye, between neighbours of a row; coverage falls to 0 within a pixel beyond the last.

    Args:
        row0, row1: first row and end of the rows.
        front, front_disparity, coverage: see `EdgeLayers`.
        disparity: (H, W) float32 of the camera.
        behind: (H, W) float32 of the back layer in the other eye, `HOLE` in holes.
        settings: (4,) float32: offset, `JUMP_PX`, `JUMP_RATIO`, and the smallest coverage that is drawn.
        out, out_disparity, out_coverage: see `DrawnEdges`, updated.
    """
    width = disparity.shape[1]
    zero, one = np.float32(0.0), np.float32(1.0)
    for y in range(row0, row1):
        for x in range(-1, width):
            first = x >= 0 and front_disparity[y, x] >= zero
            second = x + 1 < width and front_disparity[y, x + 1] >= zero
            if not first and not second:
                continue
            d0 = front_disparity[y, x] if first else disparity[y, max(x, 0)]
            d1 = front_disparity[y, x + 1] if second else disparity[y, min(x + 1, width - 1)]
            limit = max(settings[1], settings[2] * max(d0, d1))
            joined = x >= 0 and x + 1 < width and abs(d0 - d1) <= limit
            for part in range(2):
                if joined:
                    if part == 1:
                        break
                    start, end, a, b = d0, d1, coverage[y, x] if first else one, coverage[y, x + 1] if second else one
                    left, right = x, x + 1
                elif part == 0:
                    if not first:
                        continue
                    start, end, a, b, left, right = d0, d0, coverage[y, x], zero, x, x
                else:
                    if not second:
                        continue
                    start, end, a, b, left, right = d1, d1, zero, coverage[y, x + 1], x + 1, x + 1
                place = np.float32(x) - start + settings[0]
                length = one + start - end
                if length <= zero:
                    continue
                for t in range(max(0, int(np.ceil(place))), min(width - 1, int(np.floor(place + length))) + 1):
                    f = (np.float32(t) - place) / length
                    share = a + f * (b - a)
                    d = start + f * (end - start)
                    tolerance = max(settings[1], settings[2] * d)
                    if share < settings[3] or d <= behind[y, t] + tolerance:
                        continue
                    before = out_disparity[y, t]
                    if d < before - tolerance or (d <= before + tolerance and share <= out_coverage[y, t]):
                        continue
                    out_disparity[y, t] = d
                    out_coverage[y, t] = share
                    for c in range(3):
                        colour = (one - f) * front[y, left, c] + f * front[y, right, c]
                        out[y, t, c] = np.uint8(colour + np.float32(0.5))
