"""Loop closure while point maps come: drift, look-alikes, bounded memory, and shots that are joined or stay apart."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import video_scene
from helpers.box_room import turned
from helpers.returning_walk import drifted, maps_of, returning_walk
from helpers.video_scene import frame

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import Similarity, pose_errors, rotation_angles
from worldstereo_ros.pipelines.pointmaps import live_loops
from worldstereo_ros.pipelines.pointmaps.keyframes import Loop
from worldstereo_ros.pipelines.pointmaps.live_loops import LiveLoopCloser
from worldstereo_ros.pipelines.pointmaps.loops import LoopCloser

FRAMES, PART = 80, 5
STAMP_NS = 10**8  # between two frames


@pytest.fixture(scope="module")
def returning():
    poses = returning_walk(FRAMES)
    shown = [frame(pose) for pose in poses]
    return invert_pose(poses[0]) @ poses, [each[0] for each in shown], [each[1] for each in shown]


class Stream:
    """What comes out of a closer part by part."""

    def __init__(self, closer, path, images, depths, **options):
        self.closer, self.world, self.closings, self.count = closer, [], [], 0
        self.extend(path, images, depths, **options)

    def extend(self, path, images, depths, *, shot=0, scale_from="depth network", ok=None, **options):
        for first in range(0, len(path), PART):
            rows = slice(first, first + PART)
            maps = maps_of(path[rows], depths[rows], scale_from=scale_from)
            if ok is not None:
                maps = replace(maps, frame_ok=np.asarray(ok)[rows])
            stamps = STAMP_NS * (self.count + np.arange(len(maps)))
            self.count += len(maps)
            closing = self.closer.add(maps, images[rows], path[rows], shot=shot, stamps_ns=stamps, **options)
            if closing is not None:
                self.closings.append(closing)
            if self.closer.placed(shot):
                self.world += list(self.closer.world_from_path(shot).poses(path[rows]))


@pytest.fixture(scope="module")
def drift(returning):
    """A path that drifts by a quarter of a metre, and depth of its units."""
    poses, _, depths = returning
    path, logs = drifted(poses, turn=0.002, growth=0.003)
    return path, [depth * np.float32(np.exp(log)) for depth, log in zip(depths, logs, strict=True)]


def test_a_path_that_drifts_is_corrected_while_it_comes(returning, drift):
    poses, images, depths = returning
    path, grown = drift
    stream = Stream(LiveLoopCloser(), path, images, grown)
    closer, world = stream.closer, np.stack(stream.world)
    assert closer.loops_closed >= 2
    off = np.linalg.norm(path[-1, :3, 3] - poses[-1, :3, 3])
    assert np.linalg.norm(world[-1, :3, 3] - poses[-1, :3, 3]) < 0.3 * off
    assert rotation_angles(world[-1, :3, :3], poses[-1, :3, :3]) < 0.3 * rotation_angles(
        path[-1, :3, :3], poses[-1, :3, :3]
    )
    # Nothing that was said before the first loop changed afterwards; the past is another one on the keyframes' path.
    before = next(index for index, pose in enumerate(world) if not np.allclose(pose, path[index], atol=1e-9))
    assert before >= 30
    stamps, keyframes = closer.keyframe_path()
    true = poses[stamps // STAMP_NS]
    assert pose_errors(keyframes, true).ate_percent < 0.3 * pose_errors(path[stamps // STAMP_NS], true).ate_percent
    # The unit is that of the beginning again.
    factor = closer.world_from_path(0).scale
    assert np.median(factor * grown[-1] / depths[-1]) == pytest.approx(1, abs=0.05)
    moves = [each for each in stream.closings if each.moved]
    assert moves[-1] is closer.last_correction
    assert max(each.shift for each in moves) > 0.02


def test_a_correction_takes_the_world_before_to_the_world_after(returning, drift):
    path, grown = drift
    _, images, _ = returning
    stream = Stream(LiveLoopCloser(), path, images, grown)
    moves = [each for each in stream.closings if each.moved]
    # Keyframes as they were first placed, moved by each correction that came after them, are where the path has them.
    stamps, keyframes = stream.closer.keyframe_path()
    first = path[0]
    for each in moves:
        assert each.correction is not None
        first, scale = each.correction.pose(first, 0)
        assert scale == pytest.approx(1)
    np.testing.assert_allclose(first, keyframes[0], atol=1e-6)  # the beginning stays
    late = int(np.flatnonzero(stamps == moves[0].correction.stamps_ns[-1])[0])
    pose = path[stamps[late] // STAMP_NS]
    for each in moves:
        pose, _ = each.correction.pose(pose, int(stamps[late]))
    np.testing.assert_allclose(pose, keyframes[late], atol=1e-6)
    points = path[stamps[late] // STAMP_NS][None, :3, 3]
    for each in moves:
        points, _ = each.correction.points(points, stamps[late : late + 1])
    np.testing.assert_allclose(points[0], keyframes[late][:3, 3], atol=1e-5)


def test_it_accepts_what_is_accepted_at_the_end_of_a_video(returning, drift):
    path, grown = drift
    _, images, _ = returning
    live = Stream(LiveLoopCloser(), path, images, grown).closer
    closer = LoopCloser()
    closer.add(maps_of(path, grown), images)
    closure = closer.close()
    stamps, keyframes = live.keyframe_path()
    frames = stamps // STAMP_NS
    apart = np.linalg.norm(keyframes[:, :3, 3] - closure.poses[frames, :3, 3], axis=1)
    moved = np.linalg.norm(path[frames, :3, 3] - closure.poses[frames, :3, 3], axis=1)
    assert apart.max() < 0.25 * moved.max()


def test_a_place_that_only_looks_the_same_is_refused(returning):
    poses, images, depths = returning
    far = poses.copy()
    far[:, 0, 3] += 0.5 * np.arange(len(far))  # 40 m, and no sign of drift
    stream = Stream(LiveLoopCloser(), far, images, depths, scale_from="given depth", measured=True)
    assert stream.closer.refused > 0
    assert stream.closer.loops_closed == 0
    np.testing.assert_allclose(np.stack(stream.world), far, atol=1e-9)
    assert not [each for each in stream.closings if each.moved]


def test_without_loops_nothing_is_kept(returning, drift):
    path, grown = drift
    closer = LiveLoopCloser(close_loops=False)
    stream = Stream(closer, path, returning[1], grown)
    assert (len(closer), stream.closings, closer.placed(0), closer.placed(1)) == (0, [], True, False)
    np.testing.assert_array_equal(np.stack(stream.world), path)


def test_keyframes_are_bounded_and_loops_survive(returning, drift):
    path, grown = drift
    poses, images, _ = returning
    bounded = LiveLoopCloser(max_keyframes=14)
    sizes = []
    stream = Stream(bounded, path[:PART], images, grown)
    for first in range(PART, FRAMES, PART):
        rows = slice(first, first + PART)
        stream.extend(path[rows], images[rows], grown[rows])
        sizes.append(len(bounded))
    assert max(sizes) <= 14
    assert bounded.loops_closed >= 1
    off = np.linalg.norm(path[-1, :3, 3] - poses[-1, :3, 3])
    assert np.linalg.norm(stream.world[-1][:3, 3] - poses[-1, :3, 3]) < 0.4 * off
    stamps, _ = bounded.keyframe_path()
    assert stamps[0] == 0
    gaps = np.diff(stamps // STAMP_NS)
    assert gaps.max() <= 16  # of the whole way, not of its end alone


def two_shots(returning, size=1.4, turn=70):
    """The second part of the walk as a shot of its own, in another world and unit."""
    poses, images, depths = returning
    world = Similarity(size, turned(turn, 10)[:3, :3], np.array([4.0, 1.0, -2.0]))
    late = slice(55, FRAMES)
    path = world.poses(poses[late])
    return path, images[late], [depth * np.float32(size) for depth in depths[late]], poses[late]


def test_after_a_break_the_path_goes_on_in_the_first_shots_world(returning):
    poses, images, depths = returning
    stream = Stream(LiveLoopCloser(), poses[:25], images[:25], depths[:25])
    path, later, grown, true = two_shots(returning)
    stream.extend(path, later, grown, shot=1)
    closer = stream.closer
    assert (closer.shots_joined, closer.placed(1)) == (1, True)
    joined = [each.joined for each in stream.closings if each.joined]
    assert joined == [(1,)]
    assert closer.world_from_path(1).scale == pytest.approx(1 / 1.4, rel=0.05)
    np.testing.assert_allclose(closer.world_from_path(1).poses(path)[:, :3, 3], true[:, :3, 3], atol=0.06)
    _, keyframes = closer.keyframe_path()
    assert len(keyframes) > 10  # of both shots
    # From here on the path has the unit of the world: its steps are shorter, and it does not jump.
    ratio = closer.world_from_path(1).scale
    closer.path_rescaled(ratio)
    to_world = closer.world_from_path(1)
    assert to_world.scale == pytest.approx(1)
    np.testing.assert_allclose(to_world.poses(path[-1])[:3, 3], true[-1, :3, 3], atol=0.06)


def test_a_break_where_nothing_is_seen_again_stays_one(returning, monkeypatch):
    poses, images, depths = returning
    stream = Stream(LiveLoopCloser(), poses[:25], images[:25], depths[:25])
    path, _, grown, _ = two_shots(returning)
    # Mirrored: turned by half a turn, the wall ahead would be the same one for a camera that is turned.
    monkeypatch.setattr(video_scene, "TEXTURES", np.ascontiguousarray(video_scene.TEXTURES[:, :, ::-1]))
    other = [frame(pose)[0] for pose in returning_walk(FRAMES)[55:]]
    stream.extend(path, other, grown, shot=1)
    closer = stream.closer
    assert (closer.shots_joined, closer.placed(1), stream.closings) == (0, False, [])
    stamps, _ = closer.keyframe_path()
    assert stamps.max() < 25 * STAMP_NS  # of the first shot alone
    with pytest.raises(KeyError):
        closer.world_from_path(1)


def test_loops_between_joined_shots_are_closed(returning):
    """The second shot drifts after it was joined, and sees the first one's places again."""
    poses, images, depths = returning
    stream = Stream(LiveLoopCloser(), poses[:40], images[:40], depths[:40])
    back = np.arange(39, -1, -1)
    path, logs = drifted(invert_pose(poses[39]) @ poses[back], turn=0.004, growth=0.002)
    grown = [depths[row] * np.float32(np.exp(log)) for row, log in zip(back, logs, strict=True)]
    stream.extend(path, [images[row] for row in back], grown, shot=3)
    closer = stream.closer
    assert closer.shots_joined == 1
    assert closer.loops_closed > 0
    world = closer.world_from_path(3).poses(path[-1])
    alone = poses[39] @ path[-1]  # joined where it began, and never corrected
    assert np.linalg.norm(world[:3, 3] - poses[0, :3, 3]) < 0.5 * np.linalg.norm(alone[:3, 3] - poses[0, :3, 3])


