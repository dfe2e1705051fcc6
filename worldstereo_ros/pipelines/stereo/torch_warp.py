"""The torch twin of `warp` and `background`: batches of images on any device, for training.

The loops of `warp` draw the same surfaces in the same order of depth; results differ by rounding alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from worldstereo_ros.pipelines.stereo.background import MAX_RADIUS_PX, SMOOTHED_SHARE
from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO

HOLE = -1.0  # disparity of a hole, as `warp.HOLE`
MAX_STEPS = 5  # target columns that one joined pair of pixels covers at most


class WarpedEyes(NamedTuple):
    """Images as the other eye sees them.

    Attributes:
        image: (N, 3, H, W) float, 0 in holes.
        disparity: (N, H, W) float32 pixels in the other eye; `HOLE` in holes.
    """

    image: torch.Tensor
    disparity: torch.Tensor

    @property
    def hole(self) -> torch.Tensor:
        """(N, H, W) bool, True where the image shows nothing."""
        return self.disparity < 0


def warp_to_eye(image: torch.Tensor, disparity: torch.Tensor, *, eye: str = "right", edge_px: int = 1) -> WarpedEyes:
    """Warps images to the other eye, see `warp.warp_to_eye`.

    Args:
        image: (N, 3, H, W) float.
        disparity: (N, H, W) float32 pixels, at least 0.
        eye: the eye to make, right or left.
        edge_px: nearer surfaces are widened by so many pixels first.
    """
    if eye == "left":
        flipped = warp_to_eye(image.flip(-1), disparity.flip(-1), edge_px=edge_px)
        return WarpedEyes(flipped.image.flip(-1), flipped.disparity.flip(-1))
    values = widen_edges(disparity, edge_px) if edge_px > 0 else disparity
    target, column = _splat(values)
    return WarpedEyes(_sample(image, values, column, target >= 0), target)


def widen_edges(disparity: torch.Tensor, pixels: int) -> torch.Tensor:
    """Widens nearer surfaces at jumps of disparity (N, H, W) by some pixels."""
    widened = functional.max_pool2d(disparity[:, None], (1, 2 * pixels + 1), 1, (0, pixels))[:, 0]
    return torch.where(widened - disparity > (JUMP_RATIO * widened).clamp_min(JUMP_PX), widened, disparity)


def _joined(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Whether neighbours of these disparities are on one surface."""
    return (one - other).abs() <= (JUMP_RATIO * torch.maximum(one, other)).clamp_min(JUMP_PX)


