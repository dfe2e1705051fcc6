"""Moving colours between a view that has depth and remembered views: look-ups and forward splats.

All kernels run without the interpreter lock on plain arrays, so callers may spread them over threads.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.utils.jit import compiled


def pixel_transform(
    target: Camera, world_from_target: np.ndarray, source: Camera, world_from_source: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(A (3, 3), b (3,)) float32 such that `A @ (x, y, 1) * depth + b` is the homogeneous pixel in `source`.

    The third component is the depth in `source`. x, y and depth are a pixel of `target` and its depth.
    """
    source_from_target = invert_pose(np.asarray(world_from_source, np.float64)) @ world_from_target
    A = source.matrix @ source_from_target[:3, :3] @ np.linalg.inv(target.matrix)
    b = source.matrix @ source_from_target[:3, 3]
    return A.astype(np.float32), b.astype(np.float32)


@compiled
def gather_rows(
    row0, row1, depth, A, b, image, gain, source_depth, known, trust, settings, geometry, measured, assumed
):
    """Adds what one remembered view shows of rows row0..row1 of a target view to weighted sums.

    The four pixels around the place are interpolated, without those whose depth is of another surface. A look counts
    more the closer both lines of sight, the finer the source, the farther from its border and from depth edges.

    Args:
        row0, row1: rows to do.
        depth: (H, W) float32 target depth, 0 = none.
        A, b: of `pixel_transform` from target to source.
        image: (h, w, 3) uint8. gain: (3,) float32 per channel.
        source_depth: (h, w) float32, completed where it was not measured. known: (h, w) uint8, 1 = measured.
        trust: (h, w) float32 weight of the source's pixels.
        settings: (6,) float32: depth tolerance as a fraction and in metres, the fraction where the source's depth was
            not measured, pixels over which the weight fades in from the border, sharpness against the angle, and the
            pixels of parallax up to which depths may differ as they like: a picture taken in the very place is right
            whatever the depth.
        geometry: (7,) float32: 1 / fx, 1 / fy, cx, cy of the target; the source's centre in target axes.
        measured: (H, W, 4) float32, updated: weighted colours and weight that rest on measured depth.
        assumed: (H, W, 4) float32, updated: the same for depth that was only completed.
    """
    one = np.float32(1.0)
    zero = np.float32(0.0)
    height, width = source_depth.shape
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    half = np.float32(0.5)
    apart = np.sqrt(geometry[4] * geometry[4] + geometry[5] * geometry[5] + geometry[6] * geometry[6])
    harmless = settings[5] * geometry[0] / max(apart, np.float32(1e-6))  # difference of inverse depths
    for y in range(row0, row1):
        at_y = np.float32(y)
        for x in range(depth.shape[1]):
            at_x = np.float32(x)
            d = depth[y, x]
            z = (A[2, 0] * at_x + A[2, 1] * at_y + A[2, 2]) * d + b[2]
            if d <= zero or z < np.float32(0.05):
                continue
            inverse = one / z
            u = ((A[0, 0] * at_x + A[0, 1] * at_y + A[0, 2]) * d + b[0]) * inverse
            v = ((A[1, 0] * at_x + A[1, 1] * at_y + A[1, 2]) * d + b[1]) * inverse
            if not (u > -half and v > -half and u < right + half and v < bottom + half):
                continue
            u = min(max(u, zero), right)
            v = min(max(v, zero), bottom)
            x0 = min(int(u), width - 2)
            y0 = min(int(v), height - 2)
            fx = u - np.float32(x0)
            fy = v - np.float32(y0)
            tight = settings[0] * z + settings[1]
            loose = settings[2] * z
            good, total, red, green, blue = zero, zero, zero, zero, zero
            for j in range(2):
                for i in range(2):
                    q, p = y0 + j, x0 + i
                    certain = known[q, p] != 0
                    allowed = max(tight if certain else loose, harmless * source_depth[q, p] * z)
                    if abs(source_depth[q, p] - z) > allowed:
                        continue
                    w = (fx if i else one - fx) * (fy if j else one - fy) * trust[q, p]
                    w += np.float32(1e-9)
                    total += w
                    good += w if certain else zero
                    red += w * np.float32(image[q, p, 0])
                    green += w * np.float32(image[q, p, 1])
                    blue += w * np.float32(image[q, p, 2])
            if total == 0:
                continue
            px = (at_x - geometry[2]) * geometry[0] * d
            py = (at_y - geometry[3]) * geometry[1] * d
            sx, sy, sz = px - geometry[4], py - geometry[5], d - geometry[6]
            cosine = (px * sx + py * sy + d * sz) / np.sqrt((px * px + py * py + d * d) * (sx * sx + sy * sy + sz * sz))
            angle = one + settings[4] * max(one - cosine, zero)
            border = min(one, (min(min(u, right - u), min(v, bottom - v)) + one) / settings[3])
            scale = min(one, d / z)
            weight = total * border * scale * scale / (angle * angle)
            share = weight / total
            out = measured if good > half * total else assumed
            out[y, x, 0] += share * gain[0] * red
            out[y, x, 1] += share * gain[1] * green
            out[y, x, 2] += share * gain[2] * blue
            out[y, x, 3] += weight