def test_shots_that_were_never_joined_make_room(returning):
    poses, images, depths = returning
    closer = LiveLoopCloser(max_keyframes=10)
    stream = Stream(closer, poses[:15], images[:15], depths[:15])
    for shot in range(1, 8):  # of a uniform wall: nothing to recognise
        blank = [np.full_like(images[0], 90)] * PART
        stream.extend(np.tile(np.eye(4), (PART, 1, 1)), blank, depths[:PART], shot=shot)
        assert len(closer) <= 10
    assert closer.placed(0)
    assert len(closer.keyframe_path()[0]) >= 3


def test_a_first_shot_without_a_pose_is_no_world(returning):
    poses, images, depths = returning
    stream = Stream(LiveLoopCloser(), poses[:3], images[:3], depths[:3], ok=[False] * 3)
    assert not stream.closer.placed(0)
    stream.extend(poses[:PART], images[:PART], depths[:PART], shot=1)
    assert stream.closer.placed(1)


def test_stamps_that_run_back_tell_no_place(returning, drift):
    """The path is corrected all the same; what was remembered by such stamps cannot be moved."""
    path, grown = drift
    _, images, _ = returning
    closer, moved = LiveLoopCloser(), []
    for first in range(0, FRAMES, PART):
        rows = slice(first, first + PART)
        closing = closer.add(
            maps_of(path[rows], grown[rows]), images[rows], path[rows], shot=0, stamps_ns=[0] * PART
        )  # fmt: skip
        moved += [closing] if closing is not None and closing.moved else []
    assert moved
    assert all(each.correction is None for each in moved)


def test_the_most_redundant_loop_goes_first():
    identity = Similarity.identity()
    loops = [Loop(first, second, identity, 20) for first, second in ((0, 100), (50, 200), (52, 201), (10, 150))]
    assert live_loops._most_redundant(loops) in loops[1:3]
