"""Spatial-stereo memory (SSM): a bounded bank of views, and retrieval of references for new views."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.poses import check_poses, invert_pose
from worldstereo_ros.geometry.view_overlap import retrieval_scores
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory._view_memory import view_bytes, without_shared_buffers
from worldstereo_ros.utils.errors import InputError

logger = logging.getLogger(__name__)

# Weights of pose and appearance in the distance of two views.
POSE_WEIGHT = 0.3
IMAGE_WEIGHT = 0.7
MAX_VIEWS = 4096
DEFAULT_BYTES = 512 * 10**6  # twice 64 views of 640x480 with depth

ImageFeature = Callable[[np.ndarray], np.ndarray]


def image_feature(image: np.ndarray) -> np.ndarray:
    """Computes a cheap image descriptor: colours on an 8x8 grid and gradient histograms on a 4x4 grid.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (320,) float32 of norm 1; colours and gradients have equal norm.
    """
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    colour = small.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).ravel() - 0.5
    grey = small.mean(axis=2)
    dy, dx = np.gradient(grey)
    strength = np.hypot(dx, dy).reshape(4, 8, 4, 8)
    # Eight direction bins centred on horizontal and vertical edges, the most frequent ones in rooms.
    direction = (np.round(np.arctan2(dy, dx) * (4 / np.pi)).astype(int) % 8).reshape(4, 8, 4, 8)
    gradient = np.stack([(strength * (direction == k)).sum(axis=(1, 3)) for k in range(8)], axis=-1).ravel()
    return _unit(np.concatenate([_unit(colour), _unit(gradient)]))


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


@dataclass(frozen=True)
class Retrieval:
    """The retrieved reference of each target view.

    Attributes:
        index: (F,) int64 index into the bank's views, -1 if no view overlaps.
        score: (F,) float64 in 0..1, score of that view (`geometry.view_overlap.retrieval_scores`), 0 if there is none.
        angle: (F,) float64 degrees between the optical axes, 180 if there is none.
        distinct: the views that occur in `index`, ascending.
    """

    index: np.ndarray
    score: np.ndarray
    angle: np.ndarray
    distinct: list[int]


class ViewBank:
    """A list of views in insertion order, bounded in number and in bytes.

    When the bank is full, the most redundant views are evicted: the one most similar to another view in frustum and
    appearance, imagined views first. The newest observation is never evicted. Not thread-safe.

    Args:
        max_views: maximum number of views.
        max_bytes: maximum size of their images, depth and labels in bytes; a single view may exceed it.
        feature: maps an image (H, W, 3) uint8 to a 1-D descriptor; similarity is the cosine of two descriptors.

    Raises:
        InputError: `max_views` or `max_bytes` is out of range.
    """

    def __init__(
        self, max_views: int = 64, *, max_bytes: int = DEFAULT_BYTES, feature: ImageFeature = image_feature
    ) -> None:
        if max_bytes < 1:
            raise InputError(f"max_bytes is {max_bytes}; a positive number of bytes was expected.")
        if not 1 <= max_views <= MAX_VIEWS:
            raise InputError(f"max_views is {max_views}; between 1 and {MAX_VIEWS} was expected.")
        self.max_views, self.max_bytes = int(max_views), int(max_bytes)
        self.feature = feature
        self._bytes_reported = False
        self.clear()

    def clear(self) -> None:
        """Removes all views."""
        self._views: list[View] = []
        self._features: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._views)

    @property
    def nbytes(self) -> int:
        """Size of the views in bytes."""
        return sum(view_bytes(view) for view in self._views)

    @property
    def views(self) -> list[View]:
        """The views, oldest first. Do not modify the list; use `add` and `clear`."""
        return self._views

    @property
    def metric(self) -> bool | None:
        """Whether lengths are in metres, by the views; None if there are none."""
        return self._views[0].metric if self._views else None

    def add(self, view: View) -> int:
        """Adds a view. If the bank is full, other views are evicted and the indices after them decrease.

        The conditioning and the confidence of an imagined view are not stored.

        Returns:
            The index of the view; -1 if the view itself was evicted (an imagined view that is redundant).

        Raises:
            InputError: the descriptor is not finite, or its length differs from that of other views; or lengths of
                the view are in metres and those of the other views are not, or the other way round.
        """
        self.check_unit(view)
        feature = np.asarray(self.feature(view.image), dtype=np.float32).reshape(-1)
        if not np.isfinite(feature).all() or (self._features and feature.shape != self._features[0].shape):
            raise InputError(
                f"The image feature has shape {feature.shape}; finite numbers, one length for all views, were expected."
            )
        if type(view) is not View:
            view = View(
                view.image,
                view.camera,
                view.world_from_camera,
                view.depth,
                view.observed,
                view.stamp_ns,
                estimated=view.estimated,
                metric=view.metric,
            )
        view = without_shared_buffers(view)
        self._views.append(view)
        self._features.append(_unit(feature))
        size = self.nbytes
        if 1 < len(self._views) <= self.max_views and size > self.max_bytes and not self._bytes_reported:
            self._bytes_reported = True
            logger.info(
                "The bank of views is full at %d MB, with %d of at most %d views: the most redundant make room for new "
                "ones. To keep more, give it more memory (max_bank_memory of the node, max_bytes of ViewBank).",
                *(self.max_bytes // 10**6, len(self._views) - 1, self.max_views),
            )
        while len(self._views) > 1 and (len(self._views) > self.max_views or size > self.max_bytes):
            evicted = self._most_redundant()
            size -= view_bytes(self._views[evicted])
            del self._views[evicted], self._features[evicted]
        return len(self._views) - 1 if self._views[-1] is view else -1

    def check_unit(self, view: View) -> None:
        """Raises InputError if the view is in metres and the bank in an arbitrary unit, or the other way round."""
        if self.metric is not None and view.metric != self.metric:
            kinds = {True: "metres", False: "an arbitrary unit"}
            raise InputError(
                f"The lengths of the view are in {kinds[view.metric]}, and those in memory in {kinds[self.metric]}; "
                "the two are not mixed. Start with an empty memory (reset), or scale the recording to metres and set "
                "`metric` in its intrinsics.json."
            )

    def replace(self, index: int, view: View) -> None:
        """Replaces a view by one with the same image, such as one with better depth. Raises IndexError."""
        self._views[index] = view

    def _most_redundant(self) -> int:
        """Returns the index of the view to evict."""
        imagined = np.array([_is_imagined(view) for view in self._views])
        candidates = np.flatnonzero(imagined)
        if len(candidates) == 0:
            candidates = np.arange(len(self._views) - 1)  # all observed: keep the newest, the last
        scores, _ = self.scores(self._views[0].camera, np.stack([v.world_from_camera for v in self._views]))
        features = np.stack(self._features)
        similarity = scores * np.clip(features @ features.T, 0, 1)
        np.fill_diagonal(similarity, -1)
        # Two similar views have the same maximum; argmax takes the first of them, the older view.
        return int(candidates[similarity[candidates].max(axis=1).argmax()])

    def scores(self, camera: Camera, world_from_camera: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores all M views of the bank, which must not be empty, as references for target views.

        Args:
            camera: intrinsics and size of the target views.
            world_from_camera: (F, 4, 4) poses of the target views.

        Returns:
            (scores (F, M) in 0..1, angles (F, M) in degrees); see `geometry.view_overlap.retrieval_scores`.
        """
        size = camera.width, camera.height
        K = np.stack([view.camera.resized(*size).matrix for view in self._views])
        memory = invert_pose(np.stack([view.world_from_camera for view in self._views]))
        return retrieval_scores(invert_pose(world_from_camera), memory, camera.matrix, K, *size)

    def best_start_view(self, camera: Camera, world_from_camera: np.ndarray) -> View | None:
        """Returns the observation with the highest total score over a path; the newest of equal ones.

        Args:
            camera: intrinsics and size of the target views.
            world_from_camera: (F, 4, 4) poses of the path.

        Returns:
            The observation, or None if the bank has none.

        Raises:
            InputError: the poses are not finite rigid transforms.
        """
        poses = check_poses(world_from_camera)
        observations = np.flatnonzero([view.is_observation for view in self._views])
        if not len(observations):
            return None
        total = self.scores(camera, poses)[0].sum(axis=0)[observations]
        return self._views[observations[len(observations) - 1 - int(total[::-1].argmax())]]

    def retrieve(self, camera: Camera, world_from_camera: np.ndarray, limit: int = 8) -> Retrieval:
        """Retrieves the best reference for each pose of a path, at most `limit` different views.

        If the best views are more than `limit`, farthest-point sampling over pose and appearance, weighted by the
        scores, selects `limit` of them, and each pose gets the best of the selected views.

        Args:
            camera: intrinsics and size of the target views.
            world_from_camera: (F, 4, 4) poses of the target views.
            limit: maximum number of different views, >= 1.

        Raises:
            InputError: the poses are not finite rigid transforms, or the limit is below 1.
        """
        poses = check_poses(world_from_camera)
        if limit < 1:
            raise InputError(f"The limit is {limit}; at least 1 was expected.")
        count = len(poses)
        if not self._views:
            return Retrieval(np.full(count, -1), np.zeros(count), np.full(count, 180.0), [])
        scores, angles = self.scores(camera, poses)
        index = scores.argmax(axis=1)
        frames = np.arange(count)
        distinct = np.unique(index[scores[frames, index] > 0])
        if len(distinct) > limit:
            distinct = np.sort(self._sample_farthest(distinct, index, scores, limit))
            index = distinct[scores[:, distinct].argmax(axis=1)]
        score = scores[frames, index]
        found = score > 0
        return Retrieval(
            index=np.where(found, index, -1),
            score=np.where(found, score, 0.0),
            angle=np.where(found, angles[frames, index], 180.0),
            distinct=[int(i) for i in np.unique(index[found])],
        )

    def _sample_farthest(self, candidates: np.ndarray, index: np.ndarray, scores: np.ndarray, limit: int) -> np.ndarray:
        """Farthest-point sampling of `limit` candidates, starting with the one of the highest total score."""
        total = np.array([scores[index == view, view].sum() for view in candidates])
        quality = 0.5 + 0.5 * total / total.max()
        poses = np.stack([self._views[view].world_from_camera for view in candidates])
        metres = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=-1)
        cosine = np.clip(poses[:, :3, 2] @ poses[:, :3, 2].T, -1, 1)
        pose = 0.5 * metres / max(metres.max(), 1e-9) + 0.5 * np.arccos(cosine) / np.pi
        features = np.stack([self._features[view] for view in candidates])
        image = 0.5 * (1 - np.clip(features @ features.T, -1, 1))
        distance = POSE_WEIGHT * pose + IMAGE_WEIGHT * image / max(image.max(), 1e-9)
        selected = [int(total.argmax())]
        while len(selected) < limit:
            gain = distance[:, selected].min(axis=1) * quality
            gain[selected] = -1
            selected.append(int(gain.argmax()))
        return candidates[selected]

    # --- saving ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, np.ndarray]:
        """Returns the views as arrays, the input of `from_state`. The feature function is not included."""
        state = {"max_views": np.array(self.max_views, np.int64), "count": np.array(len(self._views), np.int64)}
        for i, view in enumerate(self._views):
            camera = view.camera
            state[f"{i}.image"] = view.image
            state[f"{i}.camera"] = np.array(
                [camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy], np.float64
            )
            state[f"{i}.world_from_camera"] = view.world_from_camera
            state[f"{i}.stamp_ns"] = np.array(view.stamp_ns, np.int64)
            if not view.metric:
                state[f"{i}.metric"] = np.array(False)
            for name in ("depth", "observed", "estimated", "depth_confidence"):
                array = getattr(view, name)
                if array is not None:
                    state[f"{i}.{name}"] = array
        return state

    @classmethod
    def from_state(
        cls, state: dict[str, np.ndarray], *, feature: ImageFeature = image_feature, like: ViewBank | None = None
    ) -> ViewBank:
        """Restores a bank from its `state`.

        Args:
            state: arrays of a saved bank.
            feature: see `ViewBank`.
            like: a bank whose limits and feature apply instead of the saved ones; the most redundant views are evicted
                if there are too many. None = as many bytes as the state has.

        Raises:
            InputError: an array is missing, or has a wrong type or shape.
        """
        size = max(DEFAULT_BYTES, sum(np.asarray(array).nbytes for array in state.values()))
        bank = cls(_read_integer(state, "max_views"), max_bytes=size, feature=feature)
        count = _read_integer(state, "count")
        if not 0 <= count <= bank.max_views:
            raise InputError(f"The saved bank has {count} views; its limit max_views is {bank.max_views}.")
        if like is not None:
            bank = cls(like.max_views, max_bytes=like.max_bytes, feature=like.feature)
        for i in range(count):
            missing = [n for n in ("image", "camera", "world_from_camera") if f"{i}.{n}" not in state]
            if missing:
                raise InputError(f"View {i} of the saved bank lacks its {', '.join(missing)}.")
            numbers = np.asarray(state[f"{i}.camera"], np.float64).reshape(-1)
            if len(numbers) != 6 or not np.isfinite(numbers).all():
                raise InputError(f"View {i} of the saved bank has a camera that is not six finite numbers.")
            depth, observed, estimated, depth_confidence = (
                state.get(f"{i}.{name}") for name in ("depth", "observed", "estimated", "depth_confidence")
            )
            for name, array in (("depth", depth), ("depth_confidence", depth_confidence)):
                if array is not None and not np.issubdtype(array.dtype, np.floating):
                    raise InputError(
                        f"View {i} of the saved bank has a {name} of type {array.dtype}; float32 was expected."
                    )
            for name, mask in (("observed", observed), ("estimated", estimated)):
                if mask is not None and mask.dtype != np.bool_:
                    raise InputError(
                        f"View {i} of the saved bank has the mask {name} of type {mask.dtype}; bool was expected."
                    )
            camera = Camera(int(numbers[0]), int(numbers[1]), *numbers[2:].tolist())
            pose = check_poses(np.asarray(state[f"{i}.world_from_camera"])[None], f"View {i} of the saved bank")[0]
            stamp = _read_integer(state, f"{i}.stamp_ns")
            image = np.asarray(state[f"{i}.image"])
            labels = {"estimated": estimated, "depth_confidence": depth_confidence}
            metric = bool(state.get(f"{i}.metric", True))
            bank.add(View(image, camera, pose, depth, observed, stamp, **labels, metric=metric))
        return bank


def _read_integer(state: dict[str, np.ndarray], name: str) -> int:
    value = np.asarray(state.get(name, ())).reshape(-1)
    if value.size != 1 or value.dtype.kind not in "iu":
        raise InputError(f"The saved bank's {name} is not an integer.")
    return int(value[0])


def _is_imagined(view: View) -> bool:
    return view.observed is not None and not bool(view.observed.all())
