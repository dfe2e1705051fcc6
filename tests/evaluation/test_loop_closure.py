"""Observed views in any order, and long paths that return to their start."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.evaluation import evaluate
from worldstereo_ros.evaluation import protocols as protocols_module
from worldstereo_ros.evaluation.metrics import colour_and_contrast, psnr
from worldstereo_ros.evaluation.protocols import LOOP_VIEWS, make_scenario
from worldstereo_ros.evaluation.world_sequences import world_panorama, world_sequence
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.world import WorldModel

SMALL = Camera.from_fov(64, 48, np.radians(75))
ORDERS = ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 1, 4, 0, 2])
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def walk():
    return world_sequence("test", 0, views=15, camera=SMALL)


@pytest.fixture(scope="module")
def pipelines(small_checkpoint):
    return {"geometric": GeometricPipeline(), "model": load_pipeline(str(small_checkpoint))}


# --- order of the observed views ---


@pytest.mark.parametrize("name", ["geometric", "model"])
@pytest.mark.parametrize("exposures", [(1, 1, 1, 1, 1), (0.8, 1.1, 0.9, 1.2, 1.0)])
def test_order_of_observed_views_hardly_matters(walk, pipelines, name, exposures):
    observed = [walk[index] for index in (0, 3, 7, 10, 14)]
    observed = [
        replace(view, image=np.clip(view.image * gain, 0, 255).astype(np.uint8), stamp_ns=number)
        for number, (view, gain) in enumerate(zip(observed, exposures, strict=True))
    ]
    imagined = []
    for order in ORDERS:
        world = WorldModel(pipelines[name])
        for index in order:
            world.observe(observed[index])
        imagined.append(list(world.imagine(walk.poses[[1, 5, 8, 12]], SMALL)))
    for others in imagined[1:]:
        for first, other in zip(imagined[0], others, strict=True):
            assert psnr(other.image, first.image) > 33
            assert (other.observed_mask == first.observed_mask).mean() > 0.97


def test_clip_starts_from_the_observed_view_with_most_overlap(walk, pipelines):
    start_views = []

    class Recorder:
        name, clip_length, selects_references = "recorder", 12, True

        def __call__(self, conditioning, **_):
            start_views.append(conditioning.start_view)
            yield from pipelines["geometric"](conditioning, **_)

    world = WorldModel(Recorder())
    for index in (14, 0, 7):
        world.observe(walk[index])
    for index in (0, 7, 14):
        list(world.imagine(walk.poses[index][None], SMALL, remember=True))  # imagined views are never start views
        assert start_views[-1] is not None
        np.testing.assert_allclose(start_views[-1].world_from_camera, walk.poses[index])
        assert start_views[-1].observed is None
    # Without overlap it is the newest observed view.
    away = walk.poses[0].copy()
    away[:3, 3] += 1000.0
    list(world.imagine(away[None], SMALL))
    np.testing.assert_allclose(start_views[-1].world_from_camera, walk.poses[7])


# --- loop closure ---


def test_observed_view_is_reproduced_despite_imagined_points_in_front_of_it(walk, pipelines):
    """Wrong imagined points in front of observed surfaces are not rendered from the observed pose."""
    world = WorldModel(pipelines["geometric"])
    world.observe(walk[0])
    pose = walk.poses[0].copy()
    pose[:3, 3] += 0.3 * pose[:3, 0]
    red = np.full((48, 64, 3), (255, 0, 0), np.uint8)
    depth = np.full((48, 64), 0.6, np.float32)
    board = View(red, SMALL, pose, depth, np.zeros((48, 64), bool))
    world.cloud.insert(board)
    world.bank.add(board)
    (from_observed_pose,) = world.imagine(walk.poses[0][None], SMALL)
    np.testing.assert_array_equal(from_observed_pose.image, walk[0].image)
    assert from_observed_pose.observed_mask[red_pixels(from_observed_pose.conditioning) & (walk[0].depth > 0)].all()
    # From 5 cm beside it, where the observation is not known to show the view, they hide what was observed.
    beside = walk.poses[0].copy()
    beside[:3, 3] += 0.05 * beside[:3, 0]
    (from_beside,) = world.imagine(beside[None], SMALL)
    assert not from_beside.observed_mask[red_pixels(from_beside.conditioning)].any()
    # From the board's own pose it is rendered.
    (from_board_pose,) = world.imagine(pose[None], SMALL)
    assert psnr(from_board_pose.image, red) > 35


def red_pixels(image: np.ndarray) -> np.ndarray:
    red = (image[..., 0] > 200) & (image[..., 1] < 60)
    assert red.any()
    return red


def test_loop_goes_out_turns_and_returns(walk):
    scenario = make_scenario(walk, "loop")
    assert len(scenario.legs) == 1
    assert len(scenario.path) == 3 * LOOP_VIEWS == len(scenario.target_views) == len(scenario.evaluated)
    assert scenario.remember
    np.testing.assert_allclose(scenario.path[-1], walk.poses[0])
    assert len(scenario.pairs) == LOOP_VIEWS
    for first, second in scenario.pairs:
        np.testing.assert_allclose(scenario.path[first], scenario.path[second], atol=1e-9)
    turn = scenario.path[LOOP_VIEWS : 2 * LOOP_VIEWS]
    np.testing.assert_allclose(turn[:, :3, 3], np.repeat(turn[:1, :3, 3], LOOP_VIEWS, axis=0))
    assert np.ptp(turn[:, 2, 2]) < 1e-9  # about the world's up: a level camera stays level
    headings = np.degrees(np.arctan2(turn[:, 1, 2], turn[:, 0, 2]))
    np.testing.assert_allclose(np.diff(np.unwrap(headings, period=360)), -30, atol=1e-6)  # to the right


def test_imagined_views_are_repeated_after_a_loop(walk):
    row = next(
        row for row in evaluate([walk], ["loop"], ["geometric"], with_features=False) if row.pipeline == "geometric"
    )
    assert row.frames == 3 * LOOP_VIEWS
    assert row.psnr_revisited_imagined > 25
    assert row.colour_drift < 4
    assert 0.8 < row.contrast_kept < 1.2
    assert set(row.curves) == {"psnr", "offset", "contrast"}
    assert all(len(values) == 3 * LOOP_VIEWS for values in row.curves.values())


def test_panorama_protocol_imagines_a_ring_at_another_place(walk, monkeypatch):
    monkeypatch.setattr(protocols_module, "PANORAMA_HEIGHT_PX", 64)
    scenario = make_scenario(walk, "panorama")
    assert len(scenario.observed_views) == 29
    assert len(scenario.legs) > 3
    ring = scenario.path[list(scenario.ring)]
    assert 0.5 < np.linalg.norm(ring[0, :3, 3] - scenario.observed_views[0].world_from_camera[:3, 3]) < 1.5
    cosines = (ring[:, :3, 2] * np.roll(ring[:, :3, 2], -1, axis=0)).sum(axis=1)
    np.testing.assert_allclose(cosines, np.cos(2 * np.pi / len(ring)), atol=1e-9)  # even steps, closed
    row = next(
        row for row in evaluate([walk], ["panorama"], ["geometric"], with_features=False) if row.pipeline == "geometric"
    )
    assert row.seam < 2 * row.joint
    assert row.frames == len(scenario.path)

    class Recorded:
        path, posed, has_depth, poses = walk.path, True, True, walk.poses

        def __len__(self):
            return len(walk)

    with pytest.raises(ValueError, match="needs procedural worlds"):
        make_scenario(Recorded(), "panorama")


def test_world_panorama_agrees_with_rendered_views(walk):
    panorama = world_panorama(walk, walk.poses[4], 96)
    assert panorama.covered.all()
    from worldstereo_ros.panorama.perspective_views import panorama_views

    (view,) = panorama_views(
        panorama.image,
        panorama.distance,
        world_from_camera=walk.poses[4],
        camera=SMALL,
        panorama_from_camera=np.eye(4)[None],
    )
    true = walk[4]
    assert psnr(view.image, true.image) > 24  # resampled twice
    both = (view.depth > 0) & (true.depth > 0)
    assert np.median(np.abs(view.depth[both] / true.depth[both] - 1)) < 0.02


def test_colour_and_contrast():
    random = np.random.default_rng(0)
    truth = random.integers(60, 180, (20, 30, 3)).astype(np.uint8)
    mask = np.zeros((20, 30), bool)
    mask[5:] = True
    assert colour_and_contrast(truth, truth, mask) == (0, pytest.approx(1))
    offset, contrast = colour_and_contrast(truth + np.uint8(9), truth, mask)
    assert (offset, contrast) == (pytest.approx(9), pytest.approx(1))
    low_contrast = (truth.astype(int) // 2 + 60).astype(np.uint8)
    assert colour_and_contrast(low_contrast, truth, mask)[1] == pytest.approx(0.5, abs=0.02)
    assert colour_and_contrast(truth, truth, np.zeros_like(mask)) == (None, None)
    assert colour_and_contrast(truth, np.full_like(truth, 7))[1] is None
