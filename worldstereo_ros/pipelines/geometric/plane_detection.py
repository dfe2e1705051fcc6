"""Planes in what was remembered: RANSAC with normals (Fischler and Bolles 1981), and the colours seen on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import push_pull

SAMPLED = 96  # columns of the grid on which a view's depth is looked at
MOST_SAMPLES = 9000  # of all views together
MOST_PLANES = 16
LEAST_SHARE = 0.01  # of all samples' weight, for one more plane
TRIALS = 256
SAME_NORMAL = 0.97  # cosine: 14 degrees
REFITS = 6  # of a plane to the samples on it
CAUCHY = 1.5  # median distances from a plane at which a sample counts half
TOLERANCE, TOLERANCE_PER_METRE = 0.02, 0.012  # metres from a plane
FLAT = 0.01  # inverse depth may deviate by this fraction from the plane fitted around it
CELLS = 48  # a plane's picture is so large
LEAST_CELL = 0.04  # metres
MARGIN = 0.35  # of its extent, on each side, to which a plane's picture is gone on with
MEAN_WEIGHT = 0.05  # of the mean colour in a plane's fill
LEAST_AREA = 0.15  # square metres
LEAST_MEASURED = 0.25  # of a sample's pixels; where there are fewer, a view looked into nothing, the sky mostly


@dataclass(frozen=True)
class Samples:
    """N places of the remembered views: (N, 3) points and normals in the world, (N, 3) colours, (N,) weights, (N,)
    metres from plane that still count as on it, and metres to the next sample.
    """

    points: np.ndarray
    normals: np.ndarray
    colours: np.ndarray
    weights: np.ndarray
    tolerance: np.ndarray
    spacing: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, chosen: np.ndarray) -> Samples:
        return Samples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def joined(parts: Sequence[Samples]) -> Samples:
    """The samples of several views."""
    return Samples(*(np.concatenate([getattr(part, name) for part in parts]) for name in Samples.__dataclass_fields__))


# Samples of a view, the (3, 4) matrix from the world to its grid, its depth on the grid.
DepthSamples = tuple[Samples, np.ndarray, np.ndarray]


def look_at(view: View) -> DepthSamples:
    """Samples of a view with depth where it is flat, the matrix from the world to its grid, and its depth there."""
    assert view.depth is not None
    camera = view.camera
    size = (SAMPLED, max(4, round(camera.height * SAMPLED / camera.width)))
    small = camera.resized(*size)
    measured = np.where(view.depth > 0, view.depth, 0).astype(np.float32)
    # Means of inverse depth, which is linear over a plane.
    inverse = np.where(measured > 0, 1 / np.where(measured > 0, measured, 1), 0).astype(np.float32)
    shrinks = cv2.INTER_AREA if camera.width > SAMPLED else cv2.INTER_LINEAR
    share = cv2.resize((measured > 0).astype(np.float32), size, interpolation=shrinks)
    inverse = cv2.resize(inverse, size, interpolation=shrinks) / np.maximum(share, 1e-6)
    good = (share > 0.5).astype(np.uint8)
    depth = cv2.resize(measured, size, interpolation=cv2.INTER_NEAREST)
    depth = np.where((depth == 0) & (share > LEAST_MEASURED), 1 / np.maximum(inverse, 1e-3), depth).astype(np.float32)
    whole = cv2.erode(good, np.ones((5, 5), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    # 1 / z = m . (x, y, 1) with m = normal / offset, x and y on the plane at one metre: fitted to 5x5 samples.
    ramp, mean = np.arange(-2, 3, dtype=np.float32) / 10, np.full(5, 0.2, np.float32)
    level = cv2.blur(inverse, (5, 5))
    across, down = cv2.sepFilter2D(inverse, cv2.CV_32F, ramp, mean), cv2.sepFilter2D(inverse, cv2.CV_32F, mean, ramp)
    variance = cv2.blur(inverse**2, (5, 5)) - level**2 - 2 * (across**2 + down**2)
    flat = whole & (variance < (FLAT * level) ** 2)
    across, down = across * np.float32(small.fx), down * np.float32(small.fy)
    rays = small.rays()
    vectors = np.stack([across, down, level - across * rays[..., 0] - down * rays[..., 1]], axis=-1)[flat]
    z = 1 / level[flat]
    points = rays[flat] * z[:, None]
    normals = -vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    pose = view.world_from_camera
    colours = cv2.resize(view.image, size, interpolation=cv2.INTER_AREA)[flat].astype(np.float32)
    spacing = z / small.fx
    cosine = np.abs((normals * rays[flat]).sum(axis=1)) / np.linalg.norm(rays[flat], axis=1)
    samples = Samples(
        points @ pose[:3, :3].T + pose[:3, 3],
        normals @ pose[:3, :3].T,
        colours,
        np.minimum(spacing**2 / np.maximum(cosine, 0.2), 0.02),  # square metres
        TOLERANCE + TOLERANCE_PER_METRE * z,
        spacing,
    )
    matrix = small.matrix @ np.linalg.inv(pose)[:3]
    return samples, matrix, depth


def find_planes(samples: Samples, random: np.random.Generator) -> list[tuple[np.ndarray, float, np.ndarray]]:
    """Normal, offset and the (N,) bool samples of each plane, the largest first.

    Args:
        samples: of all views.
        random: draws which are tried.
    """
    everything = np.arange(len(samples))
    if len(samples) > MOST_SAMPLES:
        everything = np.sort(random.choice(len(samples), MOST_SAMPLES, replace=False))
    thin = samples[everything]
    points, normals = thin.points.astype(np.float32), thin.normals.astype(np.float32)
    offsets = (points * normals).sum(axis=1)
    left = np.ones(len(points), bool)
    total = float(thin.weights.sum())
    found: list[tuple[np.ndarray, float, np.ndarray]] = []
    while len(found) < MOST_PLANES and left.sum() >= 12:
        rest = np.flatnonzero(left)
        tried = rest[random.integers(0, len(rest), TRIALS)]
        distances = np.abs(normals[tried] @ points[rest].T - offsets[tried, None])
        fits = (distances < thin.tolerance[rest]) & (normals[tried] @ normals[rest].T > SAME_NORMAL)
        scores = fits @ thin.weights[rest]
        best = int(scores.argmax())
        normal, offset = normals[tried[best]].astype(np.float64), float(offsets[tried[best]])
        for _ in range(REFITS):
            on = left & _on(thin, normal, offset)
            if on.sum() < 6:
                break
            normal, offset = _fitted(thin.points[on], thin.weights[on], normal, offset)
        on = left & _on(thin, normal, offset)
        if thin.weights[on].sum() < LEAST_SHARE * total or on.sum() < 6:
            break
        left &= ~_on(thin, normal, offset, 1.5)
        found.append((normal, offset, _on(samples, normal, offset)))
    return found


def _on(samples: Samples, normal: np.ndarray, offset: float, times: float = 1.0) -> np.ndarray:
    near = np.abs(samples.points @ normal - offset) < times * samples.tolerance
    return near & (samples.normals @ normal > SAME_NORMAL)


def _fitted(points: np.ndarray, weights: np.ndarray, normal: np.ndarray, offset: float) -> tuple[np.ndarray, float]:
    """Least squares by area; what lies off the plane, as where two walls meet, counts less (Cauchy's weights)."""
    off = np.abs(points @ normal - offset)
    weights = weights / (1 + (off / max(CAUCHY * float(np.median(off)), 1e-4)) ** 2)
    centre = np.average(points, axis=0, weights=weights)
    around = (points - centre) * np.sqrt(weights)[:, None]
    fitted = np.linalg.eigh(around.T @ around)[1][:, 0]
    fitted = fitted if fitted @ normal > 0 else -fitted
    return fitted, float(fitted @ centre)


def paint_plane(
    normal: np.ndarray, offset: float, samples: Samples
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The picture of a plane, on a grid in it.

    Args:
        normal, offset: of the plane, world frame.
        samples: those on it.

    Returns:
        (14,) float32 numbers: normal, offset, two axes, the grid's corner, the size of a cell, and the side of a square
        as large as what was seen, metres; colours (CELLS, CELLS, 3) float32; metres from where it was seen (CELLS,
        CELLS) float32. None where too little of it was seen.
    """
    # Along the samples, wherever the world's axes point.
    around = samples.points - samples.points.mean(axis=0)
    first = np.linalg.eigh(around.T @ around)[1][:, 2]
    first -= (first @ normal) * normal
    if np.linalg.norm(first) < 0.5:  # the samples lie on a line across it, or in one place: no plane
        return None
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(normal, first)])
    at = samples.points @ axes.T
    low, high = np.percentile(at, [1, 99], axis=0)
    extent = float((high - low).max())
    pad = MARGIN * extent
    cell = max((extent + 2 * pad) / CELLS, LEAST_CELL, 1.2 * float(np.median(samples.spacing)))
    corner = (low + high) / 2 - CELLS * cell / 2
    place = np.floor((at - corner) / cell).astype(int)
    inside = ((place >= 0) & (place < CELLS)).all(axis=1)
    if inside.sum() < 6:
        return None
    index = place[inside, 1] * CELLS + place[inside, 0]
    count = np.bincount(index, minlength=CELLS * CELLS).reshape(CELLS, CELLS)
    sums = [np.bincount(index, c, CELLS * CELLS).reshape(CELLS, CELLS) for c in samples.colours[inside].T]
    known = count > 0
    closed = cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    area = float(closed.sum()) * cell**2
    if area < LEAST_AREA:
        return None
    means = np.stack(sums, axis=-1) / np.maximum(count, 1)[..., None]
    mean = means[known].mean(axis=0).astype(np.float32)
    colours = push_pull(
        means.astype(np.float32), np.minimum(count, 1).astype(np.float32), prior=mean, prior_weight=MEAN_WEIGHT
    )
    away = cv2.distanceTransform(1 - closed, cv2.DIST_L2, 5) * np.float32(cell)
    numbers = np.concatenate([normal, [offset], axes[0], axes[1], corner, [cell, area**0.5]])
    return numbers.astype(np.float32), colours, away
