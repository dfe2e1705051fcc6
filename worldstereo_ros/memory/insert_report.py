"""Report of an insertion into the cloud memory."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class InsertReport:
    """Counts of what happened to the pixels (or points) of one insertion.

    Attributes:
        added: new points.
        merged: pixels averaged into a point of their own class.
        promoted: points that changed to a higher class, such as from imagined to observed.
        rejected: pixels ignored because their voxel holds a point of a higher class.
        unknown: pixels without depth.
        flying: flying pixels at depth edges, skipped.
        too_far: pixels beyond the radius, skipped.
        evicted: points removed to make room for new ones.
        dropped: pixels that found the memory full.
        expired: points removed because of radius or age.
        carved: imagined or estimated points removed because they lie in free space of this view.
        count: points in memory afterwards.
    """

    added: int = 0
    merged: int = 0
    promoted: int = 0
    rejected: int = 0
    unknown: int = 0
    flying: int = 0
    too_far: int = 0
    evicted: int = 0
    dropped: int = 0
    expired: int = 0
    carved: int = 0
    count: int = 0

    @property
    def inserted(self) -> int:
        """Number of pixels or points that changed the memory."""
        return self.added + self.merged + self.promoted

    def __str__(self) -> str:
        if self.inserted == 0:
            return (
                f"Nothing was inserted: {self.unknown} pixels have no depth, {self.flying} lie on depth edges, "
                f"{self.too_far} are too far, {self.rejected} lie in voxels with a point of a higher class, "
                f"{self.dropped} found the memory full."
            )
        return f"{self.added} points added, {self.merged} merged, {self.promoted} promoted; {self.count} in memory."
