"""Per-pixel confidence of imagined views, estimated without running a model again.

The *expected error* of a pixel is the mean absolute difference of its colour from the true one over the three channels,
1 = from black to white. Its *confidence* is the probability that this difference is at most `COLOUR_TOLERANCE`. Both
are monotone functions of one score: a sum of `FEATURES` with non-negative weights. Every feature grows with
uncertainty, so a pixel with less evidence, all else equal, never gets a higher confidence.

Weights and functions are in `weights/confidence.json`, written by `scripts/fit_confidence.py`: for each pipeline, one
set for observed pixels and one for imagined pixels.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import worldstereo_ros
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.pipelines.base import Conditioning, ModelError, PipelineFrame
from worldstereo_ros.utils.errors import InputError

COLOUR_TOLERANCE = 0.1  # colour error, as fraction of the range, up to which a pixel counts as right
MAX_SIZE_PX = 160  # longer side at which features are computed
GRID_SIZE_PX = 80  # longer side at which points are looked up in the remembered views
MAX_REFERENCES = 8  # remembered views that are looked up, the nearest ones
METRES_PER_RADIAN = 1.0  # weight of rotation in the distance between two views
MAX_DISTANCE_WIDTHS = 2.0  # in image widths, to the nearest evidence if there is none

# The names are keys of weights/confidence.json.
FEATURES = (
    "evidence_near",  # distance to the nearest pixel with observed points, in image widths, saturating at 2 %
    "evidence_far",  # the same, saturating at 40 %
    "claimed_near",  # distance to the nearest pixel labelled as observed, saturating at 3 %
    "claimed_far",  # the same, saturating at 20 %
    "unusual",  # difference of the colour from the mean of the evidence around it
    "contrast_fine",  # standard deviation of the image within a few pixels
    "contrast_wide",  # the same within a tenth of its width
    "depth_step",  # relative change of depth within a few pixels
    "outside",  # angle by which the point is outside of all remembered views
    "hidden",  # fraction of the remembered views with the point in their image that see a nearer surface
    "parallax",  # smallest angle at the point between this line of sight and that of a remembered view
    "farther",  # log2 of how much farther from the point the best remembered view is, for resolution
    "moved",  # distance to the nearest remembered view, relative to the depth
    "difference",  # of the image from that of memory alone
    "plane_absence",  # 1 - P(a known plane extends here)
)


@dataclass(frozen=True)
class Scale:
    """Maps features to expected error and confidence, for observed or for imagined pixels.

    Attributes:
        weights: (len(FEATURES),) float32, non-negative.
        scores: (K,) ascending knots of both functions, which are linear between them and constant outside.
        expected_error: (K,) at `scores`, not descending.
        confidence: (K,) at `scores`, in 0..1, not ascending.

    Raises:
        InputError: an array is not as described.
    """

    weights: np.ndarray
    scores: np.ndarray
    expected_error: np.ndarray
    confidence: np.ndarray

    def __post_init__(self) -> None:
        ordered = (np.diff(self.scores) > 0).all() and (np.diff(self.expected_error) >= 0).all()
        if not (ordered and (np.diff(self.confidence) <= 0).all() and (self.weights >= 0).all()):
            raise InputError(
                "The confidence scale is invalid: weights must be non-negative, scores ascending, expected errors not "
                "descending and confidences not ascending."
            )
        if not (self.confidence.min() >= 0 and self.confidence.max() <= 1 and len(self.weights) == len(FEATURES)):
            raise InputError(
                f"The confidence scale is invalid: confidences in 0..1 and {len(FEATURES)} weights were expected."
            )

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> Scale:
        """Reads one scale of the file.

        Raises:
            KeyError, InputError: an entry is missing, unknown or invalid.
        """
        unknown = sorted(set(raw["weights"]) - set(FEATURES))
        if unknown:  # ignoring a feature would shift every confidence
            raise InputError(f"The confidence weights name unknown features: {', '.join(unknown)}.")
        weights = np.array([raw["weights"].get(name, 0.0) for name in FEATURES], np.float32)
        knots = (np.array(raw[name], np.float32) for name in ("scores", "expected_error", "confidence"))
        return Scale(weights, *knots)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`; weights of 0 are left out."""
        return {
            "weights": {
                name: round(float(weight), 4) for name, weight in zip(FEATURES, self.weights, strict=True) if weight
            },
            **{
                name: [round(float(x), 5) for x in getattr(self, name)]
                for name in ("scores", "expected_error", "confidence")
            },
        }


