import math
import re

import numpy as np
import pytest
from helpers.floor_plans import CAMERA, around, boxes, drive, look, mapped

from worldstereo_ros.geometry.views import View
from worldstereo_ros.planning import RobotShape, ScoreWeights, next_best_view, score_paths
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.path_scores import MAX_PATHS, MAX_POSES
from worldstereo_ros.planning.travel import TravelField, traversable
from worldstereo_ros.planning.visibility import Sensor
from worldstereo_ros.scenes.paths import camera_pose
from worldstereo_ros.utils.errors import InputError

BOXED = boxes(((1.5, 0.0, 0.5), (0.4, 1.0, 1.0)))


@pytest.fixture(scope="module")
def grid():
    """The room with a box ahead, seen from the middle towards positive x only."""
    return make_grid(mapped(BOXED, *(look(BOXED, -0.5, 0, yaw) for yaw in (-0.9, 0.0, 0.9))))


def test_a_path_into_a_box_collides_and_one_beside_it_does_not(grid):
    scores = score_paths(grid, {"into": drive((0.3, 0), (1.5, 0)), "beside": drive((0.3, 0), (0.9, 0.9))})
    into, beside = scores.scores
    assert into.collision_probability > 0.9
    assert into.clearance == 0
    assert beside.collision_probability < 0.15
    assert beside.clearance > 0.2
    assert scores.winner.name == "beside"
    assert "collision probability" in scores.reason
    assert "'beside' before 'into'" in scores.reason
    first_hit = int(np.argmax(into.pose_collision > 0.5))
    x = drive((0.3, 0), (1.5, 0))[first_hit, 0, 3]
    assert 0.9 < x < 1.5  # the box begins at 1.3, the robot's radius is 0.2
    assert len(into.pose_collision) == len(into.pose_clearance) == len(drive((0.3, 0), (1.5, 0)))


def test_a_larger_robot_has_less_clearance_and_collides_more(grid):
    path = [drive((0.3, -0.5), (1.5, -0.85))]
    occupancy = mapped(BOXED, *(look(BOXED, -0.5, 0, yaw) for yaw in (-0.9, 0.0, 0.9)))
    small, large = (score_paths(make_grid(occupancy, RobotShape(radius=radius)), path).winner for radius in (0.1, 0.5))
    assert small.clearance > large.clearance
    assert small.collision_probability < large.collision_probability


def test_what_lies_between_two_poses_counts(grid):
    """Thousands of poses and two poses on the same line give the same probability."""
    dense, sparse = drive((0.3, 0), (2.4, 0), step=0.001), drive((0.3, 0), (2.4, 0), step=9)
    assert len(dense) > 2000
    assert len(sparse) == 2
    a, b = score_paths(grid, [dense, sparse]).scores
    assert a.collision_probability == pytest.approx(b.collision_probability, abs=0.02)
    assert b.pose_collision[1] > 0.8
    assert np.isfinite(a.pose_gain).sum() <= 64


def test_the_way_into_the_unseen_is_unknown_and_shows_more(grid):
    scores = score_paths(grid, {"back": drive((0, 0), (-2.0, 0)), "seen": drive((0, 0), (0.8, 0))}).scores
    back, seen = scores
    assert back.unknown_share > 0.4 > seen.unknown_share
    assert back.information_gain > seen.information_gain
    assert back.new_area > seen.new_area
    assert back.collision_probability > seen.collision_probability


def test_imagination_changes_the_score_of_unseen_ways_only(grid):
    paths = {"back": drive((-0.8, 0), (-2.0, 0)), "seen": drive((0.6, 0), (0.8, 0))}
    plain = score_paths(grid, paths)
    clear, wall = (np.full((1, *grid.state.shape), p, np.float32) for p in (0.02, 0.9))
    free, blocked, both = (
        score_paths(grid.with_hypotheses(h), paths) for h in (clear, wall, np.concatenate([clear, wall]))
    )
    back = [scores.scores[0].collision_probability for scores in (free, both, blocked)]
    assert back[0] < 0.3
    assert back[2] > 0.9
    assert back[1] == pytest.approx((back[0] + back[2]) / 2, abs=0.05)
    assert both.hypotheses == 2
    seen = [s.scores[1].collision_probability for s in (plain, free, blocked, both)]
    assert np.ptp(seen) < 1e-6
    assert free.scores[0].imagined_share > 0.5
    assert free.scores[0].unknown_share == pytest.approx(0, abs=1e-6)


