"""Noise that is fixed to surfaces: a point has the same value in every view, at about the same size in pixels."""

from __future__ import annotations

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.pipelines.geometric.plane_rays import pixel_ray
from worldstereo_ros.utils.jit import compiled, run_in_threads, split_range

NOISE_WAVELENGTHS_PX = (3.0, 12.0)
NOISE_CHANNELS = len(NOISE_WAVELENGTHS_PX)


def render_noise(
    planes: np.ndarray,
    axes: np.ndarray,
    plane: np.ndarray,
    depth: np.ndarray,
    camera: Camera,
    pose: np.ndarray,
    out: np.ndarray,
    *,
    seed: int = 0,
    scale: float = 1.0,
    threads: int = 1,
) -> None:
    """Writes noise for the planes of a view.

    Args:
        planes: (K, 3 or more) float32, normals first.
        axes: (K, 2, 3) float32 axes in each plane.
        plane: (H, W) int16 index of the plane that each pixel shows, negative = none.
        depth: (H, W) float32 metres.
        camera, pose: camera and (4, 4) world_from_camera of the view.
        out: (H, W, NOISE_CHANNELS) float32, written where there is a plane.
        seed: another one gives other noise.
        scale: of the wavelengths.
        threads: number of threads.
    """
    arguments = (
        np.array([1 / camera.fx, 1 / camera.fy, camera.cx, camera.cy], np.float32),
        np.ascontiguousarray(pose[:3], np.float32),
        plane,
        depth,
        planes,
        axes,
        (scale * np.array(NOISE_WAVELENGTHS_PX)).astype(np.float32),
        np.uint32(seed),
        out,
    )
    run_in_threads(_noise, [(start, stop, *arguments) for start, stop in split_range(camera.height, threads)])


@compiled
def hash_integers(a, b, c):
    """A random number of 32 bits from three integers. In 64 bits, since compiled code widens smaller integers."""
    low = np.uint64(0xFFFFFFFF)
    h = (np.uint64(a) * np.uint64(0x9E3779B1)) ^ (np.uint64(b) * np.uint64(0x85EBCA77)) ^ np.uint64(c)
    h &= low
    h = ((h ^ (h >> np.uint64(15))) * np.uint64(0x2C1B3C6D)) & low
    h = ((h ^ (h >> np.uint64(12))) * np.uint64(0x297A2D39)) & low
    return h ^ (h >> np.uint64(15))


@compiled
def _noise(row0, row1, intrinsics, pose, plane, depth, planes, axes, wavelengths, seed, out):
    """Value noise on the planes: bilinear between random numbers at the points of grids of two neighbouring sizes."""
    one, zero = np.float32(1), np.float32(0)
    for y in range(row0, row1):
        for x in range(plane.shape[1]):
            k = plane[y, x]
            if k < 0:
                continue
            z = depth[y, x]
            dx, dy, dz = pixel_ray(intrinsics, pose, x, y)
            px, py, pz = pose[0, 3] + z * dx, pose[1, 3] + z * dy, pose[2, 3] + z * dz
            u = axes[k, 0, 0] * px + axes[k, 0, 1] * py + axes[k, 0, 2] * pz
            v = axes[k, 1, 0] * px + axes[k, 1, 1] * py + axes[k, 1, 2] * pz
            cosine = abs(planes[k, 0] * dx + planes[k, 1] * dy + planes[k, 2] * dz) / np.sqrt(
                dx * dx + dy * dy + dz * dz
            )
            footprint = z * intrinsics[0] / np.sqrt(max(cosine, np.float32(0.05)))
            for channel in range(len(wavelengths)):
                exponent = np.log2(max(footprint * wavelengths[channel] * np.float32(0.5), np.float32(1e-6)))
                low = np.floor(exponent)
                share = exponent - low
                total = zero
                for step in range(2):
                    size = np.float32(2.0) ** (low + np.float32(step))
                    gu, gv = u / size, v / size
                    iu, iv = np.floor(gu), np.floor(gv)
                    fu, fv = gu - iu, gv - iv
                    value, squares = zero, zero
                    for corner in range(4):
                        cu, cv = corner % 2, corner // 2
                        weight = (fu if cu else one - fu) * (fv if cv else one - fv)
                        salt = np.uint64(seed) + np.uint64(7919 * (int(low) + step + 64) + 31 * k)
                        h = hash_integers(int(iu) + cu, int(iv) + cv, salt)
                        # Uniform with unit variance.
                        value += weight * (np.float32(h) * np.float32(2.0**-32) - np.float32(0.5)) * np.float32(3.4641)
                        squares += weight * weight
                    part = share if step else one - share
                    total += part * value / np.sqrt(squares)
                out[y, x, channel] = total / np.sqrt(share * share + (one - share) * (one - share))
