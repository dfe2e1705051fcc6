"""Plane detection against Open3D: quality on depth of procedural worlds with and without sensor noise, and time.

    python benchmarks/bench_plane_detection.py --worlds 8 --views 4

All methods get the same samples of the same views. True planes are those of the noise-free depth, exact to a few
millimetres, with at least half a square metre in view. A true plane is found if a detected one is within 5 degrees and
10 cm of it. Figures: found fraction of the planar area, mean error of angle and offset (by area), detected planes that
belong to no true one, and median time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import open3d as o3d
import torch

from worldstereo_ros.evaluation.world_sequences import open_worlds
from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.plane_detection import MAX_PLANES, PlaneSamples, detect_planes, sample_view
from worldstereo_ros.scenes.raytracing.primitives import Random
from worldstereo_ros.scenes.sensor import SensorNoise, noisy_depth

STRIDE_PX = 4  # of the points of true planes
MIN_AREA_M2 = 0.5  # of a true plane
MAX_ANGLE_DEG, MAX_OFFSET_M = 5.0, 0.1  # between a true and a detected plane

Plane = tuple[np.ndarray, float]  # unit normal, offset: normal . x = offset


def detect(samples: PlaneSamples) -> list[Plane]:
    """Ours."""
    return [(plane.normal, plane.offset) for plane in detect_planes(samples, np.random.default_rng(0))]


def segment_plane(samples: PlaneSamples, distance_m: float) -> list[Plane]:
    """Open3D's RANSAC for one plane, repeated on the remaining points."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(samples.points))
    planes: list[Plane] = []
    while len(planes) < MAX_PLANES and len(cloud.points) >= 12:
        equation, inliers = cloud.segment_plane(distance_m, 3, 1000)
        if len(inliers) < 0.01 * len(samples.points):
            break
        scale = np.linalg.norm(equation[:3])
        planes.append((equation[:3] / scale, -equation[3] / scale))
        cloud = cloud.select_by_index(inliers, invert=True)
    return planes


def planar_patches(samples: PlaneSamples) -> list[Plane]:
    """Open3D's region growing (Araujo and Oliveira 2020)."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(samples.points))
    cloud.normals = o3d.utility.Vector3dVector(samples.normals)
    boxes = cloud.detect_planar_patches(min_num_points=30, search_param=o3d.geometry.KDTreeSearchParamKNN(30))
    return [(box.R[:, 2], float(box.R[:, 2] @ box.center)) for box in boxes]


METHODS: dict[str, Callable[[PlaneSamples], list[Plane]]] = {
    "ours": detect,
    "Open3D segment_plane, 3 cm": lambda samples: segment_plane(samples, 0.03),
    "Open3D segment_plane, 5 cm": lambda samples: segment_plane(samples, 0.05),
    "Open3D detect_planar_patches": planar_patches,
}


def planar_points(view: View, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3), normals (N, 3) and areas (N,) where a view of noise-free depth is exactly planar."""
    assert view.depth is not None
    points, k = unproject(view.depth, view.camera, view.world_from_camera), STRIDE_PX
    rows, columns = (size - k for size in view.depth.shape)

    def shifted(array: np.ndarray, dy: int, dx: int) -> np.ndarray:
        return array[dy : rows + dy : k, dx : columns + dx : k]

    half = k // 2
    centre, depth = shifted(points, half, half), shifted(view.depth, half, half)
    across = shifted(points, half, k) - shifted(points, half, 0)
    normals = np.cross(across, shifted(points, k, half) - shifted(points, 0, half))
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    rays = centre - view.world_from_camera[:3, 3]
    normals[(rays * normals).sum(axis=-1) > 0] *= -1
    planar = depth > 0
    for dy in (0, k):
        for dx in (0, k):
            planar &= shifted(instances, dy, dx) == shifted(instances, half, half)
            planar &= np.abs(((shifted(points, dy, dx) - centre) * normals).sum(axis=-1)) < 1e-3 * depth
    cosine = np.abs((rays * normals).sum(axis=-1)) / np.maximum(np.linalg.norm(rays, axis=-1), 1e-9)
    area = np.minimum((k * depth / view.camera.fx) ** 2 / np.maximum(cosine, 0.05), 0.05)
    return centre[planar], normals[planar], area[planar]


