"""Draws the details of surfaces, see `plane_details.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.geometric.plane_noise import hash_integers
from worldstereo_ros.pipelines.geometric.plane_rays import pixel_ray
from worldstereo_ros.pipelines.geometric.plane_sampling import ATLAS_COLUMNS, MAX_CENTRES, TEXELS, DetailExample
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

ATTEMPTS = 8  # to find a place that is whole periods away


class PackedExamples(NamedTuple):
    """Examples as arrays, for `add_details`."""

    scales: np.ndarray  # (E, 6) float32: origin, texel, radius, correlation, 1 for a wall
    periods: np.ndarray  # (E, 2) float32
    atlas: np.ndarray  # (E, TEXELS, ATLAS_COLUMNS, 3) float32
    usable: np.ndarray  # (E, TEXELS, TEXELS) bool
    centres: np.ndarray  # (E, MAX_CENTRES, 2) float32
    counts: np.ndarray  # (E,) int64
    profiles: np.ndarray  # (E, TEXELS + 1, 3) float32: sums of the rows of the profile before each


def pack_examples(examples: Sequence[DetailExample]) -> PackedExamples:
    """Packs examples."""
    centres = np.zeros((len(examples), MAX_CENTRES, 2), np.float32)
    for index, example in enumerate(examples):
        centres[index, : len(example.centres)] = example.centres
    scales = [[*e.origin, e.texel, e.radius, e.correlation, float(e.upright)] for e in examples]
    return PackedExamples(
        np.array(scales, np.float32).reshape(-1, 6),
        np.array([e.periods for e in examples], np.float32).reshape(-1, 2),
        np.stack([e.atlas for e in examples]) if examples else np.zeros((0, TEXELS, ATLAS_COLUMNS, 3), np.float32),
        np.stack([e.usable for e in examples]) if examples else np.zeros((0, TEXELS, TEXELS), bool),
        centres,
        np.array([len(e.centres) for e in examples], np.int64),
        np.stack([_sums(e.profile) for e in examples]) if examples else np.zeros((0, TEXELS + 1, 3), np.float32),
    )


def _sums(profile: np.ndarray | None) -> np.ndarray:
    sums = np.zeros((TEXELS + 1, 3), np.float32)
    if profile is not None:
        sums[1:] = np.cumsum(profile, axis=0, dtype=np.float64)
    return sums


def add_details(
    examples: PackedExamples,
    example_of: np.ndarray,
    axes: np.ndarray,
    planes: np.ndarray,
    plane: np.ndarray,
    depth: np.ndarray,
    camera: Camera,
    world_from_camera: np.ndarray,
    out: np.ndarray,
    *,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Adds details to the colours of a view's planes.

    Args:
        examples: see `pack_examples`.
        example_of: (K,) int64 index into `examples` of each plane, -1 = none.
        axes: (K, 2, 3) float32 canonical axes of each plane.
        planes: (K, 3 or more) float32, normals first.
        plane: (H, W) int16 index of the plane that each pixel shows, negative = none.
        depth: (H, W) float32 metres.
        camera, world_from_camera: of the view.
        out: (H, W, 3) float32 grey levels, details are added.
        seed: another one places the details elsewhere.
        threads: number of threads.
    """
    if not len(examples.counts):
        return
    arguments = (
        np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32),
        np.ascontiguousarray(world_from_camera[:3], np.float32),
        plane,
        depth,
        example_of,
        axes,
        planes,
        *examples,
        np.uint32(seed),
        out,
    )
    run_in_threads(_details, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)])


