"""What the observations of a place say about it: how soon it changes, and how well they agree with each other.

Nothing is assumed of the place or of the sensors. Each observation is filled in from a part of itself, which shows how
often a smooth fill is right at which distance from evidence. Pairs of observations that measured the same surfaces show
how far exposure, poses and depth can be trusted; with a single observation nothing is known of that.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.imaging.overlap import measure_overlap

COLOUR_TOLERANCE = 0.1  # colour error, as fraction of the range, up to which a pixel counts as right
SIZE_PX = 80  # longer side of the images in which fills are simulated
# Upper ends of the bins of distance from evidence (tangents of angles, about radians); the last bin is open.
DISTANCES = np.array([0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.35, 0.6, 1.0])
EVIDENCE_FRACTION = 0.3  # of an image from which the rest is filled, once from each side
PRIOR_WEIGHT = 0.2  # of the mean colour, in simulated fills; as in the geometric pipeline
# Upper ends of the bins of contrast (`log_scale` of a standard deviation), and typical values of the bins
CONTRASTS = np.array([0.1, 0.25, 0.5, 0.9, 1.4])
CONTRAST_CENTRES = np.array([0.05, 0.17, 0.37, 0.7, 1.15, 1.7])
CONTRAST_SIZE_PX, CONTRAST_WINDOW_PX = 160, 9
MIN_PAIR_POINTS = 100  # that measured the same surface; with fewer, nothing is known of the agreement
CACHE_SIZE = 128  # observations
SHRINKAGE = 25  # samples with the overall share that are added to each bin


class Agreement(NamedTuple):
    """How well observations of the same surfaces agree.

    Attributes:
        colour: (len(CONTRASTS) + 1,) share of points of the same surface with the same colour, by contrast; not
            ascending.
        difference: mean difference of colour of the same surface, 1 = from black to white.
        surface: share of points, measured in both, that are on the same surface.
        log_depth: mean difference of the logarithms of depth on the same surface.
    """

    colour: np.ndarray
    difference: float
    surface: float
    log_depth: float


@dataclass(frozen=True)
class ViewStatistics:
    """One observation, prepared.

    Attributes:
        image: (h, w, 3) float32 0..1; the longer side has `SIZE_PX` pixels.
        depth: (h, w) float32 metres, 0 = unknown.
        camera: camera of this size.
        colour_fills, depth_fills: (2, len(DISTANCES) + 1) samples of simulated fills at each distance, and the right
            ones of them.
        contrast: (h', w') float32, `log_scale` of the standard deviation around each pixel, at `CONTRAST_SIZE_PX`.
    """

    image: np.ndarray
    depth: np.ndarray
    camera: Camera
    colour_fills: np.ndarray
    depth_fills: np.ndarray
    contrast: np.ndarray


class PlaceStatistics(NamedTuple):
    """What several observations say together.

    Attributes:
        views: the observations, prepared.
        colour_fill, depth_fill: (len(DISTANCES) + 1,) share of right pixels of a smooth fill by distance, not
            ascending.
        agreement: None if no two observations measured the same surfaces.
    """

    views: list[ViewStatistics]
    colour_fill: np.ndarray
    depth_fill: np.ndarray
    agreement: Agreement | None


class StatisticsCache:
    """Computes each observation and each pair of them once. Thread-safe; keeps no view alive."""

    def __init__(self) -> None:
        self._views: OrderedDict[int, tuple[weakref.ref[View], ViewStatistics]] = OrderedDict()
        self._pairs: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def __call__(self, views: Sequence[View]) -> PlaceStatistics:
        """The statistics of a place from some observations of it, at most `CACHE_SIZE`."""
        with self._lock:
            prepared = [self._prepare(view) for view in views]
            sums = np.zeros(4 + 2 * len(CONTRAST_CENTRES))
            for i, one in enumerate(views):
                for j, other in enumerate(views):
                    if i != j:
                        key = id(one), id(other)
                        if key not in self._pairs:
                            self._pairs[key] = _compare(one, other, prepared[i].contrast)
                        sums += self._pairs[key]
        colour, depth = (
            np.sum([getattr(view, name) for view in prepared], axis=0)
            if prepared
            else np.zeros((2, len(DISTANCES) + 1))
            for name in ("colour_fills", "depth_fills")
        )
        return PlaceStatistics(prepared, _shares(colour), _shares(depth), _agreement(sums))

    def _prepare(self, view: View) -> ViewStatistics:
        key = id(view)
        found = self._views.get(key)
        if found is not None and found[0]() is view:
            self._views.move_to_end(key)
            return found[1]
        self._forget(key)  # of another view that had the same identity
        statistics = prepare_view(view)
        self._views[key] = weakref.ref(view), statistics
        while len(self._views) > CACHE_SIZE:
            self._forget(next(iter(self._views)))
        return statistics

    def _forget(self, key: int) -> None:
        self._views.pop(key, None)
        self._pairs = {pair: counts for pair, counts in self._pairs.items() if key not in pair}


def log_scale(value: np.ndarray) -> np.ndarray:
    """Differences of colour (0..1) on a logarithmic scale."""
    return np.log1p(value * 20)


def deviation(image: np.ndarray, window: int) -> np.ndarray:
    """(h, w) standard deviation of (h, w, 3) within a square window, root mean square over the channels."""
    mean = cv2.blur(image, (window, window))
    return np.sqrt(np.maximum(cv2.blur(image * image, (window, window)) - mean * mean, 0).mean(axis=2))


def downsample(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image at another (width, height), each pixel the mean of its area."""
    return image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def scaled_size(camera: Camera, longer_side: int) -> tuple[int, int]:
    """(width, height) of a camera whose longer side has at most so many pixels."""
    scale = min(1.0, longer_side / max(camera.width, camera.height))
    return max(4, round(camera.width * scale)), max(4, round(camera.height * scale))