def _splat(d: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(disparity of the right eye, source column), (N, H, W) each; the nearest surface wins."""
    width = d.shape[-1]
    x = torch.arange(width, device=d.device, dtype=d.dtype)
    x0 = x - d
    joined = _joined(d[..., :-1], d[..., 1:])
    joined_right, joined_left = functional.pad(joined, (0, 1)), functional.pad(joined, (1, 0))
    after = functional.pad(d[..., 1:], (0, 1))
    length = 1 + d - after
    candidates: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []  # t, valid, disparity, column
    start = x0.ceil()
    for step in range(MAX_STEPS):
        t = start + step
        f = (t - x0) / length
        valid = joined_right & (length > 0) & (t <= (x0 + length).floor())
        candidates.append((t, valid, d + f * (after - d), x + f))
    column = x.expand_as(d)
    candidates.append((start, ~joined_right & (start <= (x0 + 0.5).floor()), d, column))
    before = (x0 - 0.5).ceil()
    candidates.append((before, ~joined_left & (before <= x0.floor()), d, column))
    # Column `width` takes what falls outside.
    index = [
        torch.where(valid & (t >= 0) & (t < width), t, float(width)).long().flatten(0, 1)
        for t, valid, _, _ in candidates
    ]
    rows = d.shape[0] * d.shape[1]
    nearest = d.new_full((rows, width + 1), HOLE)
    for i, (_, _, value, _) in zip(index, candidates, strict=True):
        nearest.scatter_reduce_(1, i, value.flatten(0, 1), "amax")
    source = d.new_full((rows, width + 1), HOLE)
    for i, (_, _, value, place) in zip(index, candidates, strict=True):
        wins = value.flatten(0, 1) == nearest.gather(1, i)
        source.scatter_reduce_(1, torch.where(wins, i, width), place.flatten(0, 1), "amax")
    shape = (*d.shape[:2], width + 1)
    return nearest.view(shape)[..., :width].contiguous(), source.view(shape)[..., :width].contiguous()


def _sample(image: torch.Tensor, d: torch.Tensor, column: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Colours at source columns: Catmull-Rom's cubic on one surface, linear at its edges."""
    width = d.shape[-1]
    u = column.clamp(0, width - 1)
    i = u.floor()
    f = (u - i)[:, None].to(image.dtype)
    at = i.long()
    joined = functional.pad(_joined(d[..., :-1], d[..., 1:]), (0, 1))
    before, after = (at - 1).clamp_min(0), (at + 1).clamp_max(width - 1)
    smooth = (at > 0) & (at + 2 < width) & joined.gather(2, before) & joined.gather(2, after)

    def tap(index: torch.Tensor) -> torch.Tensor:
        return image.gather(3, index[:, None].expand(-1, image.shape[1], -1, -1))

    p0, p1, p2, p3 = tap(before), tap(at), tap(after), tap((at + 2).clamp_max(width - 1))
    linear = torch.lerp(p1, p2, f)
    w0 = 0.5 * f * (f * (2 - f) - 1)
    w1 = 0.5 * (f * f * (3 * f - 5) + 2)
    w2 = 0.5 * f * (f * (4 - 3 * f) + 1)
    w3 = 0.5 * f * f * (f - 1)
    low, high = image.amin(), image.amax()
    cubic = torch.minimum(torch.maximum(w0 * p0 + w1 * p1 + w2 * p2 + w3 * p3, low), high)
    return torch.where(smooth[:, None], cubic, linear) * valid[:, None]


def fill_background(warped: WarpedEyes) -> WarpedEyes:
    """Fills holes from the background beside them, see `background.fill_background`."""
    image, disparity, hole = warped.image, warped.disparity, warped.hole
    width = disparity.shape[-1]
    x = torch.arange(width, device=hole.device).expand_as(disparity)
    left = torch.where(hole, -1, x).cummax(-1).values
    right = torch.where(hole, width, x).flip(-1).cummin(-1).values.flip(-1)
    at_left, at_right = left.clamp_min(0), right.clamp_max(width - 1)
    from_right = (left < 0) | ((right < width) & (disparity.gather(2, at_right) <= disparity.gather(2, at_left)))
    edge = torch.where(from_right, at_right, at_left)
    empty = (left < 0) & (right >= width)
    filled_d = torch.where(empty, 0.0, disparity.gather(2, edge))
    filled = image.gather(3, edge[:, None].expand(-1, image.shape[1], -1, -1)) * ~empty[:, None]
    reach = torch.where(hole & ~empty, (edge - x).abs(), 0)
    radius = (reach * SMOOTHED_SHARE).floor().clamp_max(MAX_RADIUS_PX)
    limit = (JUMP_RATIO * filled_d).clamp_min(JUMP_PX)
    total, count = torch.zeros_like(filled), torch.zeros_like(filled_d)
    size = MAX_RADIUS_PX
    padded = functional.pad(filled, (0, 0, size, size))
    padded_d = functional.pad(torch.where(hole, filled_d, torch.inf), (0, 0, size, size), value=torch.inf)
    height = disparity.shape[1]
    for offset in range(-size, size + 1):
        rows = slice(size + offset, size + offset + height)
        one = (radius >= abs(offset)) & ((padded_d[:, rows] - filled_d).abs() <= limit)
        total += padded[:, :, rows] * one[:, None]
        count += one
    smooth = (hole & (count > 0))[:, None]
    out = torch.where(smooth, total / count.clamp_min(1)[:, None].to(total.dtype), filled)
    return WarpedEyes(torch.where(hole[:, None], out, image), torch.where(hole, filled_d, disparity))
