"""Moving colours between a view that has depth and remembered views: look-ups and forward splats.

All kernels run without the interpreter lock on plain arrays, so callers may spread them over threads.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros._compiled import compiled
from worldstereo_ros.camera import Camera, invert_pose

# What a remembered view says about a point: it never saw the place, it saw this point, something before it hides the
# point, it looked through the point and saw something behind it, or its sensor gave no depth there.
UNSEEN, AGREES, HIDDEN, THROUGH, NO_DEPTH = 0, 1, 2, 3, 4


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
    row0,
    row1,
    depth,
    A,
    b,
    image,
    source_depth,
    source_known,
    feather,
    relative,
    absolute,
    loose,
    rays,
    centre,
    sharpness,
    out_colour,
    out_weight,
    out_evidence,
):
    """Looks up rows row0..row1 of a target view in one source view.

    Args:
        row0, row1: rows to do.
        depth: (H, W) float32 target depth, 0 = none.
        A, b: of `pixel_transform` from target to source.
        image: (h, w, 3) float32 source colours.
        source_depth: (h, w) float32 depth, completed where the sensor gave none.
        source_known: (h, w) uint8, 1 where the sensor gave the depth.
        feather: pixels over which the weight falls to zero towards the border of the source.
        relative, absolute: tolerance on depth agreement, fraction and metres.
        loose: tolerance (fraction) where the source's depth was completed.
        rays: (4,) float32, 1 / fx, 1 / fy, cx, cy of the target.
        centre: (3,) float32, the source's centre in target camera axes.
        sharpness: how fast the weight falls with the angle between both lines of sight.
        out_colour: (H, W, 3) float32 written: the colour seen there.
        out_weight: (H, W) float32 written: in 0..1; negative where only a completed depth supports it; 0 = nothing.
        out_evidence: (H, W) uint8 written: one of the constants of this module.
    """
    height, width = source_depth.shape
    for y in range(row0, row1):
        for x in range(depth.shape[1]):
            out_weight[y, x] = 0.0
            out_evidence[y, x] = UNSEEN
            d = depth[y, x]
            if d <= 0:
                continue
            z = (A[2, 0] * x + A[2, 1] * y + A[2, 2]) * d + b[2]
            if z < 0.05:
                continue
            u = ((A[0, 0] * x + A[0, 1] * y + A[0, 2]) * d + b[0]) / z
            v = ((A[1, 0] * x + A[1, 1] * y + A[1, 2]) * d + b[1]) / z
            if u < -0.5 or v < -0.5 or u > width - 0.5 or v > height - 0.5:
                continue
            u = min(max(u, np.float32(0.0)), np.float32(width - 1.001))
            v = min(max(v, np.float32(0.0)), np.float32(height - 1.001))
            x0 = int(u)
            y0 = int(v)
            fx = u - x0
            fy = v - y0
            tight = relative * z + absolute
            best_known = np.float32(0.0)
            best_loose = np.float32(0.0)
            total = np.float32(0.0)
            r = np.float32(0.0)
            g = np.float32(0.0)
            c = np.float32(0.0)
            for j in range(2):
                wy = fy if j else 1 - fy
                for i in range(2):
                    w = (fx if i else 1 - fx) * wy
                    s = source_depth[y0 + j, x0 + i]
                    known = source_known[y0 + j, x0 + i]
                    if known:
                        if abs(s - z) > tight:
                            continue
                        best_known += w
                    else:
                        if abs(s - z) > loose * z:
                            continue
                        best_loose += w
                    w += np.float32(1e-6)
                    total += w
                    r += w * image[y0 + j, x0 + i, 0]
                    g += w * image[y0 + j, x0 + i, 1]
                    c += w * image[y0 + j, x0 + i, 2]
            if best_known > 0 or total > 0:
                out_colour[y, x, 0] = r / total
                out_colour[y, x, 1] = g / total
                out_colour[y, x, 2] = c / total
                border = min(min(u, width - 1 - u), min(v, height - 1 - v))
                edge = min(np.float32(1.0), (border + 1) / feather)
                scale = min(np.float32(1.0), d / z)
                px = (x - rays[2]) * rays[0] * d
                py = (y - rays[3]) * rays[1] * d
                qx = px - centre[0]
                qy = py - centre[1]
                qz = d - centre[2]
                along = px * qx + py * qy + d * qz
                cosine = along / np.sqrt((px * px + py * py + d * d) * (qx * qx + qy * qy + qz * qz))
                angle = np.float32(1.0) / (np.float32(1.0) + sharpness * (np.float32(1.0) - cosine)) ** 2
                weight = angle * edge * scale * scale * (best_known + best_loose + np.float32(1e-3))
                out_weight[y, x] = weight if best_known > best_loose else -weight
            # What is claimed to be observed rests on the nearest pixel alone: interpolation would close the sensor's holes.
            i = int(u + np.float32(0.5))
            j = int(v + np.float32(0.5))
            s = source_depth[j, i]
            if source_known[j, i] == 0:
                out_evidence[y, x] = NO_DEPTH
            elif s < z - tight:
                out_evidence[y, x] = HIDDEN
            elif s > z + tight:
                out_evidence[y, x] = THROUGH
            else:
                out_evidence[y, x] = AGREES


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
            d = depth[y, x]
            z = (A[2, 0] * x + A[2, 1] * y + A[2, 2]) * d + b[2]
            if z < 0.05:
                continue
            u = ((A[0, 0] * x + A[0, 1] * y + A[0, 2]) * d + b[0]) / z
            v = ((A[1, 0] * x + A[1, 1] * y + A[1, 2]) * d + b[1]) / z
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
def cross_hidden(depth, A, b, source_depth, source_known, relative, absolute, near, steps, out_free, out_hidden):
    """Which parts of the lines of sight of a target view one source saw to be free, and which lie behind a surface.

    Args:
        depth: (H, W) float32 target depth, 0 = none.
        A, b: of `pixel_transform` from target to source.
        source_depth: (h, w) float32. source_known: (h, w) uint8.
        relative, absolute: how far before or behind a surface counts, fraction and metres.
        near: where the lines begin, metres.
        steps: samples along each line, even in depth from `near` to the target depth.
        out_free, out_hidden: (H, W, steps) uint8, set to 1; never set to 0.
    """
    height, width = source_depth.shape
    for y in range(depth.shape[0]):
        for x in range(depth.shape[1]):
            if depth[y, x] <= near:
                continue
            for k in range(steps):
                d = near + (depth[y, x] - near) * (k + np.float32(0.5)) / steps
                z = (A[2, 0] * x + A[2, 1] * y + A[2, 2]) * d + b[2]
                if z < 0.05:
                    continue
                u = int(np.rint(((A[0, 0] * x + A[0, 1] * y + A[0, 2]) * d + b[0]) / z))
                v = int(np.rint(((A[1, 0] * x + A[1, 1] * y + A[1, 2]) * d + b[1]) / z))
                if u < 0 or v < 0 or u >= width or v >= height or source_known[v, u] == 0:
                    continue
                s = source_depth[v, u]
                tolerance = relative * s + absolute
                if z < s + np.float32(0.25) * tolerance:
                    out_free[y, x, k] = 1
                elif z > s + tolerance:
                    out_hidden[y, x, k] = 1
