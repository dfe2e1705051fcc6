"""What a camera on a grid would see: rays over cells that are free with some probability."""

from __future__ import annotations

import math

import numpy as np

from worldstereo_ros.utils.jit import compiled

MIN_TRANSMITTANCE = 0.05  # of a ray, below which what lies behind counts as hidden


@compiled
def see(opaque, x, y, yaw, half_fov, max_range, rays, seen):
    """Raises the probability with which each cell is seen, to that of the best ray from one pose.

    Args:
        opaque: (Y, X) float32 probability that a ray through the cell ends there.
        x, y: camera in cells; the centre of cell (row, column) is at x = column, y = row.
        yaw: direction of the optical axis, from x towards y, radians. half_fov: radians; pi = all around.
        max_range: cells.
        rays: number of rays.
        seen: (Y, X) float32 in 0..1, changed in place.
    """
    Y, X = opaque.shape
    for n in range(rays):
        angle = yaw + half_fov * (2 * (n + 0.5) / rays - 1)
        dx, dy = 0.5 * math.cos(angle), 0.5 * math.sin(angle)
        passed = 1.0
        last_i, last_j = -1, -1
        for step in range(int(2 * max_range) + 1):
            j = math.floor(x + step * dx + 0.5)
            i = math.floor(y + step * dy + 0.5)
            if i < 0 or j < 0 or i >= Y or j >= X:
                break
            if i == last_i and j == last_j:
                continue
            last_i, last_j = i, j
            if passed > seen[i, j]:
                seen[i, j] = np.float32(passed)
            if step > 2:  # what the robot itself stands in hides nothing
                passed *= 1 - opaque[i, j]
            if passed < MIN_TRANSMITTANCE:
                break
