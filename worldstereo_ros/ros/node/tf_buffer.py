"""A buffer of transforms between frames over time, for where tf2_ros is not installed. Imports no rclpy.

`TransformBuffer` is not built on `geometry.pose_tracks`, which looks up complete recordings: its tracks are sorted
arrays, which each new sample rebuilds. With 10 s of samples at 100 Hz, an insertion and a lookup take 20 to 30 times as
long, and limits of the cache, time jumps, the newest common stamp and the checks of transforms would have to be added.
"""

from __future__ import annotations

import bisect
import heapq
import threading
from typing import NamedTuple, Protocol

import numpy as np
from pytransform3d.transformations import transform_from_pq

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.ros.node.tf_track import TransformTrack
from worldstereo_ros.utils.errors import WorldStereoError

TIME_JUMP_NS = 2_000_000_000  # a stamp this much older than the newest one means that time jumped back (a bag loops)
MAX_CHAIN = 100  # frames from a leaf to the root; ends the search in a cyclic tree
MAX_LISTED_FRAMES = 12  # in error messages
MAX_FRAMES = 10_000  # with a transform to a parent; further ones are refused
MAX_SAMPLES = 2_000_000  # of all frames together, 72 bytes each; the oldest are removed
MAX_NAME_LENGTH = 256  # of a frame, in characters
MAX_NORM_ERROR = 0.01  # of a quaternion that counts as a rotation
MIN_EXPIRED = 64  # samples that are removed at once, because removing the head of a list costs its length


class TransformUnavailableError(WorldStereoError, LookupError):
    """A transform is not available; the message says why.

    Attributes:
        may_arrive: the transform may become available, so waiting helps.
        no_camera_frame: the name of the camera's frame is not known yet.
    """

    def __init__(self, message: str, *, may_arrive: bool, no_camera_frame: bool = False) -> None:
        super().__init__(message)
        self.may_arrive, self.no_camera_frame = may_arrive, no_camera_frame


class TransformSource(Protocol):
    """What the node needs of TF."""

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """Returns the transform between two frames.

        Args:
            target, source: frame ids.
            stamp_ns: time; None = the newest time at which all transforms of the chain are known.

        Returns:
            (target_from_source (4, 4) float64, its stamp in nanoseconds; 0 if the whole chain is static).

        Raises:
            TransformUnavailableError: a frame is unknown, or a transform is not known at that time.
        """
        ...

    def discard_after(self, stamp_ns: int) -> None:
        """Removes later transforms, except static ones, after time jumped back to `stamp_ns`."""
        ...

    def close(self) -> None:
        """Stops listening."""
        ...


class Insertion(NamedTuple):
    """What became of an inserted transform.

    Attributes:
        refused: why it was ignored; "" if it was inserted.
        jumped_back: time jumped back, so that the older samples of this frame were removed.
        old_parent: the frame's parent until now, if it got another one; else "".
    """

    refused: str = ""
    jumped_back: bool = False
    old_parent: str = ""


class _Link(NamedTuple):
    """A step from a frame to its parent at a time; `sample` of the track, -1 for the static transform."""

    child: str
    track: TransformTrack
    sample: int


