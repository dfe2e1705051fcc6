"""What other frames saw of the holes: past frames projected into them, tested against the present depth.

A remembered point that lies in front of what a later frame sees is gone: something moved, and the space was free
then. Beside the camera's image the present frame says nothing of it, and a still point there hides what the other eye
would see behind it. Points at a jump of disparity are left out, because their colours mix two surfaces.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.pipelines.stereo.warp import HOLE, JUMP_PX, JUMP_RATIO, WarpedEye
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

MIN_DEPTH = 1e-3
FAR = np.float32(1e6)  # depth that stands for infinitely far in the loops
FOOTPRINT_PX = 0.75  # half the side of the square that a point covers
STILL_TOLERANCE, STILL_COLOUR = 0.02, 32  # relative depth and grey levels between frames that show one still point
DEPTH_TOLERANCE = 0.06  # relative difference of depths of one surface


@dataclass(frozen=True)
class SeenFrame:
    """A frame that was seen.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 lengths along the optical axis, 0 = unknown, inf = sky.
        world_from_camera: (4, 4) float64.
    """

    image: np.ndarray
    depth: np.ndarray
    world_from_camera: np.ndarray


class FrameMemory:
    """The last frames of one shot, bounded in number.

    Attributes:
        frames: the frames, oldest first.
    """

    def __init__(self, capacity: int) -> None:
        """Creates an empty memory of at most `capacity` frames; 0 remembers nothing."""
        self.frames: deque[SeenFrame] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, frame: SeenFrame) -> None:
        """Remembers a frame; the oldest is forgotten if there are too many."""
        self.frames.append(frame)

    def clear(self) -> None:
        """Forgets everything, as at a cut."""
        self.frames.clear()

    def recall(
        self,
        warped: WarpedEye,
        camera: Camera,
        world_from_eye: np.ndarray,
        disparity: np.ndarray,
        *,
        focal_base: float,
        offset: float = 0.0,
        sign: float = 1.0,
        threads: int = 2,
    ) -> tuple[WarpedEye, np.ndarray]:
        """Fills holes from the remembered frames.

        Args:
            warped: the eye with its holes.
            camera: intrinsics of the frames.
            world_from_eye: (4, 4) pose of the made eye.
            disparity: (H, W) float32 of the present frame, pixels.
            focal_base: focal length times base, pixels times length: disparity times depth.
            offset: see `warp_to_eye`.
            sign: 1 for a right eye, -1 for a left one.
            threads: number of threads.

        Returns:
            The eye, and (H, W) bool, True where it shows what a remembered frame saw: in holes, and in front of what is
            seen, where something beside the camera's image hides it.
        """
        hole = warped.hole
        found = np.zeros(hole.shape, bool)
        if not self.frames:
            return warped, found
        eye = Camera(camera.width, camera.height, camera.fx, camera.fy, camera.cx + sign * offset, camera.cy)
        marked = hole.view(np.uint8)
        settings = np.array(
            [focal_base, sign * offset, sign, JUMP_PX, JUMP_RATIO, FOOTPRINT_PX, DEPTH_TOLERANCE], np.float32
        )
        depth = np.zeros(hole.shape, np.float32)
        parts = [np.zeros(hole.shape, np.float32) for _ in range(threads)]
        present = np.ascontiguousarray(disparity, np.float32)
        depths = np.stack([frame.depth for frame in self.frames])
        for index, frame in enumerate(self.frames):
            A, b = pixel_transform(camera, frame.world_from_camera, eye, world_from_eye)
            later = self._transforms_to_later(index, camera)
            ranges = split_range(len(depth), threads)
            run_in_threads(
                _splat_into_holes,
                [
                    (*rows, depths, later, A, b, marked, warped.disparity, present, settings, part)
                    for rows, part in zip(ranges, parts, strict=False)
                ],
            )
        for part in parts:
            closer = (part > 0) & ((depth == 0) | (part < depth))
            depth[closer] = part[closer]
        hiding = np.argwhere((depth > 0) & ~hole)
        if len(hiding):
            doubtful = hiding[~self._stand_still(hiding, depth[tuple(hiding.T)], eye, world_from_eye, camera)]
            depth[tuple(doubtful.T)] = 0
        if not depth.any():
            return warped, found
        image, target, filled = warped.image.copy(), warped.disparity.copy(), found.view(np.uint8)
        for frame in reversed(self.frames):  # the newest that saw it
            A, b = pixel_transform(eye, world_from_eye, camera, frame.world_from_camera)
            run_in_threads(
                _look_up,
                [
                    (*rows, depth, A, b, frame.image, frame.depth, settings, image, target, filled)
                    for rows in split_range(len(depth), threads)
                ],
            )
        target[hole & ~found] = HOLE
        return WarpedEye(image, target), found

    def _transforms_to_later(self, index: int, camera: Camera) -> np.ndarray:
        """(L, 3, 4) float32 `pixel_transform` from a frame to each of those that were remembered after it."""
        pose, after = self.frames[index].world_from_camera, list(self.frames)[index + 1 :]
        pairs = [pixel_transform(camera, pose, camera, frame.world_from_camera) for frame in after]
        return np.array([np.column_stack(pair) for pair in pairs], np.float32).reshape(-1, 3, 4)

    def _stand_still(
        self, pixels: np.ndarray, depth: np.ndarray, eye: Camera, world_from_eye: np.ndarray, camera: Camera
    ) -> np.ndarray:
        """Whether points stood still: at least two frames show them alike, and none looks through them.

        Args:
            pixels: (N, 2) rows and columns of the eye.
            depth: (N,) in the eye.
            eye, world_from_eye: of the eye.
            camera: of the frames.

        Returns:
            (N,) bool.
        """
        at = np.stack([pixels[:, 1], pixels[:, 0], np.ones(len(pixels))])
        count, clear = np.zeros(len(pixels), int), np.ones(len(pixels), bool)
        darkest, brightest = np.full((len(pixels), 3), 255, np.uint8), np.zeros((len(pixels), 3), np.uint8)
        for frame in self.frames:
            A, b = pixel_transform(eye, world_from_eye, camera, frame.world_from_camera)
            x, y, z = (A @ at) * depth + b[:, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                u, v = np.rint(x / z), np.rint(y / z)
                inside = (z > MIN_DEPTH) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
            column, row = np.where(inside, u, 0).astype(np.intp), np.where(inside, v, 0).astype(np.intp)
            there = frame.depth[row, column]
            clear &= ~inside | (there <= (1 + DEPTH_TOLERANCE) * z)
            same = inside & (np.abs(there - z) <= STILL_TOLERANCE * z)
            count += same
            colour = frame.image[row, column]
            darkest[same] = np.minimum(darkest, colour)[same]
            brightest[same] = np.maximum(brightest, colour)[same]
        alike = (brightest.astype(int) - darkest).max(axis=1) <= STILL_COLOUR
        return clear & (count >= 2) & alike


@compiled
def _splat_into_holes(row0, row1, depths, later, A, b, hole, seen, present, settings, out):
    """Projects points of a remembered frame into the holes of the eye; the nearest wins.

    Args:
        row0, row1: first row and end of the rows of the frame.
        depths: (F, H, W) float32 of all remembered frames, 0 = unknown, oldest first.
        later: (L, 3, 4) float32 `pixel_transform` from the frame to those after it, the last L of them.
        A, b: `pixel_transform` from the frame to the eye.
        hole: (H, W) uint8, 1 = hole of the eye.
        seen: (H, W) float32 disparity of the eye, outside its holes.
        present: (H, W) float32 disparity of the present frame.
        settings: (7,) float32: focal_base, signed offset, sign, `JUMP_PX`, `JUMP_RATIO`, `FOOTPRINT_PX`,
            `DEPTH_TOLERANCE`.
        out: (H, W) float32 depth in the eye, updated, 0 = none.
    """
    height, width = hole.shape
    near = np.float32(MIN_DEPTH)
    half = np.float32(0.5)
    first = len(depths) - len(later)
    depth = depths[first - 1]
    for y in range(row0, row1):
        for x in range(width):
            d = depth[y, x]
            if not near < d < FAR:
                continue
            at_x, at_y = np.float32(x), np.float32(y)
            z = (A[2, 0] * at_x + A[2, 1] * at_y + A[2, 2]) * d + b[2]
            if z < near:
                continue
            u = ((A[0, 0] * at_x + A[0, 1] * at_y + A[0, 2]) * d + b[0]) / z
            v = ((A[1, 0] * at_x + A[1, 1] * at_y + A[1, 2]) * d + b[1]) / z
            if not (-half < u < width - half and -half < v < height - half):
                continue
            r = settings[5] * min(max(d / z, np.float32(1.0)), np.float32(4.0))
            u0, u1 = max(0, int(np.ceil(u - r))), min(width - 1, int(np.floor(u + r)))
            v0, v1 = max(0, int(np.ceil(v - r))), min(height - 1, int(np.floor(v + r)))
            shift = settings[0] / z
            column = int(np.floor(u + settings[2] * shift - settings[1] + half))
            beside = not 0 <= column < width
            behind = shift - max(settings[3], settings[4] * shift) if beside else np.float32(-2.0)
            touched = False
            for q in range(v0, v1 + 1):
                for p in range(u0, u1 + 1):
                    touched = touched or hole[q, p] != 0 or seen[q, p] < behind
            if not touched:
                continue
            # At a jump of depth the colour mixes two surfaces.
            mixed = False
            for q in range(max(0, y - 1), min(height - 1, y + 1) + 1):
                for p in range(max(0, x - 1), min(width - 1, x + 1) + 1):
                    other = depth[q, p]
                    mixed = mixed or abs(other - d) > settings[6] * max(d, other)
            if mixed:
                continue
            gone = False
            for j in range(len(later)):
                gone = gone or _looked_through(depths[first + j], later[j], at_x, at_y, d, settings[6])
            if gone:
                continue
            row = int(np.floor(v + half))
            if not beside:
                now = present[row, column]
                if shift > now + max(settings[3], settings[4] * now):
                    continue  # the present frame looks through this point
            for q in range(v0, v1 + 1):
                for p in range(u0, u1 + 1):
                    if (hole[q, p] != 0 or seen[q, p] < behind) and (out[q, p] == 0 or z < out[q, p]):
                        out[q, p] = z


@compiled
def _looked_through(depth, transform, x, y, d, tolerance):
    """Whether a frame sees what lies behind a point of another frame.

    Args:
        depth: (H, W) float32 of the frame, 0 = unknown, which says nothing.
        transform: (3, 4) float32 from the other frame.
        x, y, d: pixel and depth of the point in the other frame.
        tolerance: relative difference of depths of one surface.
    """
    height, width = depth.shape
    z = (transform[2, 0] * x + transform[2, 1] * y + transform[2, 2]) * d + transform[2, 3]
    if z < np.float32(MIN_DEPTH):
        return False
    u = ((transform[0, 0] * x + transform[0, 1] * y + transform[0, 2]) * d + transform[0, 3]) / z
    v = ((transform[1, 0] * x + transform[1, 1] * y + transform[1, 2]) * d + transform[1, 3]) / z
    if not (0 <= u <= width - 1 and 0 <= v <= height - 1):
        return False
    column, row = int(u + np.float32(0.5)), int(v + np.float32(0.5))
    for q in range(max(0, row - 1), min(height - 1, row + 1) + 1):
        for p in range(max(0, column - 1), min(width - 1, column + 1) + 1):
            if not depth[q, p] > (np.float32(1.0) + tolerance) * z:
                return False
    return True


@compiled
def _look_up(row0, row1, depth, A, b, image, source_depth, settings, out, target, found):
    """Looks up the colours of points in a remembered frame, where no other frame gave them.

    Args:
        row0, row1: first row and end of the rows of the eye.
        depth: (H, W) float32 of the eye, 0 = nothing to look up.
        A, b: `pixel_transform` from the eye to the frame.
        image, source_depth: of the frame.
        settings: as in `_splat_into_holes`.
        out: (H, W, 3) uint8, updated.
        target: (H, W) float32 disparity, updated.
        found: (H, W) uint8, updated.
    """
    height, width = depth.shape
    zero, half, one = np.float32(0.0), np.float32(0.5), np.float32(1.0)
    for y in range(row0, row1):
        for x in range(width):
            d = depth[y, x]
            if d == zero or found[y, x] != 0:
                continue
            at_x, at_y = np.float32(x), np.float32(y)
            z = (A[2, 0] * at_x + A[2, 1] * at_y + A[2, 2]) * d + b[2]
            if z < np.float32(MIN_DEPTH):
                continue
            u = ((A[0, 0] * at_x + A[0, 1] * at_y + A[0, 2]) * d + b[0]) / z
            v = ((A[1, 0] * at_x + A[1, 1] * at_y + A[1, 2]) * d + b[1]) / z
            if not (-half < u < width - half and -half < v < height - half):
                continue
            u, v = min(max(u, zero), np.float32(width - 1)), min(max(v, zero), np.float32(height - 1))
            x0, y0 = min(int(u), width - 2), min(int(v), height - 2)
            fx, fy = u - np.float32(x0), v - np.float32(y0)
            red, green, blue, total = zero, zero, zero, zero
            for j in range(2):
                for i in range(2):
                    other = source_depth[y0 + j, x0 + i]
                    if abs(other - z) > settings[6] * z:
                        continue
                    w = (fx if i else one - fx) * (fy if j else one - fy)
                    total += w
                    red += w * np.float32(image[y0 + j, x0 + i, 0])
                    green += w * np.float32(image[y0 + j, x0 + i, 1])
                    blue += w * np.float32(image[y0 + j, x0 + i, 2])
            if total < half:
                continue
            out[y, x, 0] = np.uint8(red / total + half)
            out[y, x, 1] = np.uint8(green / total + half)
            out[y, x, 2] = np.uint8(blue / total + half)
            target[y, x] = settings[0] / d
            found[y, x] = 1
