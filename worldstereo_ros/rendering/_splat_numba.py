"""Compiled loops of point splatting; `_splat_torch.py` has the same arithmetic in plain torch.

Both perform the same float32 operations in the same order and accumulate in integers, so that the result is the same
for both and for any number of threads.
"""

from __future__ import annotations

import numpy as np

from worldstereo_ros.rendering._hole_closing import MIN_AXES, REACH_PX, SECTOR_ARRAY
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

EMPTY = np.int32(0x7F800000)  # the bits of +inf: no point covers this pixel
# Values of `geometry.provenance.Provenance`, as numba needs them.
IMAGINED, ESTIMATED, OBSERVED = np.uint8(1), np.uint8(2), np.uint8(3)
BLOCK_SIZE = 512  # points projected at once; intermediate values stay in the L1 cache


@compiled
def _project(p, s, cam, cap, width, height, start, stop, projected, bounds, selected):
    """Projects points start..stop (at most BLOCK_SIZE) and selects those that touch the image.

    The first loop has no branches, so that it compiles to vector instructions.

    Args:
        p: (N, 3) float32 points.
        s: (N,) float32 spacing, metres.
        cam: the 21 float32 values of `splatting._camera_values`.
        cap: largest disc radius in pixels.
        width, height: image size.
        start, stop: range of points.
        projected: (4, BLOCK_SIZE) float32, written: u, v, z, disc radius in pixels.
        bounds: (4, BLOCK_SIZE) int32, written: first and last column, first and last row of the disc.
        selected: (BLOCK_SIZE,) int32, written: indices, from `start`, of the points that are in front of the camera and
            touch the image.

    Returns:
        The number of selected points.
    """
    w = np.float32(width)
    t = np.float32(height)
    half = np.float32(0.5)
    one = np.float32(1.0)
    # Read before the loop: the compiler cannot know that `projected` and `cam` do not overlap.
    ax, ay, az, bx, by, bz = cam[0], cam[1], cam[2], cam[3], cam[4], cam[5]
    r00, r01, r02 = cam[6], cam[7], cam[8]
    r10, r11, r12 = cam[9], cam[10], cam[11]
    r20, r21, r22 = cam[12], cam[13], cam[14]
    fx, fy, cx, cy, near, size = cam[15], cam[16], cam[17], cam[18], cam[19], cam[20]
    # Indices into these slices start at 0, so that the compiler needs no check for negative indices.
    px = p[start:stop]
    gaps = s[start:stop]
    us, vs, zs, hs = projected[0], projected[1], projected[2], projected[3]
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
        selected[count] = j
        count += np.int64(zs[j] > np.float32(0.0))
    for n in range(count):
        j = selected[n]
        u = projected[0, j]
        v = projected[1, j]
        h = projected[3, j]
        bounds[0, j] = max(np.int32(np.ceil(u - h)), np.int32(0))
        bounds[1, j] = min(np.int32(np.floor(u + h)), np.int32(width - 1))
        bounds[2, j] = max(np.int32(np.ceil(v - h)), np.int32(0))
        bounds[3, j] = min(np.int32(np.floor(v + h)), np.int32(height - 1))
    return count


@compiled
def _set_back(z, gap, provenance, tolerance):
    """Depth at which a point competes: points of lower classes are set back, so that higher ones are in front."""
    if provenance == OBSERVED:
        return z
    if provenance == ESTIMATED:
        return z * (np.float32(0.5) + np.float32(0.5) * tolerance) + np.float32(0.5) * gap
    return z * tolerance + gap


@compiled
def _depth_pass(p, s, provenance, cam, cap, tolerance, zbuf, start, stop):
    """First pass: nearest depth per pixel as the bits of its float32; the last two bits are 3 - provenance."""
    height, width = zbuf.shape
    flat = zbuf.reshape(-1)
    projected = np.empty((4, BLOCK_SIZE), np.float32)
    bounds = np.empty((4, BLOCK_SIZE), np.int32)
    selected = np.empty(BLOCK_SIZE, np.int32)
    for block in range(start, stop, BLOCK_SIZE):
        count = _project(
            p, s, cam, cap, width, height, block, min(block + BLOCK_SIZE, stop), projected, bounds, selected
        )
        for n in range(count):
            j = selected[n]
            i = block + j
            u = projected[0, j]
            v = projected[1, j]
            z = projected[2, j]
            rank = np.int32(OBSERVED - provenance[i])
            key = (np.float32(_set_back(z, s[i], provenance[i], tolerance)).view(np.int32) & np.int32(-4)) | rank
            r = projected[3, j] + np.float32(0.25)
            r = r * r
            for y in range(bounds[2, j], bounds[3, j] + 1):
                dy = np.float32(y) - v
                dy = dy * dy
                row = np.uint64(y * width)
                for x in range(bounds[0, j], bounds[1, j] + 1):
                    dx = np.float32(x) - u
                    at = row + np.uint64(x)
                    old = flat[at]
                    flat[at] = key if dx * dx + dy <= r and key < old else old


