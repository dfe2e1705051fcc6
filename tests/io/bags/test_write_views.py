"""Bags written from posed RGB-D views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.bags.files import Bag, BagError
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.bags.write_views import write_views

CAMERA = Camera(32, 24, 30.0, 31.0, 15.5, 11.5)
START_NS = 1_700_000_000_000_000_000


def drive(count: int = 4, depth: bool = True) -> list[View]:
    random = np.random.default_rng(0)
    return [
        View(
            random.integers(0, 256, (24, 32, 3), dtype=np.uint8),
            CAMERA,
            pose,
            random.uniform(0.5, 4, (24, 32)).astype(np.float32) if depth else None,
            stamp_ns=START_NS + index * 100_000_000,
        )
        for index, pose in enumerate(trajectory("orbit", np.eye(4), count))
    ]


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_read_views_returns_the_written_views(tmp_path, storage):
    views = drive()
    views[1].depth[:3] = 0  # unknown
    assert write_views(tmp_path / "bag", views, storage=storage) == 4
    found = list(read_views(tmp_path / "bag"))
    assert len(found) == 4
    for view, written in zip(found, views, strict=True):
        np.testing.assert_array_equal(view.image, written.image)
        np.testing.assert_array_equal(view.depth, written.depth)
        np.testing.assert_allclose(view.world_from_camera, written.world_from_camera, atol=1e-12)
        assert view.camera == CAMERA
        assert view.stamp_ns == written.stamp_ns


def test_views_without_depth_write_no_depth_messages(tmp_path):
    write_views(tmp_path / "bag", drive(2, depth=False), namespace="/front", world_frame="odom")
    with Bag(tmp_path / "bag") as bag:
        assert set(bag.topics) == {"/front/image", "/front/camera_info", "/tf"}
    assert [view.depth for view in read_views(tmp_path / "bag", world_frame="odom")] == [None, None]


def test_depth_that_was_not_measured_is_not_written(tmp_path):
    """A reader takes the depth of a bag as measured."""
    partly, photo, imagined = drive(3)
    left = np.arange(32)[None].repeat(24, 0) < 16
    views = [
        replace(partly, estimated=~left),
        replace(photo, estimated=np.ones((24, 32), bool)),
        replace(imagined, observed=left),
    ]
    write_views(tmp_path / "bag", views)
    first, second, third = read_views(tmp_path / "bag")
    for view, written in ((first, partly), (third, imagined)):
        np.testing.assert_array_equal(view.depth, np.where(left, written.depth, 0))
    assert not second.depth.any()


def test_write_views_rejects_existing_folders(tmp_path):
    with pytest.raises(BagError, match="already exists"):
        write_views(tmp_path, drive(1))


def test_an_interrupted_bag_is_removed(tmp_path):
    def views():
        yield from drive(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_views(tmp_path / "bag", views())
    assert list(tmp_path.iterdir()) == []
