"""How far to trust each pixel of an imagined view, from what is there without running a model again.

A pixel's *expected error* is the mean absolute difference of its colour from what a camera would see there, over the
three channels, 1 = from black to white. Its *confidence* is the probability that this difference is at most
`TOLERANCE`. Both are monotone functions of one score per pixel: a weighted sum of `FEATURES`, all of which grow with
doubt, and none of whose weights is negative. So nothing farther from the evidence, all else equal, is trusted more.

Weights and the two functions lie in `weights/confidence.json`, which `scripts/fit_confidence.py` writes: one set for
pixels that are claimed as observed and one for the others, for each pipeline that was measured.
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
from worldstereo_ros.pipelines.base import Conditioning, PipelineFrame
from worldstereo_ros.utils.errors import InputError

TOLERANCE = 0.1  # of the range of a colour, mean over the channels: what "right" means
WORK = 160  # pixels of the longer side at which a view is judged
GRID = 80  # and at which its points are looked up in the remembered views
REFERENCES = 8  # remembered views that are asked, the nearest ones
METRES_PER_RADIAN = 1.0  # of turning, in which view is nearest
FAR = 2.0  # widths: distance to the evidence where there is none

FEATURES = (
    "evidence_near",  # distance to what a sensor saw, in widths of the picture, saturating at 2 %
    "evidence_far",  # at 40 %
    "claimed_near",  # the same to what is claimed as observed, at 3 %
    "claimed_far",  # at 20 %
    "unusual",  # difference of the colour from the mean of the evidence around it
    "contrast_fine",  # of the picture within a few pixels
    "contrast_wide",  # within a tenth of its width
    "depth_step",  # relative change of depth within a few pixels
    "outside",  # no remembered view looks there: by how great an angle
    "hidden",  # share of the views that look there and see something before it
    "parallax",  # smallest angle between this line of sight and that of a remembered view
    "farther",  # how much farther away the remembered view stands that comes nearest, in powers of two
    "moved",  # from the nearest remembered view, against the depth
    "difference",  # between the picture and what memory alone paints
    "plane_absence",  # no plane that memory knows goes on there
)


@dataclass(frozen=True)
class Scale:
    """From features to error, for one kind of pixels.

    Attributes:
        weights: (len(FEATURES),) float32, none below 0.
        scores: (K,) rising; between them both functions are straight, outside they stay.
        expected_error: (K,) rising, at `scores`.
        confidence: (K,) falling, at `scores`.
    """

    weights: np.ndarray
    scores: np.ndarray
    expected_error: np.ndarray
    confidence: np.ndarray

    def __post_init__(self) -> None:
        ordered = (np.diff(self.scores) > 0).all() and (np.diff(self.expected_error) >= 0).all()
        if not (ordered and (np.diff(self.confidence) <= 0).all() and (self.weights >= 0).all()):
            raise InputError("Weights below 0, or functions of the score that do not rise and fall as they must.")
        if not (self.confidence.min() >= 0 and self.confidence.max() <= 1 and len(self.weights) == len(FEATURES)):
            raise InputError(f"A confidence in 0..1 and weights of {len(FEATURES)} features were expected.")

    @staticmethod
    def from_dict(raw: dict[str, Any]) -> Scale:
        """As it stands in the file. Raises KeyError, ValueError."""
        unknown = sorted(set(raw["weights"]) - set(FEATURES))
        if unknown:  # a feature that is silently left out would shift every confidence
            raise InputError(f"The confidence weights name unknown features: {', '.join(unknown)}.")
        weights = np.array([raw["weights"].get(name, 0.0) for name in FEATURES], np.float32)
        knots = (np.array(raw[name], np.float32) for name in ("scores", "expected_error", "confidence"))
        return Scale(weights, *knots)

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` takes; weights of 0 are left out."""
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
    """How far to trust the pixels of one pipeline.

    Attributes:
        imagined: of pixels that are not claimed as observed.
        observed: of those that are.
    """

    imagined: Scale
    observed: Scale

    def __call__(self, frame: PipelineFrame, conditioning: Conditioning, index: int) -> np.ndarray:
        """(H, W) float32 in 0..1, the confidence of each pixel of a view.

        Args:
            frame: what the pipeline made.
            conditioning: what memory said about its clip.
            index: which view of the clip.
        """
        evidence = features(frame, conditioning, index)
        height, width = frame.observed.shape
        imagined, observed = (
            np.interp(evidence @ scale.weights, scale.scores, scale.confidence).astype(np.float32)
            for scale in (self.imagined, self.observed)
        )
        # What is imagined is never surer than if it had been observed.
        out = cv2.resize(np.minimum(imagined, observed), (width, height), interpolation=cv2.INTER_LINEAR)
        if frame.observed.any():
            sure = cv2.resize(observed, (width, height), interpolation=cv2.INTER_LINEAR)
            cv2.copyTo(sure, frame.observed.astype(np.uint8), out)
        return out

    def expected_error(self, confidence: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """(...) float32, the mean absolute error (0..1) that goes with a confidence; `observed` says of which kind."""
        errors = [
            np.interp(confidence, scale.confidence[::-1], scale.expected_error[::-1])
            for scale in (self.observed, self.imagined)
        ]
        return np.where(observed, *errors).astype(np.float32)


def confidence_file() -> Path:
    """Where the measured functions lie; where they should be, if this installation lacks them."""
    # As `bundled_folder`, of the file: a folder of weights may lie beside the package's own.
    files = [Path(folder) / "weights" / "confidence.json" for folder in worldstereo_ros.__path__]
    return next((file for file in files if file.is_file()), files[0])


@functools.cache
def load_confidence(pipeline: str) -> ConfidenceModel:
    """The functions that were measured for a pipeline, by its name; any other model is taken for the small one.

    Raises:
        RuntimeError: the package's file is missing or damaged.
    """
    path = confidence_file()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))["pipelines"]
        found = content["geometric" if pipeline.startswith("geometric") else "small"]
        return ConfidenceModel(*(Scale.from_dict(found[kind]) for kind in ("imagined", "observed")))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"{path} cannot be used ({error!r}); install the package again, or run scripts/fit_confidence.py."
        ) from None


