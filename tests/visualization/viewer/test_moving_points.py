"""The page of point maps: a static map, and what moves in each frame over time."""

import json

import cv2
import numpy as np
import pytest
from helpers.viewer import CAMERA, POSES, wall_view, write_sequence

from worldstereo_ros.geometry.cameras import project
from worldstereo_ros.imaging.codecs import ImageError
from worldstereo_ros.io.posed_sequences import open_posed
from worldstereo_ros.memory.archive import save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.visualization.viewer.app import open_page
from worldstereo_ros.visualization.viewer.loading import load_viewable
from worldstereo_ros.visualization.viewer.moving_points import read_moving


@pytest.fixture
def folder(tmp_path):
    """A folder of point maps: something moves from left to right, and is not there in the last frame."""
    views = [wall_view(pose) for pose in POSES]
    write_sequence(tmp_path, views)
    (tmp_path / "dynamic").mkdir()
    for index in range(len(views)):
        mask = np.zeros((CAMERA.height, CAMERA.width), np.uint8)
        if index < len(views) - 1:
            mask[10:16, 5 * index : 5 * index + 6] = 255
        cv2.imwrite(str(tmp_path / "dynamic" / f"{index:06d}.png"), mask)
    (tmp_path / "timestamps.txt").write_text("".join(f"{i} {100 + 0.4 * i}\n" for i in range(len(views))))
    cloud, bank = CloudMemory(voxel_size=0.02), ViewBank(4)
    cloud.insert(views[0])
    bank.add(views[0])
    save_archive(tmp_path / "world.wsmap", cloud, bank, {"pipeline": "pointmaps", "metric": True})
    (tmp_path / "pointmaps.json").write_text(json.dumps({"ok": True}))
    return tmp_path


def test_frames_have_their_moving_points_and_times(folder):
    viewable = load_viewable(folder)
    assert viewable.kind == "point maps"
    assert len(viewable.slider_views) == len(viewable.moving) == len(POSES)
    assert [len(frame) for frame in viewable.moving] == [36] * (len(POSES) - 1) + [0]
    assert len(viewable.points)
    np.testing.assert_allclose(viewable.times_s, 0.4 * np.arange(len(POSES)), atol=1e-6)
    pixels, _ = project(viewable.moving[1].points, CAMERA, POSES[1])
    assert pixels.min(axis=0) == pytest.approx([5, 10], abs=0.01)
    assert pixels.max(axis=0) == pytest.approx([10, 15], abs=0.01)


def test_the_page_plays_what_moves(folder):
    page = open_page(load_viewable(folder), port=0)
    try:
        moving = page.scene.moving
        assert moving.handle.visible
        first = np.array(moving.handle.points)
        page.select(1)
        assert page._time.value == "0.40 s"
        assert not np.allclose(moving.handle.points, first)
        page.select(len(POSES) - 1)
        assert not moving.handle.visible
        page.select(0)
        np.testing.assert_allclose(moving.handle.points, first)
        page.show_moving(False)
        assert not moving.handle.visible
        page.show_moving(True)
        moving.frames[0].confidence[:10] = 0.1
        page.scene.filter_points(0.0, 0.5)
        assert len(moving.handle.points) == len(first) - 10
        page.scene.filter_points(0.0, 0.0)
        assert len(moving.handle.points) == len(first)
        assert any(cloud.handle.visible for cloud in page.scene.clouds)
    finally:
        page.stop()


def test_a_mask_of_another_size_is_refused(folder):
    cv2.imwrite(str(folder / "dynamic" / "000002.png"), np.zeros((7, 9), np.uint8))
    with pytest.raises(ImageError, match="9x7"):
        read_moving(folder, open_posed(folder)[2], 2)
    for file in (folder / "dynamic").iterdir():
        file.unlink()
    viewable = load_viewable(folder)
    assert not any(len(frame) for frame in viewable.moving)
    assert "Nothing was found to move." in viewable.notes
