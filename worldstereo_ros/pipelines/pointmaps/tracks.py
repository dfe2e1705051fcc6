"""Point tracks through a clip: optical flow checked both ways, and descriptors where steps are too wide for it.

Corners are spread over a grid, one track for each cell, because where tracks lie matters more than how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from worldstereo_ros.imaging.resizing import resize_image

MAX_TRACKED_PIXELS = 500_000  # larger frames are reduced for tracking; 4K would take seconds a frame
CELLS = 420  # of the grid, about; as many tracks are followed at a time
CORNER_QUALITY = 0.004  # of the best corner's smaller eigenvalue
MIN_EIGENVALUE = 2e-5  # of grey levels in 0..1; less is noise of an even surface
LK_WINDOW_PX, LK_LEVELS = 15, 4
MAX_RETURN_PX = 0.7  # between a corner and where it returns, forward and backward
MIN_FOLLOWED_SHARE = 0.7  # of the tracks; where fewer survive a step, descriptors take part
DESCRIPTORS, DESCRIPTOR_RATIO, CONTRAST = 1500, 0.9, 0.003
DESCRIPTOR_STEPS = (1, 2, 3)  # frames back that a frame is matched with, where steps are wide
EPIPOLAR_PX = 1.5
MIN_MATCHES = 12


@dataclass(frozen=True)
class Tracks:
    """N points followed through F frames.

    Attributes:
        pixels: (N, F, 2) float64 x and y in pixels of the frames; NaN where the point is not seen.
        wide_steps: numbers of the frames whose step from the one before is too wide for optical flow.
    """

    pixels: np.ndarray
    wide_steps: tuple[int, ...] = ()

    @property
    def seen(self) -> np.ndarray:
        """(N, F) bool: the point is seen in the frame."""
        return np.isfinite(self.pixels[..., 0])

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass
class _Frame:
    grey: np.ndarray
    keypoints: np.ndarray | None = None
    descriptors: np.ndarray | None = None
    rows: dict[int, int] = field(default_factory=dict)  # keypoint -> track

    def describe(self) -> tuple[np.ndarray, np.ndarray]:
        if self.keypoints is None or self.descriptors is None:
            self.keypoints, self.descriptors = root_sift(self.grey, DESCRIPTORS, CONTRAST)
        return self.keypoints, self.descriptors


def root_sift(
    grey: np.ndarray, count: int, contrast: float, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints and RootSIFT descriptors (Arandjelovic and Zisserman, CVPR 2012) of norm 1.

    Args:
        grey: (H, W) uint8.
        count: of the strongest keypoints, about.
        contrast: least contrast of a keypoint.
        mask: (H, W) uint8, 0 = no keypoints there.

    Returns:
        (K, 2) float32 x and y, and (K, 128) float32.
    """
    points, found = cv2.SIFT_create(count, contrastThreshold=contrast).detectAndCompute(grey, mask)
    keypoints = np.array([point.pt for point in points], np.float32).reshape(-1, 2)
    described = np.zeros((0, 128), np.float32) if found is None else found
    return keypoints, np.sqrt(described / np.maximum(described.sum(axis=1, keepdims=True), 1e-6))


def track_points(frames: Sequence[np.ndarray] | np.ndarray, *, describe: bool = False) -> Tracks:
    """Follows corners through the frames of one shot.

    Args:
        frames: F images (H, W, 3) uint8 RGB of one size.
        describe: match descriptors at every step, not only where optical flow loses much.

    Returns:
        Tracks of two frames at least; none where nothing can be followed.
    """
    height, width = frames[0].shape[:2]
    factor = min(1.0, math.sqrt(MAX_TRACKED_PIXELS / (height * width)))
    size = max(16, round(width * factor)), max(16, round(height * factor))
    small = [
        _Frame(cv2.cvtColor(frame if factor == 1 else resize_image(frame, *size), cv2.COLOR_RGB2GRAY))
        for frame in frames
    ]
    builder = _Builder(len(frames), size)
    builder.detect(small[0], 0)
    wide = []
    for index in range(1, len(frames)):
        share = builder.follow(small[index - 1], small[index], index)
        if share < MIN_FOLLOWED_SHARE:
            wide.append(index)
        if describe or share < MIN_FOLLOWED_SHARE:
            for step in DESCRIPTOR_STEPS:
                if index >= step:
                    builder.match(small[index - step], small[index], index - step, index)
        builder.detect(small[index], index)
    scale = np.array([width / size[0], height / size[1]])
    # Pixel centres are at integers, so that the image starts at -0.5.
    return Tracks((builder.array() + 0.5) * scale - 0.5, tuple(wide))


