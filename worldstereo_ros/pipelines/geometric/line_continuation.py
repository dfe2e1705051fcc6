"""Things that were seen in part continue beyond what was seen of them.

Beside a hole, the image continues along its lines (`imaging.coherence_transport`): a bar that the side of an image cut
off, the border of a door, a stripe on the floor. A thing in front of the planes of the room continues only where no
observation looked past it: what opens beside its outline is what lies behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.coherence_transport import continue_image
from worldstereo_ros.imaging.nearest_known import nearest_known
from worldstereo_ros.imaging.warping import pixel_transform
from worldstereo_ros.pipelines.geometric.plane_fill import WORKING_PIXELS
from worldstereo_ros.utils.jit import compiled

# From known pixels, in a view of `WORKING_PIXELS`: up to there what continues hides the image, and is shown at all.
WHOLE_PX, REACH_PX = 6.0, 12.0
BEFORE_RATIO, BEFORE_M = 0.08, 0.05  # what is nearer than a plane by that is in front of it
BEHIND_RATIO = 0.08  # what lies behind a surface is farther by at least that
TOLERANCE_RATIO, TOLERANCE_M = 0.05, 0.05  # of the depth of an observation


def continue_lines(
    image: np.ndarray,
    known: np.ndarray,
    depth: np.ndarray,
    plane_depth: np.ndarray,
    observations: Sequence[View],
    camera: Camera,
    world_from_camera: np.ndarray,
) -> np.ndarray:
    """The image with what is around its holes continued into them, up to `REACH_PX`.

    Args:
        image: (H, W, 3) uint8 with filled holes.
        known: (H, W) bool, pixels that are no hole.
        depth: (H, W) float32 metres of the known pixels.
        plane_depth: (H, W) float32 metres of the planes in the holes, 0 = none.
        observations: whose depth tells where nothing is.
        camera, world_from_camera: camera and (4, 4) pose of the view.

    Returns:
        (H, W, 3) uint8.
    """
    if known.all() or not known.any():
        return image
    scale = max(1.0, (known.size / WORKING_PIXELS) ** 0.5)
    nearest, distance = nearest_known(depth, known)
    nearest = np.where(known | (distance > REACH_PX * scale), np.float32(0), nearest)
    in_front = (plane_depth == 0) | (nearest < (1 - BEFORE_RATIO) * plane_depth - BEFORE_M)
    looked_past = seen_past(np.where(in_front, nearest, np.float32(0)), observations, camera, world_from_camera)
    min_depth = np.where(looked_past, (1 + BEHIND_RATIO) * nearest, np.float32(0))
    continued, filled = continue_image(image, known, distance, REACH_PX * scale, depth, min_depth, scale=scale)
    weight = np.clip((REACH_PX - distance / scale) / (REACH_PX - WHOLE_PX), 0, 1).astype(np.float32) * filled
    blended = cv2.blendLinear(continued, image.astype(np.float32), weight, 1 - weight)
    return cv2.add(blended, 0, dtype=cv2.CV_8U)


def seen_past(
    depth: np.ndarray, observations: Sequence[View], camera: Camera, world_from_camera: np.ndarray
) -> np.ndarray:
    """(H, W) bool: an observation shows that no surface is at this depth, or shows the surface there itself.

    Args:
        depth: (H, W) float32 metres, 0 = not asked for.
        observations: those without depth are not used.
        camera, world_from_camera: camera and (4, 4) pose of the view.
    """
    past = np.zeros(depth.shape, np.uint8)
    depth = np.ascontiguousarray(depth, np.float32)
    for view in observations:
        if view.depth is not None:
            A, b = pixel_transform(camera, world_from_camera, view.camera, view.world_from_camera)
            source_depth = np.ascontiguousarray(view.depth, np.float32)
            _mark_past(depth, A, b, source_depth, np.float32(TOLERANCE_RATIO), np.float32(TOLERANCE_M), past)
    return past > 0


@compiled
def _mark_past(depth, A, b, source_depth, relative, absolute, out):
    """Marks pixels at whose point one source saw nothing, or its surface.

    Args:
        depth: (H, W) float32 target depth, 0 = none.
        A, b: result of `pixel_transform` from target to source.
        source_depth: (h, w) float32 depth of the source, 0 = none.
        relative, absolute: depth tolerance, fraction and metres.
        out: (H, W) uint8, set to 1; never cleared.
    """
    height, width = source_depth.shape
    half = np.float32(0.5)
    for y in range(depth.shape[0]):
        for x in range(depth.shape[1]):
            d = depth[y, x]
            if d <= 0 or out[y, x] != 0:
                continue
            fx, fy = np.float32(x), np.float32(y)
            z = (A[2, 0] * fx + A[2, 1] * fy + A[2, 2]) * d + b[2]
            if z < np.float32(0.05):
                continue
            u = ((A[0, 0] * fx + A[0, 1] * fy + A[0, 2]) * d + b[0]) / z + half
            v = ((A[1, 0] * fx + A[1, 1] * fy + A[1, 2]) * d + b[1]) / z + half
            if not (u >= 0 and v >= 0 and u < width and v < height):
                continue
            s = source_depth[int(v), int(u)]
            if s > 0 and z < s + relative * s + absolute:
                out[y, x] = 1
