import math

import numpy as np
import pytest
from helpers.floor_plans import boxes, look, mapped

from worldstereo_ros.planning import completion
from worldstereo_ros.planning.cells import CellState
from worldstereo_ros.planning.columns import make_grid
from worldstereo_ros.planning.completion import (
    complete,
    complete_unknown,
    completion_chances,
    drawn_completions,
    wall_angle,
)
from worldstereo_ros.planning.occupancy_grid import merge_evidence
from worldstereo_ros.planning.occupancy_map import OccupancyMap
from worldstereo_ros.utils.errors import InputError

ROOM = boxes()


@pytest.fixture(scope="module")
def half():
    """The room, its half at negative x unseen."""
    return make_grid(mapped(ROOM, *(look(ROOM, 0, 0, yaw) for yaw in (-1.2, -0.6, 0, 0.6, 1.2))))


def test_observed_cells_stay_as_they_are(half):
    completed = complete(half, range(5))
    known = half.observed
    for name in ("state", "occupied", "confidence", "variance"):
        np.testing.assert_array_equal(getattr(completed, name)[known], getattr(half, name)[known])
    assert (completed.observed == known).all()
    assert completed.imagined.sum() > 100
    assert completed.hypotheses.shape[0] == 5


def test_what_views_imagined_is_kept(half):
    unknown = np.argwhere(half.state == CellState.UNKNOWN)
    hypotheses = np.full((1, *half.state.shape), np.nan, np.float32)
    told = tuple(unknown[:: max(1, len(unknown) // 50)].T)
    hypotheses[0][told] = 0.9
    imagined = half.with_hypotheses(hypotheses)
    completed = complete_unknown(imagined, range(3))
    np.testing.assert_allclose(completed.occupied[told], 0.9, atol=1e-6)
    assert (completed.state[told] == CellState.IMAGINED_OCCUPIED).all()
    assert completed.imagined.sum() > imagined.imagined.sum() + 100
    np.testing.assert_array_equal(completed.state[half.observed], half.state[half.observed])
    plain = complete_unknown(half, range(3))
    np.testing.assert_array_equal(plain.occupied, complete(half, range(3)).occupied)


def test_the_same_seed_gives_the_same_completion_and_others_differ(half):
    a, b, c = (drawn_completions(half, [seed]) for seed in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(np.nan_to_num(a, nan=-1), np.nan_to_num(c, nan=-1))


def test_walls_go_on_along_their_lines_and_the_room_is_free(half):
    rows, columns, _ = half.cells_at(np.array([[-1.2, 2.06, 0], [-1.2, 2.16, 0], [-0.8, 0.6, 0]]))
    assert not half.observed[rows, columns].any()
    chances = completion_chances(half)[rows, columns]
    assert chances[:2].max() > 0.75  # to a cell
    assert chances[2] < 0.2
    shares = (drawn_completions(half, range(11))[:, rows, columns] == 1).mean(axis=0)
    assert shares[2] < 0.4 < shares[:2].max()


def test_hypotheses_differ_where_the_unseen_side_may_be(half):
    completed = complete(half, range(11))
    assert completed.variance[completed.imagined].max() > 0.01


def test_the_direction_of_the_walls_is_found():
    turn = 0.3
    turned = np.eye(4)
    turned[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    occupancy = OccupancyMap((-4, -4, -0.55), (4, 4, 2.5))
    from dataclasses import replace

    for yaw in np.arange(8) * math.pi / 4:
        view = look(ROOM, 0, 0, yaw)
        occupancy.integrate(replace(view, world_from_camera=turned @ view.world_from_camera))
    grid = make_grid(occupancy)
    assert wall_angle(grid) == pytest.approx(turn, abs=math.radians(4))
    completed = complete(grid, range(3))
    np.testing.assert_array_equal(completed.state[grid.observed], grid.state[grid.observed])


@pytest.mark.parametrize("count", [1, 4])
def test_the_mean_of_the_hypotheses_is_what_the_network_says(half, count):
    chance = completion_chances(half)
    completed = complete(half, range(count))
    told = ~np.isnan(chance)
    assert (told <= ~half.observed).all()
    np.testing.assert_array_equal(completed.imagined, told)
    np.testing.assert_allclose(completed.occupied[told], chance[told], atol=1e-5)


def test_where_a_map_ends_and_how_fine_its_cells_are_says_nothing(half):
    def resized(state, resolution):
        nothing = np.full((0, *state.shape), np.nan, np.float32)
        return merge_evidence(
            observed_free=state == CellState.OBSERVED_FREE, observed_occupied=state == CellState.OBSERVED_OCCUPIED,
            estimated=np.full(state.shape, np.nan, np.float32), hypotheses=nothing, floor=np.zeros(state.shape),
            origin=half.origin, resolution=resolution, grid_from_world=half.grid_from_world, robot=half.robot,
        )  # fmt: skip

    chance = completion_chances(half)
    wider = completion_chances(resized(np.pad(half.state, 32), half.resolution))[32:-32, 32:-32]
    finer = completion_chances(resized(np.repeat(np.repeat(half.state, 2, 0), 2, 1), half.resolution / 2))[::2, ::2]
    for other in (wider, finer):
        both = ~np.isnan(chance) & ~np.isnan(other)
        assert both.sum() > 0.8 * (~np.isnan(chance)).sum()
        assert np.abs(chance - other)[both].mean() < 0.06


def test_large_maps_are_completed_over_larger_cells(half, monkeypatch):
    chance = completion_chances(half)
    monkeypatch.setattr("worldstereo_ros.planning.completion.MAX_CELLS", half.state.size // 2)
    coarser = completion_chances(half)
    np.testing.assert_array_equal(np.isnan(coarser), np.isnan(chance))
    told = ~np.isnan(chance)
    assert (coarser != chance)[told].any()
    assert np.corrcoef(coarser[told], chance[told])[0, 1] > 0.7


def test_a_map_of_nothing_completes_to_nothing(half):
    empty = make_grid(mapped(ROOM), floor=0.0)
    completed = complete(empty, [0])
    assert not completed.imagined.any()
    assert wall_angle(empty) == 0


@pytest.mark.parametrize("seeds", [[], range(99), [1, 1]])
def test_bad_seeds_are_refused(half, seeds):
    with pytest.raises(InputError, match="seeds"):
        complete(half, seeds)


@pytest.mark.parametrize("content", [None, b"not weights"])
def test_missing_or_damaged_weights_are_an_error_that_says_so(tmp_path, monkeypatch, content):
    file = tmp_path / "completion.safetensors"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr(completion, "bundled_file", lambda name: file)
    with pytest.raises(InputError, match=r"network of completions .* is missing or damaged"):
        completion.load_network.__wrapped__()
