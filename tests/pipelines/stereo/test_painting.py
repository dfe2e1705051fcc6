"""Painting of a made eye with a network: only what no frame has seen, in tiles, and steady when resumed."""

import numpy as np
import pytest
import torch
from helpers.stereo_scene import CAMERA, view_from
from safetensors.torch import save_file

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.models.checkpoints.saving import write_json
from worldstereo_ros.models.stereo_refiner import StereoRefiner
from worldstereo_ros.pipelines.stereo import painting
from worldstereo_ros.pipelines.stereo.hole_masks import blend, in_view, network_share, wide_parts
from worldstereo_ros.pipelines.stereo.painting import (
    OVERLAP_PX,
    TILE_PX,
    NetworkPainter,
    find_tiles,
    load_painter,
)
from worldstereo_ros.pipelines.stereo.pipeline import PAINTED, GeometricStereo
from worldstereo_ros.pipelines.stereo.settings import StereoSettings
from worldstereo_ros.utils.errors import InputError

SMALL = {"width": 32, "heads": 2, "depth": 1, "pixel_width": 8}
pytestmark = pytest.mark.usefixtures("one_thread")


def network(strength: float = 0.2, **switches: bool) -> StereoRefiner:
    torch.manual_seed(0)
    model = StereoRefiner(**SMALL, **switches).requires_grad_(False).eval()
    model.out.weight.normal_(std=strength)
    for block in model.temporal_blocks:
        block.attn.proj.weight.normal_(std=strength)
    return model


def stereo(painter, eye: str = "right", camera: Camera = CAMERA, **settings) -> GeometricStereo:
    return GeometricStereo(camera, StereoSettings(base=0.2, eye=eye, steady=False, **settings), painter=painter)


@pytest.mark.parametrize(("width", "height"), [(96, 128), (200, 96), (320, 240), (641, 479)])
def test_each_painted_pixel_is_well_inside_a_tile(width, height):
    random = np.random.default_rng(0)
    shape = max(height, TILE_PX[0]), max(width, TILE_PX[1])
    for y, x in np.argwhere(random.random(shape) < 0.002):
        painted = np.zeros(shape, bool)
        painted[y, x] = True
        ((top, left),) = find_tiles(painted)
        assert top == 0 or top + OVERLAP_PX // 2 <= y
        assert left == 0 or left + OVERLAP_PX // 2 <= x
        assert y < top + TILE_PX[0] - (top + TILE_PX[0] < shape[0]) * OVERLAP_PX // 2 <= shape[0]
        assert x < left + TILE_PX[1] - (left + TILE_PX[1] < shape[1]) * OVERLAP_PX // 2 <= shape[1]
    assert find_tiles(np.zeros(shape, bool)) == []
    assert find_tiles(painted, least=2) == []


@pytest.mark.parametrize("eye", ["right", "left"])
@pytest.mark.parametrize("convergence", [None, 3.0])
def test_only_painted_pixels_change(eye, convergence):
    image, depth = view_from(0.0)
    plain = stereo(None, eye, convergence=convergence).make(image, depth)
    made = stereo(NetworkPainter(network()), eye, convergence=convergence).make(image, depth)
    painted = plain.source == PAINTED
    assert painted.any()
    assert np.array_equal(made.image[~painted], plain.image[~painted])
    assert np.abs(made.image[painted].astype(int) - plain.image[painted]).mean() > 0.5
    assert np.array_equal(made.source, plain.source)


def test_specks_and_slits_keep_the_fill():
    painted = np.zeros((40, 40), bool)
    painted[2:5, 2:5] = True  # few pixels
    painted[2:30, 20:22] = True  # narrow
    painted[10:30, 37:] = True  # continues beyond the image
    painted[32:38, 4:14] = True
    kept = wide_parts(painted)
    assert not kept[:, :32].any(where=np.arange(40)[:, None] < 31)
    assert kept[12:28, 37:].all()
    assert kept[32:38, 4:14].all()
    assert not (kept & ~painted).any()
    assert not wide_parts(np.zeros((4, 4), bool)).any()
    assert wide_parts(np.ones((8, 8), bool)).all()


