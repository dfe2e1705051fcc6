"""Depth that falls back to a typical one in images unlike those that a network was trained on, and its confidence.

A small network that was trained on procedural worlds gives the shape of a real room better than its size, and mostly
overestimates the size. Its own uncertainty does not show this, since it was learnt from the same worlds. Therefore:

1. *Familiarity*: contrast at four scales, brightness and colour of an image are compared with those of the training
   worlds (a one-class test). It is 1 for images as typical as half of them, 0 for those more unusual than 90 %.
2. *Fusion*: in an unfamiliar image, the network's log depth is one measurement of a room whose depth is known up to
   `ROOM_SPREAD` beforehand, and the two are combined by their precision. Between the fused depth and the network's own,
   the nearer is taken: the relative error of depth that is too small is at most 1, that of depth that is too large is
   unbounded, and a robot that assumes the nearer depth keeps clear of it.
3. *Confidence*: the probability that depth is right within `DEPTH_TOLERANCE`, under a mixture of the network's
   distribution and the prior, weighted as in the fusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE

# Measured on ten sets of public RGB-D pictures of rooms (TUM, NYU, 7-Scenes, ARKit, PrimeSense): standard deviation
# of the log of their median depth, and root mean square error of the log scale of the bundled network.
ROOM_SPREAD = 0.25
UNFAMILIAR_ERROR = 0.35
# Precision of the network's depth as a share of the sum of the precisions of network and prior, and their variance.
UNFAMILIAR_WEIGHT = ROOM_SPREAD**2 / (ROOM_SPREAD**2 + UNFAMILIAR_ERROR**2)
FUSED_VARIANCE = UNFAMILIAR_WEIGHT * UNFAMILIAR_ERROR**2

# Familiarity falls from 1 to 0 between these quantiles of the training images.
TYPICAL_QUANTILE, UNUSUAL_QUANTILE = 0.5, 0.9
BAND_SIGMAS_PX = (1.0, 2.0, 4.0, 8.0)  # band-pass filters of the contrast, in pixels of the network's input
BRIGHTNESS_QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
NUM_STATISTICS = 2 * len(BAND_SIGMAS_PX) + len(BRIGHTNESS_QUANTILES) + 4


def image_statistics(image: np.ndarray) -> np.ndarray:
    """Contrast, brightness and colour of an image.

    Args:
        image: (H, W, 3) uint8 RGB, of the size of the network's input.

    Returns:
        (NUM_STATISTICS,) float64: for each scale the log of the standard deviation and of the median magnitude of the
        contrast; quantiles of the brightness; mean and log of the standard deviation of red - green and yellow - blue.
    """
    values: list[float] = []
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    finer = grey
    for sigma in BAND_SIGMAS_PX:
        coarser = cv2.GaussianBlur(grey, (0, 0), sigma)
        band = finer - coarser
        values += [math.log(float(band.std()) + 1e-3), math.log(float(np.median(np.abs(band))) + 1e-3)]
        finer = coarser
    values += list(np.quantile(grey, BRIGHTNESS_QUANTILES))
    red, green, blue = np.moveaxis(image.astype(np.float32) / 255, -1, 0)
    opponents = red - green, (red + green) / 2 - blue
    values += [float(one.mean()) for one in opponents] + [math.log(float(one.std()) + 1e-2) for one in opponents]
    return np.array(values, np.float64)


@dataclass(frozen=True)
class Familiarity:
    """How typical an image is of those that a network was trained on.

    Attributes:
        mean, std: mean and standard deviation of each of `image_statistics` over the training images.
        typical, unusual: `distance` of training images at `TYPICAL_QUANTILE` and `UNUSUAL_QUANTILE`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    typical: float
    unusual: float

    @classmethod
    def fit(cls, images: Iterable[np.ndarray]) -> Familiarity:
        """Fits the statistics of training images, each (H, W, 3) uint8 RGB of the size of the network's input."""
        statistics = np.stack([image_statistics(image) for image in images])
        mean, std = statistics.mean(axis=0), statistics.std(axis=0) + 1e-3
        distances = (((statistics - mean) / std) ** 2).mean(axis=1)
        typical, unusual = np.quantile(distances, (TYPICAL_QUANTILE, UNUSUAL_QUANTILE))
        rounded = [tuple(round(float(value), 4) for value in values) for values in (mean, std)]
        return cls(rounded[0], rounded[1], round(float(typical), 4), round(float(max(unusual, typical + 1e-3)), 4))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Familiarity:
        """Reads `to_config`.

        Raises:
            ValueError: a value is missing, not a number, or the numbers of statistics differ.
        """
        try:
            mean, std = (tuple(float(value) for value in config[name]) for name in ("mean", "std"))
            typical, unusual = float(config["typical"]), float(config["unusual"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the statistics of the training images are incomplete ({error})") from None
        if {len(mean), len(std)} != {NUM_STATISTICS} or min(std) <= 0 or not unusual > typical:
            raise ValueError(f"the statistics of the training images are not {NUM_STATISTICS} valid values")
        return cls(mean, std, typical, unusual)

    def to_config(self) -> dict[str, Any]:
        """The values for the configuration of a network."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def distance(self, image: np.ndarray) -> float:
        """Mean square of the standardised statistics of an image; about 1 over the training images."""
        return float((((image_statistics(image) - self.mean) / self.std) ** 2).mean())

    def __call__(self, image: np.ndarray) -> float:
        """Familiarity in [0, 1] of an image (H, W, 3) uint8 RGB, of the size of the network's input."""
        return float(np.clip((self.unusual - self.distance(image)) / (self.unusual - self.typical), 0, 1))


def fuse_with_typical(
    log_depth: np.ndarray, scale: np.ndarray, familiarity: float, typical_depth: float
) -> tuple[np.ndarray, np.ndarray]:
    """Combines the depth of a network with a typical depth, by how familiar the image is.

    Args:
        log_depth: (...) log of the network's depth in metres.
        scale: (...) scale of the Laplace distribution around it, by the network.
        familiarity: of the image, in [0, 1]; 1 leaves the depth as it is.
        typical_depth: median depth of the images that the network was trained on, metres.

    Returns:
        Log depth (...), and the probability (...) that it is right within `DEPTH_TOLERANCE`.
    """
    typical = math.log(typical_depth)
    weight = familiarity + (1 - familiarity) * UNFAMILIAR_WEIGHT
    # The value of least expected relative error of a log-normal distribution is exp(mean - variance).
    fused = np.minimum(log_depth, typical + weight * (log_depth - typical)) - (1 - familiarity) * FUSED_VARIANCE
    network = laplace_confidence(scale, fused - log_depth)
    prior = laplace_confidence(np.float32(ROOM_SPREAD / math.sqrt(2)), fused - typical)
    return fused, weight * network + (1 - weight) * prior


def laplace_confidence(scale: np.ndarray | np.floating[Any], offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Probability that a Laplace distribution of log depth puts the truth within `DEPTH_TOLERANCE` of a value.

    Args:
        scale: (...) positive scale of the distribution, the expected absolute error of log depth.
        offset: (...) the value minus the centre of the distribution, in log depth.
    """
    tolerance = math.log(DEPTH_TOLERANCE)
    far = np.abs(offset)
    outer, inner = np.exp(-(far + tolerance) / scale), np.exp(-np.abs(far - tolerance) / scale)
    return np.where(far < tolerance, 1 - (inner + outer) / 2, (inner - outer) / 2)
