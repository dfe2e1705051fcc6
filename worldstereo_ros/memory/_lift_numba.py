"""A depth image as weighted world points: the compiled first half of `CloudMemory.insert`. It changes no memory."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

GRAZING_STEP = 3  # pixels; a normal over a wider base is not fooled by the steps of a sensor's depth
MAX_STRETCH = 2.0
HALF_RANGE = 1 << 20  # voxels each way from the origin: 21 bits an axis
SKIP = np.int64(-1)
FAR_OUT = np.int64(-2)


@compiled
def voxel_key(x, y, z, scale):
    """The packed voxel of a point (float64 metres, `scale` voxels a metre), or FAR_OUT beyond the range of a key."""
    i = np.floor(x * scale)
    j = np.floor(y * scale)
    k = np.floor(z * scale)
    limit = np.float64(HALF_RANGE)
    if not (abs(i) < limit and abs(j) < limit and abs(k) < limit):
        return FAR_OUT
    a = np.int64(i) + HALF_RANGE
    b = np.int64(j) + HALF_RANGE
    c = np.int64(k) + HALF_RANGE
    return (a << 42) | (b << 21) | c


@compiled
def _usable(z, far):
    """True for a depth that means a distance: NaN and infinities are a sensor's words for unknown (REP 118)."""
    return z > np.float32(0.0) and z < far


@compiled
def _is_supported(depth, y, x, far, tolerance, support):
    """True unless the pixel hangs between two surfaces: few of its eight neighbours may lie on another one.

    At most 8 - `support` neighbours may disagree and at least two must agree; one without depth does neither, so the
    rim of what the sensor could measure stays. Neighbours outside the image count as good. A steep but plane surface
    is linear in inverse depth: there, steps of up to four times the tolerance are allowed.
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
        near = tolerance * z
        good_a = step_a <= near
        good_b = step_b <= near
        if usable_a and usable_b and not (good_a and good_b) and max(step_a, step_b) <= np.float32(4.0) * near:
            bend = abs(z / a + z / b - np.float32(2.0))
            if bend <= np.float32(0.25) * tolerance:
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
    for step in (GRAZING_STEP, 1):
        low = np.float32(0.0)
        low_at = 0
        high = np.float32(0.0)
        high_at = 0
        near = np.float32(step) * tolerance * z
        ya, xa = y - step * dy, x - step * dx
        if ya >= 0 and xa >= 0 and _usable(depth[ya, xa], far) and abs(depth[ya, xa] - z) <= near:
            low = np.float32(1.0) / depth[ya, xa]
            low_at = -step
        yb, xb = y + step * dy, x + step * dx
        if yb < height and xb < width and _usable(depth[yb, xb], far) and abs(depth[yb, xb] - z) <= near:
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
    """Lifts rows y0..y1 of a depth image into the world.

    Args:
        depth: (H, W) float32 metres; anything but a positive finite number below `far` is unknown.
        intrinsics: fx, fy, cx, cy, float64. pose: (4, 4) float64 world_from_camera.
        reach: metres from the camera beyond which nothing is kept.
        tolerance: largest step between neighbours of one surface, relative to depth.
        support: neighbours of eight that must lie on the same surface.
        scale: voxels a metre.
        out_points: (H*W, 3) float32. out_keys: (H*W,) int64, SKIP where there is no point.
        out_weight: (H*W,) float32, the cosine of the angle between ray and normal, divided by depth^2 beyond a metre.
        out_spacing: (H*W,) float32, metres between neighbouring pixels on the surface.
        counts: (5,) int64 of this call: pixels unknown, not supported, out of range, lifted, out of reach.
    """
    fx, fy, cx, cy = intrinsics
    width = depth.shape[1]
    one = np.float32(1.0)
    pixel = np.float32(1.0 / np.sqrt(fx * fy))
    ffx = np.float32(fx)
    ffy = np.float32(fy)
    for y in range(y0, y1):
        ry = (y - cy) / fy
        for x in range(width):
            at = y * width + x
            out_keys[at] = SKIP
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
            if key == FAR_OUT:
                counts[2] += 1
                continue
            # A plane is 1/z = a x + b y + c in ray coordinates, and (a, b, c) is its normal.
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
            out_spacing[at] = z * pixel * min(one / max(cosine, np.float32(1e-3)), np.float32(MAX_STRETCH))
            counts[3] += 1


@compiled
def point_keys(points, scale, out_keys):
    """Voxel keys of (N, 3) float32 points; returns how many are out of range."""
    outside = 0
    for i in range(len(points)):
        key = voxel_key(np.float64(points[i, 0]), np.float64(points[i, 1]), np.float64(points[i, 2]), scale)
        out_keys[i] = key
        if key == FAR_OUT:
            outside += 1
    return outside
