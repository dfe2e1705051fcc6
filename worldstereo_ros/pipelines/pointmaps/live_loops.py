"""Loop closure while point maps come: keyframes of bounded number, and corrections that take effect from then on.

Three coordinate systems: the *path*, which never jumps and drifts; the *chain*, which is the path of the first shot,
and that of each joined shot moved to it by one similarity; and the *world*, which is the chain with its loops closed.
Candidates are verified and accepted as in `loops` and `joining`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldstereo_ros.geometry.path_correction import PathCorrection, between
from worldstereo_ros.geometry.similarity import Similarity, rotation_angles
from worldstereo_ros.pipelines.pointmaps.joining import place_shot
from worldstereo_ros.pipelines.pointmaps.keyframes import CANDIDATES, MIN_LIKENESS, Keyframe, Loop, verify_loop
from worldstereo_ros.pipelines.pointmaps.live_keyframes import (
    Node,
    keyframe_from,
    loop_edges,
    loop_sigma,
    moved_keyframe,
    similarity_of,
    thinned,
)
from worldstereo_ros.pipelines.pointmaps.loops import (
    DRIFT_QUANTILE,
    KEYFRAME_STEP,
    MAX_KEYFRAMES,
    MIN_GAP,
    link_sigma,
)
from worldstereo_ros.pipelines.pointmaps.pose_graph import Edges, Similarities, close_explained, explains
from worldstereo_ros.pipelines.pointmaps.types import Pointmaps

MIN_SPACING = KEYFRAME_STEP  # frames between two loops, both ends together; less tells the same
KEYFRAMES_A_LOOP = 5  # at least: of more loops the one nearest to another goes
MIN_SHIFT_DEPTHS, MIN_TURN_RAD = 0.004, 0.002  # of the keyframe that moves most; a smaller correction waits for more
MAX_UNIT_CHANGE = 0.1  # of the logarithm of the path's unit; more is no drift but another unit


@dataclass(frozen=True)
class Closing:
    """What was found and changed.

    Attributes:
        loops: number of loops that were closed now.
        joined: shots that were joined to the world now.
        correction: from the world before to the world after, by stamps; None if nothing that was placed before moved,
            or if stamps ran back, so that they tell no place.
        shift: distance that the newest placed keyframe moved, in the unit of the world.
        turn_deg: angle that it turned.
        moved: the world changed.
    """

    loops: int = 0
    joined: tuple[int, ...] = ()
    correction: PathCorrection | None = None
    shift: float = 0.0
    turn_deg: float = 0.0
    moved: bool = False


class LiveLoopCloser:
    """Recognises places while a path grows, corrects the world, and joins shots.

    Not thread-safe.

    Args:
        max_keyframes: kept at most; where there are more, shots that were never joined are dropped, then every other
            keyframe, and the step between them doubles. One takes about 0.1 MB.
        close_loops: False: nothing is kept, and nothing but the first shot has a place.

    Attributes:
        loops_closed, shots_joined: numbers so far.
        refused: loops that looked right, but which the drift of the path does not explain.
        last_correction: the newest `Closing` that moved the world; None before.
    """

    def __init__(self, *, max_keyframes: int = MAX_KEYFRAMES, close_loops: bool = True) -> None:
        self.max_keyframes, self.close_loops = max_keyframes, close_loops
        self.loops_closed = self.shots_joined = self.refused = 0
        self.last_correction: Closing | None = None
        self._nodes: list[Node] = []
        self._found: list[Loop] = []  # verified, not tested yet
        self._loops: list[Loop] = []
        self._joins: list[tuple[int, int]] = []  # frames of two shots
        self._verified: dict[tuple[int, int], Loop | None] = {}
        self._step, self._count = KEYFRAME_STEP, 0
        self._shot: int | None = None  # the current one
        self._last_frame, self._factor, self._end = 0, 1.0, np.eye(4)
        self._root: int | None = None
        self._chain_from_path: dict[int, Similarity] = {}  # of placed shots
        self._world_from_chain: dict[int, Similarity] = {}

    def __len__(self) -> int:
        """Number of keyframes."""
        return len(self._nodes)

    # --- where things are ---

    def placed(self, shot: int) -> bool:
        """Whether the place of a shot in the world is known: it is the first one, or was joined."""
        return shot in self._chain_from_path

    def chain_from_path(self, shot: int) -> Similarity:
        """Takes new poses of a placed shot from the path to the chain."""
        return self._chain_from_path[shot]

    def world_from_chain(self) -> dict[int, Similarity]:
        """Takes new poses of each placed shot from the chain to the world."""
        return dict(self._world_from_chain)

    def world_from_path(self, shot: int) -> Similarity:
        """Takes new poses of a placed shot from the path to the world."""
        return self._world_from_chain[shot].after(self._chain_from_path[shot])

    def keyframe_path(self) -> tuple[np.ndarray, np.ndarray]:
        """(K,) stamps in nanoseconds and (K, 4, 4) world_from_camera of the placed keyframes, as they are now."""
        nodes = self._placed_nodes()
        poses = np.stack([each.world_pose for each in nodes]) if nodes else np.zeros((0, 4, 4))
        return np.array([each.stamp_ns for each in nodes], np.int64), poses

    def _placed_nodes(self) -> list[Node]:
        return [each for each in self._nodes if self.placed(each.keyframe.shot)]

    # --- frames ---

    def add(
        self,
        maps: Pointmaps,
        images: Sequence[np.ndarray],
        poses: np.ndarray,
        *,
        shot: int,
        stamps_ns: Sequence[int],
        factor: float = 1.0,
        measured: bool = False,
    ) -> Closing | None:
        """Takes the next frames of a shot, and looks for places that were seen before.

        Args:
            maps: of F frames.
            images: the F images (H, W, 3) uint8 of any size.
            poses: (F, 4, 4) path_from_camera.
            shot: its number; a new one begins a shot, and no earlier one comes again.
            stamps_ns: of the F frames.
            factor: from the unit of the maps to that of the path.
            measured: the path has a unit that does not drift.

        Returns:
            What changed; None if nothing did.
        """
        found = np.flatnonzero(maps.frame_ok).tolist()
        if self._root is None and found:
            self._root = shot
            self._chain_from_path[shot] = self._world_from_chain[shot] = Similarity.identity()
        if not self.close_loops:
            return None
        if shot != self._shot:
            self._shot, self._last_frame, self._factor = shot, self._count - self._step, factor
            self._verified.clear()
        self._check_unit(factor)
        for f in found:
            frame = self._count + f
            if frame - self._last_frame >= self._step:
                self._last_frame = frame
                keyframe = keyframe_from(maps, images[f], f, frame, factor)
                self._append(replace(keyframe, shot=shot, measured=measured), poses[f], int(stamps_ns[f]))
            self._end = poses[f]
        self._count += len(maps)
        joined = self._join_all()
        closing = self._close()
        if len(self._nodes) > self.max_keyframes:
            self._thin()
        if closing is not None and closing.moved:
            self.last_correction = closing
        if not joined:
            return closing
        return replace(closing or Closing(), joined=joined)

    def path_rescaled(self, ratio: float) -> None:
        """Tells that the path's unit changes by a factor from its last pose on; the world stays as it is."""
        shot = self._shot
        if shot is None or not self.placed(shot):
            return
        old, centre = self._chain_from_path[shot], self._end[:3, 3]
        scale = old.scale / ratio
        shift = old.points(centre) - scale * old.rotation @ centre
        self._chain_from_path[shot] = Similarity(scale, old.rotation, shift)
        self._factor *= ratio

    def _check_unit(self, factor: float) -> None:
        """Where the path took another unit, keeps the world's, or forgets keyframes that are not yet tied to it."""
        ratio = factor / self._factor
        if abs(np.log(ratio)) > MAX_UNIT_CHANGE:
            if self._shot != self._root and self._shot in self._chain_from_path:
                self.path_rescaled(ratio)
            else:
                self._forget({self._shot})
        self._factor = factor

    def _append(self, keyframe: Keyframe, pose: np.ndarray, stamp_ns: int) -> None:
        shot = keyframe.shot
        to_chain = self._chain_from_path.get(shot, Similarity.identity())
        keyframe = moved_keyframe(replace(keyframe, pose=pose), to_chain)
        to_world = self._world_from_chain.get(shot, Similarity.identity())
        before = next((each for each in reversed(self._nodes) if each.keyframe.shot == shot), None)
        link = None
        if before is not None:
            link = link_sigma(before.keyframe, keyframe, before.keyframe.measured and keyframe.measured)
        node = Node(keyframe, stamp_ns, to_world.after(similarity_of(keyframe.pose)), link)
        if self.placed(shot):
            self._search(keyframe)
        self._nodes.append(node)

    def _search(self, keyframe: Keyframe) -> None:
        """Verifies the older keyframes that look most like a new one."""
        older = [each.keyframe for each in self._placed_nodes() if keyframe.frame - each.keyframe.frame >= MIN_GAP]
        if not older:
            return
        likeness = np.stack([each.feature for each in older]) @ keyframe.feature
        for row in np.argsort(-likeness)[:CANDIDATES]:
            loop = verify_loop(older[row], keyframe) if likeness[row] >= MIN_LIKENESS else None
            if loop is not None:
                self._found.append(loop)

    # --- shots ---

    def _join_all(self) -> tuple[int, ...]:
        """Joins the current shot, and then those that it makes recognisable; returns their numbers."""
        if self._shot is None or self.placed(self._shot) or not self._join(self._shot):
            return ()
        joined, waiting, grown = [self._shot], self._unplaced(), True
        while grown and waiting:
            grown = False
            for shot in waiting:
                if self._join(shot):
                    joined.append(shot)
                    grown = True
            waiting = self._unplaced()
        self.shots_joined += len(joined)
        return tuple(joined)

    def _unplaced(self) -> list[int]:
        return sorted({each.keyframe.shot for each in self._nodes if not self.placed(each.keyframe.shot)})

    def _join(self, shot: int) -> bool:
        target, source = self._placed_nodes(), [each for each in self._nodes if each.keyframe.shot == shot]
        poses = {each.keyframe.frame: each.keyframe.pose for each in source}
        scale = dict.fromkeys(poses, 1.0)
        poses |= {each.keyframe.frame: each.world_pose for each in target}
        scale |= {each.keyframe.frame: each.world.scale for each in target}
        found = place_shot(
            [each.keyframe for each in target], [each.keyframe for each in source], poses, scale, self._verify
        )
        if found is None:
            return False
        one = next(each for each in target if each.keyframe.frame == found.pair.first)
        world_from_chain = one.world.after(similarity_of(one.keyframe.pose).inverse())
        chain_from_path = world_from_chain.inverse().after(found.similarity)
        for node in source:
            node.keyframe = moved_keyframe(node.keyframe, chain_from_path)
            node.world = world_from_chain.after(similarity_of(node.keyframe.pose))
            if node.link is not None:
                node.link = node.link * [1, chain_from_path.scale, 1]
        self._chain_from_path[shot], self._world_from_chain[shot] = chain_from_path, world_from_chain
        self._joins.append((found.pair.first, found.pair.second))
        self._verified.clear()  # the unit of these keyframes is another one
        return True

    def _verify(self, one: Keyframe, two: Keyframe) -> Loop | None:
        pair = one.frame, two.frame
        if pair not in self._verified:
            self._verified[pair] = verify_loop(one, two)
        return self._verified[pair]

    # --- loops ---

    def _close(self) -> Closing | None:
        """Tests the loops that were found, and corrects the world by all that are accepted."""
        candidates = sorted(self._found, key=lambda loop: -loop.inliers)
        self._found = []
        nodes = self._placed_nodes()
        rows = {each.keyframe.frame: row for row, each in enumerate(nodes)}
        fresh: list[Loop] = []
        for loop in candidates:
            known = loop.first in rows and loop.second in rows
            if known and all(_apart(loop, other) > MIN_SPACING for other in (*self._loops, *fresh)):
                fresh.append(loop)
        if not fresh:
            return None
        start = Similarities.of_poses(np.stack([each.keyframe.pose for each in nodes]))
        chain = self._chain(nodes, rows, start)
        good = [loop for loop in fresh if explains(start, chain, loop_edges([loop], nodes, rows), DRIFT_QUANTILE)]
        self.refused += len(fresh) - len(good)
        if not good:
            return None
        self._loops += good
        while len(self._loops) > max(1, self.max_keyframes // KEYFRAMES_A_LOOP):
            self._loops.remove(_most_redundant(self._loops))
        worlds = Similarities.of([each.world for each in nodes])
        after, used = close_explained(worlds, chain, loop_edges(self._loops, nodes, rows), DRIFT_QUANTILE)
        self.refused += int((~used).sum())
        self._loops = [loop for loop, kept in zip(self._loops, used, strict=True) if kept]
        new = sum(loop in self._loops for loop in good)
        self.loops_closed += new
        return self._corrected(nodes, after, new)

    def _chain(self, nodes: list[Node], rows: dict[int, int], start: Similarities) -> Edges:
        """What ties the keyframes without loops: the way from each to the next, and the pairs that joined shots."""
        last: dict[int, int] = {}
        first: list[int] = []
        second: list[int] = []
        sigma: list[np.ndarray] = []
        for row, node in enumerate(nodes):
            before = last.get(node.keyframe.shot)
            if before is not None and node.link is not None:
                first.append(before)
                second.append(row)
                sigma.append(node.link)
            last[node.keyframe.shot] = row
        for one, two in self._joins:
            a, b = rows[one], rows[two]
            first.append(a)
            second.append(b)
            sigma.append(loop_sigma(nodes[a], nodes[b]))
        at, to = np.array(first, np.int64), np.array(second, np.int64)
        return Edges(at, to, start[at].relative(start[to]), np.reshape(sigma, (-1, 3)))

    def _corrected(self, nodes: list[Node], after: Similarities, loops: int) -> Closing | None:
        """Moves the world, unless the change is too small to matter."""
        worlds = [
            Similarity(float(np.exp(scale)), rotation, shift)
            for scale, rotation, shift in zip(after.log_scale, after.rotation, after.translation, strict=True)
        ]
        both = [(node.world, world) for node, world in zip(nodes, worlds, strict=True)]
        shift = np.array([np.linalg.norm(old.translation - new.translation) for old, new in both])
        turn = np.array([rotation_angles(old.rotation, new.rotation) for old, new in both])
        depth = np.array([each.keyframe.median_depth * each.world.scale for each in nodes])
        if (shift < MIN_SHIFT_DEPTHS * depth).all() and (turn < MIN_TURN_RAD).all():
            return Closing(loops) if loops else None
        stamps = [each.stamp_ns for each in nodes]
        correction = None
        if (np.diff(stamps) > 0).all():
            correction = between(both, stamps)
        for node, world in zip(nodes, worlds, strict=True):
            node.world = world
            # In time order: the last keyframe of a shot says where what follows is.
            self._world_from_chain[node.keyframe.shot] = world.after(similarity_of(node.keyframe.pose).inverse())
        return Closing(loops, (), correction, float(shift[-1]), float(np.degrees(turn[-1])), moved=True)

    # --- bounded memory ---

    def _thin(self) -> None:
        """Forgets shots that were never joined, then every other keyframe, then whole shots of the past."""
        self._forget({each for each in self._unplaced() if each != self._shot})
        if len(self._nodes) > self.max_keyframes:
            self._step *= 2
            ends = {frame for loop in (*self._loops, *self._found) for frame in (loop.first, loop.second)}
            ends |= {frame for pair in self._joins for frame in pair}
            self._nodes = thinned(self._nodes, ends)
        while len(self._nodes) > self.max_keyframes and (shot := self._oldest_leaf()) is not None:
            self._forget({shot})

    def _oldest_leaf(self) -> int | None:
        """A shot of the past that no other one is joined by; None if there is none."""
        shot_of = {each.keyframe.frame: each.keyframe.shot for each in self._nodes}
        ties = [shot_of[frame] for pair in self._joins for frame in pair]
        past = sorted(set(shot_of.values()) - {self._root, self._shot})
        return next((shot for shot in past if ties.count(shot) < 2), None)

    def _forget(self, shots: set[int] | set[int | None]) -> None:
        gone = {each.keyframe.frame for each in self._nodes if each.keyframe.shot in shots}
        self._nodes = [each for each in self._nodes if each.keyframe.frame not in gone]
        self._loops, self._found = (
            [loop for loop in loops if loop.first not in gone and loop.second not in gone]
            for loops in (self._loops, self._found)
        )
        self._joins = [pair for pair in self._joins if pair[0] not in gone and pair[1] not in gone]


def _apart(one: Loop, two: Loop) -> int:
    return abs(one.first - two.first) + abs(one.second - two.second)


def _most_redundant(loops: Sequence[Loop]) -> Loop:
    return min(loops, key=lambda one: min(_apart(one, two) for two in loops if two is not one))
