"""Per-pixel confidence of views, of their colour and of their depth, without running a model again.

The *confidence* of a pixel is the probability that its colour differs from the true one by at most `COLOUR_TOLERANCE`
(mean absolute difference over the three channels, 1 = from black to white). The *confidence of depth* is the
probability that its depth is within a factor of `DEPTH_TOLERANCE` of the true one.

Both follow from features of the observations (`features.py`), among them statistics of the place that the observations
measure themselves (`statistics.py`), by a fitted sum of monotone functions (`model.py`). What was imagined before
is no evidence: a pixel that shows imagined points never has more confidence than they were stored with, and at most
`VIEW_DIFFERENCE` more than the observations give to this view.
"""

from worldstereo_ros.geometry.provenance import DEPTH_TOLERANCE
from worldstereo_ros.pipelines.confidence.features import FEATURES, MAX_SIZE_PX, compute_features
from worldstereo_ros.pipelines.confidence.model import (
    CLASSES,
    QUANTITIES,
    VIEW_DIFFERENCE,
    Confidence,
    ConfidenceModel,
    Scale,
    confidence_file,
    load_confidence,
)
from worldstereo_ros.pipelines.confidence.statistics import COLOUR_TOLERANCE, StatisticsCache

__all__ = [
    "CLASSES",
    "COLOUR_TOLERANCE",
    "DEPTH_TOLERANCE",
    "FEATURES",
    "MAX_SIZE_PX",
    "QUANTITIES",
    "VIEW_DIFFERENCE",
    "Confidence",
    "ConfidenceModel",
    "Scale",
    "StatisticsCache",
    "compute_features",
    "confidence_file",
    "load_confidence",
]
