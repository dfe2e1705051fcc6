"""Maps of whole memories: what is saved is loaded, and states that no memory has are refused."""

import numpy as np
import pytest

from worldstereo_ros.memory import archive
from worldstereo_ros.memory.archive import ArchiveError, write_archive


def _memories():
    from worldstereo_ros.geometry.cameras import Camera
    from worldstereo_ros.geometry.trajectories import trajectory
    from worldstereo_ros.geometry.views import View
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    rng = np.random.default_rng(0)
    camera = Camera.from_fov(48, 32, 1.2)
    cloud, bank = CloudMemory(voxel_size=0.02, max_radius=None), ViewBank(max_views=8)
    for i, pose in enumerate(trajectory("right", np.eye(4), 3, distance=1.5)):
        image = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
        depth = np.full((32, 48), 2.0, np.float32)
        observed = None if i < 2 else rng.random((32, 48)) < 0.5
        view = View(image, camera, pose, depth, observed, stamp_ns=1000 + i)
        cloud.insert(view)
        bank.add(view)
    return cloud, bank


def test_load_archive_restores_both_memories(tmp_path):
    cloud, bank = _memories()
    assert len(cloud) > 100
    archive.save_archive(tmp_path / "a.wsmap", cloud, bank, {"pipeline": "geometric"})
    back = archive.load_archive(tmp_path / "a.wsmap")
    assert back.metadata == {"pipeline": "geometric"}
    for name in ("points", "colours", "observed", "weight", "confidence", "stamp_ns", "spacing"):
        np.testing.assert_array_equal(getattr(back.cloud, name), getattr(cloud, name), err_msg=name)
    assert len(back.bank.views) == len(bank.views)
    for a, b in zip(back.bank.views, bank.views, strict=True):
        assert (a.camera, a.stamp_ns, a.observed is None) == (b.camera, b.stamp_ns, b.observed is None)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.depth, b.depth)
        np.testing.assert_array_equal(a.observed_mask, b.observed_mask)
        np.testing.assert_array_equal(a.world_from_camera, b.world_from_camera)
    # Both memories then process the next view identically.
    for memory in (cloud, back.cloud):
        memory.insert(bank.views[0])
    np.testing.assert_array_equal(back.cloud.points, cloud.points)


def test_save_archive_accepts_empty_memories(tmp_path):
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    archive.save_archive(tmp_path / "a.wsmap", CloudMemory(), ViewBank(), {})
    back = archive.load_archive(tmp_path / "a.wsmap")
    assert (len(back.cloud), len(back.bank.views)) == (0, 0)


@pytest.mark.parametrize(
    ("memory", "key", "change"),
    [
        ("cloud", "colours", lambda a: a[:-1]),
        ("cloud", "points", lambda a: a.astype(np.float64)),
        ("cloud", "keys", None),
        ("bank", "0.image", lambda a: a[:, :-3]),
        ("bank", "0.camera", lambda a: a * 0),
        ("bank", "count", lambda a: a + 5),
    ],
)
def test_load_archive_rejects_invalid_memory_states(tmp_path, memory, key, change):
    cloud, bank = _memories()
    states = {"cloud": dict(cloud.state()), "bank": dict(bank.state())}
    value = states[memory].pop(key)
    if change is not None:
        states[memory][key] = change(value)
    write_archive(tmp_path / "a.wsmap", states["cloud"], states["bank"], {})
    with pytest.raises(ArchiveError, match="not a valid memory state"):
        archive.load_archive(tmp_path / "a.wsmap")
