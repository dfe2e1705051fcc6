"""Procedural worlds as sequences to evaluate on: no model was trained on the `test` split.

`worlds:test:8` stands for the first eight worlds of that split. World i is of kind i of `scenes.KINDS` in turn and is
walked through along kind i + i // len(KINDS) of `scenes.PATHS` in turn, so that every kind meets every way of moving.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.panorama.perspective_views import look
from worldstereo_ros.panorama.stitching import Panorama, panorama_from_views
from worldstereo_ros.scenes import KINDS, PATHS, SPLITS, Scene, make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.render import render_scene, render_view
from worldstereo_ros.utils.errors import InputError

PREFIX = "worlds:"
CAMERA = Camera.from_fov(320, 240, math.radians(75))
VIEWS = 41  # of a walk: a seed and two clips of twenty
STEP, TURN = 0.15, 0.16  # metres and radians from view to view, at most
PERIOD_NS = 200_000_000
FACE = math.radians(100)  # of the six views that make a panorama: they overlap a little


class Posed(Protocol):
    """What the evaluation needs of a sequence; `datasets.Sequence` and `WorldSequence` have it."""

    @property
    def path(self) -> Path:
        """Its last part is the name in tables."""

    @property
    def camera(self) -> Camera:
        """Of all views."""

    @property
    def poses(self) -> np.ndarray:
        """(N, 4, 4) world_from_camera."""

    @property
    def posed(self) -> bool:
        """The poses are known."""

    @property
    def has_depth(self) -> bool:
        """At least one view has depth."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int) -> View: ...

    def __iter__(self) -> Iterator[View]: ...

    def subset(self, indices: Iterable[int]) -> Posed:
        """The views at these positions."""


class WorldSequence:
    """A walk through a procedural world. Views are drawn when they are asked for, and kept.

    Attributes:
        path: its name, as a path that is nowhere.
        camera: of all views.
        poses: (N, 4, 4) float64 world_from_camera, OpenCV axes, metres.
        indices: (N,) int64, the number of each view on the walk.
        posed, has_depth: always.
    """

    posed = True
    has_depth = True

    def __init__(
        self,
        scene: Scene,
        name: str,
        camera: Camera,
        poses: np.ndarray,
        *,
        indices: np.ndarray | None = None,
        drawn: dict[int, View] | None = None,
    ) -> None:
        """Views of `scene` from `poses`; `drawn` is what sequences of the same walk share."""
        self.path = Path(name)
        self.camera, self.poses = camera, poses
        self.indices = np.arange(len(poses)) if indices is None else indices
        self._scene, self._drawn = scene, {} if drawn is None else drawn

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, key: int) -> View:
        """The view `key`, from 0, negative from the end. Raises IndexError."""
        if not -len(self) <= key < len(self):
            raise IndexError(f"View {key} was asked for; {self.path} has {len(self)}.")
        number = int(self.indices[key])
        if number not in self._drawn:
            self._drawn[number] = render_view(self._scene, self.camera, self.poses[key], stamp_ns=number * PERIOD_NS)
        return self._drawn[number]

    def __iter__(self) -> Iterator[View]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> WorldSequence:
        """The views at these positions, in this order. Raises IndexError."""
        rows = np.arange(len(self))[list(indices)]
        return WorldSequence(
            self._scene, str(self.path), self.camera, self.poses[rows], indices=self.indices[rows], drawn=self._drawn
        )

    def instances(self) -> np.ndarray:
        """(N, H, W) int32, which object of the world each pixel of each view shows; 0 is nothing, as the sky."""
        return render_scene(self._scene, self.camera, self.poses).instance.cpu().numpy()

    def seen_from(self, poses: np.ndarray, camera: Camera | None = None) -> WorldSequence:
        """Views of the same world from other poses (N, 4, 4), by the same camera where None."""
        return WorldSequence(self._scene, str(self.path), camera or self.camera, np.asarray(poses, np.float64))


def world_panorama(sequence: WorldSequence, world_from_camera: np.ndarray, height: int) -> Panorama:
    """The true panorama of a world, with distances, as fine as its six views.

    Args:
        sequence: a walk through the world.
        world_from_camera: (4, 4) pose of the panorama.
        height: rows; there are twice as many columns.
    """
    turns = [look(index * math.pi / 2, 0.0) for index in range(4)] + [look(0, way * math.pi / 2) for way in (1, -1)]
    size = 2 * math.ceil(height * math.tan(FACE / 2) / math.pi)
    faces = sequence.seen_from(
        np.stack([world_from_camera @ turn for turn in turns]), Camera.from_fov(size, size, FACE)
    )
    return panorama_from_views(list(faces), height, world_from_camera=world_from_camera, align=False)


def world_sequence(split: str, index: int, *, views: int = VIEWS, camera: Camera = CAMERA) -> WorldSequence:
    """World `index` of a split, always the same.

    Args:
        split: of `scenes.SPLITS`.
        index: which world; kind and path follow from it, see the module.
        views: how many.
        camera: intrinsics of the views.

    Raises:
        ValueError: no such split or world, or one too full to walk in.
    """
    kinds = list(KINDS)
    kind = kinds[index % len(kinds)]
    walk = PATHS[(index + index // len(kinds)) % len(PATHS)]
    scene = make_scene(kind, seed_of(split, index))
    poses = make_path(scene, walk, views, seed=0, step=STEP, turn=TURN)
    return WorldSequence(scene, f"{split}{index}-{kind}-{walk}", camera, poses)


def open_worlds(text: str) -> list[WorldSequence]:
    """The worlds that `worlds:SPLIT:COUNT` stands for; one that cannot be walked in is passed over.

    Raises:
        ValueError: the text says something else.
    """
    parts = text.split(":")
    if len(parts) != 3 or parts[1] not in SPLITS or not parts[2].isdecimal() or int(parts[2]) < 1:
        raise InputError(
            f"'{text}' stands for no worlds; worlds:SPLIT:COUNT was expected, as in worlds:test:8, with a split of "
            f"{', '.join(SPLITS)}."
        )
    found: list[WorldSequence] = []
    wanted, index = int(parts[2]), 0
    while len(found) < wanted:
        if index >= min(4 * wanted + 16, len(SPLITS[parts[1]])):
            raise InputError(f"Of {index} worlds of the split {parts[1]} only {len(found)} can be walked in.")
        with suppress(ValueError):
            found.append(world_sequence(parts[1], index))
        index += 1
    return found


def open_data(data: str | Path | Posed) -> list[Posed]:
    """The sequences that one `--data` means.

    Args:
        data: `worlds:SPLIT:COUNT`, a posed sequence with depth, a folder of such, or a sequence that is open already.

    Raises:
        ValueError: it is none of these.
    """
    if not isinstance(data, str | Path):
        return [data]
    if str(data).startswith(PREFIX):
        return list(open_worlds(str(data)))
    path = Path(data)
    if (path / "poses.txt").is_file():
        return [open_posed(path)]
    found = sorted(file.parent for file in path.glob("*/poses.txt") if (file.parent / "depth").is_dir())
    if not found:
        raise InputError(f"{path} is no posed sequence (poses.txt, frames/, depth/) and no folder of such.")
    return [open_posed(folder) for folder in found]
