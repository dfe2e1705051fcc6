"""Warping between views: backward look-ups of colours and forward splatting of depth.

The compiled loops release the GIL; run them in threads on bands of rows.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.imaging.exposure import CLIP_END, CLIP_START
from worldstereo_ros.utils.jit import compiled


def pixel_transform(
    target: Camera, world_from_target: np.ndarray, source: Camera, world_from_source: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the transform of target pixels with depth to source pixels.

    `A @ (x, y, 1) * depth + b` is the homogeneous source pixel of target pixel (x, y); its third component is the depth
    in the source view.

    Args:
        target, source: intrinsics.
        world_from_target, world_from_source: (4, 4) poses.

    Returns:
        (A (3, 3) float32, b (3,) float32).
    """
    source_from_target = invert_pose(np.asarray(world_from_source, np.float64)) @ world_from_target
    A = source.matrix @ source_from_target[:3, :3] @ np.linalg.inv(target.matrix)
    b = source.matrix @ source_from_target[:3, 3]
    return A.astype(np.float32), b.astype(np.float32)


@compiled
def gather_rows(
    row0, row1, depth, A, b, image, gain, source_depth, is_measured, source_weight, settings, geometry, measured,
    completed
):  # fmt: skip
    """Looks up the colours of a target view in a source view and adds them to weighted sums.

    The four source pixels around the projection are interpolated, except those on another surface. The weight grows
    with the agreement of both viewing directions, the resolution of the source, and the distance from its border and
    from depth edges. It also grows, without bound, as the parallax of the pixel vanishes: the colour is then right at
    any depth, and it counts as if depth were measured.

    Args:
        row0, row1: first row and end of the rows to process.
        depth: (H, W) float32 target depth, 0 = none.
        A, b: `pixel_transform` from target to source.
        image: (h, w, 3) uint8 RGB of the source.
        gain: (3,) float32 exposure gain per channel. As in `imaging.exposure.apply_gain`, clipped pixels get its
            brightness alone.
        source_depth: (h, w) float32 metres, completed where it was not measured.
        is_measured: (h, w) uint8, 1 = the source depth is measured.
        source_weight: (h, w) float32 weight of the source pixels.
        settings: (7,) float32: relative depth tolerance; absolute depth tolerance in metres; relative tolerance where
            the source depth is completed; width of the border feathering in pixels; sharpness of the angle weight;
            parallax in pixels below which depths may differ, because the colour is right at any depth; parallax in
            pixels at which the weight is doubled, 0 for sources that are no observations.
        geometry: (7,) float32: 1 / fx, 1 / fy, cx, cy of the target; source camera centre in target axes.
        measured: (H, W, 5) float32, updated: sums over the look-ups with measured depth of weighted RGB, weight, and
            weighted share of clipping.
        completed: (H, W, 5) float32, updated: the same for look-ups with completed depth.
    """
    one = np.float32(1.0)
    zero = np.float32(0.0)
    height, width = source_depth.shape
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    half = np.float32(0.5)
    neutral = np.float32((gain[0] * gain[1] * gain[2]) ** (1 / 3))
    clip_start, clip_scale = np.float32(CLIP_START), np.float32(1 / (CLIP_END - CLIP_START))
    baseline = np.sqrt(geometry[4] * geometry[4] + geometry[5] * geometry[5] + geometry[6] * geometry[6])
    # Difference of inverse depths that shifts the look-up by less than the allowed parallax.
    parallax_tolerance = settings[5] * geometry[0] / max(baseline, np.float32(1e-6))
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
            px = (at_x - geometry[2]) * geometry[0] * d
            py = (at_y - geometry[3]) * geometry[1] * d
            # The parallax between the point and one at infinity, in target pixels.
            squared = px * px + py * py + d * d
            along = px * geometry[4] + py * geometry[5] + d * geometry[6]
            across = max(baseline * baseline - along * along / squared, zero)
            ratio = settings[6] * settings[6] * geometry[0] * geometry[0] * squared / max(across, np.float32(1e-12))
            seen = min(ratio * ratio, np.float32(1e6))
            measured_tolerance = settings[0] * z + settings[1]
            completed_tolerance = settings[2] * z
            measured_weight, total, red, green, blue, clipped = zero, zero, zero, zero, zero, zero
            for j in range(2):
                for i in range(2):
                    q, p = y0 + j, x0 + i
                    has_measurement = is_measured[q, p] != 0
                    allowed = max(
                        measured_tolerance if has_measurement else completed_tolerance,
                        parallax_tolerance * source_depth[q, p] * z,
                    )
                    if abs(source_depth[q, p] - z) > allowed:
                        continue
                    # Beside depth edges, too, the colour is right if there is no parallax.
                    trust = max(source_weight[q, p], min(seen, one))
                    w = (fx if i else one - fx) * (fy if j else one - fy) * trust
                    w += np.float32(1e-9)
                    total += w
                    measured_weight += w if has_measurement or seen >= one else zero
                    r, g, b_ = np.float32(image[q, p, 0]), np.float32(image[q, p, 1]), np.float32(image[q, p, 2])
                    c = min(one, max(zero, (max(r, g, b_) - clip_start) * clip_scale))
                    red += w * r * (gain[0] + c * (neutral - gain[0]))
                    green += w * g * (gain[1] + c * (neutral - gain[1]))
                    blue += w * b_ * (gain[2] + c * (neutral - gain[2]))
                    clipped += w * c
            if total == 0:
                continue
            sx, sy, sz = px - geometry[4], py - geometry[5], d - geometry[6]
            cosine = (px * sx + py * sy + d * sz) / np.sqrt(squared * (sx * sx + sy * sy + sz * sz))
            angle = one + settings[4] * max(one - cosine, zero)
            border = min(one, (min(min(u, right - u), min(v, bottom - v)) + one) / settings[3])
            scale = min(one, d / z)
            weight = total * border * scale * scale / (angle * angle) * (one + seen)
            share = weight / total
            out = measured if measured_weight > half * total else completed
            out[y, x, 0] += share * red
            out[y, x, 1] += share * green
            out[y, x, 2] += share * blue
            out[y, x, 3] += weight
            out[y, x, 4] += share * clipped


