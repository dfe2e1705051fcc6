"""Compiled lifting of a depth image to weighted world points, the first half of `CloudMemory.insert`."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

NORMAL_STEP_PX = 3  # a wider base makes normals robust against the quantisation of a sensor's depth
MAX_STRETCH = 2.0  # largest spacing on a slanted surface, relative to one seen head-on
HALF_RANGE = 1 << 20  # voxels on either side of the origin: 21 bits per axis
KEY_NONE = np.int64(-1)  # the pixel gives no point
KEY_OUT_OF_RANGE = np.int64(-2)


@compiled
def voxel_key(x, y, z, scale):
    """Packs the voxel of a point (float64 metres, `scale` voxels per metre), or returns KEY_OUT_OF_RANGE."""
    i = np.floor(x * scale)
    j = np.floor(y * scale)
    k = np.floor(z * scale)
    limit = np.float64(HALF_RANGE)
    if not (abs(i) < limit and abs(j) < limit and abs(k) < limit):
        return KEY_OUT_OF_RANGE
    a = np.int64(i) + HALF_RANGE
    b = np.int64(j) + HALF_RANGE
    c = np.int64(k) + HALF_RANGE
    return (a << 42) | (b << 21) | c


@compiled
def _usable(z, far):
    """True for a valid depth; NaN and infinities mean unknown (REP 118)."""
    return z > np.float32(0.0) and z < far


@compiled
def _is_supported(depth, y, x, far, tolerance, support):
    """False for flying pixels: those that lie between two surfaces.

    At least two of the eight neighbours must lie on the pixel's surface and at most 8 - `support` on another one.
    Neighbours without depth count as neither, so that the border of the measured area is kept; neighbours outside the
    image count as on the surface. On a slanted plane, where inverse depth is linear, steps of up to four times the
    tolerance are allowed.
    """
    height, width = depth.shape
    z = depth[y, x]
    good = 0
    bad = 0
    for k in range(4):
        dy = 0 if k == 0 else 1
        dx = 1 if k < 2 else (0 if k == 2 else -1)
        ya, xa = y - dy, x - dx
        yb, xb = y + dy, x + dx
        inside_a = ya >= 0 and 0 <= xa < width
        inside_b = yb < height and 0 <= xb < width
        a = depth[ya, xa] if inside_a else z
        b = depth[yb, xb] if inside_b else z
        usable_a = _usable(a, far)
        usable_b = _usable(b, far)
        step_a = abs(a - z) if usable_a else np.float32(np.inf)
        step_b = abs(b - z) if usable_b else np.float32(np.inf)
        max_step = tolerance * z
        good_a = step_a <= max_step
        good_b = step_b <= max_step
        if usable_a and usable_b and not (good_a and good_b) and max(step_a, step_b) <= np.float32(4.0) * max_step:
            curvature = abs(z / a + z / b - np.float32(2.0))
            if curvature <= np.float32(0.25) * tolerance:
                good_a = True
                good_b = True
        good += int(good_a) + int(good_b)
        bad += int(usable_a and not good_a) + int(usable_b and not good_b)
    return good >= 2 and bad <= 8 - support


@compiled
def _inverse_slope(depth, y, x, dy, dx, far, tolerance):
    """Change of inverse depth per pixel along one axis, over the widest base on the same surface (0 if none)."""
    height, width = depth.shape
    z = depth[y, x]
    for step in (NORMAL_STEP_PX, 1):
        low = np.float32(0.0)
        low_at = 0
        high = np.float32(0.0)
        high_at = 0
        max_step = np.float32(step) * tolerance * z
        ya, xa = y - step * dy, x - step * dx
        if ya >= 0 and xa >= 0 and _usable(depth[ya, xa], far) and abs(depth[ya, xa] - z) <= max_step:
            low = np.float32(1.0) / depth[ya, xa]
            low_at = -step
        yb, xb = y + step * dy, x + step * dx
        if yb < height and xb < width and _usable(depth[yb, xb], far) and abs(depth[yb, xb] - z) <= max_step:
            high = np.float32(1.0) / depth[yb, xb]
            high_at = step
        if low_at == 0:
            low = np.float32(1.0) / z
        if high_at == 0:
            high = np.float32(1.0) / z
        if high_at > low_at:
            return (high - low) / np.float32(high_at - low_at)
    return np.float32(0.0)


@compiled
def lift(depth, intrinsics, pose, far, reach, tolerance, support, scale, out_points, out_keys, out_weight, out_spacing,
         counts, y0, y1):  # fmt: skip
    """Lifts rows y0..y1 of a depth image to world points.

    Args:
        depth: (H, W) float32 metres; all but positive numbers below `far` are unknown.
        intrinsics: fx, fy, cx, cy, float64. pose: (4, 4) float64 world_from_camera.
        reach: largest distance from the camera, metres.
        tolerance: largest step between neighbours of one surface, relative to depth.
        support: number of the eight neighbours that must not lie on another surface.
        scale: voxels per metre.
        out_points: (H*W, 3) float32. out_keys: (H*W,) int64 voxel keys, KEY_NONE where there is no point.
        out_weight: (H*W,) float32, cosine of the angle between ray and normal, divided by depth^2 beyond one metre.
        out_spacing: (H*W,) float32, distance between neighbouring pixels on the surface, metres.
        counts: (5,) int64, incremented: pixels without depth, flying, beyond the voxel range, lifted, beyond `reach`.
        y0, y1: first row and end of the rows to lift.
    """
    fx, fy, cx, cy = intrinsics
    width = depth.shape[1]
    one = np.float32(1.0)
    pixel_size = np.float32(1.0 / np.sqrt(fx * fy))
    ffx = np.float32(fx)
    ffy = np.float32(fy)
    for y in range(y0, y1):
        ry = (y - cy) / fy
        for x in range(width):
            at = y * width + x
            out_keys[at] = KEY_NONE
            z = depth[y, x]
            if not _usable(z, far):
                counts[0] += 1
                continue
            if not _is_supported(depth, y, x, far, tolerance, support):
                counts[1] += 1
                continue
            rx = (x - cx) / fx
            zz = np.float64(z)
            if zz * zz * (rx * rx + ry * ry + 1.0) > reach * reach:
                counts[4] += 1
                continue
            px = rx * zz
            py = ry * zz
            wx = pose[0, 0] * px + pose[0, 1] * py + pose[0, 2] * zz + pose[0, 3]
            wy = pose[1, 0] * px + pose[1, 1] * py + pose[1, 2] * zz + pose[1, 3]
            wz = pose[2, 0] * px + pose[2, 1] * py + pose[2, 2] * zz + pose[2, 3]
            key = voxel_key(wx, wy, wz, scale)
            if key == KEY_OUT_OF_RANGE:
                counts[2] += 1
                continue
            # A plane satisfies 1/z = a x + b y + c in ray coordinates; (a, b, c) is its normal.
            a = _inverse_slope(depth, y, x, 0, 1, far, tolerance) * ffx
            b = _inverse_slope(depth, y, x, 1, 0, far, tolerance) * ffy
            frx = np.float32(rx)
            fry = np.float32(ry)
            c = one / z - a * frx - b * fry
            length = np.sqrt((a * a + b * b + c * c) * (frx * frx + fry * fry + one))
            cosine = min(one / (z * max(length, np.float32(1e-12))), one)
            out_points[at, 0] = wx
            out_points[at, 1] = wy
            out_points[at, 2] = wz
            out_keys[at] = key
            out_weight[at] = max(cosine / max(z * z, one), np.float32(1e-6))
            out_spacing[at] = z * pixel_size * min(one / max(cosine, np.float32(1e-3)), np.float32(MAX_STRETCH))
            counts[3] += 1


@compiled
def point_keys(points, scale, out_keys):
    """Writes the voxel keys of (N, 3) float32 points; returns how many are out of range."""
    outside = 0
    for i in range(len(points)):
        key = voxel_key(np.float64(points[i, 0]), np.float64(points[i, 1]), np.float64(points[i, 2]), scale)
        out_keys[i] = key
        if key == KEY_OUT_OF_RANGE:
            outside += 1
    return outside
