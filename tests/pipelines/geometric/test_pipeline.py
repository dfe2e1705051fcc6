from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.planes import CAMERA, FAR, NEAR, floor, pose_at, two_planes

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.imaging.exposure import align_exposure
from worldstereo_ros.imaging.inpainting import fill_depth, push_pull
from worldstereo_ros.imaging.overlap import Overlap, measure_overlap, rotation_sensitivity
from worldstereo_ros.pipelines.base import Cancelled, Conditioning
from worldstereo_ros.pipelines.geometric.pipeline import GeometricPipeline
from worldstereo_ros.pipelines.geometric.references import select_references
from worldstereo_ros.pipelines.geometric.registration import measure_registration
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.world import WorldModel


def world_of(*views: View, **settings) -> WorldModel:
    world = WorldModel(GeometricPipeline(**settings))
    for view in views:
        world.observe(view)
    return world


def imagine(world: WorldModel, pose: np.ndarray):
    return next(world.imagine(pose[None], CAMERA))


# --- the pipeline ----------------------------------------------------------------------------------------------------


def test_view_from_the_observed_pose_equals_the_observation():
    start = two_planes(0.0)
    view = imagine(world_of(start), start.world_from_camera)
    same = np.abs(view.image.astype(int) - start.image).max(axis=2) <= 1
    assert (~same).sum() <= 4  # corners of the board: memory skips flying pixels
    interior = start.depth == FAR
    np.testing.assert_allclose(view.depth[interior & view.covered], FAR, rtol=0.02)
    assert view.observed_mask.mean() > 0.9


def test_hidden_pixels_are_not_observed_and_filled_from_the_background():
    start, truth = two_planes(0.0), two_planes(0.3)
    view = imagine(world_of(start), truth.world_from_camera)
    # The wall point of each pixel of the truth, seen from the first view: hidden where the board stands before it.
    rays = CAMERA.rays()
    wx, wy = rays[..., 0] * FAR + 0.3, rays[..., 1] * FAR
    shadow = (truth.depth == FAR) & (np.abs(wx * NEAR / FAR) < 0.28) & (np.abs(wy * NEAR / FAR) < 0.23)
    outside = (truth.depth == FAR) & (wx * 80 / FAR + 47.5 > 96.5)
    assert shadow.sum() > 200
    assert outside.sum() > 200
    assert not view.observed_mask[shadow | outside].any()
    # Background first: the hole behind the board is closed with the wall's colour and depth, not the board's.
    error = np.abs(view.image[shadow].astype(int) - truth.image[shadow]).mean()
    assert error < 25
    assert np.median(view.depth[shadow]) == pytest.approx(FAR, rel=0.1)
    certain = ~(shadow | outside) & view.observed_mask
    assert certain.mean() > 0.5
    assert (np.abs(view.depth - truth.depth) < 0.15)[certain].mean() > 0.99


def test_views_have_no_holes():
    view = imagine(world_of(two_planes(0.0)), pose_at(0.0, 0.0, -1.0))
    assert (view.depth > 0).all()
    assert view.image.shape == (72, 96, 3)
    assert not view.observed_mask[0, 0]


def test_exposure_is_aligned_and_the_nearest_reference_keeps_its_own():
    dark, bright = two_planes(-0.4, gain=0.6), two_planes(0.4, gain=1.2)
    truth = two_planes(0.0, gain=0.85)
    aligned = imagine(world_of(dark, bright), pose_at(0.0))
    plain = imagine(world_of(dark, bright, align=False), pose_at(0.0))

    def spread(view):  # of the brightness relative to the truth, over the image
        return float(np.std(view.image.astype(float).mean(axis=2) / truth.image.mean(axis=2)))

    assert spread(aligned) < 0.7 * spread(plain)
    back = imagine(world_of(dark, bright), bright.world_from_camera)
    # One of two references contributes most of its own image, so its exposure is nearly unchanged.
    assert abs(back.image.mean() - bright.image.mean()) < 0.15 * abs(bright.image.mean() - dark.image.mean()) + 2


def test_views_do_not_depend_on_threads():
    views = two_planes(-0.2), two_planes(0.3)
    one = imagine(world_of(*views, threads=1), pose_at(0.1))
    three = imagine(world_of(*views, threads=3), pose_at(0.1))
    np.testing.assert_array_equal(one.image, three.image)
    np.testing.assert_array_equal(one.observed_mask, three.observed_mask)


def test_empty_memory_gives_a_uniform_image():
    empty = Rendering(
        torch.full((1, 72, 96, 3), 128, dtype=torch.uint8),
        torch.zeros(1, 72, 96),
        torch.zeros(1, 72, 96, dtype=torch.bool),
        torch.zeros(1, 72, 96, dtype=torch.uint8),
    )
    conditioning = Conditioning(two_planes(0.0), empty, CAMERA, np.eye(4)[None], [], np.array([-1]))
    (frame,) = GeometricPipeline()(conditioning, prompt="", generator=torch.Generator(), on_step=lambda *a: None)
    assert not frame.observed.any()
    assert (frame.depth == 0).all()
    assert frame.image.std() < 1


def test_pipeline_can_be_cancelled():
    world = world_of(two_planes(0.0))

    def stop(stage, step, steps):
        if stage == "warping":
            raise Cancelled

    with pytest.raises(Cancelled):
        next(world.imagine(np.eye(4)[None], CAMERA, on_step=stop))


# --- references ------------------------------------------------------------------------------------------------------