class _Builder:
    """Collects tracks; the rows of `paths` grow."""

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.count, self.size = count, size
        side = math.sqrt(size[0] * size[1] / CELLS)
        self.grid = max(2, round(size[0] / side)), max(2, round(size[1] / side))
        self.paths: list[np.ndarray] = []
        self.active = np.zeros(0, np.int64)
        self.at = np.zeros((0, 2), np.float32)

    def _new(self, index: int, pixel: np.ndarray) -> int:
        path = np.full((self.count, 2), np.nan)
        path[index] = pixel
        self.paths.append(path)
        return len(self.paths) - 1

    def _cell(self, pixels: np.ndarray) -> np.ndarray:
        column = np.clip((pixels[:, 0] + 0.5) * self.grid[0] / self.size[0], 0, self.grid[0] - 1).astype(np.int64)
        row = np.clip((pixels[:, 1] + 0.5) * self.grid[1] / self.size[1], 0, self.grid[1] - 1).astype(np.int64)
        return row * self.grid[0] + column

    def detect(self, frame: _Frame, index: int) -> None:
        """Begins a track at the best corner of each cell that has none."""
        strength = cv2.cornerMinEigenVal(frame.grey.astype(np.float32) / 255, 5)
        border = 3
        inside = np.zeros_like(strength)
        inside[border:-border, border:-border] = strength[border:-border, border:-border]
        floor = max(MIN_EIGENVALUE, CORNER_QUALITY * float(inside.max()))
        taken = np.zeros(self.grid[0] * self.grid[1], bool)
        taken[self._cell(self.at)] = True
        maxima = (inside > floor) & (inside >= cv2.dilate(inside, np.ones((5, 5), np.uint8)))
        rows, columns = np.nonzero(maxima)
        order = np.argsort(-inside[rows, columns], kind="stable")
        pixels = np.stack([columns, rows], axis=1)[order].astype(np.float32)
        cells = self._cell(pixels)
        _, first = np.unique(cells, return_index=True)
        chosen = pixels[first[~taken[cells[first]]]]
        if not len(chosen):
            return
        chosen = cv2.cornerSubPix(
            frame.grey, chosen.reshape(-1, 1, 2).copy(), (3, 3), (-1, -1),
            (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 10, 0.03),
        ).reshape(-1, 2)  # fmt: skip
        new = [self._new(index, pixel) for pixel in chosen]
        self.active = np.concatenate([self.active, np.array(new, np.int64)])
        self.at = np.concatenate([self.at, chosen])

    def follow(self, before: _Frame, now: _Frame, index: int) -> float:
        """Follows the active tracks by one step; returns the share that survives, of those that stay in the image."""
        if not len(self.active):
            return 0.0
        moved, good = follow_points(before.grey, now.grey, self.at)
        high = np.array(self.size) - 1
        left = ((moved < 1) | (moved > high - 1)).any(axis=1)  # the image, which is no failure
        share = float(good.sum()) / max(1, int((~left | good).sum()))
        rows, at = self.active[good], moved[good]
        # Two tracks that run together are one from here on: the older one.
        _, first = np.unique((at / 2).round().astype(np.int64) @ [1, 1 << 20], return_index=True)
        first.sort()
        self.active, self.at = rows[first], at[first]
        for row, pixel in zip(self.active, self.at, strict=True):
            self.paths[row][index] = pixel
        return share

    def match(self, before: _Frame, now: _Frame, old: int, index: int) -> None:
        """Links keypoints of two frames by their descriptors."""
        first, second = match_descriptors(before, now)
        if len(first) < MIN_MATCHES:
            return
        one, two = before.describe()[0][first], now.describe()[0][second]
        cv2.setRNGSeed(1)
        try:
            found, mask = cv2.findFundamentalMat(one, two, cv2.USAC_MAGSAC, EPIPOLAR_PX, 0.999, 2000)
        except cv2.error:  # raised for degenerate matches, which define no epipolar geometry
            return
        if found is None or mask is None or mask.sum() < MIN_MATCHES:
            return
        new_rows, new_pixels = [], []
        for a, b in zip(first[mask.ravel() > 0], second[mask.ravel() > 0], strict=True):
            if int(b) in now.rows:
                continue
            row = before.rows.get(int(a))
            if row is None:
                row = self._new(old, before.describe()[0][a])
                before.rows[int(a)] = row
            now.rows[int(b)] = row
            pixel = now.describe()[0][b]
            self.paths[row][index] = pixel
            new_rows.append(row)
            new_pixels.append(pixel)
        if not new_rows:
            return
        # Followed by optical flow, too, from here on, unless they already are.
        fresh = ~np.isin(new_rows, self.active)
        self.active = np.concatenate([self.active, np.array(new_rows, np.int64)[fresh]])
        self.at = np.concatenate([self.at, np.array(new_pixels, np.float32)[fresh]])

    def array(self) -> np.ndarray:
        """(N, F, 2) tracks that are seen twice at least."""
        if not self.paths:
            return np.zeros((0, self.count, 2))
        stacked = np.stack(self.paths)
        return stacked[np.isfinite(stacked[..., 0]).sum(axis=1) >= 2]


