"""Compositing: pixels that a camera saw come from memory, all others from the model."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.imaging.inpainting import feather, match_colours
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.pipelines.geometric.warped_view import WarpedView

# Weight of the memory image where memory covers a pixel that is not labelled as observed, and where depth was only
# completed: between the best values in procedural worlds, whose poses are exact (0.35 to 0.65), and on recordings,
# whose poses have errors (mostly lower, down to 0).
COVERED_WEIGHT, COMPLETED_WEIGHT = 0.4, 0.25
WEIGHT_BLUR_PX = 9
# Imagined points that cover less than MIN_DENSITY of the window around them are so close to the camera that they are
# separate dots; they get no weight.
DENSITY_WINDOW_PX, MIN_DENSITY = 19, 0.95
FEATHER_PX = 12.0  # over which seen pixels blend into imagined ones, outside the seen region


def compose(memory_frame: PipelineFrame, imagined: np.ndarray) -> PipelineFrame:
    """Replaces the observed and the estimated pixels of an imagined image, whose colours a camera saw, by memory's.

    The model's colours are slightly off. Their difference on these pixels is extrapolated smoothly to the others, and
    the images blend outside their region.

    Args:
        memory_frame: the view from memory alone, with depth, observed and estimated pixels.
        imagined: (H, W, 3) uint8 of the model.
    """
    seen = memory_frame.seen
    if seen.any():
        imagined = match_colours(imagined, memory_frame.image, seen)
        imagined = feather(imagined, memory_frame.image, seen, FEATHER_PX)
    return replace(memory_frame, image=imagined, memory_image=memory_frame.image)


def mix_with_memory(imagined: np.ndarray, warped: WarpedView, conditioning: Conditioning, index: int) -> np.ndarray:
    """Weighted mean of an imagined image and memory where memory covers a pixel without observing it.

    The errors of the two are independent, so their mean has a smaller error than either.

    Args:
        imagined: (H, W, 3) uint8 of the model.
        warped: the view warped from memory.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.

    Returns:
        (H, W, 3) uint8.
    """
    renders = conditioning.renders
    covered, provenance = (layer[index].cpu().numpy() for layer in (renders.covered, renders.provenance))
    observed = provenance == Provenance.OBSERVED
    density = cv2.blur(covered.astype(np.float32), (DENSITY_WINDOW_PX, DENSITY_WINDOW_PX))
    dots = (covered & ~observed & (density < MIN_DENSITY)).astype(np.uint8)
    valid = warped.valid_mask & (cv2.dilate(dots, np.ones((DENSITY_WINDOW_PX, DENSITY_WINDOW_PX), np.uint8)) == 0)
    weight = np.where(covered, np.float32(COVERED_WEIGHT), np.float32(COMPLETED_WEIGHT)) * valid
    weight = cv2.blur(weight, (WEIGHT_BLUR_PX, WEIGHT_BLUR_PX))
    return cv2.blendLinear(warped.image, imagined, weight, 1 - weight)
