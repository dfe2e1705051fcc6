import math

import numpy as np
import pytest
from helpers.floor_plans import CAMERA, around, boxes, look, mapped
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.planning import CellState, OccupancyMap, RobotShape, query_points, world_grid
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.occupancy_grid import merge_evidence
from worldstereo_ros.planning.occupancy_map import level_rotation
from worldstereo_ros.scenes.paths import camera_pose
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

S = CellState
ROOM = boxes()


def state_at(grid, x, y):
    rows, columns, inside = grid.cells_at(np.array([[x, y, 0.0]]))
    assert inside[0]
    return grid.state[rows[0], columns[0]]


@pytest.fixture(scope="module")
def seen():
    """The room with a box of 0.6 m, a shelf from 0.7 m up, and a low sill of 5 cm."""
    scene = boxes(
        ((1.5, 1.0, 0.3), (0.4, 0.4, 0.6)),
        ((-1.5, 1.0, 0.8), (0.6, 0.6, 0.2)),
        ((1.5, -1.0, 0.02), (0.5, 0.5, 0.04)),
    )
    return scene, mapped(
        scene, *around(scene, 0.0, 0.0), *around(scene, -1.5, -1.0), look(scene, -1.5, -0.5, math.pi / 2, z=1.2)
    )


def test_cells_in_view_are_free_and_obstacles_are_occupied(seen):
    grid = make_grid(seen[1])
    assert state_at(grid, 1.0, 0.0) == S.OBSERVED_FREE
    assert state_at(grid, 1.35, 1.0) == S.OBSERVED_OCCUPIED
    assert state_at(grid, 3.06, 0.0) == S.OBSERVED_OCCUPIED
    assert state_at(grid, 3.6, 0.0) == S.UNKNOWN
    assert state_at(grid, 2.6, 1.85) == S.UNKNOWN  # behind the box
    assert np.isfinite(grid.floor[grid.observed]).all()
    assert abs(np.median(grid.floor[grid.state == S.OBSERVED_FREE])) < 0.1


def test_overhangs_obstruct_only_robots_that_are_as_high(seen):
    low, high = (make_grid(seen[1], RobotShape(height=height)) for height in (0.6, 1.0))
    assert state_at(low, -1.5, 1.0) == S.OBSERVED_FREE
    assert state_at(high, -1.5, 1.0) == S.OBSERVED_OCCUPIED


def test_sills_that_the_robot_drives_over_are_free(seen):
    assert state_at(make_grid(seen[1]), 1.5, -1.0) == S.OBSERVED_FREE


def ramp(rise):
    """Steps of 10 cm length that rise towards positive x, from x = 0."""
    return boxes(*(((0.05 + 0.1 * n, 0, 0.5 * rise * (n + 1)), (0.1, 2.0, rise * (n + 1))) for n in range(20)))


def test_the_floor_follows_a_ramp_and_a_steep_one_is_an_obstacle():
    gentle, steep = ramp(0.025), ramp(0.08)
    grid = make_grid(mapped(gentle, look(gentle, -1.5, 0, 0), look(gentle, -2.5, 0, 0)))
    assert state_at(grid, 1.0, 0.0) == S.OBSERVED_FREE
    rows, columns, _ = grid.cells_at(np.array([[-1.0, 0, 0], [1.5, 0, 0]]))
    assert 0.25 <= np.diff(grid.floor[rows, columns])[0] <= 0.55
    grid = make_grid(mapped(steep, look(steep, -1.5, 0, 0, z=0.9), look(steep, -2.5, 0, 0, z=0.9)))
    assert state_at(grid, 0.35, 0.0) == S.OBSERVED_OCCUPIED


def test_the_floor_may_be_given_and_must_lie_in_the_map(seen):
    found, given_ = make_grid(seen[1]), make_grid(seen[1], floor=0.0)
    assert (found.state == given_.state).mean() > 0.99
    with pytest.raises(InputError, match="outside the map"):
        make_grid(seen[1], floor=7.0)
    with pytest.raises(InputError, match="finite"):
        make_grid(seen[1], floor=math.nan)


