"""Compiled loops that blend projected Gaussians, tile by tile, front to back, and their derivatives.

A tile is 16 x 16 pixels; its sums stay in the L1 cache. The innermost loops run over the 16 pixels of a row without
branches, so that they compile to vector instructions. A tile belongs to one thread: the images do not depend on the
number of threads. Blending and its derivative are those of Kerbl et al. 2023 (3D Gaussian Splatting), eq. 2 and 3.
"""

from __future__ import annotations

import math

import numpy as np
from numba.extending import overload

from worldstereo_ros.utils.jit import compiled

TILE = 16
AREA = TILE * TILE
MIN_ALPHA = 1 / 255  # fainter contributions are left out
MAX_ALPHA = 0.999  # keeps the transmittance, by whose complement the derivative divides, above zero
MIN_TRANSMITTANCE = 1e-4  # a tile is done when less light than this reaches each of its pixels from behind
# Columns of a projected Gaussian: centre in pixels, upper triangle of the inverse covariance, opacity, colour, depth,
# half size of its box in pixels. Sixteen, so that one of float32 fills a cache line.
U, V, A, B, C, OPACITY, RED, GREEN, BLUE, DEPTH, HALF_WIDTH, HALF_HEIGHT, COLUMNS = *range(12), 16
CHANNELS = 4  # red, green, blue, depth
GRADIENTS = 10  # of the columns U to DEPTH


def _exp(x):
    """exp(x) for x from -30 to 0."""
    return math.exp(x)


@overload(_exp, inline="always")
def _typed_exp(x):
    if getattr(x, "bitwidth", 64) == 64:
        return lambda x: math.exp(x)

    def single(x):
        # exp(x) = 2**n * 2**f; the polynomial for 2**f, f in -1/2..1/2, has a relative error of 2e-7.
        t = x * np.float32(1.4426950408889634)
        n = np.float32(np.int32(t - np.float32(0.5)))
        f = t - n
        p = np.float32(1.5403530e-4)
        p = p * f + np.float32(1.3333558e-3)
        p = p * f + np.float32(9.6181291e-3)
        p = p * f + np.float32(5.5504109e-2)
        p = p * f + np.float32(2.4022651e-1)
        p = p * f + np.float32(6.9314718e-1)
        p = p * f + np.float32(1.0)
        return p * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)

    return single


@compiled
def count_tiles(gaussians, width, height, row_start, row_stop, counts):
    """Counts the Gaussians of each tile in the rows of tiles row_start..row_stop.

    Args:
        gaussians: (M, COLUMNS) in order of depth.
        width, height: image size.
        row_start, row_stop: range of rows.
        counts: (rows, columns) int64 of all tiles, written.
    """
    columns = counts.shape[1]
    for i in range(len(gaussians)):
        x0, x1, y0, y1 = tile_range(gaussians[i], width, height)
        for y in range(max(y0, row_start), min(y1 + 1, row_stop)):
            for x in range(x0, min(x1 + 1, columns)):
                counts[y, x] += 1


@compiled
def tile_range(gaussian, width, height):
    """First and last column, first and last row of the tiles that the box of a Gaussian, in the image, touches."""
    x0 = max(np.int64(math.ceil(gaussian[U] - gaussian[HALF_WIDTH])), 0) // TILE
    x1 = min(np.int64(math.floor(gaussian[U] + gaussian[HALF_WIDTH])), width - 1) // TILE
    y0 = max(np.int64(math.ceil(gaussian[V] - gaussian[HALF_HEIGHT])), 0) // TILE
    y1 = min(np.int64(math.floor(gaussian[V] + gaussian[HALF_HEIGHT])), height - 1) // TILE
    return x0, x1, y0, y1


@compiled
def fill_tiles(gaussians, width, height, row_start, row_stop, starts, lists):
    """Writes the indices of the Gaussians of each tile, nearest first, into `lists`; `starts` moves to their ends."""
    for i in range(len(gaussians)):
        x0, x1, y0, y1 = tile_range(gaussians[i], width, height)
        for y in range(max(y0, row_start), min(y1 + 1, row_stop)):
            for x in range(x0, x1 + 1):
                lists[starts[y, x]] = i
                starts[y, x] += 1


