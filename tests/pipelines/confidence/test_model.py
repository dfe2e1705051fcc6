"""Features and fitted model of the confidence: properties that hold for any fitted weights."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import worldstereo_ros
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.pipelines.base import Conditioning, ModelError, PipelineFrame
from worldstereo_ros.pipelines.confidence import (
    CLASSES,
    FEATURES,
    MAX_SIZE_PX,
    Scale,
    StatisticsCache,
    compute_features,
    load_confidence,
)
from worldstereo_ros.rendering.splatting import Rendering
from worldstereo_ros.utils.errors import InputError

PIPELINES = ("geometric", "small")


def grey_view(width: int, height: int, observed: np.ndarray, *, depth: float | None = 3.0, references: int = 1):
    """(frame, conditioning) of a uniform grey view; `observed` is (height, width) bool."""
    camera = Camera.from_fov(width, height, 1.2)
    grey = np.full((height, width, 3), 120, np.uint8)
    plane = np.full((height, width), depth or 0, np.float32)
    pose = np.eye(4)
    renders = Rendering(
        colour=torch.from_numpy(np.where(observed[..., None], grey, np.uint8(128)))[None],
        depth=torch.from_numpy(np.where(observed, plane, np.float32(0)))[None],
        covered=torch.from_numpy(observed)[None],
        provenance=torch.from_numpy(np.where(observed, np.uint8(Provenance.OBSERVED), np.uint8(0)))[None],
    )
    views = [View(grey, camera, pose, plane) for _ in range(max(1, references))]
    conditioning = Conditioning(
        views[0], renders, camera, pose[None], views[:references], np.array([0 if references else -1])
    )
    frame = PipelineFrame(grey, None if depth is None else plane, observed)
    return frame, conditioning


@pytest.mark.parametrize("name", PIPELINES)
def test_confidence_does_not_increase_with_distance_from_the_evidence(name):
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    if name == "small":  # it knows planes, which extend less and less
        distance = np.clip((np.arange(160, dtype=np.float32) - 40) / 120, 0, 1)
        frame = replace(frame, plane_absence=np.tile(1 - np.exp(-distance), (120, 1)))
    found = load_confidence(name)(frame, conditioning, 0)
    for row in (found.colour[60], found.depth[60]):
        assert (np.diff(row[44:110]) <= 1e-5).all()
        assert row[42] >= row[-1]  # by how much is tested with a textured image; uniform grey is easy to predict
        assert row[:36].min() >= row[44:].max() - 1e-6  # observed pixels have the highest confidence


@pytest.mark.parametrize("name", PIPELINES)
def test_confidence_decreases_with_distance_in_textured_images(name):
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    squares = np.random.default_rng(0).integers(60, 180, (15, 20, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    confidence = load_confidence(name)(replace(frame, image=squares), conditioning, 0).colour
    assert confidence[:, 42].mean() > confidence[:, 120:].mean() + 0.1


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("label", CLASSES)
@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_confidence_does_not_increase_with_any_feature(name, label, seed):
    random = np.random.default_rng(seed)
    values = random.uniform(-1, 3, len(FEATURES)).astype(np.float32)
    worse = values + random.uniform(0, 2, len(FEATURES)).astype(np.float32) * (random.random(len(FEATURES)) < 0.3)
    for scale in load_confidence(name).scales[label].values():
        one, other = scale(np.stack([values, worse]))
        assert other <= one + 1e-6
        assert 0 <= other <= one <= 1


@pytest.mark.parametrize("name", PIPELINES)
def test_expected_error_is_consistent_with_confidence(name):
    model = load_confidence(name)
    for label, observed in (("imagined", False), ("observed", True)):
        scale = model.scales[label]["colour"]
        error = model.expected_error(scale.confidence, np.full(len(scale.confidence), observed))
        np.testing.assert_allclose(error, scale.expected_error, atol=2e-3)
        assert error.min() >= 0
        assert error.max() <= 1


@pytest.mark.parametrize("size", [(8, 6), (53, 37), (640, 480), (90, 300)])
@pytest.mark.parametrize("case", ["all", "none", "half", "no depth", "no observation"])
def test_features_and_confidence_are_finite_for_all_sizes_and_cases(size, case):
    width, height = size
    observed = np.full((height, width), case == "all")
    if case == "half":
        observed[height // 2 :] = True
    arguments = grey_view(
        width,
        height,
        observed,
        depth=None if case == "no depth" else 3.0,
        references=0 if case == "no observation" else 2,
    )
    found = compute_features(*arguments, 0, StatisticsCache())
    assert max(found.shape[:2]) == min(MAX_SIZE_PX, max(size))
    assert found.shape[2] == len(FEATURES)
    assert np.isfinite(found).all()
    confidence = load_confidence("small")(*arguments, 0)
    assert (confidence.depth is None) == (case == "no depth")
    for array in confidence:
        if array is not None:
            assert array.shape == (height, width)
            assert array.dtype == np.float32
            assert np.isfinite(array).all()
            assert 0 <= array.min() <= array.max() <= 1


def test_pixels_without_depth_have_no_confidence_of_depth():
    frame, conditioning = grey_view(64, 48, np.zeros((48, 64), bool))
    depth = frame.depth.copy()
    depth[:, :20] = 0
    found = load_confidence("geometric")(replace(frame, depth=depth), conditioning, 0)
    assert (found.depth[:, :20] == 0).all()
    assert (found.depth[:, 30:] > 0).all()
    assert (found.colour > 0).all()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_view_that_shows_nothing_seen_has_a_low_confidence(name):
    """The camera looks back, into a place of which two textured observations of the other side say nothing."""
    random = np.random.default_rng(0)
    frame, conditioning = grey_view(160, 120, np.zeros((120, 160), bool))
    camera, depth = conditioning.camera, np.full((120, 160), 3, np.float32)
    views = []
    for x in (0.0, 0.3):
        squares = random.integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
        pose = np.eye(4)
        pose[0, 3] = x
        views.append(View(squares, camera, pose, depth))
    turned = np.diag([-1.0, 1.0, -1.0, 1.0])
    conditioning = replace(conditioning, world_from_camera=turned[None], observations=views, references=views)
    image = random.integers(0, 255, (12, 16, 3), dtype=np.uint8).repeat(10, 0).repeat(10, 1)
    found = load_confidence(name)(replace(frame, image=image), conditioning, 0)
    assert found.colour.mean() < 0.25
    assert found.depth.mean() < 0.35


def test_imagined_views_are_no_evidence():
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    pose = np.eye(4)
    pose[0, 3] = 0.5
    imagined = View(
        frame.image, conditioning.camera, pose, np.full((120, 160), 3, np.float32), observed=np.zeros((120, 160), bool)
    )
    more = replace(conditioning, references=[*conditioning.references, imagined], start_view=imagined)
    for one, other in zip(*(load_confidence("small")(frame, c, 0) for c in (conditioning, more)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_imagined_points_limit_the_confidence_and_are_no_evidence():
    observed = np.zeros((120, 160), bool)
    observed[:, :40] = True
    frame, conditioning = grey_view(160, 120, observed)
    before = load_confidence("small")(frame, conditioning, 0)
    provenance = conditioning.renders.provenance.clone()
    provenance[:, :, 40:100] = Provenance.IMAGINED
    renders = replace(conditioning.renders, provenance=provenance, covered=provenance > 0)
    stored = np.full((1, 120, 160, 2), 0.3, np.float32)
    stored[..., 1] = 0.2
    found = load_confidence("small")(frame, replace(conditioning, renders=renders, stored_confidence=stored), 0)
    for one, other, limit in zip(before, found, (0.3, 0.2), strict=True):
        np.testing.assert_allclose(other[:, 40:100], np.minimum(one[:, 40:100], limit), atol=1e-6)
        np.testing.assert_allclose(other[:, :40], one[:, :40], atol=1e-6)
        np.testing.assert_allclose(other[:, 100:], one[:, 100:], atol=1e-6)


def test_scale_rejects_functions_that_are_not_monotone():
    good = load_confidence("geometric").scales["imagined"]["colour"]
    again = Scale.from_dict(json.loads(json.dumps(good.to_dict())))
    values = np.random.default_rng(0).uniform(0, 3, (50, len(FEATURES))).astype(np.float32)
    np.testing.assert_allclose(again(values), good(values), atol=1e-3)
    name, (knots, steps) = next(iter(good.functions.items()))
    for changes in (
        {"functions": {name: (knots, steps[::-1])}},
        {"functions": {name: (knots[::-1], steps)}},
        {"functions": {name: (knots[1:], steps)}},
        {"functions": {"no such feature": (knots, steps)}},
        {"expected_error": good.expected_error[::-1]},
        {"confidence": good.confidence[::-1]},
        {"offset": np.nan},
    ):
        with pytest.raises(InputError, match=r"expected|unknown features: no such feature"):
            replace(good, **changes)


def test_missing_confidence_file_is_a_model_error(tmp_path, monkeypatch):
    monkeypatch.setattr(worldstereo_ros, "__path__", [str(tmp_path)])
    with pytest.raises(ModelError, match=r"confidence\.json cannot be read .* Reinstall the package"):
        load_confidence.__wrapped__("small")  # without its cache
