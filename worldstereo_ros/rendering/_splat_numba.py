"""The compiled loops of `rendering.py`; `_splat_torch.py` is the same arithmetic, written plainly.

Both do the same float32 operations in the same order and accumulate in integers, so the result does not depend on
the number of threads and is the same as the one of torch.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.rendering._hole_closing import PAIRS, REACH, SECTOR_ARRAY
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

EMPTY = np.int32(0x7F800000)  # +inf as bits: no point has written this pixel
BLOCK = 512  # points projected at once: their intermediate numbers stay in the first cache


@compiled
def _project(p, s, e, cap, width, height, start, stop, real, whole, chosen):
    """Projects points start..stop (at most BLOCK) and finds which of them touch the image.

    `e` are the 21 numbers of `rendering._frame_numbers`. Written to `real`, by rows: u, v, z, radius of the disc in
    pixels; to `whole`: the first and last column, the first and last row it may cover; to `chosen`: the places, from 0,
    of the points that are in front of the camera and touch the image. Returns their number.
    The first loop has no branches, so that it compiles to vector instructions.
    """
    w = np.float32(width)
    t = np.float32(height)
    half = np.float32(0.5)
    one = np.float32(1.0)
    # Read before the loop: the compiler cannot know that `real` and `e` do not overlap.
    ax, ay, az, bx, by, bz = e[0], e[1], e[2], e[3], e[4], e[5]
    r00, r01, r02, r10, r11, r12, r20, r21, r22 = e[6], e[7], e[8], e[9], e[10], e[11], e[12], e[13], e[14]
    fx, fy, cx, cy, near, size = e[15], e[16], e[17], e[18], e[19], e[20]
    # Slices begin at 0, so that their indices need no check for being negative.
    px = p[start:stop]
    gaps = s[start:stop]
    us, vs, zs, hs = real[0], real[1], real[2], real[3]
    for j in range(len(px)):
        dx = (px[j, 0] - ax) - bx
        dy = (px[j, 1] - ay) - by
        dz = (px[j, 2] - az) - bz
        z = (r20 * dx + r21 * dy) + r22 * dz
        inverse = one / z
        u = (((r00 * dx + r01 * dy) + r02 * dz) * inverse) * fx + cx
        v = (((r10 * dx + r11 * dy) + r12 * dz) * inverse) * fy + cy
        h = (gaps[j] * size) * inverse
        h = h if h > half else half
        h = h if h < cap else cap
        inside = (z > near) & (z < np.float32(1e9)) & (u > -h) & (u < w + h) & (v > -h) & (v < t + h)
        us[j] = u
        vs[j] = v
        zs[j] = z if inside else np.float32(0.0)
        hs[j] = h
    count = 0
    for j in range(len(px)):
        chosen[count] = j
        count += np.int64(zs[j] > np.float32(0.0))
    for n in range(count):
        j = chosen[n]
        u = real[0, j]
        v = real[1, j]
        h = real[3, j]
        whole[0, j] = max(np.int32(np.ceil(u - h)), np.int32(0))
        whole[1, j] = min(np.int32(np.floor(u + h)), np.int32(width - 1))
        whole[2, j] = max(np.int32(np.ceil(v - h)), np.int32(0))
        whole[3, j] = min(np.int32(np.floor(v + h)), np.int32(height - 1))
    return count


@compiled
def _depth_pass(p, s, observed, e, cap, tolerance, zbuf, start, stop):
    """Nearest depth per pixel, as the bits of its float32; the last bit is set where that point is imagined."""
    height, width = zbuf.shape
    flat = zbuf.reshape(-1)
    real = np.empty((4, BLOCK), np.float32)
    whole = np.empty((4, BLOCK), np.int32)
    chosen = np.empty(BLOCK, np.int32)
    for block in range(start, stop, BLOCK):
        count = _project(p, s, e, cap, width, height, block, min(block + BLOCK, stop), real, whole, chosen)
        for n in range(count):
            j = chosen[n]
            i = block + j
            u = real[0, j]
            v = real[1, j]
            z = real[2, j]
            if observed[i]:
                key = np.float32(z).view(np.int32) & np.int32(-2)
            else:
                key = np.float32(z * tolerance + s[i]).view(np.int32) | np.int32(1)
            r = real[3, j] + np.float32(0.25)
            r = r * r
            for y in range(whole[2, j], whole[3, j] + 1):
                dy = np.float32(y) - v
                dy = dy * dy
                row = np.uint64(y * width)
                for x in range(whole[0, j], whole[1, j] + 1):
                    dx = np.float32(x) - u
                    at = row + np.uint64(x)
                    old = flat[at]
                    flat[at] = key if dx * dx + dy <= r and key < old else old


@compiled
def _front_surface(zbufs, tolerance, front, limit, y0, y1):
    """Joins the threads' depth buffers and empties them for the next frame.

    `limit`: how deep a point may lie and still count, negative for imagined.
    """
    layers = zbufs.shape[0]
    for y in range(y0, y1):
        for x in range(front.shape[1]):
            key = zbufs[0, y, x]
            zbufs[0, y, x] = EMPTY
            for k in range(1, layers):
                key = min(key, zbufs[k, y, x])
                zbufs[k, y, x] = EMPTY
            z = np.int32(key).view(np.float32)
            front[y, x] = z
            limit[y, x] = -(z * tolerance) if key & np.int32(1) else z * tolerance


@compiled
def _colour_pass(p, s, colours, observed, e, cap, tolerance, slab, grades, front, limit, acc, start, stop):
    """Adds to every pixel the points of its provenance that lie on its front surface.

    acc[..., 0] = red << 28 | 1, then green, blue and depth / front depth in 4096ths, each times the point's weight,
    which falls from 1 + `grades` in the middle of the footprint to 1 at its rim.
    """
    height, width = front.shape
    one = np.float32(1.0)
    flat = acc.reshape(-1, 4)
    flat_front = front.reshape(-1)
    flat_limit = limit.reshape(-1)
    real = np.empty((4, BLOCK), np.float32)
    whole = np.empty((4, BLOCK), np.int32)
    chosen = np.empty(BLOCK, np.int32)
    for block in range(start, stop, BLOCK):
        count = _project(p, s, e, cap, width, height, block, min(block + BLOCK, stop), real, whole, chosen)
        for n in range(count):
            j = chosen[n]
            i = block + j
            u = real[0, j]
            v = real[1, j]
            z = real[2, j]
            seen = observed[i]
            sign = one if seen else -one
            nearest = (z if seen else z * tolerance + s[i]) - slab * s[i]
            nearest = max(nearest, np.float32(1e-9))
            r = real[3, j] + np.float32(0.25)
            r = r * r
            fall = np.float32(grades) / r
            quantum = z * np.float32(4096.0)
            red = (np.int64(colours[i, 0]) << 28) | np.int64(1)
            green = np.int64(colours[i, 1])
            blue = np.int64(colours[i, 2])
            for y in range(whole[2, j], whole[3, j] + 1):
                dy = np.float32(y) - v
                dy = dy * dy
                row = np.uint64(y * width)
                for x in range(whole[0, j], whole[1, j] + 1):
                    dx = np.float32(x) - u
                    d = dx * dx + dy
                    at = row + np.uint64(x)
                    if d <= r and nearest <= sign * flat_limit[at]:
                        weight = 1 + grades - np.int64(d * fall)
                        depth = np.int64(quantum / flat_front[at])
                        flat[at, 0] += red * weight
                        flat[at, 1] += green * weight
                        flat[at, 2] += blue * weight
                        flat[at, 3] += min(depth, 8191) * weight


@compiled
def _resolve(accs, front, limit, hole, colour, depth, observed, y0, y1):
    """Divides the sums by their weights. A pixel that no point reached is grey and has the depth `hole`.

    The sums are cleared for the next frame.
    """
    layers = accs.shape[0]
    for y in range(y0, y1):
        for x in range(front.shape[1]):
            red = np.int64(0)
            green = np.int64(0)
            blue = np.int64(0)
            offset = np.int64(0)
            for k in range(layers):
                red += accs[k, y, x, 0]
                green += accs[k, y, x, 1]
                blue += accs[k, y, x, 2]
                offset += accs[k, y, x, 3]
                for n in range(4):
                    accs[k, y, x, n] = 0
            weight = red & np.int64(0xFFFFFFF)
            if weight == 0:
                colour[y, x, 0] = 128
                colour[y, x, 1] = 128
                colour[y, x, 2] = 128
                depth[y, x] = hole
                observed[y, x] = False
                continue
            half = weight >> 1
            colour[y, x, 0] = ((red >> 28) + half) // weight
            colour[y, x, 1] = (green + half) // weight
            colour[y, x, 2] = (blue + half) // weight
            depth[y, x] = front[y, x] * (np.float32(offset / weight) * np.float32(1.0 / 4096.0))
            observed[y, x] = limit[y, x] > 0


@compiled
def _nearest_around(surface, y, rows, around):
    """Writes into `around` the least of `surface` within REACH columns and rows of row y, for every column."""
    height, width = surface.shape
    low = max(y - REACH, 0)
    high = min(y + REACH, height - 1)
    for x in range(width):
        rows[x] = surface[low, x]
    for yy in range(low + 1, high + 1):
        for x in range(width):
            rows[x] = surface[yy, x] if surface[yy, x] < rows[x] else rows[x]
    for x in range(width):
        around[x] = rows[x]
    for step in range(1, REACH + 1):
        for x in range(width - step):
            around[x] = rows[x + step] if rows[x + step] < around[x] else around[x]
        for x in range(step, width):
            around[x] = rows[x - step] if rows[x - step] < around[x] else around[x]


@compiled
def _nearer(surface, y, x, sector, limit):
    """The number of the nearest pixel in one direction that holds a surface nearer than `limit`; -1 if none does."""
    height, width = surface.shape
    for k in range(SECTOR_ARRAY.shape[1]):
        if SECTOR_ARRAY[sector, k, 2] == 0:
            break
        xx = x + SECTOR_ARRAY[sector, k, 0]
        yy = y + SECTOR_ARRAY[sector, k, 1]
        if xx >= 0 and xx < width and yy >= 0 and yy < height and surface[yy, xx] < limit:
            return k
    return -1


@compiled
def _close(colour, surface, observed, jump, out_colour, out_depth, out_covered, out_observed, y0, y1):
    """Closes holes and pinholes of up to five pixels that a nearer surface surrounds.

    A pixel looks in eight directions for a surface nearer than itself by the factor `jump` (any surface, where the
    pixel is a hole). Where both ends of at least three of the four axes find one, the pixel lies behind that surface
    or in a crack of it, and takes the mean of what they found, without the parts nearer than the farthest by `jump`.
    `surface` is the depth, infinite in holes.
    """
    width = surface.shape[1]
    rows = np.empty(width, np.float32)
    around = np.empty(width, np.float32)
    hits = np.empty(8, np.int64)
    infinite = np.float32(np.inf)
    for y in range(y0, y1):
        _nearest_around(surface, y, rows, around)
        for x in range(width):
            z = surface[y, x]
            is_hole = z == infinite
            out_colour[y, x, 0] = colour[y, x, 0]
            out_colour[y, x, 1] = colour[y, x, 1]
            out_colour[y, x, 2] = colour[y, x, 2]
            out_depth[y, x] = np.float32(0.0) if is_hole else z
            out_covered[y, x] = not is_hole
            out_observed[y, x] = observed[y, x]
            limit = infinite if is_hole else z * jump
            if not around[x] < limit:
                continue
            missed = 0
            for k in range(4):
                hits[k] = _nearer(surface, y, x, k, limit)
                hits[k + 4] = _nearer(surface, y, x, k + 4, limit) if hits[k] >= 0 else -1
                if hits[k + 4] < 0:
                    missed += 1
                    if missed > 4 - PAIRS:
                        break
            if missed > 4 - PAIRS:
                continue
            farthest = np.float32(0.0)
            for k in range(8):
                if k >= 4 and hits[k - 4] < 0:
                    hits[k] = _nearer(surface, y, x, k, limit)  # it was not asked for yet
                n = hits[k]
                if n >= 0:
                    farthest = max(farthest, surface[y + SECTOR_ARRAY[k, n, 1], x + SECTOR_ARRAY[k, n, 0]])
            weight = np.int64(0)
            red = np.int64(0)
            green = np.int64(0)
            blue = np.int64(0)
            mean = np.float32(0.0)
            seen = True
            for k in range(8):
                n = hits[k]
                if n < 0:
                    continue
                yy = y + SECTOR_ARRAY[k, n, 1]
                xx = x + SECTOR_ARRAY[k, n, 0]
                near = surface[yy, xx]
                if near < farthest * jump:
                    continue
                w = SECTOR_ARRAY[k, n, 2]
                weight += w
                red += w * colour[yy, xx, 0]
                green += w * colour[yy, xx, 1]
                blue += w * colour[yy, xx, 2]
                mean += np.float32(w) * near
                seen = seen and observed[yy, xx]
            half = weight >> 1
            out_colour[y, x, 0] = (red + half) // weight
            out_colour[y, x, 1] = (green + half) // weight
            out_colour[y, x, 2] = (blue + half) // weight
            out_depth[y, x] = mean / np.float32(weight)
            out_covered[y, x] = True
            out_observed[y, x] = seen


def scratch(threads: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Working memory of `splat` for frames of one size, 36 bytes a pixel and thread: depth buffers and sums."""
    return np.full((threads, height, width), EMPTY, dtype=np.int32), np.zeros((threads, height, width, 4), np.int64)


