"""COLMAP models that are written: read back equal by this reader and by pycolmap, at the size of the photographs."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_ros.geometry.calibration import CameraCalibration
from worldstereo_ros.geometry.cameras import Camera, project
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.colmap_export import colmap_image, write_colmap_model
from worldstereo_ros.io.colmap_models import ColmapImage, read_colmap_model
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera(60, 40, 55.0, 54.0, 31.25, 18.5)
NAMES = ("b.jpg", "sub/a_1.jpg", "ü.png")


def images(calibration=None):
    plain = CameraCalibration(CAMERA, np.zeros(0), "")
    out = []
    for k, name in enumerate(NAMES):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler("xyz", [0.1 * k, -0.4 * k, 0.2]).as_matrix()
        pose[:3, 3] = (0.3 * k, -0.1, 0.2)
        other = CameraCalibration(CAMERA.resized(120, 80), np.zeros(0), "")
        out.append(ColmapImage(name, calibration or (plain if k else other), pose))
    return out


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_comes_back_equal(tmp_path, binary):
    written = images()
    write_colmap_model(tmp_path, written, np.ones((5, 3)), binary=binary)
    read = read_colmap_model(tmp_path)
    assert [image.name for image in read] == sorted(NAMES)
    for image in read:
        before = next(other for other in written if other.name == image.name)
        assert image.calibration.camera == before.calibration.camera
        np.testing.assert_allclose(image.world_from_camera, before.world_from_camera, atol=1e-12)


@pytest.mark.parametrize("binary", [True, False])
def test_pycolmap_reads_the_same(tmp_path, binary):
    pycolmap = pytest.importorskip("pycolmap")
    written, rng = images(), np.random.default_rng(0)
    points, colours = rng.uniform((-1, -1, 3), (1, 1, 5), (7, 3)), rng.integers(0, 256, (7, 3), dtype=np.uint8)
    write_colmap_model(tmp_path, written, points, colours, binary=binary)
    model = pycolmap.Reconstruction(str(tmp_path))
    assert (model.num_images(), model.num_cameras(), model.num_points3D()) == (3, 2, 7)
    np.testing.assert_array_equal([model.points3D[k + 1].xyz for k in range(7)], points)
    np.testing.assert_array_equal([model.points3D[k + 1].color for k in range(7)], colours)
    by_name = {image.name: image for image in model.images.values()}
    for image in written:
        pixels, depth = project(points, image.calibration.camera, image.world_from_camera)
        for point, pixel in zip(points[depth > 0.1], pixels[depth > 0.1], strict=True):
            other = by_name[image.name].project_point(point)
            np.testing.assert_allclose(np.asarray(other) - 0.5, pixel, atol=1e-3)  # its pixel centres are at halves


@pytest.mark.parametrize(
    ("coefficients", "kind", "model"),
    [
        ((0.1, -0.05, 0.001, 0.002), "plumb_bob", "OPENCV"),
        ((0.1, -0.05, 0.001, 0.002, 0.01), "plumb_bob", "FULL_OPENCV"),
        ((0.01, 0.002, 0.0, 0.0), "equidistant", "OPENCV_FISHEYE"),
    ],
)
def test_distortion_is_kept(tmp_path, coefficients, kind, model):
    pycolmap = pytest.importorskip("pycolmap")
    calibration = CameraCalibration(CAMERA, np.array(coefficients), kind)
    write_colmap_model(tmp_path, images(calibration))
    (camera,) = pycolmap.Reconstruction(str(tmp_path)).cameras.values()
    assert camera.model.name == model
    np.testing.assert_array_equal(camera.params[4 : 4 + len(coefficients)], coefficients)
    (read, *_) = read_colmap_model(tmp_path)
    np.testing.assert_array_equal(read.calibration.coefficients[: len(coefficients)], coefficients)


def test_intrinsics_are_those_of_the_stored_photograph():
    small = CAMERA.resized(30, 20)
    view = View(np.zeros((20, 30, 3), np.uint8), small, np.eye(4))
    assert colmap_image(view, "a.jpg", (60, 40)).calibration.camera == CAMERA
    with pytest.raises(InputError, match="was not only resized"):
        colmap_image(view, "a.jpg", (40, 60))


def test_a_model_replaces_one_of_the_other_kind(tmp_path):
    write_colmap_model(tmp_path, images(), binary=True)
    write_colmap_model(tmp_path, images()[:1], binary=False)
    assert len(read_colmap_model(tmp_path)) == 1
    assert not list(tmp_path.glob("*.bin"))


def test_names_with_spaces_need_binary_files(tmp_path):
    pycolmap = pytest.importorskip("pycolmap")
    image = ColmapImage("my photos/a 1.jpg", images()[0].calibration, np.eye(4))
    with pytest.raises(InputError, match="write binary files"):
        write_colmap_model(tmp_path, [image], binary=False)
    write_colmap_model(tmp_path, [image])
    assert [other.name for other in pycolmap.Reconstruction(str(tmp_path)).images.values()] == [image.name]


def test_invalid_models_are_refused(tmp_path):
    good = images()
    with pytest.raises(InputError, match="at least one image"):
        write_colmap_model(tmp_path, [])
    with pytest.raises(InputError, match=r"'b\.jpg' occurs twice"):
        write_colmap_model(tmp_path, [good[0], good[0]])
    for name in ("", "a\nb.jpg", "x" * 5000):
        with pytest.raises(InputError, match="no name of an image"):
            write_colmap_model(tmp_path, [ColmapImage(name, good[0].calibration, np.eye(4))])
    with pytest.raises(InputError, match="points have shape"):
        write_colmap_model(tmp_path, good, np.zeros((3, 2)))
    with pytest.raises(InputError, match="not a rotation"):
        write_colmap_model(tmp_path, [ColmapImage("a", good[0].calibration, np.diag([2.0, 1, 1, 1]))])
    lens = CameraCalibration(CAMERA, np.full(12, 0.01), "rational_polynomial")
    with pytest.raises(InputError, match="12 coefficients"):
        write_colmap_model(tmp_path, images(lens))
    assert not list(tmp_path.glob("*.bin"))
