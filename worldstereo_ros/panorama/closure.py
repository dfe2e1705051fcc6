"""How well a full turn of views closes, in colour and in distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldstereo_ros.geometry.views import View
from worldstereo_ros.panorama.distances import distance_difference
from worldstereo_ros.panorama.stitching import view_difference


@dataclass(frozen=True)
class Closure:
    """How well a turn closes.

    Attributes:
        seam: mean absolute difference in grey levels of the two views that close the turn, over their overlap.
        inner: mean of this difference over all other pairs of neighbours.
        distance_seam: mean relative difference of the distances of the two views that close the turn.
        distance_inner: mean of this difference over all other pairs of neighbours. Both are None unless all views have
            depth.
    """

    seam: float
    inner: float
    distance_seam: float | None = None
    distance_inner: float | None = None

    @property
    def ratio(self) -> float:
        """`seam` over `inner`: about 1 if there is no visible seam."""
        return self.seam / max(self.inner, 1e-6)


def closure(ring: Sequence[View], seam: int = -1) -> Closure | None:
    """Compares the joint that closes a full turn with the other joints.

    Args:
        ring: views from one position in the order of a turn.
        seam: the joint of `ring[seam]` with the next view closes the turn.

    Returns:
        None if neighbours do not overlap, or there are fewer than three views.
    """
    pairs = list(zip(ring, [*ring[1:], *ring[:1]], strict=True))
    colours = _split([view_difference(one, other) for one, other in pairs], seam)
    if len(ring) < 3 or colours is None:
        return None
    distances = _split([distance_difference(one, other) for one, other in pairs], seam)
    return Closure(*colours, *((None, None) if distances is None else distances))


def _split(differences: list[float | None], seam: int) -> tuple[float, float] | None:
    """The difference at the seam and the mean of the others; None if one is missing."""
    known = [difference for difference in differences if difference is not None]
    if len(known) < max(len(differences), 2):
        return None
    closing = known.pop(seam)
    return closing, float(np.mean(known))
