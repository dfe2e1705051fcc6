"""Limits of the memories when a map is loaded: those of the file do not count."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory import archive
from worldstereo_ros.memory._cloud_state import ARRAYS
from worldstereo_ros.memory.archive import ArchiveError, load_archive, save_archive, write_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.pipelines.auto import load_pipeline
from worldstereo_ros.world import WorldModel


def grid(count: int, spacing: float = 0.02) -> np.ndarray:
    """(count, 3) points in the middle of voxels of `spacing` metres and of half of that, along x."""
    points = np.zeros((count, 3))
    points[:, 0] = (np.arange(count) + 0.25) * spacing
    return points


def world(**settings) -> WorldModel:
    bank = ViewBank(settings.pop("max_views", 64), max_bytes=settings.pop("max_bytes", 10**8))
    return WorldModel(load_pipeline("geometric"), CloudMemory(**settings), bank)


def cloud_of(points: np.ndarray, classes: np.ndarray, **settings) -> CloudMemory:
    cloud = CloudMemory(**settings)
    for stamp, (point, kind) in enumerate(zip(points, classes, strict=True)):  # one at a time: each is newer
        cloud.insert_points(point[None], np.full((1, 3), stamp % 256, np.uint8), int(kind), stamp_ns=stamp)
    return cloud


def test_a_small_file_that_claims_much_takes_no_memory(tmp_path):
    cloud, bank = CloudMemory(max_points=1000).state(), ViewBank(4096).state()
    cloud |= {"max_points": np.array(1e8), "max_radius": np.array(1e6), "max_age": np.array(5.0)}
    write_archive(tmp_path / "claims.wsmap", cloud, bank, {})
    assert (tmp_path / "claims.wsmap").stat().st_size < 20_000
    model = world(max_points=5000, max_radius=3.0, max_views=4)
    tracemalloc.start()
    try:
        model.load(tmp_path / "claims.wsmap")
        assert load_archive(tmp_path / "claims.wsmap").cloud.max_points == 2_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 300e6  # the default memory reserves 200 MB of addresses; the claim would be 8 GB
    assert (model.cloud.max_points, model.cloud.max_radius, model.cloud.max_age) == (5000, 3.0, None)
    assert (model.bank.max_views, model.bank.max_bytes) == (4, 10**8)


def test_settings_of_the_model_stay(tmp_path):
    cloud = cloud_of(grid(5), np.full(5, Provenance.OBSERVED), voxel_size=0.02, max_age=1.0, carve=False)
    save_archive(tmp_path / "a.wsmap", cloud, ViewBank(), {})
    model = world(voxel_size=0.02, max_points=1000)
    model.load(tmp_path / "a.wsmap")
    assert (model.cloud.voxel_size, model.cloud.max_age, model.cloud.carve) == (0.02, None, True)
    np.testing.assert_array_equal(model.cloud.points, cloud.points)


@pytest.mark.parametrize(("voxel_size", "expected"), [(0.04, 5), (0.01, 10)])
def test_points_are_fused_into_voxels_of_the_model(tmp_path, caplog, voxel_size, expected):
    classes = np.array([Provenance.IMAGINED, Provenance.OBSERVED] * 5)
    cloud = cloud_of(grid(10), classes, voxel_size=0.02)
    save_archive(tmp_path / "a.wsmap", cloud, ViewBank(), {})
    model = world(voxel_size=voxel_size, max_points=1000)
    model.load(tmp_path / "a.wsmap")
    assert (model.cloud.voxel_size, len(model.cloud)) == (voxel_size, expected)
    assert model.cloud.observed_count == 5
    assert (model.cloud.spacing >= np.float32(voxel_size)).all()
    assert ("10 points and 0 views; 5 points" in caplog.text) == (expected == 5)
    assert model.cloud.insert_points(grid(2)[1:], np.zeros((1, 3), np.uint8), Provenance.OBSERVED).merged == 1


def test_of_too_many_points_the_observed_and_newest_stay(tmp_path, caplog):
    classes = np.array([Provenance.OBSERVED, Provenance.IMAGINED, Provenance.ESTIMATED] * 4)
    save_archive(tmp_path / "a.wsmap", cloud_of(grid(12), classes), ViewBank(), {})
    model = world(max_points=6)
    model.load(tmp_path / "a.wsmap")
    assert sorted(model.cloud.stamp_ns) == [0, 3, 6, 8, 9, 11]  # all observed ones, and the newest estimated ones
    np.testing.assert_array_equal(model.cloud.provenance == 3, model.cloud.stamp_ns % 3 == 0)
    assert "12 points and 0 views; 6 points" in caplog.text
    assert model.cloud.insert_points(grid(20)[19:], np.zeros((1, 3), np.uint8), Provenance.OBSERVED).evicted == 1


def test_bank_of_the_model_stays_bounded(tmp_path):
    bank = ViewBank()
    for stamp in range(6):
        pose = np.eye(4)
        pose[0, 3] = stamp
        bank.add(View(np.full((30, 40, 3), 40 * stamp, np.uint8), Camera.from_fov(40, 30, 1.0), pose, stamp_ns=stamp))
    save_archive(tmp_path / "a.wsmap", CloudMemory(max_points=10), bank, {})
    model = world(max_bytes=3 * 30 * 40 * 3)
    model.load(tmp_path / "a.wsmap")
    assert len(model.bank) == 3
    assert model.bank.views[-1].stamp_ns == 5


def test_file_that_is_much_larger_than_the_memory_is_not_read(tmp_path, monkeypatch):
    save_archive(tmp_path / "a.wsmap", cloud_of(grid(50), np.full(50, 3)), ViewBank(), {})
    monkeypatch.setattr(archive, "MIN_ACCEPTED_BYTES", 0)
    monkeypatch.setattr(archive, "OVERSIZE", 1)
    monkeypatch.setattr(archive, "_read_array", lambda *arguments: pytest.fail("read"))
    with pytest.raises(ArchiveError, match="max_points, max_bank_memory"):
        world(max_points=10, max_bytes=1).load(tmp_path / "a.wsmap")


def test_what_a_memory_can_save_it_can_load():
    """A node with a budget of 50 million points and 20 GB of views may save more than the 4 GB of other files."""
    cloud, bank = SimpleNamespace(max_points=50_000_000), SimpleNamespace(max_bytes=20 * 10**9)
    points = np.zeros((1, 3)), np.zeros((1, 3), np.uint8), int(Provenance.OBSERVED)
    one = CloudMemory(max_points=1000)
    one.insert_points(*points)
    per_point = sum(array.nbytes for name, array in one.state().items() if name in ARRAYS)
    assert archive.acceptable_bytes(cloud, bank) >= cloud.max_points * per_point + bank.max_bytes
    small = SimpleNamespace(max_points=1000), SimpleNamespace(max_bytes=10**6)
    assert archive.acceptable_bytes(*small) < 10**9
