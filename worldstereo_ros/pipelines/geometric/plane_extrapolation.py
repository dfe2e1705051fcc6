"""The layout of a place in the views of a clip, as models with `layout_channels` take it.

They get extrapolated planes as input and learn how far to rely on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.imaging.inpainting import push_pull
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.geometric.layout import Layout
from worldstereo_ros.pipelines.geometric.plane_rays import NEAR_M
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

SUPERSAMPLING = 2  # rays per pixel, along each side
LATENT_PX = 8  # pixels of a latent, along each side
PLANE_CHANNELS = 4  # see `LayoutRender`
BLEND_PX = 5  # over which extrapolated planes blend into the smooth fill
MAX_LOG_DEPTH = 2.0  # limit of the channels that are logarithms
REFERENCE_DEPTH_M = 3.0  # whose logarithm is 0
DEPTH_TOLERANCE_RATIO, DEPTH_TOLERANCE_M = 0.05, 0.05  # two depths within it are of one surface
TEXTURE_PRIOR_WEIGHT = 0.05  # how soon colours return to the texture, away from remembered pixels


@dataclass(frozen=True)
class LayoutRender:
    """The layout in F views, as a model takes it.

    Attributes:
        images: (F, 3, H, W) float32 0..1: the warped views, with extrapolated planes blended into their smooth fills.
        plane_channels: (F, PLANE_CHANNELS, H / LATENT_PX, W / LATENT_PX) float32: fraction of the pixels where a known
            plane may extend; the probability that it does; log of its depth over the depth of the smooth fill; log of
            the latter over `REFERENCE_DEPTH_M`.
    """

    images: np.ndarray
    plane_channels: np.ndarray


def render_layout(
    layout: Layout,
    warped_views: Sequence[WarpedView],
    camera: Camera,
    poses: np.ndarray,
    *,
    threads: int = 1,
) -> LayoutRender:
    """Renders the layout into the views of a clip.

    Args:
        layout: layout of the whole memory.
        warped_views: the F views as warped from memory, at any size.
        camera: camera of the model's images; height and width are multiples of `LATENT_PX`.
        poses: (F, 4, 4) world_from_camera.
        threads: number of threads, each for views of its own.
    """
    # The bundled model was trained without closed rooms, and with them paints what was assumed no better.
    layout = layout.without_closing()
    views = list(zip(warped_views, np.asarray(poses), strict=True))
    with ThreadPoolExecutor(max(1, threads)) as pool:
        parts = list(pool.map(lambda view: _render_one(layout, view[0], camera, view[1]), views))
    return LayoutRender(*(np.stack(arrays) for arrays in zip(*parts, strict=True)))


def _render_one(layout: Layout, warped: WarpedView, camera: Camera, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image (3, H, W) and the plane channels of one view."""
    fine = camera.resized(camera.width * SUPERSAMPLING, camera.height * SUPERSAMPLING)
    size = (fine.width, fine.height)
    image, valid, filled = warped.image, warped.valid_mask, warped.depth
    if image.shape[:2] != size[::-1]:
        image = resize_image(image, *size)
        valid = cv2.resize(valid.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
        filled = cv2.resize(filled, size, interpolation=cv2.INTER_NEAREST)
    out, filled_depth = image.astype(np.float32), np.maximum(filled, NEAR_M)
    may_extend, probability, log_ratio = (np.zeros(out.shape[:2], np.float32) for _ in range(3))
    if len(layout) and not valid.all():
        planes = layout.render_view(fine, pose)
        hit = planes.depth > 0
        same_surface = (
            valid & hit & (np.abs(filled - planes.depth) < DEPTH_TOLERANCE_RATIO * planes.depth + DEPTH_TOLERANCE_M)
        )
        # Near remembered pixels of the same plane, the texture takes over their exact colours.
        difference = np.where(same_surface[..., None], out - planes.colour, np.float32(0))
        colour = planes.colour + push_pull(
            difference,
            same_surface.astype(np.float32),
            prior=np.zeros(3, np.float32),
            prior_weight=TEXTURE_PRIOR_WEIGHT,
        )
        share = np.where(valid, 0, cv2.blur(planes.probability, (BLEND_PX, BLEND_PX)))[..., None]
        out += share * (np.where(hit[..., None], colour, out) - out)
        extended = ~valid & hit
        may_extend[extended] = 1
        probability[extended] = planes.probability[extended]
        ratio = np.log(planes.depth[extended] / filled_depth[extended])
        log_ratio[extended] = np.clip(ratio, -MAX_LOG_DEPTH, MAX_LOG_DEPTH)
    log_depth = np.clip(np.log(filled_depth / REFERENCE_DEPTH_M), -MAX_LOG_DEPTH, MAX_LOG_DEPTH)
    channels = np.stack([may_extend, probability, log_ratio, log_depth], axis=-1)
    channels = cv2.resize(
        channels, (camera.width // LATENT_PX, camera.height // LATENT_PX), interpolation=cv2.INTER_AREA
    )
    out = cv2.resize(out, (camera.width, camera.height), interpolation=cv2.INTER_AREA)
    return np.clip(out / 255, 0, 1).transpose(2, 0, 1).astype(np.float32), channels.transpose(2, 0, 1)
