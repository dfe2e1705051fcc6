"""Settings of the plane sweep, which its CPU and its CUDA version share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SweepSettings:
    """Settings of the plane sweep.

    Attributes:
        planes: number of planes.
        p1: penalty of a change of one plane between neighbouring pixels, in units of correlation.
        p2: penalty of a larger change, at pixels of equal grey level.
        p2_min: the same at an edge.
        contrast: grey levels of an edge that halve `p2`.
        min_score: lowest correlation of a depth.
    """

    planes: int = 96
    p1: float = 0.05
    p2: float = 0.8
    p2_min: float = 0.12
    contrast: float = 10.0
    min_score: float = 0.3
