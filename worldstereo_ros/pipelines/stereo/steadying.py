"""Keeps holes and what is painted into them steady over time, along optical flow that is consistent both ways."""

from __future__ import annotations

import cv2
import numpy as np

FLOW_SIDE_PX = 320  # longer side of the images that flow is computed in
CONSISTENT_PX = 1.0  # forward and backward flow cancel within this, at the size of the flow
PAST_SHARE, REMEMBERED_SHARE = 0.65, 0.45  # of the colour of painted and remembered pixels, from the frame before
RIM_SHARE = 0.3  # of seen pixels beside them: edges, where a depth that ends a pixel earlier or later flickers most


class FlowLink:
    """The flow that links a frame to the one before.

    Attributes:
        x, y: (H, W) float32, where each pixel was in the frame before.
        consistent: (H, W) bool, True where the flow there and back agrees.
    """

    def __init__(self, before: np.ndarray, now: np.ndarray, size: tuple[int, int]) -> None:
        """Computes the flow.

        Args:
            before, now: (h, w) uint8 grey, of one size, see `flow_image`.
            size: (width, height) of the frames.
        """
        method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        back = method.calc(now, before, None)
        forth = method.calc(before, now, None)
        height, width = now.shape
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        there_x, there_y = x + back[..., 0], y + back[..., 1]
        returned = cv2.remap(forth, there_x, there_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        error = np.abs(back + returned).max(axis=2)
        inside = (there_x >= 0) & (there_x <= width - 1) & (there_y >= 0) & (there_y <= height - 1)
        consistent = (error <= CONSISTENT_PX) & inside
        full = cv2.resize(back, size, interpolation=cv2.INTER_LINEAR)
        full[..., 0] *= size[0] / width
        full[..., 1] *= size[1] / height
        self.x = full[..., 0] + np.arange(size[0], dtype=np.float32)[None]
        self.y = full[..., 1] + np.arange(size[1], dtype=np.float32)[:, None]
        self.consistent = cv2.resize(consistent.view(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0

    def carry_mask(self, mask: np.ndarray) -> np.ndarray:
        """(H, W) bool: a mask of the frame before, where it is in this frame and the flow is consistent."""
        moved = cv2.remap(mask.astype(np.uint8), self.x, self.y, cv2.INTER_NEAREST, borderValue=0)
        return (moved > 0) & self.consistent

    def carry_image(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8: the image before, moved to this frame; right where the flow is consistent."""
        return cv2.remap(image, self.x, self.y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def flow_image(image: np.ndarray) -> np.ndarray:
    """(h, w) uint8: an image (H, W, 3) RGB as flow is computed of it: grey, and no longer than `FLOW_SIDE_PX`."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    factor = min(1.0, FLOW_SIDE_PX / max(grey.shape))
    size = max(16, round(grey.shape[1] * factor)), max(16, round(grey.shape[0] * factor))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA)


def steady_mask(hole: np.ndarray, before: np.ndarray, link: FlowLink) -> np.ndarray:
    """The union of a frame's holes with those of the frame before where flow carries them consistently.

    Holes grow by it and stay in place over time (SpatialDreamer, mask refinement; here of the past alone, so that it
    works on a live camera).

    Args:
        hole, before: (H, W) bool, holes of this frame and of the frame before, not united with others.
        link: flow between the two.
    """
    return hole | link.carry_mask(before)


def steady_painting(
    image: np.ndarray, before: np.ndarray, painted: np.ndarray, remembered: np.ndarray, link: FlowLink
) -> np.ndarray:
    """Mixes painted and remembered pixels, and the seen ones beside them, with what the frame before showed there.

    Args:
        image: (H, W, 3) uint8, this frame.
        before: (H, W, 3) uint8, the frame before, as it was shown.
        painted, remembered: (H, W) bool.
        link: flow between the two.

    Returns:
        (H, W, 3) uint8; the same array if nothing changes.
    """
    hole = (painted | remembered).view(np.uint8)
    mixed = (cv2.dilate(hole, np.ones((3, 3), np.uint8)) > 0) & link.consistent
    if not mixed.any():
        return image
    past = link.carry_image(before)
    shares = np.where(remembered, np.float32(REMEMBERED_SHARE), np.float32(RIM_SHARE))
    share = np.where(painted, np.float32(PAST_SHARE), shares)[mixed][:, None]
    out = image.copy()
    out[mixed] = np.rint(share * past[mixed] + (1 - share) * image[mixed]).astype(np.uint8)
    return out