@compiled
def splat_depth(depth, mask, A, b, radius, out):
    """Splats source depth into a target view; the nearest depth wins.

    Args:
        depth: (h, w) float32 source depth in metres.
        mask: (h, w) uint8, 1 = splat this pixel.
        A, b: `pixel_transform` from source to target.
        radius: half the size of the square that a pixel covers at equal depth, in target pixels.
        out: (H, W) float32 target depth, updated; 0 = empty.
    """
    height, width = out.shape
    for y in range(depth.shape[0]):
        for x in range(depth.shape[1]):
            if mask[y, x] == 0:
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
def normalise_rows(row0, row1, measured, completed, exposure, rendered, colour, out, valid):
    """Normalises the sums of `gather_rows`: measured look-ups first, then completed ones, then the rendered cloud.

    Args:
        row0, row1: first row and end of the rows to process.
        measured, completed: (H, W, 5) float32 sums of `gather_rows`.
        exposure: (3,) float32 exposure gain of the target view, by which the colours are divided; clipped ones by its
            brightness alone.
        rendered: (H, W) float32 depth of the rendered cloud, 0 = hole.
        colour: (H, W, 3) uint8 RGB of the rendered cloud.
        out: (H, W, 3) float32 RGB in 0..255, written where a colour is available.
        valid: (H, W) uint8, set to 1 where a colour is available.
    """
    neutral = np.float32((exposure[0] * exposure[1] * exposure[2]) ** (1 / 3))
    for y in range(row0, row1):
        for x in range(out.shape[1]):
            sums = measured if measured[y, x, 3] > np.float32(0.0) else completed
            weight = sums[y, x, 3]
            if weight > np.float32(0.0):
                clipped = sums[y, x, 4] / weight
                for c in range(3):
                    divisor = exposure[c] + clipped * (neutral - exposure[c])
                    out[y, x, c] = min(sums[y, x, c] / (weight * divisor), np.float32(255.0))
                valid[y, x] = 1
            elif rendered[y, x] > np.float32(0.0):
                for c in range(3):
                    out[y, x, c] = colour[y, x, c]
                valid[y, x] = 1
