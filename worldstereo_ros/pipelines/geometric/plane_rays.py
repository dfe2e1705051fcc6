"""Casts the rays of a view through the planes of a layout."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

NEAR_M = 0.05
MIN_PROBABILITY = 0.02  # below, a plane is ignored
FREE_SPACE_RATIO, FREE_SPACE_M = 1.08, 0.08  # a point this much nearer than the measured depth is in free space
SIDE_TOLERANCE_M = 0.05  # behind a side of the room
# Within a block whose rays are interpolated: of the probability, and of the colour in grey levels.
MAX_PROBABILITY_RANGE, MAX_COLOUR_RANGE = 0.03, 8.0


@compiled
def pixel_ray(intrinsics, pose, x, y):
    """Direction in the world of the ray through a pixel, whose component along the optical axis is 1.

    Args:
        intrinsics: (4,) float32: 1 / fx, 1 / fy, cx, cy.
        pose: (3, 4) float32 world from camera.
        x, y: column and row of the pixel.
    """
    rx = (np.float32(x) - intrinsics[2]) * intrinsics[0]
    ry = (np.float32(y) - intrinsics[3]) * intrinsics[1]
    return (
        pose[0, 0] * rx + pose[0, 1] * ry + pose[0, 2],
        pose[1, 0] * rx + pose[1, 1] * ry + pose[1, 2],
        pose[2, 0] * rx + pose[2, 1] * ry + pose[2, 2],
    )


@compiled
def cast_ray(
    y,
    x,
    intrinsics,
    pose,
    planes,
    colours,
    distance,
    sides,
    views,
    depths,
    ahead,
    out_colour,
    out_depth,
    out_probability,
    out_plane,
):
    """Casts the ray of the pixel in row y and column x; see `cast_rays`. `ahead`: (K,) float32, overwritten."""
    cells = colours.shape[1]
    last = np.float32(cells - 1)
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    dx, dy, dz = pixel_ray(intrinsics, pose, x, y)
    for k in range(len(planes)):
        p = planes[k]
        towards = p[0] * dx + p[1] * dy + p[2] * dz
        offset = p[3] - (p[0] * pose[0, 3] + p[1] * pose[1, 3] + p[2] * pose[2, 3])
        ahead[k] = offset / towards if towards < np.float32(-1e-4) else zero
    remaining, most = one, zero
    for _ in range(len(planes)):
        best, z = -1, np.float32(1e9)
        for k in range(len(planes)):
            if np.float32(NEAR_M) < ahead[k] < z:
                best, z = k, ahead[k]
        if best < 0 or remaining < np.float32(MIN_PROBABILITY):
            break
        ahead[best] = zero
        p = planes[best]
        hx, hy, hz = pose[0, 3] + z * dx, pose[1, 3] + z * dy, pose[2, 3] + z * dz
        u = (p[4] * hx + p[5] * hy + p[6] * hz - p[10]) / p[12] - half
        v = (p[7] * hx + p[8] * hy + p[9] * hz - p[11]) / p[12] - half
        cu, cv = min(max(u, zero), last), min(max(v, zero), last)
        beyond = p[12] * (abs(u - cu) + abs(v - cv))
        beyond += distance[best, int(cv + half), int(cu + half)]
        share = max(np.exp(-beyond / p[13]), p[14])
        if beyond > zero:
            for j in range(len(sides)):
                s = sides[j]
                if s[0] * hx + s[1] * hy + s[2] * hz < s[3] - np.float32(SIDE_TOLERANCE_M):
                    share *= one - s[4]
        share *= remaining
        if share < np.float32(MIN_PROBABILITY):
            continue
        free = False
        for i in range(len(views)):
            m = views[i]
            w = m[2, 0] * hx + m[2, 1] * hy + m[2, 2] * hz + m[2, 3]
            if w < np.float32(NEAR_M):
                continue
            a = int(np.floor((m[0, 0] * hx + m[0, 1] * hy + m[0, 2] * hz + m[0, 3]) / w + half))
            b = int(np.floor((m[1, 0] * hx + m[1, 1] * hy + m[1, 2] * hz + m[1, 3]) / w + half))
            if a < 0 or b < 0 or a >= depths.shape[2] or b >= depths.shape[1]:
                continue
            measured = depths[i, b, a]
            if measured < zero:
                continue
            if measured == zero or measured > w * np.float32(FREE_SPACE_RATIO) + np.float32(FREE_SPACE_M):
                free = True
                break
        if free:
            continue
        x0, y0 = min(int(cu), cells - 2), min(int(cv), cells - 2)
        fx, fy = cu - np.float32(x0), cv - np.float32(y0)
        for c in range(3):
            upper = colours[best, y0, x0, c] * (one - fx) + colours[best, y0, x0 + 1, c] * fx
            lower = colours[best, y0 + 1, x0, c] * (one - fx) + colours[best, y0 + 1, x0 + 1, c] * fx
            out_colour[y, x, c] += share * (upper * (one - fy) + lower * fy)
        out_probability[y, x] += share
        remaining -= share
        if share > most:
            most, out_depth[y, x], out_plane[y, x] = share, z, best
    if out_probability[y, x] > zero:
        for c in range(3):
            out_colour[y, x, c] /= out_probability[y, x]


@compiled
def plane_depth(plane, intrinsics, pose, x, y):
    """Depth of a plane along the ray of a pixel."""
    dx, dy, dz = pixel_ray(intrinsics, pose, x, y)
    towards = plane[0] * dx + plane[1] * dy + plane[2] * dz
    return (plane[3] - (plane[0] * pose[0, 3] + plane[1] * pose[1, 3] + plane[2] * pose[2, 3])) / towards


@compiled
def interpolate_block(
    top, bottom, left, right, mask, planes, intrinsics, pose, out_colour, out_depth, out_probability, out_plane
):
    """Fills a block from its four corners, whose rays were cast; False, and nothing is written, if they differ.

    Args:
        top, bottom, left, right: first and last row and column.
        mask: (H, W) bool, the pixels to fill.
        planes, intrinsics, pose, out_colour, out_depth, out_probability, out_plane: see `cast_rays`.
    """
    k = out_plane[top, left]
    if out_plane[top, right] != k or out_plane[bottom, left] != k or out_plane[bottom, right] != k:
        return False
    low = high = out_probability[top, left]
    for y, x in ((top, right), (bottom, left), (bottom, right)):
        low, high = min(low, out_probability[y, x]), max(high, out_probability[y, x])
    if high - low > np.float32(MAX_PROBABILITY_RANGE):
        return False
    for c in range(3):
        low = high = out_colour[top, left, c]
        for y, x in ((top, right), (bottom, left), (bottom, right)):
            low, high = min(low, out_colour[y, x, c]), max(high, out_colour[y, x, c])
        if high - low > np.float32(MAX_COLOUR_RANGE):
            return False
    if k < 0:
        return True
    one = np.float32(1)
    tall, wide = np.float32(max(bottom - top, 1)), np.float32(max(right - left, 1))
    for y in range(top, bottom + 1):
        v = np.float32(y - top) / tall
        for x in range(left, right + 1):
            if not mask[y, x] or (y in (top, bottom) and x in (left, right)):
                continue
            u = np.float32(x - left) / wide
            a, b, c, d = (one - v) * (one - u), (one - v) * u, v * (one - u), v * u
            out_probability[y, x] = (
                a * out_probability[top, left]
                + b * out_probability[top, right]
                + c * out_probability[bottom, left]
                + d * out_probability[bottom, right]
            )
            for channel in range(3):
                out_colour[y, x, channel] = (
                    a * out_colour[top, left, channel]
                    + b * out_colour[top, right, channel]
                    + c * out_colour[bottom, left, channel]
                    + d * out_colour[bottom, right, channel]
                )
            out_plane[y, x] = k
            out_depth[y, x] = plane_depth(planes[k], intrinsics, pose, x, y)
    return True


@compiled
def cast_rays(
    row0,
    row1,
    block,
    intrinsics,
    pose,
    mask,
    planes,
    colours,
    distance,
    sides,
    views,
    depths,
    out_colour,
    out_depth,
    out_probability,
    out_plane,
):
    """Casts the rays of rows row0..row1 through all planes that face the camera, the nearest first.

    In large images, blocks whose corners show the same plane with nearly the same colour are interpolated; others are
    halved until each ray is cast.

    Args:
        row0, row1: rows to do; row0 is a multiple of `block`.
        block: side of the largest blocks in pixels, a power of two; 1 = each ray is cast.
        intrinsics: (4,) float32: 1 / fx, 1 / fy, cx, cy.
        pose: (3, 4) float32 world from camera.
        mask: (H, W) bool, the pixels to do.
        planes, colours, distance, sides, views, depths: attributes of `Layout` (views: `grid_from_world`).
        out_colour: (H, W, 3) float32, out_depth, out_probability: (H, W) float32: zeros, written where a plane is.
        out_plane: (H, W) int16 of -1, the most likely plane is written.
    """
    ahead = np.empty(len(planes), np.float32)
    rows, columns = out_depth.shape
    cast = np.zeros((block, block), np.bool_)  # pixels of a block whose rays have been cast
    waiting = np.empty((4 * block, 3), np.int64)  # first row, first column and side of the parts of a block
    for top in range(row0, row1, block):
        for left in range(0, columns, block):
            if block == 1:
                if mask[top, left]:
                    cast_ray(
                        top, left, intrinsics, pose, planes, colours, distance, sides, views, depths, ahead,
                        out_colour, out_depth, out_probability, out_plane,
                    )  # fmt: skip
                continue
            if not mask[top : min(top + block, rows), left : left + block].any():
                continue
            cast[:] = False
            waiting[0, 0], waiting[0, 1], waiting[0, 2] = top, left, block
            count = 1
            while count:
                count -= 1
                y0, x0, side = waiting[count, 0], waiting[count, 1], waiting[count, 2]
                if y0 >= rows or x0 >= columns:
                    continue
                y1, x1 = min(y0 + side, rows) - 1, min(x0 + side, columns) - 1
                for y, x in ((y0, x0), (y0, x1), (y1, x0), (y1, x1)):
                    if not cast[y - top, x - left] and (side > 1 or mask[y, x]):
                        cast[y - top, x - left] = True
                        cast_ray(
                            y, x, intrinsics, pose, planes, colours, distance, sides, views, depths, ahead,
                            out_colour, out_depth, out_probability, out_plane,
                        )  # fmt: skip
                if side == 1 or interpolate_block(
                    y0, y1, x0, x1, mask, planes, intrinsics, pose, out_colour, out_depth, out_probability, out_plane
                ):
                    continue
                half = side // 2
                for y, x in ((y0, x0), (y0, x0 + half), (y0 + half, x0), (y0 + half, x0 + half)):
                    waiting[count, 0], waiting[count, 1], waiting[count, 2] = y, x, half
                    count += 1
            for y in range(top, min(top + block, rows)):
                for x in range(left, min(left + block, columns)):
                    if cast[y - top, x - left] and not mask[y, x]:
                        out_colour[y, x] = 0
                        out_probability[y, x], out_depth[y, x], out_plane[y, x] = 0, 0, -1


@compiled
def colour_surfaces(row0, row1, intrinsics, pose, plane, depth, planes, colours, out):
    """Writes the colour of one plane per pixel, of rows row0..row1.

    Args:
        row0, row1: rows to do.
        intrinsics: (4,) float32: 1 / fx, 1 / fy, cx, cy.
        pose: (3, 4) float32 world from camera.
        plane: (H, W) int16 index of the plane, negative = none.
        depth: (H, W) float32 metres.
        planes, colours: attributes of `Layout`.
        out: (H, W, 3) float32, written where there is a plane.
    """
    cells = colours.shape[1]
    last = np.float32(cells - 1)
    zero, half, one = np.float32(0), np.float32(0.5), np.float32(1)
    for y in range(row0, row1):
        for x in range(plane.shape[1]):
            k = plane[y, x]
            if k < 0:
                continue
            p, z = planes[k], depth[y, x]
            dx, dy, dz = pixel_ray(intrinsics, pose, x, y)
            hx, hy, hz = pose[0, 3] + z * dx, pose[1, 3] + z * dy, pose[2, 3] + z * dz
            u = min(max((p[4] * hx + p[5] * hy + p[6] * hz - p[10]) / p[12] - half, zero), last)
            v = min(max((p[7] * hx + p[8] * hy + p[9] * hz - p[11]) / p[12] - half, zero), last)
            x0, y0 = min(int(u), cells - 2), min(int(v), cells - 2)
            fx, fy = u - np.float32(x0), v - np.float32(y0)
            for c in range(3):
                upper = colours[k, y0, x0, c] * (one - fx) + colours[k, y0, x0 + 1, c] * fx
                lower = colours[k, y0 + 1, x0, c] * (one - fx) + colours[k, y0 + 1, x0 + 1, c] * fx
                out[y, x, c] = upper * (one - fy) + lower * fy