def test_weights_decide_between_safe_and_informative(grid):
    paths = {"stay": drive((0, 0), (0.3, 0)), "explore": drive((0, 0), (-1.5, 0))}
    assert score_paths(grid, paths, weights=ScoreWeights(gain=0)).winner.name == "stay"
    assert score_paths(grid, paths, weights=ScoreWeights(collision=0, imagined=0, gain=5)).winner.name == "explore"


def test_reasons_name_the_only_path_and_paths_that_are_alike(grid):
    path = drive((0, 0), (0.5, 0))
    assert "only path" in score_paths(grid, [path]).reason
    assert "alike" in score_paths(grid, [path, path]).reason
    bad = score_paths(grid, {"a": drive((0.3, 0), (1.5, 0)), "b": drive((0.3, 0.1), (1.5, 0.1))})
    assert "not safe" in bad.reason


def test_the_order_of_the_paths_changes_nothing(grid):
    named = {"a": drive((0, 0), (0.8, 0)), "b": drive((0, 0), (-1, 0)), "c": drive((0, 0), (0.5, 0.5))}
    there, back = score_paths(grid, named), score_paths(grid, dict(reversed(named.items())))
    for score in there.scores:
        other = next(s for s in back.scores if s.name == score.name)
        assert score.score == pytest.approx(other.score)
    assert there.winner.name == back.winner.name


# --- bad input --------------------------------------------------------------------------------------------------------


def moved(x):
    path = drive((0, 0), (0.5, 0))
    path[:, 0, 3] += x
    return path


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no path"),
        ([np.zeros((0, 4, 4))], "path '0'"),
        ([np.full((2, 4, 4), math.nan)], "path '0'"),
        ([np.eye(4)], "path '0'"),
        ([moved(500)], "outside the map.*frame of the map"),
        ({"far": moved(1e8)}, "'far'.*outside"),
        ([moved(0)] * (MAX_PATHS + 1), "at most"),
        ([np.tile(np.eye(4), (MAX_POSES + 1, 1, 1))], "Thin them out"),
    ],
)
def test_bad_paths_are_refused_with_a_sentence(grid, paths, message):
    with pytest.raises(InputError, match=message):
        score_paths(grid, paths)


def test_a_path_that_leaves_the_map_is_unknown_there(grid):
    path = drive((0, 0), (-30, 0), step=1)
    score = score_paths(grid, [path]).winner
    assert score.outside == int((path[:, 0, 3] < -4).sum()) > 20
    assert score.unknown_share > 0.8
    assert score.collision_probability > 0.9
    assert np.isnan(score.pose_gain[-1])


def test_endless_paths_are_refused(grid):
    with pytest.raises(InputError, match="Is it in metres"):
        score_paths(grid, [drive((0, 0), (3e6, 0), step=1e5)])


def test_a_map_without_metres_is_refused(grid):
    from dataclasses import replace

    with pytest.raises(InputError, match="arbitrary"):
        score_paths(replace(grid, metric=False), [drive((0, 0), (1, 0))])


@pytest.mark.parametrize("bad", [{"fov": 0}, {"fov": 7}, {"max_range": math.nan}])
def test_impossible_sensors_and_weights_are_refused(bad):
    with pytest.raises(InputError):
        Sensor(**bad)
    with pytest.raises(InputError):
        ScoreWeights(gain=math.nan)


def test_the_sensor_of_a_camera_has_its_field_of_view():
    assert Sensor.of_camera(CAMERA).fov == pytest.approx(math.radians(80))


# --- next best view ---------------------------------------------------------------------------------------------------