def features(frame: PipelineFrame, conditioning: Conditioning, index: int) -> np.ndarray:
    """What speaks against each pixel of a view.

    Args:
        frame: what the pipeline made.
        conditioning: what memory said about its clip.
        index: which view of the clip.

    Returns:
        (h, w, len(FEATURES)) float32, the longer side `WORK` pixels at most, in the order of `FEATURES`, none below 0.
    """
    camera = conditioning.camera
    scale = min(1.0, WORK / max(camera.width, camera.height))
    width, height = max(4, round(camera.width * scale)), max(4, round(camera.height * scale))
    size = (width, height)
    image = _shrunk(frame.image, size).astype(np.float32) / 255
    evidence = _shrunk(_uint8(conditioning.renders.observed[index]), size) > 127
    claimed = _shrunk(frame.observed.astype(np.uint8) * np.uint8(255), size) > 127
    depth = frame.depth if frame.depth is not None else conditioning.renders.depth[index].cpu().numpy()
    depth = cv2.resize(depth.astype(np.float32, copy=False), size, interpolation=cv2.INTER_NEAREST)
    depth = np.where(np.isfinite(depth), depth, np.float32(0))  # a model may say anything
    if not (depth > 0).all():
        depth = fill_depth(depth) if (depth > 0).any() else np.full((height, width), 2.0, np.float32)

    out = np.zeros((height, width, len(FEATURES)), np.float32)
    place = {name: number for number, name in enumerate(FEATURES)}

    def put(name: str, value: np.ndarray | float) -> None:
        out[..., place[name]] = value

    away = _distance(evidence) / width
    for name, reach in (("evidence_near", 0.02), ("evidence_far", 0.4)):
        put(name, 1 - np.exp(-away / reach))
    away = _distance(claimed) / width
    for name, reach in (("claimed_near", 0.03), ("claimed_far", 0.2)):
        put(name, 1 - np.exp(-away / reach))
    # The wider the surroundings, the farther the evidence.
    nowhere = np.zeros(evidence.shape, bool)
    around = push_pull(image, evidence.astype(np.float32), keep=nowhere)
    put("unusual", _compressed(np.abs(image - around).mean(axis=2)))
    put("contrast_fine", _compressed(_deviation(image, 5)))
    put("contrast_wide", _compressed(_deviation(image, 2 * (width // 20) + 1)))
    window = np.ones((5, 5), np.uint8)
    near, far = cv2.erode(depth, window), cv2.dilate(depth, window)
    put("depth_step", np.minimum((far - near) / near, 1))
    if frame.memory_image is not None:
        other = _shrunk(frame.memory_image, size).astype(np.float32) / 255
        put("difference", _compressed(np.abs(image - other).mean(axis=2)))
    if frame.plane_absence is not None:
        put("plane_absence", _shrunk(frame.plane_absence, size))
    grid = min(1.0, GRID / max(size))
    small = (max(2, round(width * grid)), max(2, round(height * grid)))
    looks = _looks(cv2.resize(depth, small, interpolation=cv2.INTER_NEAREST), conditioning, index)
    for name, value in looks.items():
        put(name, cv2.resize(value, size, interpolation=cv2.INTER_LINEAR))
    return out


def _uint8(mask: Any) -> np.ndarray:
    return mask.cpu().numpy().astype(np.uint8) * np.uint8(255)


def _shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _distance(mask: np.ndarray) -> np.ndarray:
    """(h, w) float32 pixels to the nearest True; `FAR` widths where there is none."""
    if not mask.any():
        return np.full(mask.shape, FAR * mask.shape[1], np.float32)
    return cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)


def _compressed(value: np.ndarray) -> np.ndarray:
    """Differences of colour (0..1) on a scale on which ratios count more than differences."""
    return np.log1p(value * 20)


def _deviation(image: np.ndarray, window: int) -> np.ndarray:
    """(h, w) standard deviation within a square window, root mean square over the channels."""
    mean = cv2.blur(image, (window, window))
    return np.sqrt(np.maximum(cv2.blur(image * image, (window, window)) - mean * mean, 0).mean(axis=2))


def _looks(depth: np.ndarray, conditioning: Conditioning, index: int) -> dict[str, np.ndarray]:
    """How the remembered views look at what a view shows; (h, w) float32 for each name."""
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
    looking, hidden = np.zeros(z.shape, np.float32), np.zeros(z.shape, np.float32)
    for view in views:
        relative = np.linalg.inv(view.world_from_camera) @ pose
        local = (rays @ relative[:3, :3].T.astype(np.float32)) * z[:, None] + relative[:3, 3].astype(np.float32)
        ahead = np.maximum(local[:, 2], 1e-3)
        x, y = local[:, 0] / ahead, local[:, 1] / ahead  # slopes: 0 is the middle of the view
        lens = view.camera
        beside_x = np.maximum(-lens.cx / lens.fx - x, x - (lens.width - 1 - lens.cx) / lens.fx)
        beside_y = np.maximum(-lens.cy / lens.fy - y, y - (lens.height - 1 - lens.cy) / lens.fy)
        beside = np.where(local[:, 2] > 0.05, np.maximum(np.maximum(beside_x, beside_y), 0), 1.5)
        outside = np.minimum(outside, beside)
        inside = beside <= 0
        other = np.sqrt((local * local).sum(axis=1))
        # The centre of this view as the other one sees it; the angle at the point between the two.
        cosine = (local * (local - relative[:3, 3].astype(np.float32))).sum(axis=1) / np.maximum(other * lengths, 1e-6)
        angle = np.arccos(np.clip(cosine, -1, 1))
        parallax = np.minimum(parallax, np.where(inside, angle, 1.0))
        farther = np.minimum(farther, np.where(inside, np.maximum(np.log2(other / np.maximum(lengths, 1e-6)), 0), 2.0))
        if view.depth is not None:
            u = np.clip(np.rint(x * lens.fx + lens.cx), 0, lens.width - 1).astype(np.intp)
            v = np.clip(np.rint(y * lens.fy + lens.cy), 0, lens.height - 1).astype(np.intp)
            measured = view.depth[v, u]
            looking += inside
            hidden += inside & (measured > 0) & (local[:, 2] > measured * 1.05 + 0.02)
    nearest = views[0].world_from_camera
    metres = float(np.linalg.norm(nearest[:3, 3] - pose[:3, 3]))
    shape = (height, width)
    return {
        "outside": (1 - np.exp(-outside / 0.3)).astype(np.float32).reshape(shape),
        "hidden": (hidden / np.maximum(looking, 1)).reshape(shape),
        "parallax": parallax.astype(np.float32).reshape(shape),
        "farther": np.minimum(farther, 2).astype(np.float32).reshape(shape),
        "moved": (metres / (metres + z)).astype(np.float32).reshape(shape),
    }


def _nearest(views: list[View], pose: np.ndarray) -> list[View]:
    """At most `REFERENCES` of the views, the nearest first."""

    def distance(view: View) -> float:
        other = view.world_from_camera
        turn = np.arccos(np.clip(other[:3, 2] @ pose[:3, 2], -1, 1))
        return float(np.linalg.norm(other[:3, 3] - pose[:3, 3]) + METRES_PER_RADIAN * turn)

    return sorted(views, key=distance)[:REFERENCES]
