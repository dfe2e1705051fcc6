"""Keyframes, cameras, holes and references in the published layout, and the seam of compositing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.checkpoints import DMD_VARIANT, MEMORY
from helpers.walls import ODD_WALL as WALL
from helpers.walls import away

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.models.worldstereo.camera_embedding import plucker_embedding
from worldstereo_ros.pipelines.base import Conditioning
from worldstereo_ros.pipelines.worldstereo.compositing import compose
from worldstereo_ros.pipelines.worldstereo.conditioning import (
    attach_references,
    fit_renders,
    make_keyframes,
    published_matrix,
)
from worldstereo_ros.rendering.splatting import render

CAMERA = WALL.camera
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_start_view_is_the_first_keyframe_and_holes_are_grey():
    view = WALL.view()
    poses = away(3)
    rendering = render(
        np.array([[0.0, 0.0, 2.0]], np.float32),
        np.array([[250, 10, 10]], np.uint8),
        np.ones(1, bool),
        np.full(1, 0.4, np.float32),
        CAMERA,
        poses,
    )
    conditioning = Conditioning(view, rendering, CAMERA, poses, [view], np.array([-1, 0, 0]))
    keyframes = make_keyframes(conditioning, (64, 96), CPU)
    assert keyframes.start.shape == (1, 3, 64, 96)
    assert keyframes.renders.shape == (1, 3, 3, 64, 96)
    assert keyframes.holes.shape == (1, 1, 4, 64, 96)
    assert keyframes.holes[0, 0, 0].sum() == 0
    start = view.resized(96, 64).image
    np.testing.assert_allclose(keyframes.start[0].permute(1, 2, 0), start / 127.5 - 1, atol=1e-6)
    hole = keyframes.holes[0, 0, 1] > 0
    assert 0.5 < hole.float().mean() < 1
    assert not keyframes.renders[0, :, 0][:, hole].any()
    covered = keyframes.renders[0, :, 0][:, ~hole]
    np.testing.assert_allclose(covered[0], 250 / 127.5 - 1, atol=1e-5)  # without the grey of holes
    assert keyframes.reference_index.tolist() == [1]  # the nearer one of views 1 and 2
    assert keyframes.poses.shape == (1, 4, 7)
    np.testing.assert_allclose(
        keyframes.poses[0, :2, :4], [[1, 0, 0, 0]] * 2, atol=1e-6
    )  # a turn starts at the start view
    np.testing.assert_allclose(keyframes.reference_poses, keyframes.poses[:, :1], atol=1e-6)


def test_published_matrix_scales_with_the_image_and_uses_the_published_pixel_grid():
    camera = Camera(60, 45, 40.0, 40.0, 29.5, 22.0)
    matrix = published_matrix(camera.resized(96, 64))
    np.testing.assert_allclose(matrix, [[64.0, 0, 48], [0, 40 * 64 / 45, 32], [0, 0, 1]])
    # The ray through the image centre, between its four central pixels, points straight ahead.
    rays = plucker_embedding(np.eye(4)[None], matrix, 64, 96)[:3, 0]
    np.testing.assert_allclose(rays[:, 31:33, 48:50].mean(axis=(1, 2)), [0.0, 0.0, 1.0], atol=2e-2)


def test_fit_renders_marks_pixels_that_are_mostly_uncovered_as_holes():
    covered = torch.zeros(1, 8, 8, dtype=torch.bool)
    covered[:, :, :4] = True
    colour = torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)
    colour[:, :, :4] = 255
    images, holes = fit_renders(colour, covered, (4, 4))
    assert holes[0].tolist() == [[0.0, 0.0, 1.0, 1.0]] * 4
    np.testing.assert_allclose(images[0, :, :, :2], 1.0, atol=1e-6)
    assert not images[0, :, :, 2:].any()


def test_attach_references_chooses_the_view_with_the_highest_score():
    views = [WALL.view(), WALL.view(2, 0.5)]
    poses = trajectory("right", np.eye(4), 3, distance=0.5)
    conditioning = Conditioning(views[0], None, CAMERA, poses, [*views, WALL.view(3, 9.0)], np.array([0, 1, 1]))
    chosen, index = attach_references(conditioning)
    assert [view.stamp_ns for view in chosen] == [1, 2]
    assert index == [0, 2]
    none = replace(conditioning, reference_index=np.full(3, -1))
    assert attach_references(none) == ([], [])


def test_video_condition_differs_from_single_frames(published_pipelines):
    def condition_of(variant):
        hidden = []
        pipeline = published_pipelines[variant]
        hook = pipeline.transformer.register_forward_pre_hook(lambda _m, args: hidden.append(args[0]))
        try:
            list(WALL.world(pipeline).imagine(away(4), CAMERA))
        finally:
            hook.remove()
        return hidden[0][0, 16:]

    video, single = condition_of(DMD_VARIANT), condition_of(MEMORY)
    for condition in (video, single):
        assert (condition[:4, 0] == 1).all()
        assert not condition[:4, 1:].any()
    # Encoded one by one, all grey frames are the same; in a video they depend on the first frame.
    assert torch.equal(single[4:, 1], single[4:, 4])
    assert (video[4:, 1] - video[4:, 4]).abs().max() > 1e-3
    np.testing.assert_allclose(video[4:, 0], single[4:, 0], atol=1e-4)


def test_compose_keeps_observed_pixels_and_blends_outside():
    from worldstereo_ros.pipelines.base import PipelineFrame

    observed = np.zeros((20, 60), bool)
    observed[:, :20] = True
    memory_frame = PipelineFrame(np.full((20, 60, 3), 200, np.uint8), np.ones((20, 60), np.float32), observed)
    frame = compose(memory_frame, np.full((20, 60, 3), 100, np.uint8))
    assert (frame.image[observed] == 200).all()
    row = frame.image[10, 20:, 0].astype(int)
    # The colour difference on observed pixels is extrapolated and decreases with distance.
    assert (np.diff(row) <= 0).all()
    assert row[0] > 150
    assert row[-1] < row[0]
    assert (frame.observed == observed).all()