def test_a_map_without_a_floor_says_so():
    occupancy = mapped(ROOM)
    with pytest.raises(InputError, match="no observation"):
        make_grid(occupancy)
    up = look(ROOM, 0, 0, 0)
    occupancy.integrate(View(up.image, CAMERA, camera_pose(np.array([0, 0, 0.7]), 0, 1.2), np.full_like(up.depth, 3)))
    with pytest.raises(InputError, match="No floor was found"):
        make_grid(occupancy)


def test_worlds_with_another_up_direction_give_the_same_cells(seen):
    """OpenCV worlds, y down: the same views, turned."""
    turn = np.eye(4)
    turn[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]  # z up -> y down
    straight = OccupancyMap((-4, -3, -0.55), (4, 3, 2.5))
    turned = OccupancyMap((-4, -3, -0.55), (4, 3, 2.5), up=(0, -1, 0))
    for view in around(ROOM, 0.0, 0.0):
        straight.integrate(view)
        turned.integrate(View(view.image, view.camera, turn @ view.world_from_camera, view.depth))
    np.testing.assert_allclose(turned.grid_from_world @ turn[:3, :3] @ [0, 0, 1], [0, 0, 1], atol=1e-12)
    a, b = make_grid(straight), make_grid(turned)
    points = np.array([[1.0, 0.5, 0.0], [3.06, 0.0, 0.0], [0.0, -1.5, 0.0], [2.0, 1.0, 0.0]])
    for point in points:
        place = (turned.grid_from_world @ turn[:3, :3] @ point)[:2]
        assert state_at(a, *point[:2]) == b.state[tuple(np.floor((place - b.origin) / b.resolution).astype(int)[::-1])]


@pytest.mark.parametrize("up", [(0, 0, 1), (0, -1, 0), (0, 0, -1), (1, 2, 3)])
def test_level_rotations_are_rotations(up):
    rotation = level_rotation(up)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(rotation @ np.array(up) / np.linalg.norm(up), [0, 0, 1], atol=1e-9)


# --- imagination never changes what was observed ----------------------------------------------------------------------

PROBABILITIES = st.floats(0, 1, width=32) | st.just(math.nan)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_hypotheses_never_change_observed_cells(data):
    shape = (4, 5)
    free = data.draw(arrays.arrays(bool, shape))
    occupied = data.draw(arrays.arrays(bool, shape))
    count = data.draw(st.integers(0, 4))
    common = {
        "observed_free": free, "observed_occupied": occupied, "estimated": np.full(shape, np.nan, np.float32),
        "floor": np.zeros(shape, np.float32), "origin": (0.0, 0.0), "resolution": 0.1, "grid_from_world": np.eye(3),
        "robot": RobotShape(),
    }  # fmt: skip
    plain = merge_evidence(hypotheses=np.zeros((0, *shape), np.float32), **common)
    hypotheses = data.draw(arrays.arrays(np.float32, (count, *shape), elements=PROBABILITIES))
    for grid in (merge_evidence(hypotheses=hypotheses, **common), plain.with_hypotheses(hypotheses)):
        known = free | occupied
        np.testing.assert_array_equal(grid.observed, known)
        for name in ("state", "occupied", "confidence", "variance"):
            np.testing.assert_array_equal(getattr(grid, name)[known], getattr(plain, name)[known], err_msg=name)
        assert ((grid.occupied >= 0) & (grid.occupied <= 1)).all()
        assert (grid.variance >= 0).all()
        assert not grid.confidence[grid.state == S.UNKNOWN].any()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.floats(-2, 2), st.floats(-1.5, 1.5), st.floats(-3, 3))
