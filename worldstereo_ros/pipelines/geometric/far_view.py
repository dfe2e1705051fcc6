"""What lies behind everything that was measured: the sky, and the distance behind a window.

A pixel of an observation without depth, amid others without, shows something beyond the range of the sensor. If that is
long, it is seen in the same direction from another place: there is no parallax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.layout import Layout, PlaneRender
from worldstereo_ros.pipelines.geometric.plane_fill import WORKING_PIXELS

LONG_RANGE_M, MIN_LONG_FRACTION = 8.0, 1e-3  # this part of what a sensor of long range measured is farther
MARGIN_PX = 2  # from a measured pixel, in an observation
MIN_AHEAD = 0.05  # depth of a direction of length 1
GAP_PX = 5  # width of gaps between points of the cloud, in which nothing far is shown, in a view of `WORKING_PIXELS`
SMOOTHED_PX = 3  # over which what is far blends into the image
# What two observations saw in one direction is compared in light (a filter of so many pixels): where it differs by more
# grey levels, it is not far, but beyond a short range of the sensor or missing.
COMPARED_PX, MAX_DIFFERENCE = 7, 20.0
MAX_COMPARED = 6  # observations that show something far
# Of the colour: .99 of these pixels are right in validation worlds, with exact poses and a sky that does not change.
FAR_CONFIDENCE, CONFIRMED_CONFIDENCE = 0.9, 0.97
MIN_BASELINE = 0.5  # between two observations that confirm each other, of the distance to the view


class FarView(NamedTuple):
    """What lies behind everything in a view.

    Attributes:
        image: (H, W, 3) uint8; 0 where nothing was found.
        found: (H, W) bool: an observation saw it, and none contradicts.
        confirmed: (H, W) bool: two observations from places far enough apart saw the same.
    """

    image: np.ndarray
    found: np.ndarray
    confirmed: np.ndarray


def far_view(observations: Sequence[View], camera: Camera, world_from_camera: np.ndarray, mask: np.ndarray) -> FarView:
    """What observations saw beyond the range of their sensors, in the directions of the pixels of a view.

    Args:
        observations: views with depth. Each pixel is that of the observation from the nearest place that saw it.
        camera, world_from_camera: camera and (4, 4) pose of the view.
        mask: (H, W) bool, the pixels that are wanted.
    """
    image, light = np.zeros((*mask.shape, 3), np.uint8), np.zeros((*mask.shape, 3), np.float32)
    found, contradicted, confirmed = (np.zeros(mask.shape, bool) for _ in range(3))
    source_of = np.full(mask.shape, -1, np.int16)
    if not mask.any():
        return FarView(image, found, confirmed)
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rays = camera.rays()[box] @ np.asarray(world_from_camera)[:3, :3].T.astype(np.float32)
    places = np.array([view.world_from_camera[:3, 3] for view in observations]).reshape(-1, 3)
    distances = np.linalg.norm(places - world_from_camera[:3, 3], axis=1)
    compared = 0
    for index in np.argsort(distances, kind="stable"):
        seen = _far_of(observations[index], rays)
        if seen is None or not (shown := seen[2] & mask[box]).any():
            continue
        colours, smooth, _ = seen
        known = shown & found[box]
        if known.any():
            same = np.abs(smooth - light[box]).mean(axis=-1) < MAX_DIFFERENCE
            contradicted[box] |= known & ~same
            others = source_of[box]
            baselines = np.linalg.norm(places[others] - places[index], axis=-1)
            confirmed[box] |= known & same & (baselines >= MIN_BASELINE * distances[others])
        new = shown & ~found[box]
        np.copyto(image[box], colours, where=new[..., None])
        np.copyto(light[box], smooth, where=new[..., None])
        np.copyto(source_of[box], index, where=new, casting="unsafe")
        found[box] |= new
        compared += 1
        if compared == MAX_COMPARED:
            break
    found &= ~contradicted
    image[~found] = 0
    return FarView(image, found, confirmed & found)


def _far_of(view: View, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Colour (h, w, 3) uint8, its light (h, w, 3) float32, and where (h, w) a view saw something far, along rays."""
    if view.depth is None or (view.depth > 0).all():
        return None
    local = rays @ view.world_from_camera[:3, :3].astype(np.float32)
    ahead = np.maximum(local[..., 2], np.float32(MIN_AHEAD))
    camera = view.camera
    u = np.where(local[..., 2] > MIN_AHEAD, camera.fx * local[..., 0] / ahead + camera.cx, -1).astype(np.float32)
    v = (camera.fy * local[..., 1] / ahead + camera.cy).astype(np.float32)
    kernel = np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)
    far = cv2.erode((view.depth <= 0).astype(np.uint8), kernel, borderType=cv2.BORDER_REPLICATE)
    shown = cv2.remap(far, u, v, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0) > 0
    if not shown.any():
        return None
    smooth = cv2.blur(view.image, (COMPARED_PX, COMPARED_PX))
    colours, light = (
        cv2.remap(pixels, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for pixels in (view.image, smooth)
    )
    return colours, light.astype(np.float32), shown


def far_pixels(
    layout: Layout, conditioning: Conditioning, index: int, planes: PlaneRender, seen: np.ndarray
) -> FarView:
    """`far_view` where memory has no point and no plane is likely.

    Args:
        layout: of the place. Nothing is far if its observations show no long range of their sensor: then pixels without
            depth are walls beyond a short one, black or shining things. Lengths of an arbitrary unit tell no range.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.
        planes: of the view, at least of its pixels that were not seen.
        seen: (H, W) bool, pixels that an observation saw.
    """
    observations = [] if layout.seen is None else layout.seen.observations
    # Estimated depth tells nothing about a sensor.
    measured = layout.depths[[view.estimated is None for view in observations]] if observations else layout.depths[:0]
    long_range = (measured > LONG_RANGE_M).sum() > MIN_LONG_FRACTION * (measured > 0).sum()
    if not long_range or not all(view.metric for view in observations):
        observations = []
    empty = ~seen & (planes.plane < 0) if observations else np.zeros(seen.shape, bool)
    empty &= conditioning.renders.provenance[index].cpu().numpy() == Provenance.UNKNOWN
    size = 2 * round(GAP_PX * max(1.0, (empty.size / WORKING_PIXELS) ** 0.5) / 2) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    empty = cv2.morphologyEx(empty.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    return far_view(observations, conditioning.camera, conditioning.world_from_camera[index], empty)


def show_far(frame: PipelineFrame, far: FarView) -> PipelineFrame:
    """The frame with what is far blended into its unseen pixels."""
    if not far.found.any():
        return frame
    share = cv2.blur(far.found.astype(np.float32), (SMOOTHED_PX, SMOOTHED_PX)) * far.found
    mixed = cv2.blendLinear(frame.image.astype(np.float32), far.image.astype(np.float32), 1 - share, share)
    image = np.where(far.found[..., None], np.rint(mixed), frame.image).astype(np.uint8)
    confidence = np.where(far.confirmed, np.float32(CONFIRMED_CONFIDENCE), np.float32(FAR_CONFIDENCE))
    return replace(frame, image=image, far_confidence=np.where(far.found, confidence, np.float32(0)))
