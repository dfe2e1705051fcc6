import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, render, write_photos
from helpers.recordings import record

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.io.bags.files import Bag, BagWriter
from worldstereo_ros.io.bags.views import read_views
from worldstereo_ros.io.bags.write_views import write_views
from worldstereo_ros.io.colmap_export import write_colmap_model
from worldstereo_ros.io.colmap_models import ColmapImage
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.nerfstudio import OPENGL_FROM_OPENCV
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.io.video import write_video
from worldstereo_ros.reconstruction.photographs import import_photographs
from worldstereo_ros.reconstruction.sources import open_source
from worldstereo_ros.utils.errors import InputError

POSES = arc(4)


def test_a_colmap_project_gives_its_photographs_with_their_lens(tmp_path):
    write_photos(tmp_path / "in" / "images", POSES)
    lens = CameraCalibration(CAMERA, np.array([0.04, -0.01, 0.0, 0.0]), "plumb_bob")
    images = [ColmapImage(f"{i:06d}.png", lens, pose) for i, pose in enumerate(POSES)]
    images.append(ColmapImage("missing.png", lens, POSES[0]))
    write_colmap_model(tmp_path / "in" / "sparse" / "0", images)
    source = open_source(tmp_path / "in")
    photos = import_photographs(source, tmp_path / "out")
    assert (photos.kind, photos.metric, len(photos)) == ("colmap", False, 4)
    assert "does not exist" in photos.left_out["missing.png"]
    np.testing.assert_allclose([photo.world_from_camera for photo in photos], POSES, atol=1e-8)
    assert photos[0].original_size == (240, 180)
    np.testing.assert_allclose(photos[0].lens.coefficients, lens.coefficients)
    assert photos[0].camera.fx == pytest.approx(210)  # of the working copy, without distortion
    assert photos[0].camera.width < 240


def test_transforms_give_poses_and_depth(tmp_path):
    write_photos(tmp_path / "in" / "images", POSES)
    frames = [
        {"file_path": f"images/{i:06d}.png", "transform_matrix": (pose @ OPENGL_FROM_OPENCV).tolist()}
        for i, pose in enumerate(POSES)
    ]
    content = {"fl_x": 210.0, "cx": 120.0, "cy": 90.0, "w": 240, "h": 180, "frames": frames}
    (tmp_path / "in" / "transforms.json").write_text(json.dumps(content))
    photos = import_photographs(open_source(tmp_path / "in"), tmp_path / "out")
    assert photos.kind == "nerfstudio"
    assert all(photo.camera == CAMERA for photo in photos)
    np.testing.assert_allclose([photo.world_from_camera for photo in photos], POSES, atol=1e-8)
    ignored = import_photographs(open_source(tmp_path / "in", use_poses=False), tmp_path / "again")
    assert all(photo.world_from_camera is None and photo.camera == CAMERA for photo in ignored)


def test_depth_unit_is_that_of_depth_images_alone(tmp_path):
    views = [render(pose) for pose in POSES[:2]]
    write_sequence(tmp_path / "posed", views)
    frames = [
        {"file_path": f"../posed/frames/{i:06d}.png", "depth_file_path": f"../posed/depth/{i:06d}.png",
         "transform_matrix": (pose @ OPENGL_FROM_OPENCV).tolist()}
        for i, pose in enumerate(POSES[:2])
    ]  # fmt: skip
    content = {"fl_x": 210.0, "cx": 120.0, "cy": 90.0, "w": 240, "h": 180, "frames": frames}
    (tmp_path / "transforms").mkdir()
    (tmp_path / "transforms" / "transforms.json").write_text(json.dumps(content))
    for name in ("posed", "transforms"):
        for unit, factor in (("auto", 1), ("mm", 1), ("0.1mm", 0.1)):
            photo = next(open_source(tmp_path / name, bag_options={"depth_unit": unit}).photographs)
            np.testing.assert_allclose(photo.load_depth(), factor * views[0].depth, atol=1e-3)
    write_photos(tmp_path / "photos", POSES[:2])
    with pytest.raises(InputError, match="photographs"):
        open_source(tmp_path / "photos", bag_options={"depth_unit": "mm"})