def test_imagined_views_never_change_observed_voxels(seed, x, y, yaw):
    rng = np.random.default_rng(seed)
    occupancy = mapped(ROOM, look(ROOM, 0, 0, 0), look(ROOM, 0, 0, 1))
    before, points = make_grid(occupancy), rng.uniform(-3, 3, (50, 3))
    states = occupancy.query(points)
    pose = camera_pose(np.array([x, y, 0.7]), yaw)
    depth = rng.uniform(0, 6, (CAMERA.height, CAMERA.width)).astype(np.float32)
    image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    nowhere = np.zeros(depth.shape, bool)
    confidence = rng.uniform(0, 1, depth.shape).astype(np.float32)
    for _ in range(2):
        occupancy.add_hypothesis([View(image, CAMERA, pose, depth, observed=nowhere, depth_confidence=confidence)])
    after = make_grid(occupancy)
    for name in ("state", "occupied", "confidence", "variance"):
        np.testing.assert_array_equal(
            getattr(after, name)[before.observed], getattr(before, name)[before.observed], err_msg=name
        )
    assert after.hypotheses.shape[0] == 2
    assert after.imagined.any()
    again = occupancy.query(points)
    known = states.state >= S.OBSERVED_FREE
    np.testing.assert_array_equal(again.state[known], states.state[known])
    np.testing.assert_array_equal(again.occupied[known], states.occupied[known])


def test_observations_replace_what_was_imagined():
    occupancy = mapped(ROOM, look(ROOM, 0, 0, 0))
    wrong = look(ROOM, 0, 0, math.pi)
    short = np.full_like(wrong.depth, 1.0)  # a wall a metre ahead, which is not there
    sure = np.ones(short.shape, np.float32)
    nowhere = np.zeros(short.shape, bool)
    occupancy.add_hypothesis(
        [ImaginedView(wrong.image, CAMERA, wrong.world_from_camera, short, observed=nowhere, depth_confidence=sure)]
    )
    assert state_at(make_grid(occupancy), -1.0, 0.0) == S.IMAGINED_OCCUPIED
    assert state_at(make_grid(occupancy), -0.6, 0.0) == S.IMAGINED_FREE
    occupancy.integrate(wrong)
    occupancy.integrate(wrong)
    assert state_at(make_grid(occupancy), -1.0, 0.0) == S.OBSERVED_FREE


def test_hypotheses_that_differ_have_variance():
    occupancy = mapped(ROOM, look(ROOM, 0, 0, 0))
    view = look(ROOM, 0, 0, math.pi)
    nowhere, sure = np.zeros(view.depth.shape, bool), np.ones(view.depth.shape, np.float32)
    for distance in (1.0, 2.5):
        depth = np.full_like(view.depth, distance)
        occupancy.add_hypothesis(
            [View(view.image, CAMERA, view.world_from_camera, depth, nowhere, 0, sure, None, sure)]
        )
    grid = make_grid(occupancy)
    rows, columns, _ = grid.cells_at(np.array([[-1.0, 0, 0], [-0.6, 0, 0]]))
    differs, agrees = grid.variance[rows, columns]
    assert differs > 0.01 > agrees


# --- estimated --------------------------------------------------------------------------------------------------------


def test_estimated_depth_is_neither_observed_nor_imagined():
    view = look(ROOM, 0, 0, 0)
    everywhere = np.ones(view.depth.shape, bool)
    occupancy = mapped(ROOM)
    confidence = np.full(view.depth.shape, 0.9, np.float32)
    occupancy.integrate(
        View(view.image, CAMERA, view.world_from_camera, view.depth, estimated=everywhere, depth_confidence=confidence)
    )
    grid = make_grid(occupancy)
    assert not grid.observed.any()
    assert state_at(grid, 1.5, 0.0) == S.ESTIMATED
    rows, columns, _ = grid.cells_at(np.array([[1.5, 0, 0], [3.06, 0, 0]]))
    free, wall = grid.occupied[rows, columns]
    assert free < 0.3 < wall


# --- world models and bad input ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    model = WorldModel(load_pipeline("geometric"), CloudMemory(voxel_size=0.02, max_points=200_000))
    for view in around(ROOM, 0.0, 0.0, 6):
        model.observe(view)
    return model


def test_the_grid_of_a_world_model_knows_what_it_observed(world):
    grid = world_grid(world, max_range=5)
    assert state_at(grid, 1.0, 0.0) == S.OBSERVED_FREE
    assert state_at(grid, 3.06, 0.0) == S.OBSERVED_OCCUPIED
    assert not grid.imagined.any()