@compiled
def _front_surface(zbufs, tolerance, front, limit, kinds, y0, y1):
    """Merges the depth buffers of the threads and empties them for the next frame.

    Writes the depth of the front surface to `front`, the largest depth that belongs to it to `limit`, and its
    provenance to `kinds`.
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
            limit[y, x] = z * tolerance
            kinds[y, x] = OBSERVED - np.uint8(key & np.int32(3))


@compiled
def _colour_pass(p, s, colours, provenance, cam, cap, tolerance, slab, grades, front, limit, kinds, acc, start, stop):
    """Second pass: adds to each pixel the points on its front surface that have its provenance.

    acc[..., 0] = red << 28 | 1, then green, blue and depth / front depth in 4096ths, each times the point weight,
    which decreases from 1 + `grades` in the middle of the footprint to 1 at its border.
    """
    height, width = front.shape
    flat = acc.reshape(-1, 4)
    flat_front = front.reshape(-1)
    flat_limit = limit.reshape(-1)
    flat_kinds = kinds.reshape(-1)
    projected = np.empty((4, BLOCK_SIZE), np.float32)
    bounds = np.empty((4, BLOCK_SIZE), np.int32)
    selected = np.empty(BLOCK_SIZE, np.int32)
    for block in range(start, stop, BLOCK_SIZE):
        count = _project(
            p, s, cam, cap, width, height, block, min(block + BLOCK_SIZE, stop), projected, bounds, selected
        )
        for n in range(count):
            j = selected[n]
            i = block + j
            u = projected[0, j]
            v = projected[1, j]
            z = projected[2, j]
            kind = provenance[i]
            nearest = _set_back(z, s[i], kind, tolerance) - slab * s[i]
            nearest = max(nearest, np.float32(1e-9))
            r = projected[3, j] + np.float32(0.25)
            r = r * r
            fall = np.float32(grades) / r
            quantum = z * np.float32(4096.0)
            red = (np.int64(colours[i, 0]) << 28) | np.int64(1)
            green = np.int64(colours[i, 1])
            blue = np.int64(colours[i, 2])
            for y in range(bounds[2, j], bounds[3, j] + 1):
                dy = np.float32(y) - v
                dy = dy * dy
                row = np.uint64(y * width)
                for x in range(bounds[0, j], bounds[1, j] + 1):
                    dx = np.float32(x) - u
                    d = dx * dx + dy
                    at = row + np.uint64(x)
                    if d <= r and nearest <= flat_limit[at] and kind == flat_kinds[at]:
                        weight = 1 + grades - np.int64(d * fall)
                        depth = np.int64(quantum / flat_front[at])
                        flat[at, 0] += red * weight
                        flat[at, 1] += green * weight
                        flat[at, 2] += blue * weight
                        flat[at, 3] += min(depth, 8191) * weight


@compiled
def _resolve(accs, front, kinds, hole, colour, depth, provenance, y0, y1):
    """Divides the sums by their weights and clears them for the next frame.

    Pixels that no point covers become mid-grey with the depth `hole`.
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
                provenance[y, x] = 0
                continue
            half = weight >> 1
            colour[y, x, 0] = ((red >> 28) + half) // weight
            colour[y, x, 1] = (green + half) // weight
            colour[y, x, 2] = (blue + half) // weight
            depth[y, x] = front[y, x] * (np.float32(offset / weight) * np.float32(1.0 / 4096.0))
            provenance[y, x] = kinds[y, x]


@compiled
def _nearest_around(surface, y, rows, around):
    """Writes into `around`, for each column of row y, the minimum of `surface` within REACH_PX rows and columns."""
    height, width = surface.shape
    low = max(y - REACH_PX, 0)
    high = min(y + REACH_PX, height - 1)
    for x in range(width):
        rows[x] = surface[low, x]
    for yy in range(low + 1, high + 1):
        for x in range(width):
            rows[x] = surface[yy, x] if surface[yy, x] < rows[x] else rows[x]
    for x in range(width):
        around[x] = rows[x]
    for step in range(1, REACH_PX + 1):
        for x in range(width - step):
            around[x] = rows[x + step] if rows[x + step] < around[x] else around[x]
        for x in range(step, width):
            around[x] = rows[x - step] if rows[x - step] < around[x] else around[x]


