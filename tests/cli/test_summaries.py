"""Sentences about provenance for the console."""

from dataclasses import replace

import numpy as np
from helpers.textured_wall import half_imagined, textured_wall_views

from worldstereo_ros.cli.summaries import (
    estimated_depth_warning,
    estimated_distance_warning,
    pixel_shares,
    point_counts,
)
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.panorama.depth import PanoramaDistance

EVERYWHERE = np.ones((60, 80), bool)


def test_point_counts_name_each_class():
    cloud = CloudMemory(voxel_size=1.0)
    points = np.arange(18).reshape(6, 3) + 0.5
    cloud.insert_points(points, np.zeros((6, 3), np.uint8), np.array([1, 2, 2, 3, 3, 3], np.uint8))
    assert point_counts(cloud) == "3 observed, 2 estimated, 1 imagined points"


def test_pixel_shares_are_means_over_the_views():
    views = half_imagined(textured_wall_views())[:2]
    views[0] = replace(views[0], estimated=EVERYWHERE)
    assert pixel_shares(views) == "25% observed, 50% estimated, 25% imagined pixels"


def test_shares_that_round_to_less_than_nothing_are_nothing():
    (view, *_) = textured_wall_views()
    seen = [replace(view, image=view.image[:1, :n], camera=replace(view.camera, width=n, height=1), depth=None,
                    estimated=np.arange(n)[None] < k) for n, k in ((10, 0), (10, 0), (10, 1))]  # fmt: skip
    text = pixel_shares(seen)
    assert text.endswith(", 0% imagined pixels"), text


def test_warning_of_estimated_depth_has_the_number_of_views_and_the_confidence():
    measured, photo, other = textured_wall_views()[:3]
    assert estimated_depth_warning([measured], "x") == ""
    photo = replace(photo, estimated=EVERYWHERE, depth_confidence=np.full((60, 80), 0.25, np.float32))
    text = estimated_depth_warning([photo], "the network")
    assert text.startswith("There is no measured depth: all distances are estimated")
    assert text.endswith("the network is within 25 % of the true distance for 25% of the pixels.")
    text = estimated_depth_warning([measured, replace(other, estimated=EVERYWHERE)], "A hub model")
    assert text.startswith("1 of 2 views have no measured depth")
    assert text.endswith("A hub model has no confidence for them.")


def test_warning_of_depth_that_is_estimated_in_part_does_not_say_that_none_is_measured():
    left = np.arange(80)[None].repeat(60, 0) < 40
    (view, *_) = textured_wall_views()
    text = estimated_depth_warning([replace(view, estimated=left)], "the network")
    assert text.startswith("1 of 1 views have estimated depth where none was measured.")


def test_warning_of_a_panorama_has_the_confidence_where_there_is_a_distance():
    distance = np.ones((4, 8), np.float32)
    distance[:2] = 0  # the sky
    confidence = np.where(distance > 0, np.float32(0.5), np.float32(0))
    text = estimated_distance_warning(PanoramaDistance(distance, confidence, None, None), "the network")
    assert text.startswith("The distances are estimated: no point counts as observed")
    assert text.endswith("the network is within 25 % of the true distance for 50% of the pixels.")
    text = estimated_distance_warning(PanoramaDistance(distance, None, None, None), "A hub model")
    assert text.endswith("A hub model has no confidence for them.")
