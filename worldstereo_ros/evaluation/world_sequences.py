"""Procedural worlds as sequences for evaluation. The bundled models were not trained on the split `test`.

`worlds:test:8` is the first eight worlds of that split. Kinds of scenes take turns, and kinds of paths too, shifted so
that every kind of scene is combined with every kind of path.
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
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.panorama.perspective_views import pose_from_angles
from worldstereo_ros.panorama.stitching import Panorama, panorama_from_views
from worldstereo_ros.scenes import KINDS, PATHS, SPLITS, Scene, make_path, make_scene, seed_of
from worldstereo_ros.scenes.raytracing.render import render_scene, render_view
from worldstereo_ros.utils.errors import InputError

PREFIX = "worlds:"
CAMERA = Camera.from_fov(320, 240, math.radians(75))
VIEWS = 41  # of a sequence: the first view and two clips of twenty
MAX_STEP_M, MAX_TURN_RAD = 0.15, 0.16  # between consecutive views
PERIOD_NS = 200_000_000
FACE_FOV_RAD = math.radians(100)  # of the six views of a panorama; with 90 degrees they would not overlap


class PosedSequence(Protocol):
    """A posed sequence of views, as evaluation needs it."""

    @property
    def path(self) -> Path:
        """The sequence's path; its last part is the name in tables."""

    @property
    def camera(self) -> Camera:
        """Intrinsics of all views."""

    @property
    def poses(self) -> np.ndarray:
        """(N, 4, 4) world_from_camera."""

    @property
    def posed(self) -> bool:
        """Whether poses are available."""

    @property
    def has_depth(self) -> bool:
        """Whether any view has depth."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int) -> View: ...

    def __iter__(self) -> Iterator[View]: ...

    def subset(self, indices: Iterable[int]) -> PosedSequence:
        """The views at these positions."""


class WorldSequence:
    """A walk through a procedural world. Views are rendered on first access and cached.

    Attributes:
        scene: the procedural world.
        path: the name, as a path that does not exist.
        camera: intrinsics of all views.
        poses: (N, 4, 4) float64 world_from_camera, OpenCV axes, metres.
        indices: (N,) int64, number of each view in the whole walk.
        posed, has_depth: True.
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
        cache: dict[int, View] | None = None,
        device: str = "cpu",
    ) -> None:
        """Creates a sequence of views of `scene` from `poses`; `cache` is shared by subsets of the same walk.

        Views are rendered on `device`.
        """
        self.path = Path(name)
        self.camera, self.poses = camera, poses
        self.indices = np.arange(len(poses)) if indices is None else indices
        self.scene, self.device, self._cache = scene, device, {} if cache is None else cache

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, key: int) -> View:
        """View `key`; negative numbers count from the end. Raises IndexError."""
        if not -len(self) <= key < len(self):
            raise IndexError(f"{self.path} has {len(self)} views; there is no view {key}.")
        number = int(self.indices[key])
        if number not in self._cache:
            self._cache[number] = render_view(
                self.scene, self.camera, self.poses[key], stamp_ns=number * PERIOD_NS, device=self.device
            )
        return self._cache[number]

    def __iter__(self) -> Iterator[View]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> WorldSequence:
        """The views at these positions, in this order. Raises IndexError."""
        rows = np.arange(len(self))[list(indices)]
        return WorldSequence(
            self.scene,
            str(self.path),
            self.camera,
            self.poses[rows],
            indices=self.indices[rows],
            cache=self._cache,
            device=self.device,
        )

    def instances(self) -> np.ndarray:
        """(N, H, W) int32 instance segmentation: the object at each pixel, 0 for none (sky)."""
        return render_scene(self.scene, self.camera, self.poses).instance.cpu().numpy()

    def seen_from(self, poses: np.ndarray, camera: Camera | None = None) -> WorldSequence:
        """Views of the same world from other poses (N, 4, 4); `camera` defaults to the sequence's."""
        return WorldSequence(self.scene, str(self.path), camera or self.camera, np.asarray(poses, np.float64))


