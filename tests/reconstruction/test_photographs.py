import json

import cv2
import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, pose_at, render, write_photos, write_posed
from PIL import Image

from worldstereo_ros.imaging.sharpness import sharpness
from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.reconstruction import photographs
from worldstereo_ros.reconstruction.photographs import import_photographs, load_photographs
from worldstereo_ros.reconstruction.sources import open_source
from worldstereo_ros.reconstruction.video_frames import choose_frames


def test_each_unusable_photograph_gets_a_sentence_and_the_rest_goes_on(tmp_path):
    views, between = write_photos(tmp_path / "in", arc(5)), render(pose_at(0.02)).image
    folder = tmp_path / "in"
    cv2.imwrite(str(folder / "black.png"), np.full((180, 240, 3), 2, np.uint8))
    cv2.imwrite(str(folder / "grey.png"), np.full((180, 240, 3), 128, np.uint8))
    (folder / "copy.png").write_bytes((folder / "000001.png").read_bytes())
    cv2.imwrite(str(folder / "zblurred.png"), cv2.GaussianBlur(between[..., ::-1], (0, 0), 3))
    (folder / "damaged.jpg").write_bytes(b"\xff\xd8\xff not a photograph")
    (folder / "tiny.png").write_bytes(cv2.imencode(".png", views[0].image[:32, :32])[1].tobytes())
    (folder / "000000_depth.png").write_bytes((folder / "000000.png").read_bytes())
    photos = import_photographs(open_source(folder), tmp_path / "out")
    assert [photo.name for photo in photos] == [f"{i:06d}.png" for i in range(5)]
    reasons = {"black.png": "black", "grey.png": "one colour", "copy.png": "same picture as 000001.png",
               "zblurred.png": "blurred", "damaged.jpg": "damaged", "tiny.png": "64 pixels"}  # fmt: skip
    assert photos.left_out.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in photos.left_out[name], name
    assert not photos.metric


def test_a_turned_photograph_is_read_upright_with_its_focal_length(tmp_path):
    folder = tmp_path / "in"
    write_photos(folder, arc(2))
    upright = render(arc(3)[0]).image
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored pixels are turned by 90 degrees
    exif.get_ifd(0x8769)[0xA405] = 28
    Image.fromarray(np.rot90(upright).copy()).save(folder / "turned.jpg", quality=98, exif=exif)
    photos = import_photographs(open_source(folder), tmp_path / "out")
    turned = next(photo for photo in photos if photo.name == "turned.jpg")
    assert (turned.width, turned.height) == (240, 180)
    assert np.abs(turned.image().astype(float) - upright).mean() < 12
    assert turned.focal_px == pytest.approx(28 / 43.2666 * 300)
    assert turned.camera_key != photos[0].camera_key
    assert any("turned upright" in note for note in photos.notes)