def test_select_references_prefers_views_that_show_the_scene():
    here, beside = two_planes(0.0), two_planes(0.2)
    away = pose_at(0.0)
    away[:3, :3] = np.diag([-1.0, 1.0, -1.0])  # looks the other way
    behind = View(here.image, CAMERA, away, here.depth)
    chosen = select_references([behind, beside, here], here.depth, CAMERA, here.world_from_camera, limit=2)
    assert chosen == [beside, here] or [id(v) for v in chosen] == [id(beside), id(here)]
    best = select_references([behind, beside, here], here.depth, CAMERA, here.world_from_camera, limit=1)
    assert best[0] is here
    without = View(here.image, CAMERA, here.world_from_camera)
    assert select_references([without], here.depth, CAMERA, here.world_from_camera) == []


# --- overlaps and exposure -------------------------------------------------------------------------------------------


def test_sensitivity_of_a_floor_is_the_cotangent_of_its_angle():
    # Depth h / tan(a) changes relatively by 1 / (sin a cos a) per radian of the ray's angle; fy * d(tan a) is the step.
    view = floor()
    angle = np.arctan2(CAMERA.rays()[..., 1], 1.0)
    got = rotation_sensitivity(view.depth, CAMERA.fx, CAMERA.fy, reach=3)[60, 48]
    assert got == pytest.approx(1 / np.tan(angle[60, 48]), rel=0.2)
    flat = rotation_sensitivity(np.full((72, 96), 2.0, np.float32), 80.0, 80.0)
    assert (flat == 0).all()


def test_misalignment_is_measured_from_the_overlap():
    good, turned = floor(), floor(np.radians(1.0))
    assert measure_overlap(good, good).misalignment < 1e-3
    assert np.degrees(measure_overlap(turned, good).misalignment) == pytest.approx(1.0, rel=0.35)
    shared = Overlap(np.zeros((0, 2, 3)), np.radians(2.0), baseline=0.2)
    registration = measure_registration([good, turned, floor()], {(0, 1): shared})
    np.testing.assert_allclose(registration.errors, np.radians(2.0))  # the third is assumed to be as good as the others
    np.testing.assert_array_equal(registration.checked, [True, True, False])
    imagined = replace(turned, observed=np.ones(turned.depth.shape, bool))
    assert not measure_registration([good, imagined], {(0, 1): shared}).known  # imagination is no evidence


def test_align_exposure_brings_views_to_one_exposure():
    views = [two_planes(x, gain) for x, gain in ((0.0, 1.0), (0.1, 0.6), (0.2, 1.3))]
    pairs = {(i, j): measure_overlap(views[i], views[j]) for i in range(3) for j in range(3) if i != j}
    gains = align_exposure(3, pairs)
    brightness = gains[:, 0] * np.array([1.0, 0.6, 1.3])
    np.testing.assert_allclose(brightness / brightness.mean(), 1, atol=0.06)
    assert np.log(gains).mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert (align_exposure(2, {}) == 1).all()


# --- fills -----------------------------------------------------------------------------------------------------------


def test_push_pull_keeps_valid_values_and_interpolates():
    values = np.zeros((32, 48, 1), np.float32)
    weight = np.zeros((32, 48), np.float32)
    values[:, :8], weight[:, :8] = 10, 1
    values[:, 40:], weight[:, 40:] = 20, 1
    out = push_pull(values, weight)[..., 0]
    assert (out[:, :8] == 10).all()
    assert (out[:, 40:] == 20).all()
    assert (out >= 9.99).all()
    assert (out <= 20.01).all()
    assert out[16, 10] < 12 < 18 < out[16, 38]


def test_fill_depth_prefers_the_background():
    depth = np.zeros((32, 48), np.float32)
    depth[:, :20], depth[:, 28:] = 1.0, 4.0
    out = fill_depth(depth)
    assert (out[depth > 0] == depth[depth > 0]).all()
    assert out[:, 24].min() > 2.0  # the middle of 1/d alone would be 1.6
    assert (fill_depth(np.zeros((8, 8), np.float32)) == 0).all()


def test_push_pull_approaches_the_prior_far_from_valid_values():
    values, weight = np.zeros((128, 128, 1), np.float32), np.zeros((128, 128), np.float32)
    values[:4, :4], weight[:4, :4] = 100, 1
    prior = np.full((128, 128, 1), 50, np.float32)
    out = push_pull(values, weight, prior=prior, prior_weight=0.2)[..., 0]
    assert out[127, 127] == pytest.approx(50, abs=5)
    assert out[0, 5] > 80
    nothing = push_pull(np.zeros_like(values), np.zeros_like(weight), prior=prior, prior_weight=0.2)
    np.testing.assert_allclose(nothing, 50)


def test_without_references_colours_are_those_of_the_cloud():
    start = two_planes(0.0)
    renders = SimpleNamespace(
        depth=torch.from_numpy(start.depth)[None],
        colour=torch.from_numpy(start.image)[None],
        covered=torch.ones(1, 72, 96, dtype=torch.bool),
        provenance=torch.full((1, 72, 96), int(Provenance.OBSERVED), dtype=torch.uint8),
    )
    conditioning = Conditioning(start, renders, CAMERA, np.eye(4)[None], [], np.array([-1]))
    (frame,) = GeometricPipeline()(conditioning, prompt="", generator=torch.Generator(), on_step=lambda *a: None)
    np.testing.assert_array_equal(frame.image, start.image)
    assert frame.observed.all()


@pytest.mark.parametrize(("allowed", "expected"), [("1", 1), ("3", 3), ("64", 4), ("", None), ("many", None)])
def test_threads_are_as_many_as_the_environment_allows(monkeypatch, allowed, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert GeometricPipeline().threads == (expected or 2)
