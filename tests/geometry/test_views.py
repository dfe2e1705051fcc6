"""Views: crops keep every pixel where it is in space."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera, unproject
from worldstereo_ros.geometry.views import ImaginedView, View
from worldstereo_ros.utils.errors import InputError

CAMERA = Camera(40, 30, 35.0, 36.0, 18.5, 15.25)


def view() -> View:
    rng = np.random.default_rng(0)
    pose = np.eye(4)
    pose[:3, 3] = (0.3, -0.2, 1.0)
    return View(
        rng.integers(0, 255, (30, 40, 3), dtype=np.uint8),
        CAMERA,
        pose,
        rng.uniform(1, 4, (30, 40)).astype(np.float32),
        estimated=rng.uniform(size=(30, 40)) < 0.3,
        depth_confidence=rng.uniform(size=(30, 40)).astype(np.float32),
    )


@given(top=st.integers(0, 14), bottom=st.integers(15, 30), left=st.integers(0, 19), right=st.integers(20, 40))
def test_cropped_pixels_stay_in_place(top, bottom, left, right):
    whole, window = view(), (slice(top, bottom), slice(left, right))
    part = whole.cropped(*window)
    np.testing.assert_array_equal(part.image, whole.image[window])
    np.testing.assert_array_equal(part.provenance, whole.provenance[window])
    np.testing.assert_array_equal(part.depth_confidence, whole.depth_confidence[window])
    assert (part.camera.width, part.camera.height) == (right - left, bottom - top)
    points = unproject(whole.depth, whole.camera, whole.world_from_camera)[window]
    np.testing.assert_allclose(unproject(part.depth, part.camera, part.world_from_camera), points, atol=1e-5)


def test_cropped_imagined_views_keep_their_conditioning():
    whole = ImaginedView(
        np.zeros((30, 40, 3), np.uint8),
        CAMERA,
        np.eye(4),
        observed=np.zeros((30, 40), bool),
        conditioning=np.zeros((30, 40, 3), np.uint8),
        covered=np.ones((30, 40), bool),
        references=(2,),
    )
    part = whole.cropped(slice(2, 20), slice(None))
    assert part.conditioning.shape == (18, 40, 3)
    assert part.covered.shape == (18, 40)
    assert part.references == (2,)
    assert part.depth is None


@pytest.mark.parametrize("rows", [slice(5, 5), slice(0, 30, 2), slice(30, 40)])
def test_an_empty_or_strided_crop_is_refused(rows):
    with pytest.raises(InputError, match="no part"):
        view().cropped(rows, slice(None))