def splat(points, colours, observed, spacing, numbers, settings, out, working):
    """Renders one frame into `out` = (colour, depth, covered, observed), all C-contiguous numpy arrays."""
    cap, tolerance, slab, jump, grades = settings
    zbufs, accs = working
    threads, height, width = zbufs.shape
    parts = split_range(len(points), threads)
    bands = split_range(height, threads)
    run_in_threads(
        _depth_pass, [(points, spacing, observed, numbers, cap, tolerance, zbufs[k], *p) for k, p in enumerate(parts)]
    )
    front = np.empty((height, width), np.float32)
    limit = np.empty((height, width), np.float32)
    run_in_threads(_front_surface, [(zbufs, tolerance, front, limit, *band) for band in bands])
    shared = (points, spacing, colours, observed, numbers, cap, tolerance, slab, grades, front, limit)
    run_in_threads(_colour_pass, [(*shared, accs[k], *part) for k, part in enumerate(parts)])
    colour, depth, covered, seen = out
    if jump <= 0:
        run_in_threads(_resolve, [(accs, front, limit, np.float32(0), colour, depth, seen, *band) for band in bands])
        np.greater(depth, 0, out=covered)
        return
    first = (np.empty_like(colour), np.empty_like(depth), np.empty_like(seen))
    run_in_threads(_resolve, [(accs, front, limit, np.float32(np.inf), *first, *band) for band in bands])
    run_in_threads(_close, [(*first, jump, *out, *band) for band in bands])
