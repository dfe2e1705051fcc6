"""Scores of what pipelines imagined in the holes of one scenario, see `hole_metrics`.

What depends on ground truth is computed once for all pipelines. Features and ST-LPIPS need the weights that
`perceptual` names; without them these figures are None.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch.nn import functional

from worldstereo_ros.evaluation import hole_metrics, metrics, perceptual
from worldstereo_ros.evaluation.calibration_metrics import depth_ratio, expected_calibration_error
from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE, Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.resizing import resize_image
from worldstereo_ros.pipelines.confidence import COLOUR_TOLERANCE
from worldstereo_ros.utils.indices import evenly_spaced_indices

WORKING_WIDTH_PX = 320  # of patches and features; images are reduced to it
PERCEPTUAL_VIEWS = 8  # views of a scenario whose features are computed, evenly spaced
FEATURE_STAGE = 3  # of `perceptual.STAGES`; its cells are four pixels wide
CELLS = 4  # a patch of features is 4x4 cells, 16x16 pixels of the reduced image
MIN_HOLE_SHARE = 0.9  # of a patch
BLUR_PX = 8.0
WHOLLY_UNSEEN = 0.95  # a view is wholly unseen if more than this share of its pixels with true depth is
SAMPLED_PIXELS = 4000  # of a view, for calibration


@dataclass
class HoleTruth:
    """Ground truth of the holes of a scenario.

    Args:
        truths: the evaluated views, with true depth.
        seen: (H, W) bool of each: pixels that an observed view saw.
        observed_images: (H, W, 3) uint8 of the observed views, whose mean colour is the constant to beat.
        with_features: compute patch KID and ST-LPIPS too, half a second for each of `PERCEPTUAL_VIEWS` views.
    """

    truths: Sequence[View]
    seen: Sequence[np.ndarray]
    observed_images: Sequence[np.ndarray]
    with_features: bool = True
    unseen: list[np.ndarray] = field(init=False)
    areas: list[np.ndarray] = field(init=False)
    constant: np.ndarray = field(init=False)
    perceptual_views: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.unseen = [
            (truth.depth > 0) & ~seen
            for truth, seen in zip(self.truths, self.seen, strict=True)
            if truth.depth is not None  # for mypy: `seen_pixels` raises for views without depth
        ]
        self.areas = [hole_metrics.hole_area(unseen, seen) for unseen, seen in zip(self.unseen, self.seen, strict=True)]
        self.constant = hole_metrics.constant_colour(list(self.observed_images))
        self.perceptual_views = set()
        if self.with_features and perceptual.is_available():
            self.perceptual_views = set(evenly_spaced_indices(len(self.truths), PERCEPTUAL_VIEWS))
        self._features: dict[int, list[torch.Tensor]] = {}
        self._patches: dict[int, list[np.ndarray]] = {}

    def wholly_unseen(self, number: int) -> bool:
        """Whether no observed view saw more than a few pixels of a view."""
        unseen, seen = int(self.unseen[number].sum()), int(self.seen[number].sum())
        return unseen > WHOLLY_UNSEEN * max(unseen + seen, 1)

    def reduced_area(self, number: int) -> np.ndarray:
        """(h, w) bool: the holes of a view at the working size."""
        area = self.areas[number]
        width, height = working_size(area.shape)
        return cv2.resize(area.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)

    def patches(self, number: int) -> list[np.ndarray]:
        """True patches, see `hole_metrics.hole_patches`."""
        if number not in self._patches:
            self._patches[number] = patches_of(self.truths[number].image, self.reduced_area(number), number)
        return self._patches[number]

    def features(self, number: int) -> list[torch.Tensor]:
        """True features of a view, of all stages."""
        if number not in self._features:
            # Half precision: those of all views are kept.
            self._features[number] = [maps.half() for maps in features_of(self.truths[number].image)]
        return [maps.float() for maps in self._features[number]]


class HoleScores:
    """Collects the views of one pipeline.

    Args:
        truth: of the scenario.
    """

    def __init__(self, truth: HoleTruth) -> None:
        self.truth = truth
        self.swd_of_view: dict[int, float] = {}
        self._energy = np.zeros(2)  # imagined, true
        self._grid = np.zeros((2, 2))  # imagined and true: amplitude, total
        self._values: dict[str, list[float | None]] = {}
        self._patches: tuple[list[list[np.ndarray]], list[list[np.ndarray]]] = ([], [])
        self._features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self._last: tuple[int, np.ndarray, np.ndarray] | None = None
        self._calibration: dict[str, list[np.ndarray]] = {"colour": [], "depth": []}

    def add(
        self,
        number: int,
        image: np.ndarray,
        depth: np.ndarray | None = None,
        provenance: np.ndarray | None = None,
        confidence: np.ndarray | None = None,
        depth_confidence: np.ndarray | None = None,
    ) -> None:
        """Adds a view; views are added in order.

        Args:
            number: index into the truths.
            image: (H, W, 3) uint8.
            depth: (H, W) float32 metres, 0 = unknown.
            provenance: (H, W) uint8 values of `Provenance`.
            confidence, depth_confidence: (H, W) float32 in 0..1.
        """
        truth, unseen = self.truth.truths[number], self.truth.unseen[number]
        self._add_colours(number, image)
        core = hole_metrics.inside(self.truth.areas[number])
        if core.any():
            pair = (image, truth.image)
            self._energy += [float((hole_metrics.detail(one)[core] ** 2).sum(dtype=np.float64)) for one in pair]
            self._grid += [hole_metrics.grid_strength(one, core) for one in pair]
            self._add_patches(number, image)
            if number in self.truth.perceptual_views:
                self._add_features(number, image, unseen)
        if depth is not None:
            self._add_warp_error(number, image, depth)
        if provenance is not None and confidence is not None:
            self._add_calibration(number, image, depth, provenance, confidence, depth_confidence)

    def _add_colours(self, number: int, image: np.ndarray) -> None:
        truth, unseen = self.truth.truths[number].image, self.truth.unseen[number]
        constant = np.broadcast_to(np.rint(self.truth.constant).astype(np.uint8), truth.shape)
        of_view = {
            "psnr_constant": metrics.psnr(np.ascontiguousarray(constant), truth, unseen),
            "psnr_unseen_blurred": metrics.psnr(cv2.GaussianBlur(image, (0, 0), BLUR_PX), truth, unseen),
        }
        for name, value in of_view.items():
            self._values.setdefault(name, []).append(value)
            if self.truth.wholly_unseen(number):
                self._values.setdefault(name.replace("_unseen", "") + "_wholly_unseen", []).append(value)

    def _add_patches(self, number: int, image: np.ndarray) -> None:
        patches, truth = patches_of(image, self.truth.reduced_area(number), number), self.truth.patches(number)
        self._patches[0].append(patches)
        self._patches[1].append(truth)
        distance = hole_metrics.sliced_wasserstein(patches, truth)
        if distance is not None:
            self.swd_of_view[number] = distance

    def _add_features(self, number: int, image: np.ndarray, unseen: np.ndarray) -> None:
        features, truth = features_of(image), self.truth.features(number)
        width, height = working_size(unseen.shape)
        area = self.truth.reduced_area(number)
        for kept, maps in zip(self._features, (features, truth), strict=True):
            kept.append(feature_patches(maps[FEATURE_STAGE - 1], area))
        difference = perceptual.load_perceptual_network().distance_map(features, truth, (height, width))[0].numpy()
        if area.any():
            self._values.setdefault("st_lpips_holes", []).append(float(difference[area].mean()))

    def _add_warp_error(self, number: int, image: np.ndarray, depth: np.ndarray) -> None:
        if self._last is not None and self._last[0] == number - 1:
            last, last_image, last_depth = self._last
            truths, unseen = self.truth.truths, self.truth.unseen
            poses = truths[number].world_from_camera, truths[last].world_from_camera
            error = hole_metrics.warp_error(
                image, depth, unseen[number], poses[0], last_image, last_depth, poses[1], truths[number].camera
            )
            self._values.setdefault("warp_error", []).append(error)
        self._last = number, image.copy(), depth.copy()

    def _add_calibration(
        self,
        number: int,
        image: np.ndarray,
        depth: np.ndarray | None,
        provenance: np.ndarray,
        confidence: np.ndarray,
        depth_confidence: np.ndarray | None,
    ) -> None:
        truth = self.truth.truths[number]
        imagined = np.flatnonzero(provenance == Provenance.IMAGINED)
        imagined = np.random.default_rng(number).permutation(imagined)[:SAMPLED_PIXELS]
        error = np.abs(image.astype(np.float32) - truth.image).mean(axis=2).reshape(-1)[imagined] / 255
        right = error <= COLOUR_TOLERANCE
        self._calibration["colour"].append(np.stack([confidence.reshape(-1)[imagined], right]))
        if depth is not None and depth_confidence is not None and truth.depth is not None:
            known = imagined[truth.depth.reshape(-1)[imagined] > 0]
            ratio = depth_ratio(depth.reshape(-1)[known], truth.depth.reshape(-1)[known])
            right = ratio <= DEPTH_TOLERANCE
            self._calibration["depth"].append(np.stack([depth_confidence.reshape(-1)[known], right]))

    def metrics(self) -> dict[str, float | None]:
        """The figures of all views, by their names in `report.Row`."""
        figures: dict[str, float | None] = {}
        for name, values in self._values.items():
            present = [value for value in values if value is not None]
            figures[name] = float(np.mean(present)) if present else None
        if self._energy[1] > 0:
            figures["hf_ratio_holes"] = float(np.sqrt(self._energy[0] / self._energy[1]))
        if self._grid[:, 1].min() > 0:
            imagined, true = self._grid[:, 0] / self._grid[:, 1]
            figures["latent_grid"] = float(imagined / true) if true > 0 else None
        sets = [[np.concatenate(level) for level in zip(*views, strict=True)] for views in self._patches if views]
        if len(sets) == 2:
            figures["patch_swd_holes"] = hole_metrics.sliced_wasserstein(*sets)
        if self._features[0]:
            figures["patch_kid_holes"] = hole_metrics.kernel_distance(*map(np.concatenate, self._features))
        for name, pairs in self._calibration.items():
            if pairs:
                confidence, right = np.concatenate(pairs, axis=1)
                known = np.isfinite(confidence)
                figures[f"ece_{name}"] = expected_calibration_error(confidence[known], right[known] > 0)
        return figures


def working_size(shape: Sequence[int]) -> tuple[int, int]:
    """(width, height) of an image of this (height, width) at the working size; it is never enlarged."""
    height, width = shape[:2]
    scale = min(1.0, WORKING_WIDTH_PX / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def patches_of(image: np.ndarray, area: np.ndarray, seed: int) -> list[np.ndarray]:
    """`hole_metrics.hole_patches` of an image (H, W, 3) uint8, with holes (h, w) bool at the working size."""
    return hole_metrics.hole_patches(resize_image(image, *working_size(image.shape)), area, seed)


@torch.no_grad()
def features_of(image: np.ndarray) -> list[torch.Tensor]:
    """Features of an image (H, W, 3) uint8 at the working size, see `perceptual`."""
    reduced = resize_image(image, *working_size(image.shape))
    return perceptual.load_perceptual_network().features(perceptual.to_tensor(reduced))


def feature_patches(maps: torch.Tensor, area: np.ndarray) -> np.ndarray:
    """Mean features of patches that lie in holes.

    Args:
        maps: (1, C, h, w) features of one stage.
        area: (H, W) bool, holes at the working size.

    Returns:
        (N, C) float32: means of feature vectors of length sqrt(C), so that no strong edge outweighs all others.
    """
    share = functional.interpolate(torch.from_numpy(area)[None, None].float(), maps.shape[-2:], mode="area")
    inside = functional.avg_pool2d(share, CELLS, CELLS // 2)[0, 0] >= MIN_HOLE_SHARE
    vectors = functional.normalize(maps, eps=1e-10) * maps.shape[1] ** 0.5
    return functional.avg_pool2d(vectors, CELLS, CELLS // 2)[0][:, inside].T.numpy()
