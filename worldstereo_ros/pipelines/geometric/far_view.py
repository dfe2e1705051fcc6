"""What lies behind everything that was measured: the sky, and the distance behind a window.

A pixel of an observation without depth, amid others without, shows something beyond the range of the sensor. From
another place it is seen in the same direction: there is no parallax.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import PlaneRender

MARGIN_PX = 2  # from a measured pixel, in an observation
MIN_AHEAD = 0.05  # depth of a direction of length 1
GAP_PX = 5  # width of gaps between points of the cloud, in which nothing far is shown, in a view of `WORKING_PIXELS`
WORKING_PIXELS = 320 * 240
SMOOTHED_PX = 3  # over which what is far blends into the image


def far_colours(
    observations: Sequence[View], camera: Camera, world_from_camera: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What observations saw beyond the range of their sensors, in the directions of the pixels of a view.

    Args:
        observations: views with depth. Each pixel is that of the observation from the nearest place that saw it.
        camera, world_from_camera: camera and (4, 4) pose of the view.
        mask: (H, W) bool, the pixels that are wanted.

    Returns:
        (H, W, 3) uint8, and (H, W) bool where something was found.
    """
    image, found = np.zeros((*mask.shape, 3), np.uint8), np.zeros(mask.shape, bool)
    rays = camera.rays() @ np.asarray(world_from_camera)[:3, :3].T.astype(np.float32)
    kernel = np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)
    distances = [np.linalg.norm(view.world_from_camera[:3, 3] - world_from_camera[:3, 3]) for view in observations]
    for index in np.argsort(distances, kind="stable"):
        wanted = mask & ~found
        if not wanted.any():
            break
        view = observations[index]
        if view.depth is None or (view.depth > 0).all():
            continue
        rows, columns = (np.flatnonzero(wanted.any(axis=axis)) for axis in (1, 0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        local = rays[box] @ view.world_from_camera[:3, :3].astype(np.float32)
        ahead = np.maximum(local[..., 2], np.float32(MIN_AHEAD))
        source = view.camera
        u = np.where(local[..., 2] > MIN_AHEAD, source.fx * local[..., 0] / ahead + source.cx, -1).astype(np.float32)
        v = (source.fy * local[..., 1] / ahead + source.cy).astype(np.float32)
        far = cv2.erode((view.depth <= 0).astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
        shown = cv2.remap(far, u, v, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0) > 0
        shown &= wanted[box]
        if shown.any():
            colours = cv2.remap(view.image, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            np.copyto(image[box], colours, where=shown[..., None])
            found[box] |= shown
    return image, found


def far_pixels(
    observations: Sequence[View], conditioning: Conditioning, index: int, planes: PlaneRender, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`far_colours` where memory has no point and no plane is likely.

    Args:
        observations: views with depth.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.
        planes: of the view, at least of its pixels that were not seen.
        seen: (H, W) bool, pixels that an observation saw.
    """
    empty = ~seen & (planes.plane < 0)
    empty &= conditioning.renders.provenance[index].cpu().numpy() == Provenance.UNKNOWN
    size = 2 * round(GAP_PX * max(1.0, (empty.size / WORKING_PIXELS) ** 0.5) / 2) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    empty = cv2.morphologyEx(empty.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    return far_colours(observations, conditioning.camera, conditioning.world_from_camera[index], empty)


def show_far(frame: PipelineFrame, image: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The image (H, W, 3) uint8 of a frame with what is far, from `far_pixels`, blended into its unseen pixels."""
    if not found.any():
        return frame.image
    share = cv2.blur(found.astype(np.float32), (SMOOTHED_PX, SMOOTHED_PX)) * found
    mixed = cv2.blendLinear(frame.image.astype(np.float32), image.astype(np.float32), 1 - share, share)
    return np.where(found[..., None], np.rint(mixed), frame.image).astype(np.uint8)
