"""The transform of one frame to its parent over time."""

from __future__ import annotations

import bisect
from array import array

import numpy as np
from pytransform3d.transformations import pq_slerp, transform_from_pq

NUMBERS = 7  # of a sample: translation x y z and quaternion w x y z


class TransformTrack:
    """The samples of one frame's transform to its parent, oldest first. The parent may change between samples.

    Attributes:
        static: (parent, parent_from_child (4, 4)), valid at all times, instead of the samples; None if there is none.
        stamps: nanoseconds, ascending.
        parents: parent of each sample.
    """

    __slots__ = ("_values", "parents", "stamps", "static")

    def __init__(self) -> None:
        self.static: tuple[str, np.ndarray] | None = None
        self.stamps = array("q")
        self.parents: list[str] = []
        self._values = array("d")  # NUMBERS of each sample

    @property
    def newest_parent(self) -> str:
        """The parent of the static transform, else of the newest sample."""
        return self.static[0] if self.static is not None else self.parents[-1]

    def insert(self, stamp_ns: int, parent: str, sample: np.ndarray) -> int:
        """Inserts a sample, which replaces one of the same stamp.

        Args:
            stamp_ns: its time.
            parent: frame id of the parent.
            sample: (7,) float64 parent_from_child: translation x y z in metres, unit quaternion w x y z.

        Returns:
            The number of samples added: 0 or 1.
        """
        index = bisect.bisect_left(self.stamps, stamp_ns)
        values = array("d", sample.tobytes())
        if self.parents and self.parents[-1] == parent:
            parent = self.parents[-1]  # one object for all samples, not a copy of the name for each
        if index < len(self.stamps) and self.stamps[index] == stamp_ns:
            self._values[NUMBERS * index : NUMBERS * (index + 1)] = values
            self.parents[index] = parent
            return 0
        self.stamps.insert(index, stamp_ns)
        self._values[NUMBERS * index : NUMBERS * index] = values
        self.parents.insert(index, parent)
        return 1

    def keep(self, first: int, end: int | None = None) -> int:
        """Keeps the samples from `first` to before `end`. Returns how many are removed."""
        before = len(self.stamps)
        end = before if end is None else end
        self.stamps, self._values = self.stamps[first:end], self._values[NUMBERS * first : NUMBERS * end]
        self.parents = self.parents[first:end]
        return before - len(self.stamps)

    def index_at(self, stamp_ns: int) -> int:
        """Index of the sample at a time or the last one before it. Raises IndexError outside the samples."""
        index = bisect.bisect_right(self.stamps, stamp_ns) - 1
        if index < 0 or (index == len(self.stamps) - 1 and self.stamps[index] != stamp_ns):
            raise IndexError
        return index

    def matrix_at(self, index: int, stamp_ns: int) -> np.ndarray:
        """parent_from_child (4, 4) at a time, between the sample `index` and the next one; -1 = the static transform.

        Where the parent changes in between, the earlier sample is taken as it is, as tf2 does: two samples in different
        frames cannot be interpolated.
        """
        if index < 0 and self.static is not None:
            return self.static[1]
        before = np.array(self._values[NUMBERS * index : NUMBERS * (index + 1)])
        if self.stamps[index] == stamp_ns or self.parents[index] != self.parents[index + 1]:
            return transform_from_pq(before)
        after = np.array(self._values[NUMBERS * (index + 1) : NUMBERS * (index + 2)])
        fraction = (stamp_ns - self.stamps[index]) / (self.stamps[index + 1] - self.stamps[index])
        return transform_from_pq(pq_slerp(before, after, fraction))