class TransformBuffer:
    """A tree of frames over time that interpolates between samples. Safe to use from several threads.

    Each sample keeps its parent, so that a frame may move from one parent to another: a lookup follows the tree of its
    time. The numbers of frames and samples are bounded by MAX_FRAMES and MAX_SAMPLES: frames that were looked up are
    never removed.

    Args:
        cache_time: seconds that samples are kept.
    """

    def __init__(self, cache_time: float = 10.0) -> None:
        self._cache_ns = int(cache_time * 1e9)
        self._tracks: dict[str, TransformTrack] = {}
        self._used: set[str] = set()  # frames of the successful lookups
        self._newest_ns = 0
        self._sample_count = 0
        self._refused = 0  # frames since the last search for old ones
        self._lock = threading.Lock()

    def insert(
        self,
        parent: str,
        child: str,
        translation: tuple[float, float, float],
        quaternion_wxyz: tuple[float, float, float, float],
        stamp_ns: int,
        *,
        static: bool = False,
    ) -> Insertion:
        """Inserts `parent_from_child`. Invalid transforms (not finite, no rotation, no frame id) are ignored.

        Returns:
            What became of it. A transform of a new frame is refused while MAX_FRAMES others are known.
        """
        parent, child = parent.lstrip("/"), child.lstrip("/")
        sample = np.array([*translation, *quaternion_wxyz], dtype=np.float64)
        refused = _reason_to_refuse(parent, child, sample)
        if refused:
            return Insertion(refused)
        sample[3:] /= np.linalg.norm(sample[3:])
        with self._lock:
            track = self._tracks.get(child)
            old_parent = "" if track is None else track.newest_parent
            if track is None:
                if len(self._tracks) >= MAX_FRAMES and not self._make_room():
                    return Insertion(f"The buffer is full: {MAX_FRAMES} frames are known. Stop publishing unused ones.")
                track = self._tracks[child] = TransformTrack()
            changed = old_parent if old_parent != parent else ""
            if static:
                track.static = (parent, transform_from_pq(sample))
                return Insertion(old_parent=changed)
            track.static = None
            jumped_back = bool(track.stamps) and stamp_ns < track.stamps[-1] - TIME_JUMP_NS
            if jumped_back:
                self._sample_count -= track.keep(len(track.stamps))
                self._newest_ns = stamp_ns
            self._newest_ns = max(self._newest_ns, stamp_ns)
            self._sample_count += track.insert(stamp_ns, parent, sample)
            expired = bisect.bisect_left(track.stamps, track.stamps[-1] - self._cache_ns)
            if expired > MIN_EXPIRED:
                self._sample_count -= track.keep(expired)
            if self._sample_count > MAX_SAMPLES:
                self._shorten_tracks()
            # A sample that arrives late says nothing of the newest parent.
            return Insertion("", jumped_back, changed if track.newest_parent == parent else "")

    def lookup(self, target: str, source: str, stamp_ns: int | None) -> tuple[np.ndarray, int]:
        """See `TransformSource.lookup`."""
        target, source = target.lstrip("/"), source.lstrip("/")
        with self._lock:
            if stamp_ns is None:
                stamp_ns = self._newest_common_stamp(target, source)
            from_source, failure = self._links(source, stamp_ns)
            from_target, other_failure = self._links(target, stamp_ns)
            frames = [*(link.child for link in from_source), _end(from_source, source)]
            ancestors = [*(link.child for link in from_target), _end(from_target, target)]
            known = set(ancestors)
            steps = next((step for step, frame in enumerate(frames) if frame in known), None)
            if steps is None:
                failure = failure or other_failure
                if failure is not None and self._connected(target, source):
                    raise failure
                raise TransformUnavailableError(self._not_connected_message(target, source), may_arrive=True)
            source_links, target_links = from_source[:steps], from_target[: ancestors.index(frames[steps])]
            pose = invert_pose(_compose(target_links, stamp_ns)) @ _compose(source_links, stamp_ns)
            self._used.update(link.child for link in (*source_links, *target_links))
            return pose, stamp_ns

    def discard_after(self, stamp_ns: int) -> None:
        """See `TransformSource.discard_after`."""
        with self._lock:
            self._newest_ns = min(self._newest_ns, stamp_ns)
            for child, track in list(self._tracks.items()):
                count = bisect.bisect_right(track.stamps, stamp_ns + TIME_JUMP_NS)
                self._sample_count -= track.keep(0, count)
                if not count and track.static is None:
                    del self._tracks[child]

    def close(self) -> None:
        """See `TransformSource.close`. This class has no subscriptions."""

    def frames(self) -> list[str]:
        """Ids of all frames, sorted."""
        with self._lock:
            return sorted(set(self._tracks) | {track.newest_parent for track in self._tracks.values()})

    def sample_count(self, child: str) -> int:
        """Number of samples that are kept of a frame's transform to its parent."""
        with self._lock:
            track = self._tracks.get(child)
            return 0 if track is None else len(track.stamps)

    # --- limits ---

    def _make_room(self) -> bool:
        """Removes frames that were never looked up and have been silent for `cache_time`.

        Returns whether there is room. A search visits all frames, so only one in a thousand refused transforms starts
        one.
        """
        self._refused += 1
        if self._refused % 1000 != 1:
            return False
        oldest = self._newest_ns - self._cache_ns
        for child, track in list(self._tracks.items()):
            if track.static is None and child not in self._used and track.stamps[-1] < oldest:
                self._sample_count -= len(track.stamps)
                del self._tracks[child]
        return len(self._tracks) < MAX_FRAMES

    def _shorten_tracks(self) -> None:
        """Removes the oldest samples until three quarters of MAX_SAMPLES are left; the newest of a frame stays."""
        tracks = [track for track in self._tracks.values() if track.stamps]
        for track in tracks:
            expired = bisect.bisect_left(track.stamps, self._newest_ns - self._cache_ns)
            self._sample_count -= track.keep(min(expired, len(track.stamps) - 1))
        if self._sample_count > 3 * MAX_SAMPLES // 4:
            share = max(3 * MAX_SAMPLES // 4 // len(tracks), 1)
            for track in tracks:
                self._sample_count -= track.keep(max(len(track.stamps) - share, 0))

    # --- the tree ---

    def _newest_common_stamp(self, target: str, source: str) -> int:
        """The newest time at which all transforms between two frames are known, in the newest tree; 0 if all static."""
        from_source, from_target = self._newest_chain(source), self._newest_chain(target)
        known = set(from_target)
        common = next((frame for frame in from_source if frame in known), None)
        if common is None:
            raise TransformUnavailableError(self._not_connected_message(target, source), may_arrive=True)
        between = from_source[: from_source.index(common)] + from_target[: from_target.index(common)]
        tracks = [self._tracks[frame] for frame in between]
        return min((track.stamps[-1] for track in tracks if track.static is None), default=0)

    def _newest_chain(self, frame: str) -> list[str]:
        """The frame and its ancestors in the newest tree."""
        chain = [frame]
        while chain[-1] in self._tracks and len(chain) < MAX_CHAIN:
            chain.append(self._tracks[chain[-1]].newest_parent)
        return chain

    def _connected(self, target: str, source: str) -> bool:
        return bool(set(self._newest_chain(target)) & set(self._newest_chain(source)))

    def _links(self, frame: str, stamp_ns: int) -> tuple[list[_Link], TransformUnavailableError | None]:
        """Steps from a frame towards the root of the tree at a time, and why they end before it."""
        links: list[_Link] = []
        while len(links) < MAX_CHAIN:
            track = self._tracks.get(frame)
            if track is None:
                return links, None
            if track.static is not None:
                links.append(_Link(frame, track, -1))
            else:
                try:
                    links.append(_Link(frame, track, track.index_at(stamp_ns)))
                except IndexError:
                    return links, _outside(frame, track, stamp_ns)
            frame = _end(links, frame)
        return links, None

    def _not_connected_message(self, target: str, source: str) -> str:
        if not self._tracks:
            return f"No transform received, so {target} <- {source} is unknown. Check that /tf is published."
        frames = set(self._tracks) | {track.newest_parent for track in self._tracks.values()}
        # The smallest ones: sorting thousands of frames for each image that waits would take all the time.
        listed = ", ".join(heapq.nsmallest(MAX_LISTED_FRAMES, frames)) + (
            " ..." if len(frames) > MAX_LISTED_FRAMES else ""
        )
        missing = [frame for frame in (target, source) if frame not in frames]
        if missing:
            return f"TF has no frame '{missing[0]}', so {target} <- {source} is unknown. Known frames: {listed}."
        return f"TF has no connection between '{target}' and '{source}'. Known frames: {listed}."


def _reason_to_refuse(parent: str, child: str, sample: np.ndarray) -> str:
    """Why a transform is invalid; "" if it is valid."""
    if not parent or not child:
        return "A frame id is empty."
    if max(len(parent), len(child)) > MAX_NAME_LENGTH:
        return f"A frame id has more than {MAX_NAME_LENGTH} characters."
    if parent == child:
        return "A frame is its own parent."
    if not np.isfinite(sample).all():
        return "A number is not finite."
    norm = float(np.linalg.norm(sample[3:]))
    if abs(norm - 1) > MAX_NORM_ERROR:
        return f"The quaternion has norm {norm:.3g}; norm 1 was expected."
    return ""


def _end(links: list[_Link], start: str) -> str:
    """The frame that the steps lead to."""
    if not links:
        return start
    _, track, sample = links[-1]
    return track.newest_parent if sample < 0 else track.parents[sample]


def _compose(links: list[_Link], stamp_ns: int) -> np.ndarray:
    """Product of the transforms of `links`, ordered from the leaf to the common frame."""
    pose = np.eye(4)
    for _, track, sample in links:
        pose = track.matrix_at(sample, stamp_ns) @ pose
    return pose


def _outside(child: str, track: TransformTrack, stamp_ns: int) -> TransformUnavailableError:
    """Why there is no transform at a time outside the samples."""
    if stamp_ns > track.stamps[-1]:
        late = (stamp_ns - track.stamps[-1]) / 1e9
        return TransformUnavailableError(
            f"The transform {track.parents[-1]} <- {child} is {late:.3f} s too old for stamp {stamp_ns / 1e9:.3f}. "
            "Check that its publisher runs and that all nodes have the same use_sim_time.",
            may_arrive=True,
        )
    early = (track.stamps[0] - stamp_ns) / 1e9
    return TransformUnavailableError(
        f"The stamp {stamp_ns / 1e9:.3f} is {early:.3f} s older than all cached transforms {track.parents[0]} <- "
        f"{child}. Check the clock of the image's publisher, or increase `tf_cache_time`.",
        may_arrive=False,
    )
