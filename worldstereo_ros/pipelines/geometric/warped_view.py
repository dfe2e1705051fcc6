"""A view warped from memory: references projected into a camera, holes filled smoothly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.geometric.references import Reference
from worldstereo_ros.pipelines.geometric.registration import Registration


@dataclass(frozen=True)
class WarpedView:
    """A view warped from memory, and what labelling its provenance needs.

    Attributes:
        image: (H, W, 3) uint8 RGB, without holes.
        valid_mask: (H, W) bool, True where the colour is that of a reference or of a point of the cloud; the rest is
            filled smoothly.
        depth: (H, W) float32 metres, filled.
        rendered_depth: (H, W) float32 metres of the cloud, 0 = none.
        references: the R views that it was warped from.
        registration: registration errors of the R references.
        coincident: the observation that was taken from the pose of this view, at its size, whose image is this image;
            None if there is none.
    """

    image: np.ndarray
    valid_mask: np.ndarray
    depth: np.ndarray
    rendered_depth: np.ndarray
    references: list[Reference]
    registration: Registration
    coincident: View | None = None