HERE = camera_pose(np.array([-0.5, 0, 0.7]), 0)


def test_the_next_best_view_looks_at_what_was_not_seen(grid):
    ranked = next_best_view(grid, HERE)
    assert ranked
    assert ranked == sorted(ranked, key=lambda view: -view.score)
    best = ranked[0]
    assert best.information_gain > 0
    assert math.isfinite(best.travel)
    assert best.world_from_camera[0, 2] < 0.5  # not towards the box and the walls that were seen
    assert best.world_from_camera[2, 3] == pytest.approx(0.7, abs=0.2)


def test_given_candidates_are_ranked_and_unreachable_ones_come_last(grid):
    ahead = camera_pose(np.array([0.5, 0, 0.7]), 0)
    back = camera_pose(np.array([0.3, 0, 0.7]), math.pi)
    behind_wall = camera_pose(np.array([3.6, 0, 0.7]), math.pi / 2)
    ranked = next_best_view(grid, HERE, np.stack([ahead, behind_wall, back]))
    assert [view.index for view in ranked] == [2, 0, 1]
    assert math.isinf(ranked[-1].travel)


def test_only_the_region_counts(grid):
    left = next_best_view(grid, HERE, region=(-3, 0, 3, 2.1))
    assert left
    assert all(view.new_area <= 13 for view in left)
    for region in ((0, 0, 0, 1), (math.nan, 0, 1, 1), (50, 50, 51, 51)):
        with pytest.raises(InputError, match="region"):
            next_best_view(grid, HERE, region=region)


def test_a_place_that_was_seen_whole_has_no_next_view():
    scene = boxes()
    occupancy = mapped(scene, *around(scene, 0, 0), *around(scene, 1.8, 1.2), *around(scene, -1.8, -1.2))
    grid = make_grid(occupancy)
    # Outside the walls nothing is known, but nothing there can be seen from inside either.
    assert sum(view.new_area for view in next_best_view(grid, HERE)[:1]) < 1.0


def test_bad_candidates_are_refused(grid):
    far = camera_pose(np.array([90.0, 0, 0.7]), 0)
    with pytest.raises(InputError, match="robot is outside"):
        next_best_view(grid, far)
    with pytest.raises(InputError, match="All candidates"):
        next_best_view(grid, HERE, far[None])
    with pytest.raises(InputError, match="candidates"):
        next_best_view(grid, HERE, np.full((1, 4, 4), math.nan))
    with pytest.raises(InputError, match="at most"):
        next_best_view(grid, HERE, np.tile(HERE, (3000, 1, 1)))


# --- ways -------------------------------------------------------------------------------------------------------------


def test_ways_go_around_obstacles_and_do_not_cut_corners():
    free = np.ones((9, 9), bool)
    free[4, :8] = False
    field = TravelField(free, 0, 0, 0.1)
    path = field.path_to(8, 0)
    assert free[tuple(path.T)].all()
    assert (np.abs(np.diff(path, axis=0)).max(axis=1) == 1).all()
    assert [4, 8] in path.tolist()
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() * 0.1
    assert field.distance[8, 0] == pytest.approx(steps)
    assert not np.isfinite(field.distance[4, 3])
    assert len(field.path_to(4, 3)) == 0


def test_the_robot_keeps_its_radius_from_obstacles(grid):
    free = traversable(grid)
    rows, columns, _ = grid.cells_at(np.array([[1.15, 0, 0], [0.8, 0, 0]]))
    assert free[rows, columns].tolist() == [False, True]


def test_the_winner_is_told_on_one_line(grid):
    reason = score_paths(grid, [drive((0, 0), (0.8, 0)), drive((0, 0), (-1, 0))]).reason
    assert re.fullmatch(r"[^\n]+\.", reason)


def test_views_without_depth_are_skipped(grid):
    occupancy = mapped(BOXED)
    view = look(BOXED, 0, 0, 0)
    occupancy.integrate(View(view.image, CAMERA, view.world_from_camera))
    assert not occupancy.odds.any()
