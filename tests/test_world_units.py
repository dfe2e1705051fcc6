"""Lengths of an arbitrary unit are never mixed with metres: observations, maps, sequences, bags."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.recordings import HEIGHT, WIDTH, drive

from worldstereo_ros.evaluation.demo_scenarios import sequence_scenario
from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.bags.views import BagError
from worldstereo_ros.io.bags.write_views import write_views
from worldstereo_ros.io.datasets import DatasetError, open_sequence
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.archive import ArchiveError, load_archive
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.utils.errors import InputError
from worldstereo_ros.world import WorldModel

CAMERA = Camera(WIDTH, HEIGHT, 30.0, 30.0, 15.5, 11.5)


def views(metric: bool) -> list[View]:
    stamps, images, depths, base = drive()
    return [
        View(image, CAMERA, pose, depth, stamp_ns=stamp, metric=metric)
        for stamp, image, depth, pose in zip(stamps, images, depths, base, strict=True)
    ]


def world(metric: bool) -> WorldModel:
    model = WorldModel(load_pipeline("geometric"))
    model.observe(views(metric)[0])
    return model


@pytest.mark.parametrize("metric", [True, False])
def test_views_of_another_unit_are_rejected_and_memory_stays(metric):
    model = world(metric)
    points = len(model.cloud)
    with pytest.raises(InputError, match=r"metres.*arbitrary unit|arbitrary unit.*metres"):
        model.observe(views(not metric)[1])
    assert (len(model.cloud), len(model.bank)) == (points, 1)
    assert model.metric is metric
    model.observe(views(metric)[1])
    model.reset()
    model.observe(views(not metric)[1])
    assert model.metric is not metric


@pytest.mark.parametrize("metric", [True, False])
def test_imagined_views_and_maps_keep_the_unit(tmp_path, metric):
    model = world(metric)
    imagined = list(model.imagine(drive()[3][1:3], CAMERA, remember=True))
    assert [view.metric for view in imagined] == [metric, metric]
    model.save(tmp_path / "a.wsmap")
    assert load_archive(tmp_path / "a.wsmap").metadata["metric"] is metric
    loaded = WorldModel(load_pipeline("geometric"))
    loaded.load(tmp_path / "a.wsmap")
    assert loaded.metric is metric
    assert all(view.metric is metric for view in loaded.bank.views)
    with pytest.raises(InputError, match="not mixed"):
        loaded.observe(views(not metric)[0])


def test_a_map_without_scale_is_not_loaded_where_lengths_are_metres(tmp_path):
    world(False).save(tmp_path / "arbitrary.wsmap")
    model = world(True)
    with pytest.raises(ArchiveError, match=r"unit of the map .* is arbitrary"):
        model.load(tmp_path / "arbitrary.wsmap", metric_only=True)
    assert len(model.bank) == 1
    assert model.metric
    world(True).save(tmp_path / "metres.wsmap")
    model.load(tmp_path / "metres.wsmap", metric_only=True)


@pytest.mark.parametrize("metric", [True, False])
def test_sequences_keep_the_unit(tmp_path, metric):
    write_sequence(tmp_path, views(metric))
    assert json.loads((tmp_path / "intrinsics.json").read_text())["metric"] is metric
    sequence = open_sequence(tmp_path)
    assert sequence.metric is metric
    assert all(view.metric is metric for view in sequence)


def test_mixed_sequences_and_claims_that_are_no_bool_are_rejected(tmp_path):
    with pytest.raises(InputError, match="one unit"):
        write_sequence(tmp_path / "mixed", [views(True)[0], views(False)[1]])
    write_sequence(tmp_path / "a", views(False))
    intrinsics = tmp_path / "a" / "intrinsics.json"
    intrinsics.write_text(json.dumps({**json.loads(intrinsics.read_text()), "metric": "false"}))
    with pytest.raises(DatasetError, match="metric 'false'; true or false was expected"):
        open_sequence(tmp_path / "a")


def test_messages_are_in_metres(tmp_path):
    with pytest.raises(BagError, match="arbitrary"):
        write_views(tmp_path / "bag", views(False))
    write_sequence(tmp_path / "sequence", views(False))
    with pytest.raises(InputError, match=r"unit of .* is arbitrary"):
        sequence_scenario(tmp_path / "sequence", 2)


def test_estimated_depth_beside_arbitrary_poses_is_warned_of(caplog):
    class Far:
        def __call__(self, image, camera):
            return np.full(image.shape[:2], 2, np.float32)

    model = WorldModel(load_pipeline("geometric"), depth_estimator=Far())
    for view in views(False)[:2]:
        model.observe(replace(view, depth=None))
    assert caplog.text.count("The unit of the poses is arbitrary") == 1


def test_a_photo_has_no_lengths_of_another_unit(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), drive()[1][0])
    assert open_sequence(tmp_path / "a.png")[0].metric