@compiled
def blend(gaussians, lists, ends, background, image, transmittance, tile_start, tile_stop):
    """Blends the Gaussians of the tiles tile_start..tile_stop into the image.

    Args:
        gaussians: (M, COLUMNS) in order of depth.
        lists: (K,) int32 indices of Gaussians, tile after tile.
        ends: (tiles + 1,) int64 limits of each tile's part of `lists`.
        background: (CHANNELS,) colour and depth where nothing is.
        image: (H, W, CHANNELS), written.
        transmittance: (H, W), written: share of the background.
        tile_start, tile_stop: range of tiles, row after row.
    """
    number = gaussians.dtype.type
    height, width = transmittance.shape
    columns = (width + TILE - 1) // TILE
    one, half, limit, faint = number(1.0), number(0.5), number(MAX_ALPHA), number(MIN_ALPHA)
    # One array at constant offsets: the compiler sees that its parts do not overlap.
    state = np.empty(5 * AREA, gaussians.dtype)
    for tile in range(tile_start, tile_stop):
        left, top = (tile % columns) * TILE, (tile // columns) * TILE
        rows = min(TILE, height - top)
        for j in range(AREA):
            state[j] = one
            state[AREA + j] = state[2 * AREA + j] = state[3 * AREA + j] = state[4 * AREA + j] = number(0.0)
        for k in range(ends[tile], ends[tile + 1]):
            g = gaussians[lists[k]]
            v, b = g[V], g[B]
            first = max(np.int64(math.ceil(v - g[HALF_HEIGHT])) - top, 0)
            last = min(np.int64(math.floor(v + g[HALF_HEIGHT])) - top, rows - 1)
            x_offset = number(left) - g[U]
            opacity, red, green, blue, depth = g[OPACITY], g[RED], g[GREEN], g[BLUE], g[DEPTH]
            square = -half * g[A]
            for y in range(first, last + 1):
                dy = number(top + y) - v
                constant = -half * g[C] * dy * dy
                linear = -b * dy
                row = np.uint64(y * TILE)
                for x in range(TILE):
                    dx = x_offset + number(x)
                    alpha = opacity * _exp(max((square * dx + linear) * dx + constant, number(-30.0)))
                    alpha = alpha if alpha < limit else limit
                    alpha = alpha if alpha >= faint else number(0.0)
                    at = row + np.uint64(x)
                    through = state[at]
                    weight = alpha * through
                    state[at] = through - weight
                    state[np.uint64(AREA) + at] += weight * red
                    state[np.uint64(2 * AREA) + at] += weight * green
                    state[np.uint64(3 * AREA) + at] += weight * blue
                    state[np.uint64(4 * AREA) + at] += weight * depth
            if (k & 15) == 15:
                brightest = number(0.0)
                for j in range(AREA):
                    brightest = max(brightest, state[j])
                if brightest < number(MIN_TRANSMITTANCE):
                    break
        for y in range(rows):
            for x in range(min(TILE, width - left)):
                at = y * TILE + x
                through = state[at]
                transmittance[top + y, left + x] = through
                for channel in range(CHANNELS):
                    image[top + y, left + x, channel] = state[(channel + 1) * AREA + at] + through * background[channel]


@compiled
def blend_backward(gaussians, lists, ends, image, transmittance, image_gradient, gradients, start, stop):
    """Adds the derivatives of the loss by the columns U..DEPTH of the Gaussians in the tiles start..stop.

    The tiles are blended once more from front to back. What is behind a Gaussian is the blended image less what was
    blended so far, so that nothing is divided but by 1 - alpha.

    Args:
        gaussians, lists, ends: see `blend`.
        image: (H, W, CHANNELS), from `blend`.
        transmittance: (H, W), from `blend`.
        image_gradient: (H, W, CHANNELS + 1) derivatives of the loss by the image and by the transmittance.
        gradients: (M, GRADIENTS), added to.
        start, stop: range of tiles.
    """
    number = gaussians.dtype.type
    height, width = transmittance.shape
    columns = (width + TILE - 1) // TILE
    one, half, limit, faint, zero = number(1.0), number(0.5), number(MAX_ALPHA), number(MIN_ALPHA), number(0.0)
    # Per pixel: transmittance, what is still to come of image * image_gradient, and the image gradient.
    state = np.empty(6 * AREA, gaussians.dtype)
    # Per column of the tile, sums over its rows: of the derivative by the exponent, times 1, dy and dy squared, and of
    # the weight times each image gradient.
    sums = np.empty(7 * TILE, gaussians.dtype)
    for tile in range(start, stop):
        if ends[tile] == ends[tile + 1]:
            continue
        left, top = (tile % columns) * TILE, (tile // columns) * TILE
        rows = min(TILE, height - top)
        state[:] = zero
        for y in range(rows):
            for x in range(min(TILE, width - left)):
                at = y * TILE + x
                state[at] = one
                rest = transmittance[top + y, left + x] * image_gradient[top + y, left + x, CHANNELS]
                for channel in range(CHANNELS):
                    slope = image_gradient[top + y, left + x, channel]
                    rest += image[top + y, left + x, channel] * slope
                    state[(channel + 2) * AREA + at] = slope
                state[AREA + at] = rest
        for k in range(ends[tile], ends[tile + 1]):
            g = gaussians[lists[k]]
            v, b = g[V], g[B]
            first = max(np.int64(math.ceil(v - g[HALF_HEIGHT])) - top, 0)
            last = min(np.int64(math.floor(v + g[HALF_HEIGHT])) - top, rows - 1)
            x_offset = number(left) - g[U]
            opacity, red, green, blue, depth = g[OPACITY], g[RED], g[GREEN], g[BLUE], g[DEPTH]
            square = -half * g[A]
            for j in range(7 * TILE):
                sums[j] = zero
            for y in range(first, last + 1):
                dy = number(top + y) - v
                constant = -half * g[C] * dy * dy
                linear = -b * dy
                row = np.uint64(y * TILE)
                for x in range(TILE):
                    dx = x_offset + number(x)
                    raw = opacity * _exp(max((square * dx + linear) * dx + constant, number(-30.0)))
                    alpha = raw if raw < limit else limit
                    alpha = alpha if alpha >= faint else zero
                    at = row + np.uint64(x)
                    column = np.uint64(x)
                    through = state[at]
                    weight = alpha * through
                    slope_red = state[np.uint64(2 * AREA) + at]
                    slope_green = state[np.uint64(3 * AREA) + at]
                    slope_blue = state[np.uint64(4 * AREA) + at]
                    slope_depth = state[np.uint64(5 * AREA) + at]
                    gain = red * slope_red + green * slope_green + blue * slope_blue + depth * slope_depth
                    behind = state[np.uint64(AREA) + at] - weight * gain
                    state[np.uint64(AREA) + at] = behind
                    state[at] = through - weight
                    # Zero where alpha is at its limit or left out.
                    slope = through * gain - behind / (one - alpha)
                    slope = slope * (alpha if raw < limit else zero)
                    sums[column] += slope
                    sums[np.uint64(TILE) + column] += slope * dy
                    sums[np.uint64(2 * TILE) + column] += slope * dy * dy
                    sums[np.uint64(3 * TILE) + column] += weight * slope_red
                    sums[np.uint64(4 * TILE) + column] += weight * slope_green
                    sums[np.uint64(5 * TILE) + column] += weight * slope_blue
                    sums[np.uint64(6 * TILE) + column] += weight * slope_depth
            _add_sums(g, sums, x_offset, gradients[lists[k]])
            if (k & 15) == 15:
                brightest = zero
                for j in range(AREA):
                    brightest = max(brightest, state[j])
                if brightest < number(MIN_TRANSMITTANCE):
                    break


@compiled
def _add_sums(g, sums, x_offset, gradient):
    """Adds the sums over the columns of a tile to the derivatives of one Gaussian.

    With s the derivative by the exponent -(a dx^2 + 2 b dx dy + c dy^2) / 2, the derivative by u, for example, is the
    sum of s (a dx + b dy).
    """
    number = g.dtype.type
    total = by_x = by_y = by_xx = by_xy = by_yy = number(0.0)
    for x in range(TILE):
        dx = x_offset + number(x)
        total += sums[x]
        by_x += sums[x] * dx
        by_xx += sums[x] * dx * dx
        by_y += sums[TILE + x]
        by_xy += sums[TILE + x] * dx
        by_yy += sums[2 * TILE + x]
        for channel in range(CHANNELS):
            gradient[RED + channel] += sums[(3 + channel) * TILE + x]
    half = number(0.5)
    gradient[U] += g[A] * by_x + g[B] * by_y
    gradient[V] += g[B] * by_x + g[C] * by_y
    gradient[A] -= half * by_xx
    gradient[B] -= by_xy
    gradient[C] -= half * by_yy
    gradient[OPACITY] += total / g[OPACITY]
