"""Loop closure: the pose graph over similarities, places that are seen again, and those that only look so."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import video_scene
from helpers.box_room import turned
from helpers.returning_walk import cut_in_two, drifted, maps_of, returning_walk
from helpers.video_scene import frame
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.poses import invert_pose
from worldstereo_ros.geometry.similarity import pose_errors
from worldstereo_ros.pipelines.pointmaps.keyframes import make_keyframe, verify_loop
from worldstereo_ros.pipelines.pointmaps.loops import LoopCloser, apply_closure
from worldstereo_ros.pipelines.pointmaps.pose_graph import (
    Edges,
    Similarities,
    chain_edges,
    close_loops,
    edge_errors,
    interpolate,
    optimise,
)
from worldstereo_ros.pipelines.pointmaps.session import Session
from worldstereo_ros.utils.errors import InputError

QUANTILE = 0.999


def circle(count, radius=2.0):
    poses = np.tile(np.eye(4), (count, 1, 1))
    for index, angle in enumerate(np.linspace(0, 2 * np.pi, count)):
        poses[index, :3, :3] = Rotation.from_euler("Y", -angle).as_matrix()
        poses[index, :3, 3] = radius * np.array([np.sin(angle), 0.02 * np.sin(3 * angle), 1 - np.cos(angle)])
    return poses


def edge(first, second, scale, pose):
    relative = Similarities(np.log([scale]), pose[None, :3, :3], pose[None, :3, 3])
    return Edges(np.array([first]), np.array([second]), relative, np.array([[0.02, 0.05, 0.08]]))


@pytest.fixture(scope="module")
def graph():
    truth = circle(40)
    estimate, logs = drifted(truth)
    nodes = Similarities.of_poses(estimate)
    return truth, estimate, logs, nodes, chain_edges(nodes, np.tile([0.01, 0.02, 0.03], (39, 1)))


def test_a_loop_takes_the_drift_away(graph):
    truth, estimate, logs, nodes, chain = graph
    assert np.abs(edge_errors(nodes, chain)).max() < 1e-9
    loop = edge(0, 39, np.exp(-logs[-1]), invert_pose(truth[0]) @ truth[-1])
    after, used = close_loops(nodes, chain, loop, QUANTILE)
    assert used.all()
    moved, scale = interpolate(after, nodes, np.arange(40), estimate, np.arange(40))
    assert pose_errors(moved, truth).ate_percent < 0.1 * pose_errors(estimate, truth).ate_percent
    assert scale[0] == 1
    assert scale[-1] == pytest.approx(np.exp(-logs[-1]), rel=0.05)
    np.testing.assert_array_equal(moved[0], estimate[0])


def test_a_wrong_loop_is_refused_alone_and_beside_a_right_one(graph):
    truth, _, logs, nodes, chain = graph
    right = edge(0, 39, np.exp(-logs[-1]), invert_pose(truth[0]) @ truth[-1])
    wrong = edge(0, 20, 1.0, np.eye(4))
    after, used = close_loops(nodes, chain, wrong, QUANTILE)
    assert not used.any()
    np.testing.assert_array_equal(after.translation, nodes.translation)
    _, used = close_loops(nodes, chain, right.joined(wrong), QUANTILE)
    assert used.tolist() == [True, False]
    with pytest.raises(InputError, match="node 77"):
        optimise(nodes, chain.joined(edge(0, 77, 1.0, np.eye(4))))


def test_frames_between_nodes_move_with_them(graph):
    truth, estimate, logs, nodes, chain = graph
    loop = edge(0, 39, np.exp(-logs[-1]), invert_pose(truth[0]) @ truth[-1])
    at = np.arange(0, 40, 3)
    few = nodes[at]
    after, used = close_loops(
        few, chain_edges(few, chain.sigma[at[:-1]] * 2), replace(loop, second=loop.second // 3), 1.0
    )
    assert used.all()
    moved, _ = interpolate(after, few, at, estimate, np.arange(40))
    assert pose_errors(moved, truth).ate_percent < 0.2 * pose_errors(estimate, truth).ate_percent
    steps = np.linalg.norm(np.diff(moved[:, :3, 3], axis=0), axis=1)
    assert steps.max() < 1.3 * np.median(steps)


def keyframe_of(image, depth, number):
    return make_keyframe(image, depth, maps_of(np.eye(4)[None], [depth]), 0, number)


def test_one_place_is_found_with_its_scale_and_another_is_not(monkeypatch):
    there = turned(4, 2)
    there[:3, 3] = [0.15, 0.02, 0.1]
    board = (0.0, 0.2, 2.2)
    first, second = frame(np.eye(4), board=board), frame(there, board=board)
    one = keyframe_of(first[0], first[1], 0)
    loop = verify_loop(one, keyframe_of(second[0], second[1] * np.float32(1.4), 60))
    assert loop is not None
    assert (loop.first, loop.second) == (0, 60)
    assert loop.relative.scale == pytest.approx(1 / 1.4, rel=0.03)
    np.testing.assert_allclose(loop.relative.translation, there[:3, 3], atol=0.03)
    np.testing.assert_allclose(loop.relative.rotation, there[:3, :3], atol=0.02)
    # The same board hangs in another room: its own points agree, all else does not.
    textures = video_scene.TEXTURES.copy()
    textures[:6] = textures[:6, ::-1, ::-1, ::-1]
    monkeypatch.setattr(video_scene, "TEXTURES", textures)
    other = frame(there, board=board)
    assert verify_loop(one, keyframe_of(other[0], other[1], 60)) is None


@pytest.fixture(scope="module")
def returning():
    poses = returning_walk(46)
    shown = [frame(pose) for pose in poses]
    return invert_pose(poses[0]) @ poses, [each[0] for each in shown], [each[1] for each in shown]


def test_a_walk_that_returns_is_corrected(returning):
    poses, images, depths = returning
    estimate, logs = drifted(poses, turn=0.003, growth=0.005)
    grown = [depth * np.float32(np.exp(log)) for depth, log in zip(depths, logs, strict=True)]
    maps = maps_of(estimate, grown)
    closer = LoopCloser()
    for part in (slice(0, 20), slice(20, 46)):
        rows = np.arange(46)[part]
        closer.add(maps_of(estimate[rows], [grown[row] for row in rows]), images[part])
    closure = closer.close()
    assert closure.loops
    closed = apply_closure(maps, closure)
    before, after = pose_errors(estimate, poses), pose_errors(closed.poses, poses)
    assert after.ate_percent < 0.5 * before.ate_percent
    assert np.median(closed.depth[-1] / depths[-1]) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(closed.depth, maps.depth * closure.scale[:, None, None].astype(np.float32), rtol=1e-3)
    assert "seen again" in closed.messages[-1]


def test_a_session_writes_the_corrected_path(returning):
    poses, images, depths = returning
    estimate, logs = drifted(poses, turn=0.003, growth=0.005)
    maps = maps_of(estimate, [depth * np.float32(np.exp(log)) for depth, log in zip(depths, logs, strict=True)])
    ends = []
    for closing in (True, False):
        with Session(close_loops=closing) as session:
            session.add(maps, images, 0.1 * np.arange(46))
            views = session.views()
            assert (views.loops > 0) == closing
            assert any("seen again" in text for text in session.messages) == closing
            ends.append((pose_errors(views.poses, poses).ate_percent, np.median(views[45].depth / depths[45])))
    assert ends[0][0] < 0.5 * ends[1][0]
    assert ends[0][1] == pytest.approx(1, abs=0.05)
    assert ends[1][1] == pytest.approx(np.exp(logs[-1]), rel=1e-3)


def test_a_place_that_looks_the_same_is_refused_where_the_path_is_too_long(returning):
    poses, images, depths = returning
    far = poses.copy()
    far[:, 0, 3] += 0.5 * np.arange(len(far))  # 22 m, and no sign of drift
    closer = LoopCloser()
    maps = maps_of(far, depths, scale_from="given depth")
    closer.add(maps, images)
    closure = closer.close()
    assert not closure.loops
    assert closure.refused
    closed = apply_closure(maps, closure)
    np.testing.assert_array_equal(closed.poses, far)
    assert "not taken for one place" in closed.messages[-1]
    given = LoopCloser()
    given.add(maps_of(far, depths, scale_from="given poses"), images)
    assert not given.keyframes


def test_shots_that_show_one_place_are_joined(returning):
    rows, maps, images, poses, depths = cut_in_two(returning)
    closer = LoopCloser()
    for part, some in zip(maps, (rows[:14], rows[14:]), strict=True):
        closer.add(part, [images[row] for row in some])
    closure = closer.close()
    assert closure.shots is not None
    assert closure.shots.tolist() == [0] * 28
    assert "joined (1 to 0)" in closure.message
    np.testing.assert_allclose(closure.scale[14:], 1 / 1.4, rtol=0.05)
    np.testing.assert_allclose(closure.poses[:, :3, 3], poses[rows, :3, 3], atol=0.06)
    with Session() as session:
        for part, some in zip(maps, (rows[:14], rows[14:]), strict=True):
            session.add(part, [images[row] for row in some], 0.1 * some)
        views = session.views()
        assert len(views) == 28
        assert np.median(views[27].depth / depths[-1]) == pytest.approx(1, abs=0.05)
        summary = session._summary(views, 0)
        assert summary["shots"] == 1
        way = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
        assert summary["path_length"] == pytest.approx(way[:13].sum() + way[32:].sum(), rel=0.1)


def test_shots_of_two_places_stay_apart(returning, monkeypatch):
    rows, maps, images, _, _ = cut_in_two(returning)
    # Mirrored: turned by half a turn, the wall ahead would be the same one for a camera that is turned.
    monkeypatch.setattr(video_scene, "TEXTURES", np.ascontiguousarray(video_scene.TEXTURES[:, :, ::-1]))
    other = [frame(pose)[0] for pose in returning_walk(46)[rows[14:]]]
    closer = LoopCloser()
    closer.add(maps[0], [images[row] for row in rows[:14]])
    closer.add(maps[1], other)
    closure = closer.close()
    assert closure.shots is not None
    assert closure.shots.tolist() == [0] * 14 + [1] * 14
    assert not closure.message
    np.testing.assert_array_equal(closure.poses[14:], maps[1].poses)
