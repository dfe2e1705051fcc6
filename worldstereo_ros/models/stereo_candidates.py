"""What a hidden pixel may look like: the colours that are first met from it in some directions.

A network that mixes them continues lines and outlines into a hole, and invents no colours. See `StereoRefiner`.
"""

from __future__ import annotations

import numpy as np
import torch

# (x, y) steps: to the right, where the surface behind is seen, and along the hole; to the left is what hides it, or, of
# what lies beyond the side of the camera's image, what is seen last.
DIRECTIONS = (
    (1.0, 0.0), (1.0, 0.5), (1.0, -0.5), (1.0, 1.0), (1.0, -1.0), (0.5, 1.0), (0.5, -1.0), (0.0, 1.0), (0.0, -1.0),
    (-1.0, 0.0), (-1.0, 0.5), (-1.0, -0.5), (-1.0, 1.0), (-1.0, -1.0),
)  # fmt: skip
REACH_PX = 40  # beyond it, there is nothing in a direction
CANDIDATES = len(DIRECTIONS) + 3  # and the fill, black and white
NOTHING = -1.0  # difference of disparities where nothing is met
DIFFERENCE_PX = 8.0  # differences of disparities are divided by it


def first_met(
    filled: torch.Tensor, painted: torch.Tensor, disparity: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours that are met first in each of `DIRECTIONS`.

    Args:
        filled: (N, 3, H, W), a made right eye whose holes are filled from the background.
        painted: (N, 1, H, W), 1 = filled, not seen by any frame.
        disparity: (N, 1, H, W) pixels.

    Returns:
        (N, D, 3, H, W) colours, the fill where nothing is met and outside `painted`; and (N, D, H, W) by how much
            nearer what is met is than the fill, in units of `DIFFERENCE_PX` and up to 1; `NOTHING` where nothing is,
            0 outside `painted`.
    """
    n, _, height, width = filled.shape
    hole = painted[:, 0] > 0.5
    image, y, x = hole.nonzero(as_tuple=True)
    outside = n * height * width
    colours = filled.permute(0, 2, 3, 1).reshape(-1, 3)
    d = disparity.flatten().float()
    here = (image * height + y) * width + x
    out = filled[:, None].repeat(1, len(DIRECTIONS), 1, 1, 1)
    nearer = filled.new_zeros(n, len(DIRECTIONS), height, width)
    places = _met_places(hole, here)
    for index in range(len(DIRECTIONS)):
        met = places[index]
        something = met < outside
        at = torch.where(something, met, here)
        out[image, index, :, y, x] = colours[at]
        difference = ((d[at] - d[here]) / DIFFERENCE_PX).clamp(-0.5, 1)
        nearer[image, index, y, x] = torch.where(something, difference, NOTHING).to(filled.dtype)
    return out, nearer


def _met_places(hole: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """Places of the first pixels that are not holes.

    Args:
        hole: (N, H, W) bool.
        here: (P,) int64, places of its pixels among all N H W.

    Returns:
        (D, P) int64 in each of `DIRECTIONS`; N H W where nothing is met.
    """
    n, height, width = hole.shape
    steps = np.array([[(round(k * dx), round(k * dy)) for k in range(1, REACH_PX + 1)] for dx, dy in DIRECTIONS])
    if hole.device.type == "cpu":
        from worldstereo_ros.imaging.first_known import walk  # numba, without which this module can be imported

        found = np.empty((len(DIRECTIONS), len(here)), np.int64)
        walk(hole.numpy().view(np.uint8), here.numpy(), steps, found)
        return torch.from_numpy(found)
    outside = n * height * width
    known = torch.cat([(~hole).flatten(), hole.new_zeros(1)])  # the last place is outside
    x, y, image = here % width, here // width % height, here // (width * height)
    parts = []
    for direction in steps.tolist():
        met = torch.full_like(here, outside)
        left = torch.arange(len(here), device=here.device)  # points that met nothing so far
        for dx, dy in direction:
            if not len(left):
                break
            u, v = x[left] + dx, y[left] + dy
            inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
            place = torch.where(inside, (image[left] * height + v) * width + u, outside)
            ends = known[place]
            met[left[ends]] = place[ends]
            left = left[inside & ~ends]
        parts.append(met)
    return torch.stack(parts)


def mix(filled: torch.Tensor, met: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Mixes the fill, what is met, black and white.

    Args:
        filled: (N, 3, H, W).
        met: (N, D, 3, H, W), see `first_met`.
        scores: (N, `CANDIDATES`, H, W); equal ones give nearly the fill.

    Returns:
        (N, 3, H, W).
    """
    prior = scores.new_full((CANDIDATES,), -4.0)
    prior[0], prior[-2:] = 0.0, -6.0
    share = (scores + prior.view(1, -1, 1, 1)).softmax(1)
    out = share[:, :1] * filled + share[:, -1:] - share[:, -2:-1]
    return out + (share[:, 1:-2, None] * met).sum(1)