@compiled
def splat_depth(depth, chosen, A, b, radius, out):
    """Moves the depth of chosen source pixels into a target view, nearest wins.

    Args:
        depth: (h, w) float32 source depth.
        chosen: (h, w) uint8, 1 = move this pixel.
        A, b: of `pixel_transform` from source to target.
        radius: half size of the square a pixel covers at equal depth, target pixels.
        out: (H, W) float32, 0 = nothing; updated.
    """
    height, width = out.shape
    for y in range(depth.shape[0]):
        for x in range(depth.shape[1]):
            if chosen[y, x] == 0:
                continue
            d, at_x, at_y = depth[y, x], np.float32(x), np.float32(y)
            z = (A[2, 0] * at_x + A[2, 1] * at_y + A[2, 2]) * d + b[2]
            if z < np.float32(0.05):
                continue
            u = ((A[0, 0] * at_x + A[0, 1] * at_y + A[0, 2]) * d + b[0]) / z
            v = ((A[1, 0] * at_x + A[1, 1] * at_y + A[1, 2]) * d + b[1]) / z
            r = min(radius * max(d / z, np.float32(1.0)), np.float32(8.0))
            u0 = max(0, int(np.ceil(u - r)))
            u1 = min(width - 1, int(np.floor(u + r)))
            v0 = max(0, int(np.ceil(v - r)))
            v1 = min(height - 1, int(np.floor(v + r)))
            for q in range(v0, v1 + 1):
                for p in range(u0, u1 + 1):
                    if out[q, p] == 0 or z < out[q, p]:
                        out[q, p] = z


@compiled
def normalise_rows(row0, row1, measured, assumed, exposure, rendered, colour, out, known):
    """Turns the sums of `gather_rows` into colours: measured ones before assumed ones, and those before the cloud's.

    Args:
        row0, row1: rows to do.
        measured, assumed: (H, W, 4) float32 sums.
        exposure: (3,) float32 gain of the view to paint, which is taken off.
        rendered: (H, W) float32 depth of the cloud, 0 = none. colour: (H, W, 3) uint8 of the cloud.
        out: (H, W, 3) float32 written where anything is known.
        known: (H, W) uint8 written, 1 = something is known.
    """
    for y in range(row0, row1):
        for x in range(out.shape[1]):
            sums = measured if measured[y, x, 3] > np.float32(0.0) else assumed
            weight = sums[y, x, 3]
            if weight > np.float32(0.0):
                for c in range(3):
                    out[y, x, c] = sums[y, x, c] / (weight * exposure[c])
                known[y, x] = 1
            elif rendered[y, x] > np.float32(0.0):
                for c in range(3):
                    out[y, x, c] = colour[y, x, c]
                known[y, x] = 1