@compiled
def _details(
    row0,
    row1,
    intrinsics,
    pose,
    plane,
    depth,
    example_of,
    axes,
    planes,
    scales,
    periods,
    atlas,
    usable,
    centres,
    counts,
    profiles,
    seed,
    out,
):
    """The loop of `add_details` over rows row0..row1."""
    one, zero, half = np.float32(1), np.float32(0), np.float32(0.5)
    texels = usable.shape[1]
    # From a point to its triangle: a skewed grid whose unit is the edge of a triangle.
    skew, inverse_height = np.float32(0.57735027), np.float32(1.1547005)
    value = np.zeros(3, np.float32)
    for y in range(row0, row1):
        for x in range(plane.shape[1]):
            k = plane[y, x]
            if k < 0 or example_of[k] < 0:
                continue
            e = example_of[k]
            z = depth[y, x]
            dx, dy, dz = pixel_ray(intrinsics, pose, x, y)
            px, py, pz = pose[0, 3] + z * dx, pose[1, 3] + z * dy, pose[2, 3] + z * dz
            texel = scales[e, 2]
            u = (axes[k, 0, 0] * px + axes[k, 0, 1] * py + axes[k, 0, 2] * pz - scales[e, 0]) / texel - half
            v = (axes[k, 1, 0] * px + axes[k, 1, 1] * py + axes[k, 1, 2] * pz - scales[e, 1]) / texel - half
            # Level of the pyramid: the size of the pixel on the plane, in texels.
            cosine = abs(planes[k, 0] * dx + planes[k, 1] * dy + planes[k, 2] * dz) / np.sqrt(
                dx * dx + dy * dy + dz * dz
            )
            footprint = z * intrinsics[0] / texel / np.sqrt(max(cosine, np.float32(0.05)))
            level = min(max(np.log2(max(footprint, np.float32(1e-3))), zero), np.float32(3.99))
            fade = one if level < np.float32(3) else np.float32(4) - level
            level = min(int(level + half), 3)
            edge = scales[e, 3] - np.float32(2)
            gu = (u - v * skew) / edge
            gv = v * inverse_height / edge
            iu, iv = np.floor(gu), np.floor(gv)
            fu, fv = gu - iu, gv - iv
            upper = fu + fv > one
            correlation = scales[e, 4]
            squares, total = zero, zero
            value[:] = zero
            for corner in range(3):
                if corner == 0:
                    weight = fu + fv - one if upper else one - fu - fv
                    au, av = (iu + one, iv + one) if upper else (iu, iv)
                elif corner == 1:
                    weight = one - fv if upper else fu
                    au, av = iu + one, iv
                else:
                    weight = one - fu if upper else fv
                    au, av = iu, iv + one
                weight = weight * weight * weight
                total += weight
                squares += weight * weight
                # The vertex, and where it shows the example.
                vx, vy = (au + av * half) * edge, av * edge / inverse_height
                tx, ty = zero, zero
                for attempt in range(ATTEMPTS):
                    h = hash_integers(int(au), int(av), np.uint64(seed) + np.uint64(101 * attempt))
                    chosen = int(h % np.uint64(counts[e]))
                    cx, cy = centres[e, chosen, 0], centres[e, chosen, 1]
                    tx, ty = cx - vx, cy - vy
                    pu, pv = periods[e, 0], periods[e, 1]
                    sx, sy = tx, ty
                    if pu > zero:
                        sx = np.rint(tx / pu) * pu
                    height = vy
                    if scales[e, 5] > zero:
                        # The same height on a wall, also where nothing usable was seen of it.
                        ty = sy = zero
                        height = min(max(vy, zero), np.float32(texels - 1))
                    elif pv > zero:
                        sy = np.rint(ty / pv) * pv
                    col, row = int(np.rint(vx + sx)), int(np.rint(height + sy))
                    if 0 <= col < texels and 0 <= row < texels and usable[e, row, col]:
                        tx, ty = sx, sy
                        break
                su, sv = u + tx, v + ty
                left, top, size = 0, 0, texels
                if level > 0:
                    left = texels
                    for _ in range(level - 1):
                        top += size // 2
                        size //= 2
                    size //= 2
                    scale = one / np.float32(1 << level)
                    su, sv = (su + half) * scale - half, (sv + half) * scale - half
                su = min(max(su, zero), np.float32(size - 2) + np.float32(0.999))
                sv = min(max(sv, zero), np.float32(size - 2) + np.float32(0.999))
                x0, y0 = int(su), int(sv)
                wx, wy = su - np.float32(x0), sv - np.float32(y0)
                for c in range(3):
                    above = atlas[e, top + y0, left + x0, c] * (one - wx) + atlas[e, top + y0, left + x0 + 1, c] * wx
                    below = (
                        atlas[e, top + y0 + 1, left + x0, c] * (one - wx)
                        + atlas[e, top + y0 + 1, left + x0 + 1, c] * wx
                    )
                    value[c] += weight * (above * (one - wy) + below * wy)
            norm = fade / np.sqrt(correlation * total * total + (one - correlation) * squares)
            # The mean of the profile over the rows that the pixel covers.
            rows = max(z * intrinsics[0] / texel, one)
            low = min(max(v + half - half * rows, zero), np.float32(texels))
            high = min(max(v + half + half * rows, zero), np.float32(texels))
            i0, i1 = min(int(low), texels - 1), min(int(high), texels - 1)
            w0, w1 = low - np.float32(i0), high - np.float32(i1)
            for c in range(3):
                above = profiles[e, i1, c] * (one - w1) + profiles[e, i1 + 1, c] * w1
                below = profiles[e, i0, c] * (one - w0) + profiles[e, i0 + 1, c] * w0
                out[y, x, c] += value[c] * norm + (above - below) / rows