def test_a_bag_gives_poses_in_metres(tmp_path):
    views = [replace(render(pose), stamp_ns=(i + 1) * 10**9) for i, pose in enumerate(POSES)]
    write_views(tmp_path / "bag", views)
    photos = import_photographs(open_source(tmp_path / "bag"), tmp_path / "out")
    assert (photos.kind, photos.metric) == ("bag", True)
    assert len(photos) == 4
    relative = np.linalg.inv(photos[0].world_from_camera) @ photos[3].world_from_camera
    np.testing.assert_allclose(relative, np.linalg.inv(POSES[0]) @ POSES[3], atol=1e-5)
    assert photos[0].measured_depth() is not None


@pytest.mark.parametrize(("tf", "expected"), [("none", "neither poses nor transforms"), ("static", "are the same")])
def test_all_images_of_a_bag_without_poses_are_read(tmp_path, tf, expected):
    if tf == "none":
        record(tmp_path / "bag", tf=False)
    else:
        stamps = [(i + 1) * 10**9 for i in range(4)]
        still = [
            replace(render(pose), world_from_camera=POSES[0], stamp_ns=t) for pose, t in zip(POSES, stamps, strict=True)
        ]
        write_views(tmp_path / "bag", still)
    source = open_source(tmp_path / "bag")
    found = list(source.photographs)
    assert len(found) == (5 if tf == "none" else 4)
    assert all(photo.world_from_camera is None and photo.calibration is not None for photo in found)
    assert f"{len(found)} of the {len(found)} images of bag have no pose; they are registered." in source.notes[-1]
    assert expected in source.notes[-1]


def test_images_of_a_bag_before_its_first_transform_are_read_without_a_pose(tmp_path):
    views = [replace(render(pose), stamp_ns=(i + 1) * 10**9) for i, pose in enumerate(POSES)]
    write_views(tmp_path / "bag", views)
    with BagWriter(tmp_path / "early") as writer, Bag(tmp_path / "bag") as bag:
        for topic, kind in bag.topics.items():
            writer.add_topic(topic, kind, latched=topic == "/tf_static")
        for topic, recorded, raw in bag.messages(bag.topics):
            if topic != "/tf" or recorded > 2 * 10**9:
                writer.write(topic, bag.decode(topic, raw), recorded)
    source = open_source(tmp_path / "early")
    posed = [photo.world_from_camera is not None for photo in source.photographs]
    assert posed == [False, False, True, True]
    assert "2 of the 4 images of early have no pose" in source.notes[-1]
    assert len(list(read_views(tmp_path / "early"))) == 2


def test_frames_of_a_video_are_chosen_and_one_that_stands_still_is_no_place(tmp_path):
    frames = [render(pose).image for pose in arc(12, step_deg=1.5)]
    write_video(tmp_path / "walk.mp4", [frame for frame in frames for _ in range(2)])  # each twice
    photos = import_photographs(open_source(tmp_path / "walk.mp4", max_photographs=6), tmp_path / "out")
    assert (photos.kind, photos.ordered) == ("video", True)
    assert 3 <= len(photos) <= 6
    write_video(tmp_path / "still.mp4", [frames[0]] * 8)
    with pytest.raises(DatasetError, match=r"The camera of .* moves by"):
        import_photographs(open_source(tmp_path / "still.mp4"), tmp_path / "again")


def test_photographs_beyond_the_limit_are_spread_and_said(tmp_path):
    write_photos(tmp_path / "in", POSES)
    source = open_source(tmp_path / "in", max_photographs=2)
    names = [photo.name for photo in source.photographs]
    assert names == ["000000.png", "000003.png"]
    assert "2 of the 4 photographs are used" in source.notes[0]


def test_results_of_an_earlier_run_are_no_photographs(tmp_path):
    write_photos(tmp_path / "in", POSES[:2])
    (tmp_path / "in" / ".worldstereo_results").write_text("{}")
    with pytest.raises(DatasetError, match="results of an earlier run"):
        open_source(tmp_path / "in")
