"""Motion of the image between frames, by block matching.

Open-Sora's transformer has seen millions of videos before it learns point maps. A small network that starts from
nothing is given the motion between its frames by this layer, which has no weights.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from worldstereo_ros.models.pointmaps.geometry import box_mean

SCALE = 2  # pixels of the image per pixel of the compared ones
CELL_PX = 8  # side of the cell of pixels that has one motion
REACH = (4, 8)  # of the search up and down, left and right, in compared pixels
NORMAL_WINDOW = 9  # of the local normalisation, in compared pixels
WINDOW = 8  # that is compared, in compared pixels
UNIT_PX = 8.0  # motions are in this many pixels
MOTION_CHANNELS = 5


@torch.no_grad()
def frame_motion(images: torch.Tensor) -> torch.Tensor:
    """Motion of each cell since the frame before.

    Args:
        images: (b, F, 3, H, W) in [-1, 1]; H and W multiples of 8.

    Returns:
        (b, F, MOTION_CHANNELS, H / 8, W / 8) float32: motion along x and y in units of 8 pixels, the correlation there,
        and the sums of both motions over the frames so far; 0 in the first frame.
    """
    with torch.autocast(images.device.type, enabled=False):
        b, f, _, height, width = images.shape
        grey = functional.avg_pool2d(images.float().mean(2), SCALE).flatten(0, 1)[:, None]
        grey = grey - box_mean(grey, NORMAL_WINDOW)
        grey = grey / (box_mean(grey.square(), NORMAL_WINDOW) + 1e-4).sqrt()
        grey = grey[:, 0].unflatten(0, (b, f))
        after, before = grey[:, 1:].flatten(0, 1), grey[:, :-1].flatten(0, 1)
        up, left = REACH
        padded = functional.pad(before, (left, left, up, up))
        rows, columns = height // SCALE, width // SCALE
        cell = CELL_PX // SCALE
        scores = []
        for y in range(2 * up + 1):
            for x in range(2 * left + 1):
                product = after * padded[:, y : y + rows, x : x + columns]
                scores.append(functional.avg_pool2d(product, WINDOW, cell, (WINDOW - cell) // 2))
        found = _peaks(torch.stack(scores, dim=1), 2 * left + 1)
        motion = functional.pad(found.unflatten(0, (b, f - 1)), (0, 0, 0, 0, 0, 0, 1, 0))
        return torch.cat((motion, motion[:, :, :2].cumsum(1)), dim=2)


def _peaks(scores: torch.Tensor, columns: int) -> torch.Tensor:
    """Places of the highest of scores (N, D, h, w) in a grid of so many columns, between its points, and that score."""
    count = scores.shape[1]
    best, index = scores.max(1, keepdim=True)
    x, y = index % columns, index // columns
    offsets = []
    for at, step, size in ((x, 1, columns), (y, columns, count // columns)):
        low, high = (scores.gather(1, (index + sign * step).clamp(0, count - 1)) for sign in (-1, 1))
        bend = (2 * best - low - high).clamp_min(1e-3)
        inner = (at > 0) & (at < size - 1)
        part = torch.where(inner, 0.5 * (high - low) / bend, torch.zeros_like(best)).clamp(-0.5, 0.5)
        # The window before that matches lies at the place less the motion.
        offsets.append(-(at - size // 2 + part) * SCALE / UNIT_PX)
    return torch.cat((*offsets, best), dim=1)
