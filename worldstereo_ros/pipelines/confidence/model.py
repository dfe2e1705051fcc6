"""Maps features of pixels to confidences by sums of monotone functions, read from `weights/confidence.json`.

The log odds of an error are a constant plus, for each feature, a function of it that never descends: with less
evidence, all else equal, a pixel never has a higher confidence. `scripts/fit_confidence.py` fits them for each
pipeline, for observed, estimated and imagined pixels, and for colour and depth.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.pipelines.base import Conditioning, ModelError, PipelineFrame
from worldstereo_ros.pipelines.confidence.features import FEATURES, compute_features
from worldstereo_ros.pipelines.confidence.statistics import StatisticsCache
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.utils.jit import compiled
from worldstereo_ros.weights.bundled import bundled_file

# Keys of weights/confidence.json
CLASSES = ("observed", "estimated", "imagined")
QUANTITIES = ("colour", "depth")

LOWEST, HIGHEST = 0.01, 0.99  # confidence that a fit can justify
# By which estimates for one place differ between views. The lower of the two would be too low: it would sink with every
# view of a place, although nothing new is known.
VIEW_DIFFERENCE = {"colour": 0.2, "depth": 0.05}
TABLE_SIZE = 256  # of a function that is evaluated per pixel


class Confidence(NamedTuple):
    """Confidences of the pixels of a view.

    Attributes:
        colour: (H, W) float32 in 0..1.
        depth: (H, W) float32 in 0..1, 0 where the view has no depth; None if it has none at all.
    """

    colour: np.ndarray
    depth: np.ndarray | None


@dataclass(frozen=True)
class Scale:
    """Maps features to a confidence, for the pixels of one class and one quantity.

    Attributes:
        offset: log odds of an error without the functions.
        functions: for some of `FEATURES` its knots (K,), ascending, and the values there (K,), not descending; linear
            between the knots and constant outside.
        confidence: (C,) ascending, with which `expected_error` is given.
        expected_error: (C,) mean error at these confidences, not ascending.

    Raises:
        InputError: an entry is not as described.
    """

    offset: float
    functions: Mapping[str, tuple[np.ndarray, np.ndarray]]
    confidence: np.ndarray
    expected_error: np.ndarray

    def __post_init__(self) -> None:
        unknown = sorted(set(self.functions) - set(FEATURES))
        if unknown:  # ignoring a feature would shift every confidence
            raise InputError(f"The confidence scale names unknown features: {', '.join(unknown)}.")
        for name, (knots, values) in self.functions.items():
            if not (len(knots) == len(values) >= 2 and (np.diff(knots) > 0).all() and (np.diff(values) >= 0).all()):
                raise InputError(
                    f"The confidence scale is invalid: at least two ascending knots of {name}, and values that do not "
                    "descend, were expected."
                )
        arrays = np.concatenate(
            [[self.offset], self.confidence, self.expected_error, *sum(self.functions.values(), ())]
        )
        ascending = (np.diff(self.confidence) > 0).all() and (np.diff(self.expected_error) <= 0).all()
        if not (np.isfinite(arrays).all() and ascending and len(self.confidence) == len(self.expected_error) > 0):
            raise InputError(
                "The confidence scale is invalid: finite numbers, ascending confidences and expected errors that do "
                "not ascend were expected."
            )

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The confidence (...) float32 of pixels with features (..., len(FEATURES))."""
        return to_confidence(self.log_odds(features))

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """The log odds (...) float32 of an error of pixels with features (..., len(FEATURES)) float32."""
        out = np.empty(features.shape[:-1], np.float32)
        flat = np.ascontiguousarray(features.reshape(-1, features.shape[-1]), np.float32)
        _sum_functions(flat, *self._tables, np.float32(self.offset), out.reshape(-1))
        return out

    @functools.cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The functions as tables: index of the feature, lowest knot, steps per unit, (F, TABLE_SIZE) values."""
        names = list(self.functions)
        tables, starts, rates = (np.zeros((len(names), TABLE_SIZE), np.float32), *np.zeros((2, len(names)), np.float32))
        for number, (knots, values) in enumerate(self.functions.values()):
            tables[number] = np.interp(np.linspace(knots[0], knots[-1], TABLE_SIZE), knots, values)
            starts[number], rates[number] = knots[0], (TABLE_SIZE - 1) / (knots[-1] - knots[0])
        return np.array([FEATURES.index(name) for name in names], np.int64), starts, rates, tables

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Scale:
        """Reads one scale of the file.

        Raises:
            KeyError, InputError: an entry is missing, unknown or invalid.
        """
        functions = {
            name: (np.array(one["knots"], np.float64), np.array(one["values"], np.float64))
            for name, one in raw["functions"].items()
        }
        arrays = (np.array(raw[name], np.float64) for name in ("confidence", "expected_error"))
        return Scale(float(raw["offset"]), functions, *arrays)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""

        def rounded(array: np.ndarray) -> list[float]:
            return [round(float(x), 4) for x in array]

        return {
            "offset": round(float(self.offset), 4),
            "functions": {
                name: {"knots": rounded(knots), "values": rounded(values)}
                for name, (knots, values) in self.functions.items()
            },
            "confidence": rounded(self.confidence),
            "expected_error": rounded(self.expected_error),
        }


@dataclass(frozen=True)
class ConfidenceModel:
    """Estimates the confidences of the pixels of one pipeline.

    Attributes:
        scales: for each class and quantity, such as `scales["imagined"]["depth"]`.
        statistics: of the observations, kept from view to view.
    """

    scales: Mapping[str, Mapping[str, Scale]]
    statistics: StatisticsCache

    def __call__(self, frame: PipelineFrame, conditioning: Conditioning, index: int) -> Confidence:
        """Estimates the confidences of each pixel of a view.

        Args:
            frame: frame that the pipeline returned.
            conditioning: what memory holds about the clip.
            index: index of the view in the clip.
        """
        features = compute_features(frame, conditioning, index, self.statistics)
        height, width = frame.observed.shape
        nowhere = np.zeros((height, width), bool)
        masks = {"observed": frame.observed, "estimated": nowhere if frame.estimated is None else frame.estimated}
        imagined = ~(masks["observed"] | masks["estimated"])
        found = {}
        for quantity in QUANTITIES:
            out = np.zeros((height, width), np.float32)
            for name, mask in (*masks.items(), ("imagined", imagined)):
                if mask.any():
                    values = self.scales[name][quantity](features)
                    values = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR)
                    cv2.copyTo(values, mask.astype(np.uint8), out)
            found[quantity] = out
        if conditioning.stored_confidence is not None:
            # What was imagined before is no evidence: an image that agrees with it is not more certain.
            repeated = conditioning.renders.provenance[index].cpu().numpy() == Provenance.IMAGINED
            repeated &= imagined
            for number, quantity in enumerate(QUANTITIES):
                stored = conditioning.stored_confidence[index, ..., number]
                limit = found[quantity] + np.float32(VIEW_DIFFERENCE[quantity])
                np.minimum(limit, stored, out=found[quantity], where=repeated)
        if frame.depth is None:
            return Confidence(found["colour"], None)
        found["depth"][~(frame.depth > 0)] = 0
        return Confidence(found["colour"], found["depth"])

    def expected_error(self, confidence: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """The mean absolute error of colour that belongs to a confidence.

        Args:
            confidence: (...) in 0..1.
            observed: (...) bool, True for pixels labelled as observed.

        Returns:
            (...) float32 in 0..1.
        """
        errors = [
            np.interp(confidence, scale.confidence, scale.expected_error)
            for scale in (self.scales["observed"]["colour"], self.scales["imagined"]["colour"])
        ]
        return np.where(observed, *errors).astype(np.float32)


def to_confidence(log_odds: np.ndarray) -> np.ndarray:
    """The confidence that belongs to log odds of an error, limited to `LOWEST` and `HIGHEST`."""
    return np.clip(1 / (1 + np.exp(np.clip(log_odds, -20, 20))), LOWEST, HIGHEST).astype(np.float32)


@compiled
def _sum_functions(features, columns, starts, rates, tables, offset, out):
    """Writes the offset plus the functions of features (N, F), each a table with linear interpolation, to out (N,)."""
    last = np.float32(tables.shape[1] - 1)
    for n in range(len(out)):
        total = offset
        for k in range(len(columns)):
            place = (features[n, columns[k]] - starts[k]) * rates[k]
            place = min(max(place, np.float32(0)), last)
            low = min(int(place), tables.shape[1] - 2)
            share = place - np.float32(low)
            total += tables[k, low] + share * (tables[k, low + 1] - tables[k, low])
        out[n] = total


def confidence_file() -> Path:
    """Path of `weights/confidence.json`; where it should be, if this installation lacks it."""
    return bundled_file("confidence.json")


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
        scales = {
            name: {quantity: Scale.from_dict(found[name][quantity]) for quantity in QUANTITIES} for name in CLASSES
        }
        return ConfidenceModel(scales, StatisticsCache())
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read ({error!r}). Reinstall the package, or run scripts/fit_confidence.py."
        ) from None
