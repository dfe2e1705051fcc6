import json

import numpy as np
import pytest
from helpers.photo_scene import CAMERA, arc, write_photos

from worldstereo_ros.io.files import DatasetError
from worldstereo_ros.io.nerfstudio import OPENGL_FROM_OPENCV, read_transforms

POSES = arc(3)


def _write(folder, frames=None, **values):
    write_photos(folder / "images", POSES)
    if frames is None:
        frames = [
            {"file_path": f"images/{i:06d}.png", "transform_matrix": (pose @ OPENGL_FROM_OPENCV).tolist()}
            for i, pose in enumerate(POSES)
        ]
    content = {"fl_x": 210.0, "fl_y": 210.0, "cx": 120.0, "cy": 90.0, "w": 240, "h": 180, **values, "frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def test_poses_and_intrinsics_are_in_our_conventions(tmp_path):
    transforms = read_transforms(_write(tmp_path))
    np.testing.assert_allclose([frame.world_from_camera for frame in transforms.frames], POSES, atol=1e-12)
    calibration = transforms.calibration(transforms.frames[0], 240, 180)
    assert calibration.camera == CAMERA  # the centre in COLMAP's convention is half a pixel more
    assert not calibration.distorted
    assert not transforms.metric
    assert transforms.calibration(transforms.frames[0], 480, 360).camera.fx == 420


def test_distortion_and_the_field_of_view_are_read(tmp_path):
    transforms = read_transforms(_write(tmp_path, k1=0.1, k2=-0.02, p1=0.001, camera_model="OPENCV", metric=True))
    calibration = transforms.calibration(transforms.frames[1], 240, 180)
    np.testing.assert_allclose(calibration.coefficients, [0.1, -0.02, 0.001, 0, 0])
    assert transforms.metric
    fisheye = read_transforms(_write(tmp_path, k1=0.1, camera_model="OPENCV_FISHEYE"))
    assert fisheye.calibration(fisheye.frames[0], 240, 180).model == "equidistant"
    angle = read_transforms(_write(tmp_path, fl_x=None, fl_y=None, camera_angle_x=np.pi / 2))
    assert angle.calibration(angle.frames[0], 240, 180).camera.fx == pytest.approx(120)
    none = read_transforms(_write(tmp_path, fl_x=None, fl_y=None))
    assert none.calibration(none.frames[0], 240, 180) is None


def test_images_that_are_missing_are_named_and_suffixes_may_be(tmp_path):
    pose = np.eye(4).tolist()
    frames = [
        {"file_path": "images/000000", "transform_matrix": pose},
        {"file_path": "no.png", "transform_matrix": pose},
    ]
    transforms = read_transforms(_write(tmp_path, frames))
    assert [frame.file.name for frame in transforms.frames] == ["000000.png"]
    assert transforms.missing == ["no.png"]


@pytest.mark.parametrize(
    ("frames", "values", "expected"),
    [
        ([], {}, "no list `frames`"),
        ([{"transform_matrix": np.eye(4).tolist()}], {}, "no `file_path`"),
        ([{"file_path": "images/000000.png", "transform_matrix": [[1]]}], {}, "transform_matrix"),
        ([{"file_path": "images/000000.png", "transform_matrix": (2 * np.eye(4)).tolist()}], {}, "rotation"),
        ([{"file_path": "a.png", "transform_matrix": np.eye(4).tolist()}], {}, "None of the 1 images"),
        (None, {"depth_unit_scale_factor": 0}, "depth_unit_scale_factor"),
    ],
)
def test_a_damaged_file_is_an_error_that_says_what_was_expected(tmp_path, frames, values, expected):
    with pytest.raises(DatasetError, match=expected):
        read_transforms(_write(tmp_path, frames, **values))


def test_a_camera_of_another_shape_or_model_is_an_error(tmp_path):
    transforms = read_transforms(_write(tmp_path))
    with pytest.raises(DatasetError, match="the image is 100x180"):
        transforms.calibration(transforms.frames[0], 100, 180)
    other = read_transforms(_write(tmp_path, camera_model="EQUIRECTANGULAR"))
    with pytest.raises(DatasetError, match="EQUIRECTANGULAR"):
        other.calibration(other.frames[0], 240, 180)
