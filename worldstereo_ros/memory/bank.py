"""Spatial-stereo memory: whole views, and which of them to look at when a new one is imagined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.geometry.view_overlap import retrieval_scores
from worldstereo_ros.geometry.views import View
from worldstereo_ros.utils.errors import InputError

POSE_WEIGHT = 0.3  # of position and orientation against what the image shows, in the distance of two views
IMAGE_WEIGHT = 0.7
MAX_VIEWS = 4096

ImageFeature = Callable[[np.ndarray], np.ndarray]


def image_feature(image: np.ndarray) -> np.ndarray:
    """A cheap description of an image: its colours on an 8x8 grid and its gradient directions on a 4x4 grid.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (320,) float32 of length 1; the two halves weigh the same.
    """
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    colour = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).ravel() - 0.5
    grey = small.mean(axis=2)
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy).reshape(4, 8, 4, 8)
    # Rounded to eight directions with upright and level edges in the middle of theirs: most edges of rooms are such.
    direction = (np.round(np.arctan2(dy, dx) * (4 / np.pi)).astype(int) % 8).reshape(4, 8, 4, 8)
    gradient = np.stack([(strength * (direction == k)).sum(axis=(1, 3)) for k in range(8)], axis=-1).ravel()
    return _unit(np.concatenate([_unit(colour), _unit(gradient)]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


@dataclass(frozen=True)
class Retrieval:
    """Which remembered view serves each asked one.

    Attributes:
        index: (F,) int64 into the bank's views, -1 = none overlaps.
        score: (F,) float64 in 0..1 of that view (`camera.retrieval_scores`), 0 where there is none.
        angle: (F,) float64 degrees between the optical axes, 180 where there is none.
        distinct: the views that occur in `index`, ascending.
    """

    index: np.ndarray
    score: np.ndarray
    angle: np.ndarray
    distinct: list[int]


class ViewBank:
    """A bounded list of views, in the order they came.

    When it is full, the most redundant view goes: the one that shows most nearly what another one shows, imagined
    views first. The newest observed view never goes. Not thread-safe.

    Args:
        max_views: the bound.
        feature: image (H, W, 3) uint8 → 1-D vector; views whose vectors point the same way look alike.

    Raises:
        ValueError: `max_views` is out of range.
    """

    def __init__(self, max_views: int = 64, *, feature: ImageFeature = image_feature) -> None:
        if not 1 <= max_views <= MAX_VIEWS:
            raise InputError(f"max_views is {max_views}; between 1 and {MAX_VIEWS} was expected.")
        self.max_views = int(max_views)
        self.feature = feature
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self._views: list[View] = []
        self._features: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._views)

    @property
    def views(self) -> list[View]:
        """The views, oldest first. The list is the bank's own; change it through `add` and `clear` alone."""
        return self._views

    def add(self, view: View) -> int:
        """Remembers a view; where the bank is full, another one is forgotten, which moves the indices after it.

        What an imagined view was made from (its conditioning) is not kept.

        Returns:
            The index of the view; -1 if it was itself the one to go (an imagined view that shows nothing new).
        """
        feature = np.asarray(self.feature(view.image), dtype=np.float32).reshape(-1)
        if not np.isfinite(feature).all() or (self._features and feature.shape != self._features[0].shape):
            raise InputError("The image feature must be a vector of finite numbers, of the same length for all views.")
        if type(view) is not View:
            view = View(view.image, view.camera, view.world_from_camera, view.depth, view.observed, view.stamp_ns)
        self._views.append(view)
        self._features.append(_unit(feature))
        if len(self._views) > self.max_views:
            victim = self._most_redundant()
            del self._views[victim], self._features[victim]
            if victim == len(self._views):
                return -1
        return len(self._views) - 1

    def _most_redundant(self) -> int:
        imagined = np.array([_is_imagined(view) for view in self._views])
        candidates = np.flatnonzero(imagined)
        if len(candidates) == 0:
            candidates = np.arange(len(self._views) - 1)  # all observed: the last is the newest
        scores, _ = self._scores(self._views[0].camera, np.stack([v.world_from_camera for v in self._views]))
        features = np.stack(self._features)
        alike = scores * np.clip(features @ features.T, 0, 1)
        np.fill_diagonal(alike, -1)
        # Of two views that show the same, the first in the list, the older one, has the same maximum and goes.
        return int(candidates[alike[candidates].max(axis=1).argmax()])

    def _scores(self, camera: Camera, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = camera.width, camera.height
        K = np.stack([view.camera.resized(*size).matrix for view in self._views])
        memory = invert_pose(np.stack([view.world_from_camera for view in self._views]))
        return retrieval_scores(invert_pose(world_from_camera), memory, camera.matrix, K, *size)

    def best_start_view(self, camera: Camera, world_from_camera: np.ndarray) -> View | None:
        """Of the views that a sensor took, the one that serves a path best; None where there is none.

        It does not depend on the order in which they came, but where two serve equally well, or none at all: then it
        is the newest of these.

        Args:
            camera: intrinsics and size of the asked views.
            world_from_camera: (F, 4, 4) poses.

        Raises:
            ValueError: the poses are no finite rigid transforms.
        """
        poses = check_poses(world_from_camera)
        sensed = np.flatnonzero([view.observed is None for view in self._views])
        if not len(sensed):
            return None
        service = self._scores(camera, poses)[0].sum(axis=0)[sensed]
        return self._views[sensed[len(sensed) - 1 - int(service[::-1].argmax())]]

    def retrieve(self, camera: Camera, world_from_camera: np.ndarray, limit: int = 8) -> Retrieval:
        """The best view for each pose of a path, of at most `limit` different ones.

        Where the best views are more than `limit`, they are thinned by farthest-point sampling over pose and image
        in which views that serve well count as farther, and every pose is then given the best of those left.

        Args:
            camera: intrinsics and size of the asked views.
            world_from_camera: (F, 4, 4) poses.
            limit: number of different views, >= 1.

        Raises:
            ValueError: the poses are no finite rigid transforms, or the limit is below 1.
        """
        poses = check_poses(world_from_camera)
        if limit < 1:
            raise InputError(f"The limit is {limit} views; at least 1 was expected.")
        count = len(poses)
        if not self._views:
            return Retrieval(np.full(count, -1), np.zeros(count), np.full(count, 180.0), [])
        scores, angles = self._scores(camera, poses)
        index = scores.argmax(axis=1)
        frames = np.arange(count)
        distinct = np.unique(index[scores[frames, index] > 0])
        if len(distinct) > limit:
            distinct = np.sort(self._thinned(distinct, index, scores, limit))
            index = distinct[scores[:, distinct].argmax(axis=1)]
        score = scores[frames, index]
        found = score > 0
        return Retrieval(
            index=np.where(found, index, -1),
            score=np.where(found, score, 0.0),
            angle=np.where(found, angles[frames, index], 180.0),
            distinct=[int(i) for i in np.unique(index[found])],
        )

    def _thinned(self, chosen: np.ndarray, index: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
        """`limit` of the `chosen` views: the one that serves most first, then always the farthest from those taken."""
        service = np.array([scores[index == view, view].sum() for view in chosen])
        quality = 0.5 + 0.5 * service / service.max()
        poses = np.stack([self._views[view].world_from_camera for view in chosen])
        metres = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=-1)
        cosine = np.clip(poses[:, :3, 2] @ poses[:, :3, 2].T, -1, 1)
        pose = 0.5 * metres / max(metres.max(), 1e-9) + 0.5 * np.arccos(cosine) / np.pi
        features = np.stack([self._features[view] for view in chosen])
        image = 0.5 * (1 - np.clip(features @ features.T, -1, 1))
        distance = POSE_WEIGHT * pose + IMAGE_WEIGHT * image / max(image.max(), 1e-9)
        taken = [int(service.argmax())]
        while len(taken) < limit:
            gain = distance[:, taken].min(axis=1) * quality
            gain[taken] = -1
            taken.append(int(gain.argmax()))
        return chosen[taken]

    # --- saving ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays that `from_state` takes back. The image feature is code and is not saved."""
        state = {"max_views": np.array(self.max_views, np.int64), "count": np.array(len(self._views), np.int64)}
        for i, view in enumerate(self._views):
            camera = view.camera
            state[f"{i}.image"] = view.image
            state[f"{i}.camera"] = np.array(
                [camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy], np.float64
            )
            state[f"{i}.world_from_camera"] = view.world_from_camera
            state[f"{i}.stamp_ns"] = np.array(view.stamp_ns, np.int64)
            if view.depth is not None:
                state[f"{i}.depth"] = view.depth
            if view.observed is not None:
                state[f"{i}.observed"] = view.observed
        return state

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray], *, feature: ImageFeature = image_feature) -> ViewBank:
        """The bank that `state` described.

        Raises:
            ValueError: an array is missing, or has a wrong type or shape.
        """
        bank = cls(_whole_number(state, "max_views"), feature=feature)
        count = _whole_number(state, "count")
        if not 0 <= count <= bank.max_views:
            raise InputError(f"The saved bank has {count} views, its bound is {bank.max_views}.")
        for i in range(count):
            missing = [n for n in ("image", "camera", "world_from_camera") if f"{i}.{n}" not in state]
            if missing:
                raise InputError(f"View {i} of the saved bank lacks its {', '.join(missing)}.")
            numbers = np.asarray(state[f"{i}.camera"], np.float64).reshape(-1)
            if len(numbers) != 6 or not np.isfinite(numbers).all():
                raise InputError(f"View {i} of the saved bank has a camera that is not six numbers.")
            depth, observed = state.get(f"{i}.depth"), state.get(f"{i}.observed")
            if depth is not None and not np.issubdtype(depth.dtype, np.floating):
                raise InputError(f"View {i} of the saved bank has a depth of {depth.dtype}; float32 was expected.")
            if observed is not None and observed.dtype != np.bool_:
                raise InputError(f"View {i} of the saved bank has a mask of {observed.dtype}; bool was expected.")
            camera = Camera(int(numbers[0]), int(numbers[1]), *numbers[2:].tolist())
            pose = check_poses(np.asarray(state[f"{i}.world_from_camera"])[None], f"View {i} of the saved bank")[0]
            stamp = _whole_number(state, f"{i}.stamp_ns")
            bank.add(View(np.asarray(state[f"{i}.image"]), camera, pose, depth, observed, stamp))
        return bank


def _whole_number(state: dict[str, np.ndarray], name: str) -> int:
    value = np.asarray(state.get(name, ())).reshape(-1)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise InputError(f"The saved bank's {name} should be one whole number.")
    return int(value[0])


def _is_imagined(view: View) -> bool:
    return view.observed is not None and not bool(view.observed.all())
