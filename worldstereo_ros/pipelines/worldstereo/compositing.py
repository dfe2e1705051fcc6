"""Compositing: remembered pixels are kept, and what the model generated fills the rest."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from worldstereo_ros.imaging.inpainting import feather, match_colours
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

# Weight of the memory image where memory covers a pixel without claiming it as observed, and where its depth was only
# completed. Between what is best in procedural worlds, whose poses are exact (0.35 to 0.65), and on recordings, whose
# poses have errors (less in most places, down to none).
COVERED_SHARE, COMPLETED_SHARE = 0.4, 0.25
SHARE_BLUR_PX = 9  # over which those weights fade
# Where imagined points cover less than MIN_DENSITY of a window of DENSITY_WINDOW_PX around them, they are seen from
# so near that they are separate dots: they get no weight.
DENSITY_WINDOW_PX, MIN_DENSITY = 19, 0.95
FEATHER_PX = 12.0  # over which observed pixels fade into imagined ones, outside the observed region


def compose(remembered: PipelineFrame, imagined: np.ndarray) -> PipelineFrame:
    """What was observed as it was remembered, the rest as imagined, in the colours of what was observed.

    A model's colours are a little off, and a picture of half the size is blurred: the difference on what was observed
    is carried over smoothly, and the seam lies outside of what was observed.

    Args:
        remembered: the picture that memory alone makes, with depth and what in it was observed.
        imagined: (H, W, 3) uint8 of the model.
    """
    observed = remembered.observed
    if observed.any():
        imagined = feather(match_colours(imagined, remembered.image, observed), remembered.image, observed, FEATHER_PX)
    return replace(remembered, image=imagined, memory_image=remembered.image)


def mix_with_memory(imagined: np.ndarray, warped: WarpedView, conditioning: Conditioning, index: int) -> np.ndarray:
    """A small model's picture with what memory shows of the place, though nobody can say that it is the same.

    Both err there, each in its own way: their mean errs less than either.
    """
    renders = conditioning.renders
    covered, observed = (layer[index].cpu().numpy() for layer in (renders.covered, renders.observed))
    density = cv2.blur(covered.astype(np.float32), (DENSITY_WINDOW_PX, DENSITY_WINDOW_PX))
    dots = (covered & ~observed & (density < MIN_DENSITY)).astype(np.uint8)
    known = warped.known & (cv2.dilate(dots, np.ones((DENSITY_WINDOW_PX, DENSITY_WINDOW_PX), np.uint8)) == 0)
    share = np.where(covered, np.float32(COVERED_SHARE), np.float32(COMPLETED_SHARE)) * known
    share = cv2.blur(share, (SHARE_BLUR_PX, SHARE_BLUR_PX))[..., None]
    mixed = share * warped.image + (1 - share) * imagined
    return np.rint(mixed).astype(np.uint8)


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 of an image of any size: area averaging down, cubic interpolation up."""
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