def true_planes(views: list[View], instances: np.ndarray) -> list[tuple[np.ndarray, float, float, np.ndarray]]:
    """Normal, offset, area and centre of the planes of noise-free views."""
    parts = [planar_points(view, numbers) for view, numbers in zip(views, instances, strict=True)]
    points, normals, areas = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    keys = np.column_stack([np.round(normals * 50), np.round((points * normals).sum(axis=1) / 0.02)]).astype(int)
    index = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    remaining, planes = np.ones(len(points), bool), []
    for group in np.argsort(-np.bincount(index, areas)):
        members = remaining & (index == group)
        if not members.any():
            continue
        normal = normals[members].mean(axis=0)
        normal /= np.linalg.norm(normal)
        offset = float(np.median(points[members] @ normal))
        members = remaining & (np.abs(points @ normal - offset) < 0.01) & (normals @ normal > 0.999)
        if areas[members].sum() < MIN_AREA_M2:
            continue
        centre = points[members].mean(axis=0)
        centred = points[members] - centre
        fitted = np.linalg.eigh(centred.T @ centred)[1][:, 0]
        fitted = fitted if fitted @ normal > 0 else -fitted
        members = remaining & (np.abs((points - centre) @ fitted) < 0.005) & (normals @ fitted > 0.998)
        if areas[members].sum() >= MIN_AREA_M2:
            remaining &= ~members
            planes.append((fitted, float(fitted @ centre), float(areas[members].sum()), points[members].mean(axis=0)))
    return planes


def compare(found: list[Plane], truth: list[tuple[np.ndarray, float, float, np.ndarray]]) -> np.ndarray:
    """(5,) found area, total area, area times angle in degrees, area times offset in metres, spurious planes."""
    sums, used = np.zeros(5), set()
    for normal, _, area, centre in truth:
        sums[1] += area
        errors = [
            (np.degrees(np.arccos(min(1.0, abs(float(n @ normal))))), abs(float(n @ centre) - d)) for n, d in found
        ]
        good = [k for k, (angle, offset) in enumerate(errors) if angle < MAX_ANGLE_DEG and offset < MAX_OFFSET_M]
        if good:
            best = min(good, key=lambda k: errors[k][0] / MAX_ANGLE_DEG + errors[k][1] / MAX_OFFSET_M)
            used.add(best)
            sums[[0, 2, 3]] += area, area * errors[best][0], area * errors[best][1]
    sums[4] = len(found) - len(used)
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=8, help="number of worlds of the test split")
    parser.add_argument("--views", type=int, default=4, help="of each world")
    options = parser.parse_args()
    results: dict[tuple[str, str], list[tuple[np.ndarray, float]]] = {}
    for number, sequence in enumerate(open_worlds(f"worlds:test:{options.worlds}")):
        chosen = np.linspace(0, len(sequence.poses) - 1, options.views).round().astype(int)
        part = sequence.seen_from(sequence.poses[chosen])
        clean = list(part)
        truth = true_planes(clean, part.instances())
        noise, generator = SensorNoise.draw(Random(number)), torch.Generator().manual_seed(number)
        noisy = [
            replace(v, depth=noisy_depth(torch.from_numpy(v.depth)[None], v.camera, noise, generator)[0].numpy())
            for v in clean
        ]
        for kind, views in (("noise-free", clean), ("sensor noise", noisy)):
            samples = PlaneSamples.concatenate([sample_view(view).samples for view in views])
            for name, method in METHODS.items():
                start = time.perf_counter()
                found = method(samples)
                seconds = time.perf_counter() - start
                results.setdefault((kind, name), []).append((compare(found, truth), seconds))
    for (kind, name), rows in results.items():
        total = sum(sums for sums, _ in rows)
        print(
            f"{kind:12} {name:29} found {total[0] / total[1]:.1%}, angle {total[2] / total[0]:.2f} deg, offset "
            f"{100 * total[3] / total[0]:.2f} cm, spurious {total[4] / len(rows):.1f}, "
            f"{1000 * np.median([seconds for _, seconds in rows]):.0f} ms"
        )


if __name__ == "__main__":
    main()