def test_an_interrupted_run_copies_no_photograph_again(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    write_photos(folder, arc(5))
    (folder / "000001_copy.png").write_bytes((folder / "000001.png").read_bytes())
    cv2.imwrite(str(folder / "000002_black.png"), np.zeros((180, 240, 3), np.uint8))
    whole = import_photographs(open_source(folder), tmp_path / "whole")
    copy, copied = photographs._copy, []

    def counted(raw, *arguments):
        if len(copied) == 5:
            raise KeyboardInterrupt
        copied.append(raw.name)
        return copy(raw, *arguments)

    monkeypatch.setattr(photographs, "_copy", counted)
    with pytest.raises(KeyboardInterrupt):
        import_photographs(open_source(folder), tmp_path / "out")
    assert copied[-1] == "000002_black.png"
    copied.clear()
    again = import_photographs(open_source(folder), tmp_path / "out")
    assert copied == ["000003.png", "000004.png"]
    assert again.left_out == whole.left_out
    assert "same picture as 000001.png" in again.left_out["000001_copy.png"]
    assert [photo.file.name for photo in again] == [photo.file.name for photo in whole]
    for one, other in zip(again, whole, strict=True):
        assert np.array_equal(one.image(), other.image())
        assert (one.name, one.sharpness, one.camera_key) == (other.name, other.sharpness, other.camera_key)
    next(iter(again)).file.unlink()
    assert len(import_photographs(open_source(folder), tmp_path / "out")) == 5


def test_the_list_of_photographs_is_read_as_it_was_written(tmp_path):
    write_posed(tmp_path / "in", arc(3), depth=True, given=[0, 2])
    photos = import_photographs(open_source(tmp_path / "in"), tmp_path / "out")
    again = load_photographs(tmp_path / "out")
    assert [photo.name for photo in again] == ["000000.png", "000002.png", "000001.png"]
    assert again.metric
    assert again.left_out == {}
    for one, other in zip(photos, again, strict=True):
        assert one.camera == other.camera == CAMERA
        assert (one.world_from_camera is None) == (other.world_from_camera is None)
        np.testing.assert_array_equal(one.measured_depth(), other.measured_depth())
    assert again[2].world_from_camera is None
    np.testing.assert_allclose(again[1].world_from_camera, arc(3)[2], atol=1e-8)


def test_large_photographs_get_smaller_working_copies_with_their_camera(tmp_path):
    folder = tmp_path / "in"
    (folder / "frames").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(2):
        image = cv2.resize(random.integers(0, 255, (300, 400, 3), dtype=np.uint8), (2000, 1500))
        cv2.imwrite(str(folder / "frames" / f"{i:06d}.jpg"), image)
    camera = {"width": 2000, "height": 1500, "fx": 1800.0, "fy": 1800.0, "cx": 999.5, "cy": 749.5}
    (folder / "intrinsics.json").write_text(json.dumps(camera))
    (folder / "poses.txt").write_text("0 0 0 0 0 0 0 1\n1 1 0 0 0 0 0 1\n")
    photo = import_photographs(open_source(folder), tmp_path / "out")[0]
    assert (photo.width, photo.height, photo.original_size) == (1600, 1200, (2000, 1500))
    assert photo.camera.fx == pytest.approx(1440)
    assert photo.camera.cx == pytest.approx(799.5)
    assert photo.lens.camera.fx == 1800


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: None, "does not exist"),
        (lambda folder: folder.mkdir(), "no image"),
        (lambda folder: write_photos(folder, arc(1)), "one image"),
    ],
)
def test_a_source_without_photographs_is_an_error(tmp_path, make, expected):
    make(tmp_path / "in")
    with pytest.raises(DatasetError, match=expected):
        open_source(tmp_path / "in")


def test_two_copies_of_one_photograph_are_no_place(tmp_path):
    write_photos(tmp_path / "in", np.stack([arc(2)[0]] * 2))
    with pytest.raises(DatasetError, match=r"1 of 2 photographs can be used.*same picture"):
        import_photographs(open_source(tmp_path / "in"), tmp_path / "out")


def test_photographs_without_intrinsics_take_the_field_of_view_that_is_given(tmp_path):
    write_photos(tmp_path / "in", arc(2))
    photos = import_photographs(open_source(tmp_path / "in"), tmp_path / "out", fov=np.radians(90))
    assert photos[0].focal_px == pytest.approx(120)


def test_sharpness_finds_blur_in_one_direction():
    image = render(arc(1)[0]).image
    along = np.zeros((1, 13), np.float32) + 1 / 13
    assert sharpness(cv2.filter2D(image, -1, along)) < 0.6 * sharpness(image)
    assert sharpness(np.full((50, 50), 7, np.uint8)) == 0


def test_chosen_frames_are_the_sharpest_of_equal_stretches_of_motion():
    motion = np.array([0.0] + [0.02] * 10 + [0.0] * 20 + [0.1] * 4)
    sharp = np.ones(len(motion))
    sharp[[5, 20, 34]] = 2
    chosen = choose_frames(motion, sharp, 100)
    assert len(chosen) == len(set(chosen)) <= 12
    assert {5, 34} <= set(chosen)
    assert sum(11 <= index <= 30 for index in chosen) <= 1  # a camera that stands still gives one frame
    assert len(choose_frames(motion, sharp, 3)) <= 3