def follow_points(before: np.ndarray, now: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Optical flow of points, checked there and back (Kalal et al., ICPR 2010).

    Args:
        before, now: (H, W) uint8 grey.
        points: (N, 2) float32 x and y.

    Returns:
        Where they are now (N, 2) float32, and (N,) bool: they return, and are inside.
    """
    options = {
        "winSize": (LK_WINDOW_PX, LK_WINDOW_PX),
        "maxLevel": LK_LEVELS,
        "criteria": (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_COUNT, 20, 0.01),
    }
    start = points.reshape(-1, 1, 2).astype(np.float32)
    moved, there, _ = cv2.calcOpticalFlowPyrLK(before, now, start, np.empty_like(start), **options)
    back, here, _ = cv2.calcOpticalFlowPyrLK(now, before, moved, np.empty_like(start), **options)
    moved, back = moved.reshape(-1, 2), back.reshape(-1, 2)
    good = (there.ravel() == 1) & (here.ravel() == 1) & (np.linalg.norm(back - points, axis=1) < MAX_RETURN_PX)
    high = np.array([before.shape[1] - 2, before.shape[0] - 2])
    return moved, good & (moved >= 1).all(axis=1) & (moved <= high).all(axis=1)


def match_descriptors(before: _Frame, now: _Frame) -> tuple[np.ndarray, np.ndarray]:
    """Rows of mutual nearest descriptors that pass the ratio test, (M,) of both frames."""
    return match_rows(before.describe()[1], now.describe()[1])


def match_rows(one: np.ndarray, two: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (M,) of two sets of descriptors (K, D) of norm 1 that are nearest both ways, and pass the ratio test."""
    if len(one) < 2 or len(two) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    similar = one @ two.T
    best = np.argpartition(-similar, 1, axis=1)[:, :2]
    values = np.take_along_axis(similar, best, axis=1)
    swap = values[:, 0] < values[:, 1]
    best[swap], values[swap] = best[swap, ::-1], values[swap, ::-1]
    distance = np.sqrt(np.maximum(2 - 2 * values, 0))
    mutual = similar.argmax(axis=0)[best[:, 0]] == np.arange(len(one))
    good = mutual & (distance[:, 0] < DESCRIPTOR_RATIO * distance[:, 1])
    rows = np.flatnonzero(good)
    return rows, best[rows, 0]