def prepare_view(view: View) -> ViewStatistics:
    """Computes the statistics of one observation."""
    size = scaled_size(view.camera, SIZE_PX)
    camera = view.camera.resized(*size)
    image = downsample(view.image, size).astype(np.float32) / 255
    depth = np.zeros(image.shape[:2], np.float32)
    if view.depth is not None:
        depth = cv2.resize(view.depth, size, interpolation=cv2.INTER_NEAREST).astype(np.float32, copy=False)
    fine = downsample(view.image, scaled_size(view.camera, CONTRAST_SIZE_PX)).astype(np.float32) / 255
    colour_fills, depth_fills = _simulate_fills(image, depth, camera.fx)
    return ViewStatistics(
        image, depth, camera, colour_fills, depth_fills, log_scale(deviation(fine, CONTRAST_WINDOW_PX))
    )


def _simulate_fills(image: np.ndarray, depth: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """`colour_fills` and `depth_fills` of `ViewStatistics`: the image is filled in from each of its four sides."""
    height, width = depth.shape
    y, x = np.mgrid[:height, :width]
    f = EVIDENCE_FRACTION
    counts = np.zeros((2, 2, len(DISTANCES) + 1))
    for evidence in (x < f * width, x >= (1 - f) * width, y < f * height, y >= (1 - f) * height):
        bins = np.digitize(cv2.distanceTransform((~evidence).astype(np.uint8), cv2.DIST_L2, 3) / focal, DISTANCES)
        prior = image[evidence].mean(axis=0)
        filled = push_pull(image, evidence.astype(np.float32), prior=prior, prior_weight=PRIOR_WEIGHT)
        right = np.abs(image - filled).mean(axis=2) <= COLOUR_TOLERANCE
        counts[0] += _count(bins, ~evidence, right)
        if (depth[evidence] > 0).any():
            distance = fill_depth(np.where(evidence, depth, np.float32(0)))
            with np.errstate(divide="ignore"):
                right = np.abs(np.log(depth) - np.log(distance)) <= np.log(DEPTH_TOLERANCE)
            counts[1] += _count(bins, ~evidence & (depth > 0), right)
    return counts[0], counts[1]


def _count(bins: np.ndarray, mask: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(2, B) number of the pixels of a mask in each bin, and of the right ones of them."""
    number = len(DISTANCES) + 1
    return np.stack([np.bincount(bins[m], minlength=number) for m in (mask, mask & right)]).astype(np.float64)


def _shares(counts: np.ndarray) -> np.ndarray:
    """(B,) share of right samples in each bin of (2, B) counts; not ascending."""
    overall = counts[1].sum() / max(counts[0].sum(), 1)
    return np.minimum.accumulate((counts[1] + SHRINKAGE * overall) / (counts[0] + SHRINKAGE))


def _compare(one: View, other: View, contrast: np.ndarray) -> np.ndarray:
    """Looks up measured points of one observation in another one; returns sums for `_agreement`.

    Estimated depth does not count: estimates of one model agree with each other whether they are right or not.
    """
    number = len(CONTRAST_CENTRES)
    sums = np.zeros(4 + 2 * number)
    overlap = measure_overlap(one, other)
    if overlap is None:
        return sums
    error = np.abs(overlap.colours[:, 0] - overlap.colours[:, 1]).mean(axis=1) / 255
    height, width = one.image.shape[:2]
    rows, columns = overlap.pixels.T
    bins = np.digitize(contrast[rows * contrast.shape[0] // height, columns * contrast.shape[1] // width], CONTRASTS)
    sums[:4] = overlap.compared, len(error), error.sum(), np.abs(overlap.log_depth).sum()
    sums[4 : 4 + number] = np.bincount(bins, minlength=number)
    sums[4 + number :] = np.bincount(bins[error <= COLOUR_TOLERANCE], minlength=number)
    return sums


def _agreement(sums: np.ndarray) -> Agreement | None:
    known, same, error, log_depth = sums[:4]
    if same < MIN_PAIR_POINTS:
        return None
    return Agreement(_shares(sums[4:].reshape(2, -1)), error / same, same / known, log_depth / same)
