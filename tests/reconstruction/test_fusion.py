import numpy as np
import pytest
from helpers.photo_scene import arc, render

from worldstereo_ros.geometry.cameras import unproject
from worldstereo_ros.reconstruction import fusion
from worldstereo_ros.reconstruction.fusion import fuse, voxel_size

VIEWS = [render(pose) for pose in arc(5, step_deg=20.0)]


def test_a_cloud_that_is_too_large_gets_larger_voxels_and_no_view_is_forgotten():
    notes: list[str] = []
    whole, bank = fuse(VIEWS, on_note=notes.append)
    assert notes == []
    assert whole.voxel_size == voxel_size(VIEWS)
    assert len(bank) == 5
    bound = len(whole) // 2
    steps: list[tuple[int, int]] = []
    small, _ = fuse(VIEWS, max_points=bound, on_progress=lambda *done: steps.append(done), on_note=notes.append)
    assert len(small) <= bound
    assert small.voxel_size > whole.voxel_size
    assert "voxels of" in notes[0]
    assert steps[-1] == (10, 10)
    for view in VIEWS:  # the first ones as well as the last
        known = unproject(view.depth, view.camera, view.world_from_camera)[view.depth > 0][::97]
        distance = np.linalg.norm(small.points[None] - known[:, None].astype(np.float32), axis=2).min(axis=1)
        assert np.median(distance) < 2 * small.voxel_size


def test_images_that_do_not_fit_into_the_map_are_said(monkeypatch):
    monkeypatch.setattr(fusion, "DEFAULT_BYTES", 1)
    monkeypatch.setattr(fusion, "MAX_BANK_BYTES", 3 * (VIEWS[0].image.nbytes + VIEWS[0].depth.nbytes))
    notes: list[str] = []
    _, bank = fuse(VIEWS, on_note=notes.append)
    assert 0 < len(bank) < 5
    assert notes[0].startswith(f"The map holds the images of {len(bank)} of the 5 photographs")


@pytest.mark.parametrize("count", [1, 3])
def test_the_same_cloud_comes_from_any_bound_that_holds_it(count):
    one, _ = fuse(VIEWS[:count])
    other, _ = fuse(VIEWS[:count], max_points=len(one) + 1)
    assert other.voxel_size == one.voxel_size
    assert len(one) == len(other)
