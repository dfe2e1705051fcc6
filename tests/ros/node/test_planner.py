"""The planner's thread: a copy of the memories, questions in order, and how they end; without a node."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from helpers.floor_plans import CAMERA, boxes, drive, look

from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.planning import OccupancyMap, imagine_hypotheses, score_paths, world_grid
from worldstereo_ros.planning.remembered import RememberedWorld
from worldstereo_ros.planning.visibility import Sensor
from worldstereo_ros.ros.node.jobs import ErrorCode, JobRejectedError
from worldstereo_ros.ros.node.parameters import ConfigurationError, make_parameters
from worldstereo_ros.ros.node.planner import UP, PlannedPath, Planner
from worldstereo_ros.ros.node.questions import MAX_WAITING, Question
from worldstereo_ros.ros.node.worker import Worker
from worldstereo_ros.ros.node.worker_protocol import NoEvents
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

SCENE = boxes(((1.5, 0.0, 0.5), (0.4, 1.0, 1.0)))
INTO, BESIDE = drive((0.3, 0), (1.5, 0)), drive((0.3, 0), (0.9, 0.9))
PATHS = {"into": PlannedPath(INTO, INTO), "beside": PlannedPath(BESIDE, BESIDE)}
LIMIT_S = 60.0


def make_world(views=()) -> WorldModel:
    world = WorldModel(GeometricPipeline(), CloudMemory(0.05, max_points=100_000), ViewBank(64))
    for view in views:
        world.observe(view)
    return world


@pytest.fixture
def planner():
    """(planner, its worker, its world): a room of which one half was seen."""
    worker = Worker(NoEvents(), lambda world, job: CAMERA)
    world = make_world([look(SCENE, -0.5, 0, yaw) for yaw in (-0.9, 0.0, 0.9)])
    worker.call(lambda: worker.set_world(world)).result(LIMIT_S)
    planner = Planner(lambda: worker, lambda where, error: pytest.fail(f"{where}: {error}"))
    yield planner, worker, world
    planner.close()
    assert worker.stop(10)


def ask(planner, work, timeout=LIMIT_S):
    """The answer of a question; raises its error."""
    answered, answers = threading.Event(), []
    question = Question(work, lambda value, error: (answers.append((value, error)), answered.set()), timeout)
    planner.submit(question)
    assert answered.wait(LIMIT_S)
    value, error = answers[0]
    if error is not None:
        raise error
    return value


def test_copy_of_the_memories_gives_the_same_map(planner):
    _, _, world = planner
    imagined = next(world.imagine(INTO[-1:], CAMERA))
    copy = RememberedWorld.of(world)
    own, other = (OccupancyMap.from_world(source, up=UP) for source in (world, copy))
    np.testing.assert_array_equal(own.odds, other.odds)
    assert own.shape == other.shape
    world.reset()
    np.testing.assert_array_equal(OccupancyMap.from_world(copy, up=UP).odds, own.odds)
    assert copy.newest_observation is not None
    assert imagined is not None


def test_scores_are_those_of_the_library(planner):
    planner, _, world = planner
    found, seconds = ask(planner, lambda question: planner.score(question, PATHS))
    paths = {name: path.robot for name, path in PATHS.items()}
    sensor = Sensor.of_camera(CAMERA, 4.0)
    expected = score_paths(world_grid(world, paths, up=UP), paths, sensor=sensor)
    assert (found.best, found.reason) == (expected.best, expected.reason)
    assert found.winner.name == "beside"
    assert [score.score for score in found.scores] == [score.score for score in expected.scores]
    assert found.hypotheses == 1
    assert seconds < 5  # nothing was imagined


def test_scores_with_what_is_imagined(planner):
    planner, _, world = planner
    found, _ = ask(planner, lambda question: planner.score(question, PATHS, hypotheses=2, views=2))
    paths = {name: path.robot for name, path in PATHS.items()}
    imagined = imagine_hypotheses(world, paths, CAMERA, seeds=range(2), views=2)
    expected = score_paths(
        world_grid(world, paths, hypotheses=imagined, up=UP), paths, sensor=Sensor.of_camera(CAMERA, 4.0)
    )
    assert found.hypotheses == expected.hypotheses == 2
    assert [score.score for score in found.scores] == [score.score for score in expected.scores]
    assert not [view for view in world.bank.views if not view.is_observation]  # and nothing of it is remembered


def test_the_parameter_says_how_many_hypotheses_are_imagined_where_a_request_does_not(planner):
    planner, _, _ = planner
    planner.apply(make_parameters({"planning.hypotheses": 2}))
    asked = {name: PATHS[name] for name in list(PATHS)[:1]}
    by_parameter, _ = ask(planner, lambda question: planner.score(question, asked, views=1))
    by_request, _ = ask(planner, lambda question: planner.score(question, asked, hypotheses=1, views=1))
    assert (by_parameter.hypotheses, by_request.hypotheses) == (2, 1)
    planner.apply(make_parameters({"planning.hypotheses": 32}))
    with pytest.raises(JobRejectedError, match="32 hypotheses of 100 views"):
        ask(planner, lambda question: planner.score(question, asked, views=100))


def test_points_and_views(planner):
    planner, _, _ = planner
    points = np.array([[0.5, 0.0, 0.5], [1.35, 0.0, 0.5], [90.0, 0.0, 0.5]])
    found = ask(planner, lambda question: planner.query(question, points))
    assert found.state.tolist() == [4, 5, 0]
    options = {"region": None, "through_imagined": False, "count": 3}
    ranked = ask(planner, lambda question: planner.rank_views(question, look(SCENE, -0.5, 0, 0).world_from_camera, None,
                                                              **options))  # fmt: skip
    assert 1 <= len(ranked) <= 3
    assert ranked[0].score >= ranked[-1].score > 0
    view = ask(planner, lambda question: planner.imagine_view(question, ranked[0].world_from_camera))
    assert (view.camera, view.image.shape[1]) == (CAMERA, CAMERA.width)


def test_map_is_made_anew_when_memory_or_parameters_change(planner):
    planner, worker, world = planner
    maps = [ask(planner, planner._occupancy) for _ in range(2)]
    assert maps[0] is maps[1]
    worker.call(lambda: world.observe(look(SCENE, 0.0, 0.5, 2.0))).result(LIMIT_S)
    maps.append(ask(planner, planner._occupancy))
    assert maps[2] is not maps[0]
    parameters = make_parameters({"planning.resolution": 0.2, "planning.floor": 0, "planning.robot_radius": 0.1})
    assert parameters.planning.floor == "0"
    planner.apply(parameters)
    assert ask(planner, planner._occupancy).resolution == 0.2
    grid = ask(planner, planner.grid)
    assert (grid.resolution, grid.robot.radius) == (0.2, 0.1)


def test_grids_and_scores_are_completed_if_the_parameters_say_so(planner):
    planner, _, _ = planner
    plain = ask(planner, planner.grid)
    planner.apply(make_parameters({"planning.completions": 3}))
    completed = ask(planner, planner.grid)
    np.testing.assert_array_equal(completed.state[plain.observed], plain.state[plain.observed])
    assert not plain.imagined.any()
    assert completed.imagined.sum() > 100
    for hypotheses, expected in ((0, 3), (1, 1)):  # what is imagined takes the place of what is drawn
        scores, _ = ask(planner, lambda question, k=hypotheses: planner.score(question, PATHS, hypotheses=k, views=1))
        assert scores.hypotheses == expected
        assert scores.winner.name == "beside"


def test_nothing_observed_yet_is_said(planner):
    planner, worker, _ = planner
    worker.call(lambda: worker.set_world(make_world())).result(LIMIT_S)
    with pytest.raises(JobRejectedError, match="Nothing was observed yet") as caught:
        ask(planner, lambda question: planner.score(question, PATHS))
    assert caught.value.code == ErrorCode.NO_OBSERVATION
    worker.call(lambda: worker.set_world(None)).result(LIMIT_S)
    with pytest.raises(JobRejectedError) as caught:
        ask(planner, lambda question: planner.query(question, np.zeros((1, 3))))
    assert caught.value.code == ErrorCode.INACTIVE


def test_too_much_and_unusable_is_refused(planner):
    planner, _, _ = planner
    with pytest.raises(JobRejectedError, match="max_views") as caught:
        ask(planner, lambda question: planner.score(question, PATHS, hypotheses=32, views=100))
    assert caught.value.code == ErrorCode.TOO_LARGE
    far = INTO.copy()
    far[:, 0, 3] += 1e5
    with pytest.raises(InputError, match="voxels"):
        ask(planner, lambda question: planner.score(question, {"far": PlannedPath(far, far)}))
    with pytest.raises(InputError, match="finite"):
        PlannedPath.of(np.full((2, 4, 4), np.nan), INTO[:2])
    with pytest.raises(InputError, match="33 hypotheses"):
        ask(planner, lambda question: planner.score(question, PATHS, hypotheses=33, views=1))


def test_imagining_is_stopped_between_steps(planner):
    planner, worker, _ = planner
    started = threading.Event()
    errors = []

    def work(question):
        started.set()
        return planner.score(question, PATHS, hypotheses=32, views=8)

    question = Question(work, lambda value, error: errors.append(error), LIMIT_S)
    planner.submit(question)
    assert started.wait(LIMIT_S)
    time.sleep(0.3)
    planner.end_all(ErrorCode.INACTIVE, "The node was deactivated.")
    deadline = time.monotonic() + LIMIT_S
    while not errors and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (errors[0].code, str(errors[0])) == (ErrorCode.INACTIVE, "The node was deactivated.")
    assert worker.call(lambda: 1).result(LIMIT_S) == 1  # the worker continues


def test_questions_wait_in_order_and_end_once(planner):
    planner, _, _ = planner
    hold, answers = threading.Event(), []

    def answer(name):
        return lambda value, error: answers.append((name, value, error))

    first = Question(lambda question: hold.wait(LIMIT_S), answer("first"), LIMIT_S)
    planner.submit(first)
    late = Question(lambda question: 1, answer("late"), 0.0)
    planner.submit(late)
    others = [Question(lambda question, n=n: n, answer(str(n)), LIMIT_S) for n in range(MAX_WAITING)]
    deadline = time.monotonic() + LIMIT_S
    while planner._running is not first and time.monotonic() < deadline:
        time.sleep(0.01)
    for question in others[:-1]:
        planner.submit(question)
    with pytest.raises(JobRejectedError, match="wait already") as caught:
        planner.submit(others[-1])
    assert caught.value.code == ErrorCode.TOO_LARGE
    hold.set()
    while len(answers) < MAX_WAITING + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [name for name, *_ in answers] == ["first", "late", *(str(n) for n in range(MAX_WAITING - 1))]
    assert answers[1][2].code == ErrorCode.TIMEOUT
    assert answers[2][1] == 0
    first.answer(2)
    assert len(answers) == MAX_WAITING + 1


@pytest.mark.parametrize(
    "values",
    [
        {"planning.floor": "low"},
        {"planning.floor": float("nan")},
        {"planning.max_step": 0.7},
        {"planning.robot_radius": 0.0},
        {"planning.slow_speed": 0},
    ],
)
def test_unusable_parameters_are_refused(values):
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        make_parameters(values)


def test_path_joins_the_place_of_the_robot_with_the_view_of_its_camera():
    robot, camera = drive((0, 0), (1, 0)), drive((0.3, 0), (1.3, 0), z=0.9)
    path = PlannedPath.of(robot, camera)
    np.testing.assert_allclose(path.robot[:, :2, 3], robot[:, :2, 3])
    np.testing.assert_allclose(path.robot[:, 2, 3], 0.9)
    np.testing.assert_allclose(path.robot[:, :3, :3], camera[:, :3, :3])