@dataclass(frozen=True)
class ConfidenceModel:
    """Estimates the confidence of the pixels of one pipeline.

    Attributes:
        imagined: scale of imagined pixels.
        observed: scale of pixels labelled as observed.
    """

    imagined: Scale
    observed: Scale

    def __call__(self, frame: PipelineFrame, conditioning: Conditioning, index: int) -> np.ndarray:
        """Estimates the confidence of each pixel of a view.

        Args:
            frame: frame that the pipeline returned.
            conditioning: what memory holds about the clip.
            index: index of the view in the clip.

        Returns:
            (H, W) float32 in 0..1.
        """
        values = features(frame, conditioning, index)
        height, width = frame.observed.shape
        imagined, observed = (
            np.interp(values @ scale.weights, scale.scores, scale.confidence).astype(np.float32)
            for scale in (self.imagined, self.observed)
        )
        # An imagined pixel never has a higher confidence than if it were observed.
        out = cv2.resize(np.minimum(imagined, observed), (width, height), interpolation=cv2.INTER_LINEAR)
        if frame.observed.any():
            observed = cv2.resize(observed, (width, height), interpolation=cv2.INTER_LINEAR)
            cv2.copyTo(observed, frame.observed.astype(np.uint8), out)
        return out

    def expected_error(self, confidence: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """The mean absolute error that belongs to a confidence.

        Args:
            confidence: (...) in 0..1.
            observed: (...) bool, True for pixels labelled as observed.

        Returns:
            (...) float32 in 0..1.
        """
        errors = [
            np.interp(confidence, scale.confidence[::-1], scale.expected_error[::-1])
            for scale in (self.observed, self.imagined)
        ]
        return np.where(observed, *errors).astype(np.float32)


def confidence_file() -> Path:
    """Path of `weights/confidence.json`; where it should be, if this installation lacks it."""
    # As `bundled_folder`: the package may have several folders.
    files = [Path(folder) / "weights" / "confidence.json" for folder in worldstereo_ros.__path__]
    return next((file for file in files if file.is_file()), files[0])


@functools.cache
def load_confidence(pipeline: str) -> ConfidenceModel:
    """Loads the confidence model of a pipeline by name. Unknown models use that of the small one.

    Raises:
        ModelError: the package's file is missing or damaged.
    """
    path = confidence_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["pipelines"]
        found = content["geometric" if pipeline.startswith("geometric") else "small"]
        return ConfidenceModel(*(Scale.from_dict(found[kind]) for kind in ("imagined", "observed")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error!r}). Reinstall the package, or run scripts/fit_confidence.py."
        ) from None