@compiled
def _nearer(surface, y, x, sector, limit):
    """Returns the index in the sector of the nearest pixel with a surface nearer than `limit`; -1 if there is none."""
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
def _close(colour, surface, provenance, jump, out_colour, out_depth, out_covered, out_provenance, y0, y1):
    """Closes holes and pinholes of up to five pixels that are surrounded by a nearer surface.

    Searches eight directions for a surface nearer than the pixel by the factor `jump` (any surface, if the pixel is a
    hole). If at least MIN_AXES of the four axes meet one at both ends, the pixel is a pinhole or crack of that surface
    and becomes the weighted mean of the hits, without those nearer than the farthest hit by `jump`, with the lowest
    provenance among them. `surface` is the depth, infinite in holes.
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
            out_provenance[y, x] = provenance[y, x]
            limit = infinite if is_hole else z * jump
            if not around[x] < limit:
                continue
            missed = 0
            for k in range(4):
                hits[k] = _nearer(surface, y, x, k, limit)
                hits[k + 4] = _nearer(surface, y, x, k + 4, limit) if hits[k] >= 0 else -1
                if hits[k + 4] < 0:
                    missed += 1
                    if missed > 4 - MIN_AXES:
                        break
            if missed > 4 - MIN_AXES:
                continue
            farthest = np.float32(0.0)
            for k in range(8):
                if k >= 4 and hits[k - 4] < 0:
                    hits[k] = _nearer(surface, y, x, k, limit)  # not searched above
                n = hits[k]
                if n >= 0:
                    farthest = max(farthest, surface[y + SECTOR_ARRAY[k, n, 1], x + SECTOR_ARRAY[k, n, 0]])
            weight = np.int64(0)
            red = np.int64(0)
            green = np.int64(0)
            blue = np.int64(0)
            mean = np.float32(0.0)
            lowest = OBSERVED
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
                lowest = min(lowest, provenance[yy, xx])
            half = weight >> 1
            out_colour[y, x, 0] = (red + half) // weight
            out_colour[y, x, 1] = (green + half) // weight
            out_colour[y, x, 2] = (blue + half) // weight
            out_depth[y, x] = mean / np.float32(weight)
            out_covered[y, x] = True
            out_provenance[y, x] = lowest


def scratch(threads: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Allocates the buffers of `splat` for one image size: depth buffers and sums, 36 bytes per pixel and thread."""
    return np.full((threads, height, width), EMPTY, dtype=np.int32), np.zeros((threads, height, width, 4), np.int64)


def splat(points, colours, provenance, spacing, camera_values, settings, out, buffers):
    """Renders one frame.

    Args:
        points, colours, provenance, spacing: arrays of the cloud, see `splatting.render`.
        camera_values: the 21 float32 values of `splatting._camera_values`.
        settings: (largest disc radius in pixels, 1 + surface tolerance, surface thickness in spacings, depth ratio of
            separate surfaces or 0 to keep holes, number of weight grades).
        out: (colour, depth, covered, provenance), C-contiguous arrays to write.
        buffers: result of `scratch`.
    """
    cap, tolerance, slab, jump, grades = settings
    zbufs, accs = buffers
    threads, height, width = zbufs.shape
    parts = split_range(len(points), threads)
    bands = split_range(height, threads)
    run_in_threads(
        _depth_pass,
        [(points, spacing, provenance, camera_values, cap, tolerance, zbufs[k], *p) for k, p in enumerate(parts)],
    )
    front = np.empty((height, width), np.float32)
    limit = np.empty((height, width), np.float32)
    kinds = np.empty((height, width), np.uint8)
    run_in_threads(_front_surface, [(zbufs, tolerance, front, limit, kinds, *band) for band in bands])
    shared = (points, spacing, colours, provenance, camera_values, cap, tolerance, slab, grades, front, limit, kinds)
    run_in_threads(_colour_pass, [(*shared, accs[k], *part) for k, part in enumerate(parts)])
    colour, depth, covered, out_provenance = out
    if jump <= 0:
        run_in_threads(
            _resolve, [(accs, front, kinds, np.float32(0), colour, depth, out_provenance, *band) for band in bands]
        )
        np.greater(depth, 0, out=covered)
        return
    unclosed = (np.empty_like(colour), np.empty_like(depth), np.empty_like(out_provenance))
    run_in_threads(_resolve, [(accs, front, kinds, np.float32(np.inf), *unclosed, *band) for band in bands])
    run_in_threads(_close, [(*unclosed, jump, *out, *band) for band in bands])
