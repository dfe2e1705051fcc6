"""The torch twin of `warp` and `background`: batches of images on any device, for training.

The loops of `warp` draw the same surfaces in the same order of depth; results differ by rounding alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from worldstereo_ros.pipelines.stereo.background import (
    MAX_RADIUS_PX,
    MAX_SLOPE,
    SLOPE_RIDGE,
    SLOPE_SIDE_PX,
    SMOOTHED_SHARE,
)
from worldstereo_ros.pipelines.stereo.warp import JUMP_PX, JUMP_RATIO

HOLE = -1.0  # disparity of a hole, as `warp.HOLE`
LUMA = torch.tensor([0.299, 0.587, 0.114])  # grey of red, green and blue, as OpenCV's
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


def fill_background(warped: WarpedEyes, *, grey_levels: float = 127.5) -> WarpedEyes:
    """Fills holes from the background beside them, see `background.fill_background`.

    Args:
        warped: images with holes.
        grey_levels: of one unit of the images; by default they are in [-1, 1].
    """
    image, disparity, hole = warped.image, warped.disparity, warped.hole
    width = disparity.shape[-1]
    x = torch.arange(width, device=hole.device).expand_as(disparity)
    left = torch.where(hole, -1, x).cummax(-1).values
    right = torch.where(hole, width, x).flip(-1).cummin(-1).values.flip(-1)
    at_left, at_right = left.clamp_min(0), right.clamp_max(width - 1)
    from_right = (left < 0) | ((right < width) & (disparity.gather(2, at_right) <= disparity.gather(2, at_left)))
    edge = torch.where(from_right, at_right, at_left)
    empty = (left < 0) & (right >= width)
    beside = torch.where(empty, 0.0, disparity.gather(2, edge))
    by_rows = image.gather(3, edge[:, None].expand(-1, image.shape[1], -1, -1)) * ~empty[:, None]
    to_fill = hole & ~empty
    at_side = (left < 0) | (right >= width)
    moments = _line_moments(image * grey_levels, ~hole)
    filled, filled_d = _continue_lines(by_rows, beside, moments, to_fill, from_right, at_side)
    reach = torch.where(to_fill, (edge - x).abs(), 0)
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


def _line_moments(image: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) of images in grey levels and known pixels (N, H, W) bool, see `background.line_moments`."""
    grey = functional.pad((image * LUMA.to(image).view(1, 3, 1, 1)).sum(1, keepdim=True), (1, 1, 1, 1), mode="reflect")
    smooth, change = image.new_tensor([0.25, 0.5, 0.25]), image.new_tensor([-0.5, 0.0, 0.5])
    kernels = torch.stack([torch.outer(smooth, change), torch.outer(change, smooth)])[:, None]
    along, down = functional.conv2d(grey, kernels).unbind(1)
    inside = (functional.max_pool2d((~known).to(image.dtype)[:, None], 3, 1, 1) == 0)[:, 0].to(image.dtype)
    products = torch.stack([along * down, down * down, torch.ones_like(down)], dim=1) * inside[:, None]
    return functional.avg_pool2d(products, SLOPE_SIDE_PX, 1, SLOPE_SIDE_PX // 2)


def _continue_lines(
    image: torch.Tensor, beside: torch.Tensor, moments: torch.Tensor, to_fill: torch.Tensor, from_right: torch.Tensor,
    at_side: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Continues lines into holes column by column, see `background`.

    Args:
        image, beside: (N, 3, H, W) and (N, H, W), colours and disparities; in holes, of the background beside them.
        moments: (N, 3, H, W) of `_line_moments`.
        to_fill, from_right, at_side: (N, H, W) bool: what is filled, from which side, and whether its row's hole ends
            at the image's side.

    Returns:
        (images, disparities), of the same shapes.
    """
    height = beside.shape[1]
    # Columns first, so that each is a view that can be written: colours, disparity and moments.
    state = torch.cat([image, beside[:, None].to(image.dtype), moments], dim=1).permute(3, 0, 1, 2).contiguous()
    limit = beside + (JUMP_RATIO * beside).clamp_min(JUMP_PX)
    limit = torch.where(at_side, torch.inf, limit)
    rows = torch.arange(height, device=image.device)
    window = (SLOPE_SIDE_PX, 1, SLOPE_SIDE_PX // 2)
    for step, chosen in ((-1, to_fill & from_right), (1, to_fill & ~from_right)):
        columns = chosen.any(1).any(0).nonzero()[:, 0].tolist()
        for column in columns[::step]:
            before = state[column - step]
            mixed, squared, share_known = functional.avg_pool1d(before[:, 4:], *window).unbind(1)
            slope = (-mixed / (squared + SLOPE_RIDGE * share_known + 1e-7)).clamp(-MAX_SLOPE, MAX_SLOPE)
            place = (rows - step * slope).clamp(0, height - 1)
            upper = place.long()
            lower = (upper + 1).clamp_max(height - 1)
            share = place - upper
            d, bound = before[:, 3], limit[:, :, column]
            d_upper, d_lower = d.gather(1, upper), d.gather(1, lower)
            above, below = (1 - share) * (d_upper <= bound), share * (d_lower <= bound)
            nothing = above + below <= 0
            upper, lower = torch.where(nothing, rows, upper), torch.where(nothing, rows, lower)
            above = torch.where(nothing, 1.0, above)
            total = above + below

            def along(index: torch.Tensor, values: torch.Tensor = before) -> torch.Tensor:
                return values.gather(2, index[:, None].expand(-1, values.shape[1], -1))

            new = (above[:, None] * along(upper) + below[:, None] * along(lower)) / total[:, None]
            new[:, 3] = torch.where(above >= below, d.gather(1, upper), d.gather(1, lower))
            state[column] = torch.where(chosen[:, None, :, column], new, state[column])
    done = state.permute(1, 2, 3, 0)
    return done[:, :3].contiguous(), done[:, 3].to(beside.dtype).contiguous()
