"""Damaged map files: an `ArchiveError`, or a map; the memories that were there are unchanged."""

import hashlib

import numpy as np
import pytest
from fuzz.mutations import damaged
from fuzz.running import bounded, fuzz

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.memory.archive import load_archive, save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def memories():
    random = np.random.default_rng(0)
    cloud, bank = CloudMemory(max_points=5000), ViewBank(max_views=4)
    for index in range(2):
        pose = np.eye(4)
        pose[0, 3] = 0.3 * index
        view = View(
            random.integers(0, 256, (12, 16, 3), dtype=np.uint8), Camera.from_fov(16, 12, 1.2), pose,
            random.uniform(1, 3, (12, 16)).astype(np.float32), stamp_ns=index,
        )  # fmt: skip
        cloud.insert(view)
        bank.add(view)
    return cloud, bank


def fingerprint(cloud, bank):
    digest = hashlib.sha256()
    for state in (cloud.state(), bank.state()):
        for name, array in sorted(state.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_damaged_maps(tmp_path):
    path = tmp_path / "room.wsmap"
    cloud, bank = memories()
    save_archive(path, cloud, bank, {"name": "room"})
    content, before = path.read_bytes(), fingerprint(cloud, bank)

    def check(data):
        path.write_bytes(data)
        with bounded(data, ".wsmap"):
            loaded = load_archive(path, cloud_like=cloud, bank_like=bank)
            assert len(loaded.cloud) <= cloud.max_points
            assert len(loaded.bank) <= bank.max_views
            assert np.isfinite(loaded.cloud.points).all()
        assert path.read_bytes() == data
        assert fingerprint(cloud, bank) == before

    fuzz(check, damaged(content), examples=60)
