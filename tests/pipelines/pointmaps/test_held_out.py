"""Anchors that are held out: which they are, and how far the refiner is followed by what they say."""

import numpy as np
import pytest
import torch

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models.pointmaps.types import PointmapPrediction
from worldstereo_ros.pipelines.pointmaps.dense_depth import (
    HELD_OUT,
    MIN_HELD_OUT,
    Anchors,
    DepthMaps,
    correct_depth,
    held_out,
)
from worldstereo_ros.pipelines.pointmaps.held_out import NOT_AT_ALL, WHOLLY, share_of_refiner

F, H, W = 5, 48, 64
CAMERA = Camera(W, H, 60.0, 60.0, 31.5, 23.5)


def wall_anchors(count, log_depth):
    """Points of a wall before a camera that stays where it is, each seen in all frames."""
    generator = np.random.default_rng(0)
    pixel = generator.uniform((2, 2), (W - 3, H - 3), (count, 2))
    frame, point = np.repeat(np.arange(F), count), np.tile(np.arange(count), F)
    return Anchors(frame, pixel[point], np.full(len(point), log_depth), np.full(len(point), 30.0), point)


def maps_of(log_depth):
    shape = (F, H, W)
    depth = np.full(shape, np.exp(log_depth), np.float32)
    return DepthMaps(depth, np.full(shape, 0.1, np.float32), np.zeros(F, bool))


def corrected(anchors, change):
    """Log depth with a refiner that adds `change`, and how many anchors it got."""
    got = []

    def refiner(clip, intrinsics, prior):
        got.append(int((prior.anchor_weight > 0).sum()))
        flat = torch.zeros_like(prior.log_depth)
        return PointmapPrediction(prior.log_depth + change, flat - 2, flat, flat, knows_moving=False)

    images = np.zeros((F, H, W, 3), np.uint8)
    poses = np.tile(np.eye(4), (F, 1, 1))
    depth, _ = correct_depth(maps_of(0.7), anchors, poses, CAMERA, images, refiner)
    return np.log(depth.depth), got[0]


def test_the_share_follows_the_errors():
    truth, weight = np.zeros(100), np.ones(100)
    prior = np.full(100, 0.2)
    assert share_of_refiner(prior, 0.5 * prior, truth, weight) == 1
    assert share_of_refiner(prior, prior, truth, weight) == 1
    assert share_of_refiner(prior, 2 * prior, truth, weight) == 0
    between = share_of_refiner(prior, 0.5 * (WHOLLY + NOT_AT_ALL) * prior, truth, weight)
    assert between == pytest.approx(0.5, abs=0.05)
    assert share_of_refiner(truth, truth + 1e-6, truth, weight) == 1  # nothing to tell
    surer = np.where(np.arange(100) < 50, 1.0, 0.01)
    mixed = np.where(np.arange(100) < 50, 0.1, 1.0)  # better at the sure ones
    assert share_of_refiner(prior, mixed, truth, surer) == 1
    assert share_of_refiner(prior, mixed, truth, weight) == 0


def test_points_are_held_out_in_all_frames_that_see_them():
    anchors = wall_anchors(80, 0.7)
    out = held_out(anchors)
    assert out.sum() == F * 80 / HELD_OUT
    assert not set(anchors.point[out]) & set(anchors.point[~out])
    few = wall_anchors(HELD_OUT * (MIN_HELD_OUT // F) - HELD_OUT, 0.7)
    assert not held_out(few).any()
    assert len(anchors.select(out).frame) == out.sum()


def test_a_refiner_that_anchors_refute_changes_nothing():
    anchors = wall_anchors(80, 0.7)
    wrong, got = corrected(anchors, 0.3)
    np.testing.assert_allclose(wrong, 0.7, atol=0.01)
    assert 0 < got < len(anchors.frame)


def test_a_refiner_that_anchors_support_is_followed():
    near = wall_anchors(80, 0.7)
    few, got = corrected(near.select(near.point < 8), 0.3)  # too few to tell
    np.testing.assert_allclose(few, 1.0, atol=0.01)
    assert got == F * 8
    slight, _ = corrected(near, 1e-5)
    np.testing.assert_allclose(slight, 0.7, atol=0.01)