def test_what_lies_beyond_the_camera_image_keeps_the_fill():
    disparity = np.full((4, 20), 3.0, np.float32)
    disparity[2:] = 6
    right, left = in_view(disparity, 0.0), in_view(disparity, 0.0, left=True)
    assert [int(row.sum()) for row in right] == [17, 17, 14, 14]
    assert right[:, 0].all()
    assert np.array_equal(left, right[:, ::-1])
    converged = in_view(disparity, 4.0)
    assert not converged[0, 0]
    assert converged[0, -1]
    image, depth = view_from(0.0)
    made = stereo(NetworkPainter(network()), memory=0).make(image, depth)
    plain = stereo(None, memory=0).make(image, depth)
    beyond = ~in_view(made.disparity, 0.0)
    assert (beyond & (made.source == PAINTED)).sum() > 50
    assert np.array_equal(made.image[beyond], plain.image[beyond])


def test_a_network_that_knows_sides_paints_beyond_the_camera_image():
    image, depth = view_from(0.0)
    plain = stereo(None).make(image, depth)
    made = stereo(NetworkPainter(network(mixture=True, sides=True))).make(image, depth)
    beyond = (plain.source == PAINTED) & ~in_view(plain.disparity, 0.0)
    assert (made.image[beyond] != plain.image[beyond]).mean() > 0.3
    assert np.array_equal(made.image[plain.source != PAINTED], plain.image[plain.source != PAINTED])


def test_the_network_fades_in_from_the_background_side_alone():
    painted, disparity = np.zeros((20, 80), bool), np.full((20, 80), 2.0, np.float32)
    disparity[:, :20] = 30  # a near thing; behind it a hole, then the background that fills it
    painted[:, 20:52] = True
    painted[8:12, 70:74] = True  # a narrow hole in the background
    share = network_share(painted, disparity)
    assert (share[~painted] == 0).all()
    assert (share[:, 20:34] == 1).all()
    assert 0 < share[2, 51] < 0.15
    assert (np.diff(share[2, 38:52]) < 0).all()
    assert 0.3 < share[10, 70] < 0.4
    image = blend(np.zeros((20, 80, 3), np.uint8), np.full((20, 80, 3), 100, np.uint8), share)
    assert (image[~painted] == 0).all()
    assert image[5, 25, 0] == 100
    assert 0 < image[5, 51, 0] < 15
    assert (network_share(np.ones((4, 6), bool), np.ones((4, 6), np.float32)) == 1).all()


def test_an_untrained_network_changes_nothing():
    image, depth = view_from(0.0)
    untrained = NetworkPainter(StereoRefiner(**SMALL).requires_grad_(False).eval())
    assert np.array_equal(stereo(untrained).make(image, depth).image, stereo(None).make(image, depth).image)


def test_a_left_eye_is_the_mirror_image_of_a_right_one():
    image, depth = view_from(0.0)
    right = stereo(NetworkPainter(network())).make(image, depth).image
    left = stereo(NetworkPainter(network()), "left").make(image[:, ::-1].copy(), depth[:, ::-1].copy()).image
    assert np.abs(left[:, ::-1].astype(int) - right).max() <= 1


def test_small_images_are_painted_too():
    camera = Camera(100, 60, CAMERA.fx, CAMERA.fy, 50, 30)
    image, depth = view_from(0.0, camera=camera)
    made = stereo(NetworkPainter(network()), camera=camera).make(image, depth)
    assert made.image.shape == (60, 100, 3)


def test_frames_before_count_until_a_restart():
    first, second = view_from(0.0), view_from(0.02)
    pipeline = stereo(NetworkPainter(network()), memory=0)
    fresh = pipeline.make(*second).image
    pipeline.restart()
    pipeline.make(*first)
    after = pipeline.make(*second).image
    assert (after != fresh).any()
    # A painter forgets when the state is taken: an uninterrupted run equals a resumed one.
    pipeline.make(*first)
    state = pipeline.state()
    resumed = stereo(NetworkPainter(network()), memory=0)
    resumed.restore(state)
    assert np.array_equal(pipeline.make(*second).image, resumed.make(*second).image)


def test_weights_are_found_or_missed_clearly(tmp_path, monkeypatch):
    assert load_painter("geometric") is None
    folder = tmp_path / "run" / "base" / "stereo"
    folder.mkdir(parents=True)
    save_file(network().state_dict(), folder / "diffusion_pytorch_model.safetensors")
    write_json(folder / "config.json", {"_class_name": "StereoRefiner", **SMALL})
    for path in (tmp_path / "run", folder):
        assert load_painter(str(path)).name == str(path)  # a resumed run must not mix weights
    with pytest.raises(InputError, match="geometric, small, or a folder"):
        load_painter(str(tmp_path / "nothing"))
    assert load_painter("small").name == "small"
    monkeypatch.setattr(painting, "bundled_folder", lambda name: tmp_path)
    with pytest.raises(InputError, match="no weights of the stereo network"):
        load_painter("small")