def test_points_of_a_cloud_whose_view_the_bank_lost_stay_occupied(world):
    full, lost = OccupancyMap.from_world(world), OccupancyMap.from_world(world)
    wall = np.array([[3.08, 0.0, 0.7]])
    assert full.query(wall).state[0] == S.OBSERVED_OCCUPIED
    model = WorldModel(world.pipeline, world.cloud)
    model.bank.add(look(ROOM, 0, 0, math.pi))
    lost = OccupancyMap.from_world(model)
    assert lost.query(wall).state[0] == S.OBSERVED_OCCUPIED
    assert lost.query(np.array([[1.0, 0.0, 0.7]])).state[0] == S.UNKNOWN


def test_points_are_queried_one_by_one(world):
    states = query_points(world, np.array([[1.0, 0, 0.7], [3.08, 0, 0.7], [9.0, 9.0, 9.0], [1e9, 0, 0]]))
    assert states.state.tolist() == [S.OBSERVED_FREE, S.OBSERVED_OCCUPIED, S.UNKNOWN, S.UNKNOWN]
    assert states.inside.tolist() == [True, True, False, False]
    assert states.confidence[:2].min() > 0.8
    assert not states.confidence[2:].any()
    assert len(query_points(OccupancyMap.from_world(world), np.zeros((0, 3))).state) == 0


@pytest.mark.parametrize("points", [np.zeros(3), np.zeros((2, 2)), np.array([[0, 0, math.nan]])])
def test_bad_points_are_refused(world, points):
    with pytest.raises(InputError):
        query_points(OccupancyMap.from_world(world), points)


def test_maps_are_bounded_in_size():
    with pytest.raises(InputError, match="coarser resolution"):
        OccupancyMap((-1e4, -1e4, 0), (1e4, 1e4, 2))
    with pytest.raises(InputError, match="finite corners"):
        OccupancyMap((0, 0, math.nan), (1, 1, 1))
    with pytest.raises(InputError, match="finite corners"):
        OccupancyMap((0, 0, 0), (1, -1, 1))
    with pytest.raises(InputError, match="resolution"):
        OccupancyMap((0, 0, 0), (1, 1, 1), resolution=math.nan)
    with pytest.raises(InputError, match="up direction"):
        OccupancyMap((0, 0, 0), (1, 1, 1), up=(0, 0, 0))


def test_far_paths_make_the_map_too_large_instead_of_using_up_memory(world):
    far = np.eye(4)[None].copy()
    far[0, :3, 3] = 5000, 5000, 0
    with pytest.raises(InputError, match="coarser resolution"):
        world_grid(world, [far])


def test_imagined_views_are_no_observations(world):
    view = look(ROOM, 0, 0, 0)
    with pytest.raises(InputError, match="add_hypothesis"):
        mapped(ROOM).integrate(View(view.image, CAMERA, view.world_from_camera, view.depth, view.depth > 0))
    with pytest.raises(InputError, match="no observation"):
        OccupancyMap.from_world(WorldModel(world.pipeline))


def test_broken_depth_says_nothing():
    view = look(ROOM, 0, 0, 0)
    for value in (math.nan, math.inf, 0.0, -1.0):
        occupancy = mapped(ROOM, View(view.image, CAMERA, view.world_from_camera, np.full_like(view.depth, value)))
        assert not occupancy.odds.any()


def test_trinary_and_graded_grids_follow_the_message(seen):
    grid = make_grid(seen[1])
    guess = np.full((1, *grid.state.shape), 0.05, np.float32)
    grid = grid.with_hypotheses(guess)
    trinary, observed_only = grid.trinary(), grid.trinary(imagined=False)
    assert set(np.unique(observed_only)) == {-1, 0, 100}
    assert (trinary[grid.imagined] == 0).all()
    assert (observed_only[grid.imagined] == -1).all()
    np.testing.assert_array_equal(trinary[grid.observed], observed_only[grid.observed])
    graded = grid.graded()
    assert graded.min() >= -1
    assert graded.max() <= 100
    with pytest.raises(InputError, match="shape"):
        grid.with_hypotheses(guess[:, :3])
    with pytest.raises(InputError, match="outside"):
        grid.with_hypotheses(guess + 1)


@pytest.mark.parametrize("changes", [{"radius": 0}, {"height": math.nan}, {"max_step": 0.7}, {"max_slope": -1}])
def test_impossible_robots_are_refused(changes):
    with pytest.raises(InputError):
        RobotShape(**changes)
