"""Saved maps as a source of a reconstruction, photographs that join, and a reconstruction in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, render, write_photos

from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.memory.archive import ArchiveError, save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.reconstruction.background import (
    BackgroundReconstruction,
    ReconstructionFailedError,
    ReconstructionStoppedError,
)
from worldstereo_ros.reconstruction.map_source import open_all
from worldstereo_ros.reconstruction.photographs import import_photographs
from worldstereo_ros.reconstruction.place import PlaceSettings

POSES = arc(5)


def save(path, views: list[View]) -> None:
    bank = ViewBank()
    for view in views:
        bank.add(view)
    save_archive(path, CloudMemory(), bank, {})


def test_map_gives_observations_with_measured_depth(tmp_path):
    views = [replace(render(pose), stamp_ns=10 - i) for i, pose in enumerate(POSES)]
    half = np.zeros((CAMERA.height, CAMERA.width), bool)
    half[:, :100] = True
    views[1] = replace(views[1], estimated=half)
    views[2] = replace(views[2], estimated=np.ones_like(half))
    views[3] = replace(views[3], observed=half)  # imagined
    save(tmp_path / "map.wsmap", views)
    source = open_all(tmp_path / "map.wsmap")
    photos = import_photographs(source, tmp_path / "work")
    assert (photos.kind, photos.metric, len(photos)) == ("map", True, 4)
    assert "1 imagined views of the map are not used." in photos.notes
    # By the time that they were taken, not by the time that they came.
    np.testing.assert_allclose(photos[0].world_from_camera, POSES[4])
    by_stamp = {photo.stamp_ns: photo for photo in photos}
    assert by_stamp[8].measured_depth() is None  # estimated depth is found anew
    partial = by_stamp[9].measured_depth()
    assert (partial[:, :100] == 0).all()
    np.testing.assert_allclose(partial[:, 100:], views[1].depth[:, 100:], rtol=1e-3)


def test_unit_of_a_map_is_kept(tmp_path):
    save(tmp_path / "map.wsmap", [replace(render(pose), metric=False) for pose in POSES[:2]])
    assert not open_all(tmp_path / "map.wsmap").metric
    ignored = list(open_all(tmp_path / "map.wsmap", use_poses=False).photographs)
    assert all(raw.world_from_camera is None for raw in ignored)


def test_photographs_join_a_map(tmp_path):
    save(tmp_path / "map.wsmap", [render(pose) for pose in POSES[:2]])
    write_photos(tmp_path / "phone", POSES[2:4])
    write_photos(tmp_path / "one", POSES[4:])
    source = open_all(tmp_path / "map.wsmap", [tmp_path / "phone", tmp_path / "one" / "000000.png"])
    photos = import_photographs(source, tmp_path / "work")
    assert [photo.world_from_camera is not None for photo in photos] == [True, True, False, False, False]
    assert len(source.files) == 4
    with pytest.raises(DatasetError, match="does not exist"):
        open_all(tmp_path / "map.wsmap", [tmp_path / "missing"])
    (tmp_path / "text.txt").write_text("no photograph")
    with pytest.raises(DatasetError, match="holds no photograph"):
        open_all(tmp_path / "map.wsmap", [tmp_path / "text.txt"])


def test_unusable_map_is_said(tmp_path):
    (tmp_path / "bad.wsmap").write_bytes(b"not a map")
    with pytest.raises(ArchiveError):
        open_all(tmp_path / "bad.wsmap")
    save(tmp_path / "imagined.wsmap", [replace(render(POSES[0]), observed=np.zeros((180, 240), bool))])
    with pytest.raises(DatasetError, match="no view that a camera took"):
        open_all(tmp_path / "imagined.wsmap")


def test_process_says_what_went_wrong_and_can_be_stopped(tmp_path):
    save(tmp_path / "map.wsmap", [render(POSES[0])])
    settings = PlaceSettings(mesh=False, splats=False, depth_model="none")
    started = BackgroundReconstruction(tmp_path / "map.wsmap", tmp_path / "place", settings)
    stopped = BackgroundReconstruction(tmp_path / "map.wsmap", tmp_path / "other", settings)
    stopped.stop()
    with pytest.raises(ReconstructionStoppedError):
        stopped.wait()
    with pytest.raises(ReconstructionFailedError, match="1 of 1 photographs can be used; two at least"):
        started.wait()
    assert not (tmp_path / "place" / "figures.json").exists()