def features(frame: PipelineFrame, conditioning: Conditioning, index: int) -> np.ndarray:
    """Computes the features of each pixel of a view.

    Args:
        frame: frame that the pipeline returned.
        conditioning: what memory holds about the clip.
        index: index of the view in the clip.

    Returns:
        (h, w, len(FEATURES)) float32, non-negative, in the order of `FEATURES`; the longer side has at most
        `MAX_SIZE_PX` pixels.
    """
    camera = conditioning.camera
    scale = min(1.0, MAX_SIZE_PX / max(camera.width, camera.height))
    width, height = max(4, round(camera.width * scale)), max(4, round(camera.height * scale))
    size = (width, height)
    image = _downsample(frame.image, size).astype(np.float32) / 255
    evidence = _downsample(_uint8(conditioning.renders.observed[index]), size) > 127
    labelled = _downsample(frame.observed.astype(np.uint8) * np.uint8(255), size) > 127
    depth = frame.depth if frame.depth is not None else conditioning.renders.depth[index].cpu().numpy()
    depth = cv2.resize(depth.astype(np.float32, copy=False), size, interpolation=cv2.INTER_NEAREST)
    depth = np.where(np.isfinite(depth), depth, np.float32(0))  # a model may return any value
    if not (depth > 0).all():
        depth = fill_depth(depth) if (depth > 0).any() else np.full((height, width), 2.0, np.float32)

    out = np.zeros((height, width, len(FEATURES)), np.float32)

    def put(name: str, value: np.ndarray | float) -> None:
        out[..., FEATURES.index(name)] = value

    distance = _distance(evidence) / width
    for name, reach in (("evidence_near", 0.02), ("evidence_far", 0.4)):
        put(name, 1 - np.exp(-distance / reach))
    distance = _distance(labelled) / width
    for name, reach in (("claimed_near", 0.03), ("claimed_far", 0.2)):
        put(name, 1 - np.exp(-distance / reach))
    # A mean over a neighbourhood that is the larger, the farther the evidence.
    around = push_pull(image, evidence.astype(np.float32), keep=np.zeros(evidence.shape, bool))
    put("unusual", _log_scale(np.abs(image - around).mean(axis=2)))
    put("contrast_fine", _log_scale(_deviation(image, 5)))
    put("contrast_wide", _log_scale(_deviation(image, 2 * (width // 20) + 1)))
    window = np.ones((5, 5), np.uint8)
    near, far = cv2.erode(depth, window), cv2.dilate(depth, window)
    put("depth_step", np.minimum((far - near) / near, 1))
    if frame.memory_image is not None:
        memory_image = _downsample(frame.memory_image, size).astype(np.float32) / 255
        put("difference", _log_scale(np.abs(image - memory_image).mean(axis=2)))
    if frame.plane_absence is not None:
        put("plane_absence", _downsample(frame.plane_absence, size))
    grid_scale = min(1.0, GRID_SIZE_PX / max(size))
    grid = (max(2, round(width * grid_scale)), max(2, round(height * grid_scale)))
    grid_depth = cv2.resize(depth, grid, interpolation=cv2.INTER_NEAREST)
    for name, value in _reference_features(grid_depth, conditioning, index).items():
        put(name, cv2.resize(value, size, interpolation=cv2.INTER_LINEAR))
    return out


def _uint8(mask: Any) -> np.ndarray:
    return mask.cpu().numpy().astype(np.uint8) * np.uint8(255)


def _downsample(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _distance(mask: np.ndarray) -> np.ndarray:
    """(h, w) float32 pixels to the nearest True; `MAX_DISTANCE_WIDTHS` widths if there is none."""
    if not mask.any():
        return np.full(mask.shape, MAX_DISTANCE_WIDTHS * mask.shape[1], np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)


def _log_scale(value: np.ndarray) -> np.ndarray:
    """Differences of colour (0..1) on a logarithmic scale."""
    return np.log1p(value * 20)


def _deviation(image: np.ndarray, window: int) -> np.ndarray:
    """(h, w) standard deviation within a square window, root mean square over the channels."""
    mean = cv2.blur(image, (window, window))
    return np.sqrt(np.maximum(cv2.blur(image * image, (window, window)) - mean * mean, 0).mean(axis=2))


def _reference_features(depth: np.ndarray, conditioning: Conditioning, index: int) -> dict[str, np.ndarray]:
    """Features by name, (h, w) float32, from where remembered views look at the points of a view.

    Args:
        depth: (h, w) float32 metres of the view.
        conditioning, index: see `features`.
    """
    height, width = depth.shape
    pose = conditioning.world_from_camera[index]
    views = _nearest([view for view in conditioning.references if view.observed is None], pose)
    if not views:
        views = [conditioning.start_view]
    camera = conditioning.camera.resized(width, height)
    rays = camera.rays().reshape(-1, 3)
    z = depth.reshape(-1)
    lengths = np.sqrt((rays * rays).sum(axis=1)) * z
    outside = np.full(z.shape, 1.5, np.float32)
    parallax = np.full(z.shape, 1.0, np.float32)
    farther = np.full(z.shape, 2.0, np.float32)
    inside_count, hidden_count = np.zeros(z.shape, np.float32), np.zeros(z.shape, np.float32)
    for view in views:
        relative = np.linalg.inv(view.world_from_camera) @ pose
        local = (rays @ relative[:3, :3].T.astype(np.float32)) * z[:, None] + relative[:3, 3].astype(np.float32)
        ahead = np.maximum(local[:, 2], 1e-3)
        x, y = local[:, 0] / ahead, local[:, 1] / ahead  # normalised image coordinates
        lens = view.camera
        outside_x = np.maximum(-lens.cx / lens.fx - x, x - (lens.width - 1 - lens.cx) / lens.fx)
        outside_y = np.maximum(-lens.cy / lens.fy - y, y - (lens.height - 1 - lens.cy) / lens.fy)
        excess = np.where(local[:, 2] > 0.05, np.maximum(np.maximum(outside_x, outside_y), 0), 1.5)
        outside = np.minimum(outside, excess)
        inside = excess <= 0
        other = np.sqrt((local * local).sum(axis=1))
        # The angle at the point between the lines to the two camera centres.
        cosine = (local * (local - relative[:3, 3].astype(np.float32))).sum(axis=1) / np.maximum(other * lengths, 1e-6)
        angle = np.arccos(np.clip(cosine, -1, 1))
        parallax = np.minimum(parallax, np.where(inside, angle, 1.0))
        farther = np.minimum(farther, np.where(inside, np.maximum(np.log2(other / np.maximum(lengths, 1e-6)), 0), 2.0))
        if view.depth is not None:
            u = np.clip(np.rint(x * lens.fx + lens.cx), 0, lens.width - 1).astype(np.intp)
            v = np.clip(np.rint(y * lens.fy + lens.cy), 0, lens.height - 1).astype(np.intp)
            measured = view.depth[v, u]
            inside_count += inside
            hidden_count += inside & (measured > 0) & (local[:, 2] > measured * 1.05 + 0.02)
    nearest = views[0].world_from_camera
    distance = float(np.linalg.norm(nearest[:3, 3] - pose[:3, 3]))
    shape = (height, width)
    return {
        "outside": (1 - np.exp(-outside / 0.3)).astype(np.float32).reshape(shape),
        "hidden": (hidden_count / np.maximum(inside_count, 1)).reshape(shape),
        "parallax": parallax.astype(np.float32).reshape(shape),
        "farther": np.minimum(farther, 2).astype(np.float32).reshape(shape),
        "moved": (distance / (distance + z)).astype(np.float32).reshape(shape),
    }


def _nearest(views: list[View], pose: np.ndarray) -> list[View]:
    """At most `MAX_REFERENCES` of the views, the nearest first."""

    def distance(view: View) -> float:
        other = view.world_from_camera
        angle = np.arccos(np.clip(other[:3, 2] @ pose[:3, 2], -1, 1))
        return float(np.linalg.norm(other[:3, 3] - pose[:3, 3]) + METRES_PER_RADIAN * angle)

    return sorted(views, key=distance)[:MAX_REFERENCES]
