"""Compiled loops of the plane sweep: matching cost, semi-global smoothing, sub-plane depth, and the cross-check."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.utils.jit import compiled

RADIUS = 3  # of the correlation window: 7x7
WINDOW = 2 * RADIUS + 1
LEVELS = 4  # steps per grey level of the samples, so that their sums are exact integers
NO_SCORE = np.float32(-2.0)
ONE_VIEW_PENALTY = np.float32(0.15)  # of a score that a single neighbour gives
MIN_DEVIATION = 0.75  # grey levels; smoother windows tell nothing


@compiled
def _sample_row(image, rows, columns, a, b, y, width, out):
    """Samples a neighbour along row y of the reference, at the homography a with b added to its third column.

    Writes grey levels times `LEVELS`; -1 outside of the neighbour, which is `rows` x `columns` large.
    """
    x0 = a[0, 1] * y + a[0, 2] + b[0]
    y0 = a[1, 1] * y + a[1, 2] + b[1]
    z0 = a[2, 1] * y + a[2, 2] + b[2]
    for x in range(width):
        z = a[2, 0] * x + z0
        value = -1
        if z > np.float32(1e-6):
            inverse = np.float32(1) / z
            u, v = (a[0, 0] * x + x0) * inverse, (a[1, 0] * x + y0) * inverse
            if u >= 0 and v >= 0 and u <= columns - 1 and v <= rows - 1:
                iu, iv = min(int(u), columns - 2), min(int(v), rows - 2)
                fu, fv = u - iu, v - iv
                top = image[iv, iu] + fu * (image[iv, iu + 1] - image[iv, iu])
                bottom = image[iv + 1, iu] + fu * (image[iv + 1, iu + 1] - image[iv + 1, iu])
                value = int((top + fv * (bottom - top)) * LEVELS + np.float32(0.5))
        out[x] = value


@compiled
def matching_cost(reference, neighbours, sizes, warps, offsets, inverse_depths, cost, y0, y1):
    """Matching cost of rows y0 to y1: 1 - the mean of the two best correlations of the neighbours.

    Args:
        reference: (H, W) int32, grey levels times `LEVELS`.
        neighbours: (N, H', W') float32 grey levels, each in the upper left.
        sizes: (N, 2) int64 rows and columns of each.
        warps: (N, 3, 3) float32, neighbour pixel from reference pixel at infinity.
        offsets: (N, 3) float32, added to the third column times the inverse depth.
        inverse_depths: (D,) float32.
        cost: (H, W, D) float32, written; 1 where no neighbour sees the window.
        y0, y1: rows.
    """
    height, width = reference.shape
    count = len(neighbours)
    ring = np.empty((count, WINDOW, width), np.int32)
    sums = np.zeros((count, 4, width), np.int32)  # of w, w * w, r * w, and of valid samples
    best, second = np.empty(width, np.float32), np.empty(width, np.float32)
    own = np.zeros((2, width), np.int32)
    own_sum, own_square = np.zeros(width, np.int64), np.zeros(width, np.int64)
    start = max(0, y0 - RADIUS)
    limit = np.int64((MIN_DEVIATION * LEVELS) ** 2)
    for d in range(len(inverse_depths)):
        sums[:] = 0
        own[:] = 0
        for y in range(start, y1 + RADIUS):
            slot = y % WINDOW
            gone = y - WINDOW
            if gone >= start:
                for x in range(width):
                    own[0, x] -= reference[gone, x]
                    own[1, x] -= reference[gone, x] * reference[gone, x]
                for n in range(count):
                    for x in range(width):
                        w = ring[n, slot, x]
                        valid = 1 if w >= 0 else 0
                        w = w * valid
                        sums[n, 0, x] -= w
                        sums[n, 1, x] -= w * w
                        sums[n, 2, x] -= reference[gone, x] * w
                        sums[n, 3, x] -= valid
            if y < height:
                for x in range(width):
                    own[0, x] += reference[y, x]
                    own[1, x] += reference[y, x] * reference[y, x]
                for n in range(count):
                    row = ring[n, slot]
                    shift = offsets[n] * inverse_depths[d]
                    _sample_row(neighbours[n], sizes[n, 0], sizes[n, 1], warps[n], shift, y, width, row)
                    for x in range(width):
                        w = row[x]
                        valid = 1 if w >= 0 else 0
                        w = w * valid
                        sums[n, 0, x] += w
                        sums[n, 1, x] += w * w
                        sums[n, 2, x] += reference[y, x] * w
                        sums[n, 3, x] += valid
            else:
                for n in range(count):
                    ring[n, slot] = -1
            out = y - RADIUS
            if out < y0:
                continue
            rows = min(height - 1, out + RADIUS) - max(0, out - RADIUS) + 1
            best[:] = NO_SCORE
            second[:] = NO_SCORE
            _slide(own[0], own_sum)
            _slide(own[1], own_square)
            for n in range(count):
                _correlate_row(sums[n], own_sum, own_square, rows, limit, best, second)
            for x in range(width):
                score = np.float32(0)
                if second[x] > NO_SCORE:
                    score = np.float32(0.5) * (best[x] + second[x])
                elif best[x] > NO_SCORE:
                    score = best[x] - ONE_VIEW_PENALTY
                cost[out, x, d] = np.float32(1) - score


@compiled
def _slide(column_sums, out):
    """Sums over windows of columns, those inside the image."""
    width = len(column_sums)
    total = np.int64(0)
    for x in range(min(RADIUS, width)):
        total += column_sums[x]
    for x in range(width):
        if x + RADIUS < width:
            total += column_sums[x + RADIUS]
        out[x] = total
        if x - RADIUS >= 0:
            total -= column_sums[x - RADIUS]


@compiled
def _correlate_row(sums, own_sum, own_square, rows, limit, best, second):
    """Updates the two best normalised cross-correlations of a row of windows with those of one neighbour."""
    width = len(best)
    total, square, product, valid = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for x in range(min(RADIUS, width)):
        total += sums[0, x]
        square += sums[1, x]
        product += sums[2, x]
        valid += sums[3, x]
    for x in range(width):
        if x + RADIUS < width:
            total += sums[0, x + RADIUS]
            square += sums[1, x + RADIUS]
            product += sums[2, x + RADIUS]
            valid += sums[3, x + RADIUS]
        number = rows * (min(width - 1, x + RADIUS) - max(0, x - RADIUS) + 1)
        if valid == number:
            variance = number * square - total * total
            own_variance = number * own_square[x] - own_sum[x] * own_sum[x]
            score = np.float32(0)
            if variance > limit * number * number and own_variance > limit * number * number:
                covariance = number * product - own_sum[x] * total
                score = np.float32(covariance / np.sqrt(np.float64(variance) * np.float64(own_variance)))
            if score > best[x]:
                second[x] = best[x]
                best[x] = score
            elif score > second[x]:
                second[x] = score
        if x - RADIUS >= 0:
            total -= sums[0, x - RADIUS]
            square -= sums[1, x - RADIUS]
            product -= sums[2, x - RADIUS]
            valid -= sums[3, x - RADIUS]


@compiled
def smooth_rows(cost, reference, p1, p2, p2_min, contrast, total, y0, y1):
    """Adds the path costs from the left and from the right of rows y0 to y1 to `total`; see `_path_step`."""
    _, width, planes = cost.shape
    before, now = np.empty(planes, np.float32), np.empty(planes, np.float32)
    for y in range(y0, y1):
        for direction in (1, -1):
            x = 0 if direction == 1 else width - 1
            before[:] = cost[y, x]
            total[y, x] += before
            for _ in range(width - 1):
                x += direction
                step = abs(reference[y, x] - reference[y, x - direction])
                penalty = max(p2_min, p2 / (np.float32(1) + step / contrast))
                _path_step(cost[y, x], before, now, p1, penalty, total[y, x])
                before, now = now, before


@compiled
def smooth_columns(cost, reference, p1, p2, p2_min, contrast, total, x0, x1):
    """Adds the path costs from above and from below of columns x0 to x1 to `total`; see `_path_step`."""
    height, _, planes = cost.shape
    before, now = np.empty((x1 - x0, planes), np.float32), np.empty(planes, np.float32)
    for direction in (1, -1):
        y = 0 if direction == 1 else height - 1
        for x in range(x0, x1):
            before[x - x0] = cost[y, x]
            total[y, x] += before[x - x0]
        for _ in range(height - 1):
            y += direction
            for x in range(x0, x1):
                step = abs(reference[y, x] - reference[y - direction, x])
                penalty = max(p2_min, p2 / (np.float32(1) + step / contrast))
                _path_step(cost[y, x], before[x - x0], now, p1, penalty, total[y, x])
                before[x - x0] = now


@compiled
def _path_step(cost, before, now, p1, p2, total):
    """One step of a path of semi-global matching (Hirschmüller, PAMI 2008, equation 13)."""
    planes = len(cost)
    lowest = before[0]
    for d in range(1, planes):
        lowest = min(lowest, before[d])
    jump = lowest + p2
    for d in range(planes):
        value = min(before[d], jump)
        if d > 0:
            value = min(value, before[d - 1] + p1)
        if d < planes - 1:
            value = min(value, before[d + 1] + p1)
        value += cost[d] - lowest
        now[d] = value
        total[d] += value


@compiled
def best_planes(total, cost, inverse_depths, min_score, depth, score, y0, y1):
    """Depth of the plane of lowest total cost, between planes by a parabola through its neighbours, rows y0 to y1.

    Depth is 0 at the first and the last plane (the surface may lie beyond), and where the correlation is too low.
    """
    _, width, planes = total.shape
    for y in range(y0, y1):
        for x in range(width):
            best = 0
            for d in range(1, planes):
                if total[y, x, d] < total[y, x, best]:
                    best = d
            score[y, x] = np.float32(1) - cost[y, x, best]
            depth[y, x] = np.float32(0)
            if best == 0 or best == planes - 1 or score[y, x] < min_score:
                continue
            low, middle, high = total[y, x, best - 1], total[y, x, best], total[y, x, best + 1]
            curvature = low - 2 * middle + high
            shift = np.float32(0)
            if curvature > np.float32(1e-6):
                shift = max(np.float32(-0.5), min(np.float32(0.5), np.float32(0.5) * (low - high) / curvature))
            step = inverse_depths[best + 1] - inverse_depths[best]
            inverse = inverse_depths[best] + shift * step
            if inverse > 0:
                depth[y, x] = np.float32(1) / inverse


@compiled
def count_agreeing(depth, inverse_camera, other_depth, other_camera, other_from_one, tolerance, count, total, y0, y1):
    """Adds 1 to `count` where another view's depth confirms that of rows y0 to y1, and the confirmed depth to `total`.

    Args:
        depth: (H, W) float32, 0 = unknown.
        inverse_camera: (4,) float64: 1 / fx, 1 / fy, cx, cy of this view.
        other_depth: (H', W') float32.
        other_camera: (4,) float64: fx, fy, cx, cy of the other view.
        other_from_one: (4, 4) float64.
        tolerance: largest relative difference of the depths in the other view.
        count: (H, W) uint8.
        total: (H, W) float32; gets this view's depth, corrected by the relative difference.
        y0, y1: rows.
    """
    rows, columns = other_depth.shape
    t = other_from_one
    for y in range(y0, y1):
        ray_y = (y - inverse_camera[3]) * inverse_camera[1]
        for x in range(depth.shape[1]):
            z = depth[y, x]
            if z <= 0:
                continue
            px, py = (x - inverse_camera[2]) * inverse_camera[0] * z, ray_y * z
            qz = t[2, 0] * px + t[2, 1] * py + t[2, 2] * z + t[2, 3]
            if qz <= 0:
                continue
            qx = t[0, 0] * px + t[0, 1] * py + t[0, 2] * z + t[0, 3]
            qy = t[1, 0] * px + t[1, 1] * py + t[1, 2] * z + t[1, 3]
            u = other_camera[0] * qx / qz + other_camera[2] + 0.5
            v = other_camera[1] * qy / qz + other_camera[3] + 0.5
            if u < 0 or v < 0 or u >= columns or v >= rows:
                continue
            found = other_depth[int(v), int(u)]
            if found > 0 and abs(found - qz) <= tolerance * qz:
                count[y, x] += 1
                total[y, x] += np.float32(z * found / qz)
