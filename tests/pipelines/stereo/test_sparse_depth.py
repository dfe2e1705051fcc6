"""Scattered depth: of lidars, and of depth cameras registered to larger images."""

import numpy as np
import pytest
from helpers.stereo_scene import CAMERA, view_from

from worldstereo_ros.evaluation.metrics import psnr
from worldstereo_ros.pipelines.stereo.pipeline import GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.pipelines.stereo.sparse_depth import is_sparse, spread_disparity

BASE = 0.1


def some_of(kind: str, shape: tuple[int, int]) -> np.ndarray:
    known = np.zeros(shape, bool)
    if kind == "lines":
        known[::4] = True
    elif kind == "grid":
        known[::2, ::2] = True
    else:
        known = np.random.default_rng(0).random(shape) < 0.05
    return known


@pytest.mark.parametrize("kind", ["lines", "grid", "points"])
def test_few_depths_make_nearly_the_eye_of_all(kind):
    image, depth = view_from(0.0)
    known = some_of(kind, depth.shape)
    assert is_sparse(known)
    pipeline = GeometricStereo(CAMERA, StereoSettings(base=BASE))
    truth = view_from(BASE)[0]
    everything = psnr(pipeline.make(image, depth).image, truth)
    pipeline.restart()
    assert psnr(pipeline.make(image, np.where(known, depth, 0)).image, truth) > everything - 7


def test_surfaces_with_holes_are_not_sparse():
    known = np.ones((60, 80), bool)
    assert not is_sparse(known)
    known[10:40, 20:50] = False
    known[np.random.default_rng(0).random(known.shape) < 0.1] = False
    assert not is_sparse(known)
    assert not is_sparse(np.zeros((4, 4), bool))


def test_a_slope_becomes_smooth_and_a_jump_stays():
    true = np.tile(np.arange(64, dtype=np.float32) * 0.05 + 5, (48, 1))
    true[:, 40:] += 20
    known = some_of("points", true.shape)
    found = spread_disparity(np.where(known, true, 0).astype(np.float32), known)
    assert np.abs(found[:, :24] - true[:, :24]).mean() < 0.15
    assert np.abs(np.diff(found[:, :24], axis=1)).max() < 0.5
    assert np.median(found[:, 46:] - true[:, 46:]) == pytest.approx(0, abs=0.3)
    assert (np.abs(np.diff(found, axis=1)).max(axis=1) > 15).all()
