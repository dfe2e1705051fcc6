"""A view drawn from one remembered view: its colours warped, and which pixels it covers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.pipelines.geometric.references import Reference


@dataclass(frozen=True)
class WarpedView:
    """A view that memory painted, and what it takes to say what in it was observed.

    Attributes:
        image: (H, W, 3) uint8, without holes.
        known: (H, W) bool, a remembered picture or a point of the cloud is shown; the rest is filled smoothly.
        depth: (H, W) float32 metres, filled.
        rendered: (H, W) float32 metres of the cloud, 0 = none.
        references: the views that it was painted from.
        errors: (R,) their registration errors, radians.
    """

    image: np.ndarray
    known: np.ndarray
    depth: np.ndarray
    rendered: np.ndarray
    references: list[Reference]
    errors: np.ndarray
