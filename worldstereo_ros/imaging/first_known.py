"""Walks from the pixels of holes to what is known."""

from __future__ import annotations

from worldstereo_ros.utils.jit import compiled


@compiled
def walk(hole, here, steps, found):
    """Places of the first pixels that are not holes, in some directions.

    Args:
        hole: (N, H, W) uint8.
        here: (P,) int64, places of pixels among all N H W.
        steps: (D, S, 2) int64, x and y of the steps in each direction.
        found: (D, P) int64, written: places; N H W where nothing is met.
    """
    n, height, width = hole.shape
    for direction in range(len(steps)):
        for i in range(len(here)):
            image, rest = here[i] // (height * width), here[i] % (height * width)
            y, x = rest // width, rest % width
            met = n * height * width
            for s in range(steps.shape[1]):
                u, v = x + steps[direction, s, 0], y + steps[direction, s, 1]
                if u < 0 or u >= width or v < 0 or v >= height:
                    break
                if hole[image, v, u] == 0:
                    met = (image * height + v) * width + u
                    break
            found[direction, i] = met