def world_panorama(sequence: WorldSequence, world_from_camera: np.ndarray, height: int) -> Panorama:
    """Renders a ground-truth panorama with distances from six views.

    Args:
        sequence: a walk through the world.
        world_from_camera: (4, 4) pose of the panorama.
        height: rows in pixels; the width is twice that.
    """
    rotations = [pose_from_angles(index * math.pi / 2, 0.0) for index in range(4)]
    rotations += [pose_from_angles(0, sign * math.pi / 2) for sign in (1, -1)]
    size = 2 * math.ceil(height * math.tan(FACE_FOV_RAD / 2) / math.pi)
    faces = sequence.seen_from(
        np.stack([world_from_camera @ rotation for rotation in rotations]), Camera.from_fov(size, size, FACE_FOV_RAD)
    )
    return panorama_from_views(list(faces), height, world_from_camera=world_from_camera, align=False)


def world_sequence(
    split: str, index: int, *, views: int = VIEWS, camera: Camera = CAMERA, device: str = "cpu"
) -> WorldSequence:
    """World `index` of a split; deterministic.

    Args:
        split: one of `scenes.SPLITS`.
        index: number of the world; kind and path follow from it, see the module.
        views: number of views.
        camera: intrinsics of the views.
        device: renders the views.

    Raises:
        InputError: the split or world does not exist, or the world has no free path.
    """
    kinds = list(KINDS)
    kind = kinds[index % len(kinds)]
    walk = PATHS[(index + index // len(kinds)) % len(PATHS)]
    scene = make_scene(kind, seed_of(split, index))
    poses = make_path(scene, walk, views, seed=0, step=MAX_STEP_M, turn=MAX_TURN_RAD)
    return WorldSequence(scene, f"{split}{index}-{kind}-{walk}", camera, poses, device=device)


def open_worlds(text: str) -> list[WorldSequence]:
    """Opens the worlds of `worlds:SPLIT:COUNT`; worlds without a free path are skipped.

    Raises:
        InputError: the text has another form, or there are too few worlds.
    """
    parts = text.split(":")
    if len(parts) != 3 or parts[1] not in SPLITS or not parts[2].isdecimal() or int(parts[2]) < 1:
        raise InputError(
            f"'{text}' names no worlds; worlds:SPLIT:COUNT was expected, as in worlds:test:8, with one of the splits "
            f"{', '.join(SPLITS)}."
        )
    found: list[WorldSequence] = []
    count, index = int(parts[2]), 0
    while len(found) < count:
        if index >= min(4 * count + 16, len(SPLITS[parts[1]])):
            raise InputError(
                f"Only {len(found)} of {index} worlds of the split {parts[1]} have a free path; lower COUNT."
            )
        with suppress(ValueError):
            found.append(world_sequence(parts[1], index))
        index += 1
    return found


def open_data(data: str | Path | PosedSequence, *, needs_depth: bool = True) -> list[PosedSequence]:
    """Opens the sequences of one `--data` option.

    Args:
        data: `worlds:SPLIT:COUNT`, a posed sequence with depth, a folder of such sequences, or an open sequence.
        needs_depth: of the sequences in a folder, open those with depth only. False: also data of other kinds that has
            poses (`io.datasets`).

    Raises:
        InputError: it is none of these.
    """
    if not isinstance(data, str | Path):
        return [data]
    if str(data).startswith(PREFIX):
        return list(open_worlds(str(data)))
    path = Path(data)
    if not path.exists():
        raise InputError(
            f"{path} does not exist; a posed sequence, a folder of such, or {PREFIX}SPLIT:COUNT was expected."
        )
    if (path / "poses.txt").is_file():
        return [open_posed(path)]
    found = sorted(
        file.parent for file in path.glob("*/poses.txt") if not needs_depth or (file.parent / "depth").is_dir()
    )
    if not found and not needs_depth:
        sequence = open_sequence(path)
        if not sequence.posed or len(sequence) < 2:
            raise InputError(f"{path} has no poses of several views; a sequence with poses was expected.")
        return [sequence]
    if not found:
        raise InputError(f"{path} is not a posed sequence (poses.txt, frames/, depth/) and contains none.")
    return [open_posed(folder) for folder in found]
