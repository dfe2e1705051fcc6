"""Posed sequences at a smaller size, as photographs of any size are evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from worldstereo_ros.evaluation.world_sequences import PosedSequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View


class ReducedSequence:
    """A posed sequence at a smaller size; views without depth get one that is unknown everywhere."""

    def __init__(self, sequence: PosedSequence, size: tuple[int, int]) -> None:
        self._sequence, self._size = sequence, size

    @property
    def path(self) -> Path:
        """The sequence's path."""
        return self._sequence.path

    @property
    def camera(self) -> Camera:
        """Intrinsics of all views."""
        return self._sequence.camera.resized(*self._size)

    @property
    def poses(self) -> np.ndarray:
        """(N, 4, 4) world_from_camera."""
        return self._sequence.poses

    @property
    def posed(self) -> bool:
        """Whether poses are available."""
        return self._sequence.posed

    @property
    def has_depth(self) -> bool:
        """Whether any view has depth."""
        return self._sequence.has_depth

    def __len__(self) -> int:
        return len(self._sequence)

    def __getitem__(self, key: int) -> View:
        """View `key`."""
        view = self._sequence[key].resized(*self._size).with_finite_depth()
        return view if view.depth is not None else replace(view, depth=np.zeros(view.image.shape[:2], np.float32))

    def __iter__(self) -> Iterator[View]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> ReducedSequence:
        """The views at these positions."""
        return ReducedSequence(self._sequence.subset(indices), self._size)
