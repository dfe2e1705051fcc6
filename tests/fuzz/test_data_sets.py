"""Damaged data sets: posed sequences, images and point clouds."""

import json

import numpy as np
import pytest
from fuzz.mutations import damaged, damaged_json
from fuzz.running import bounded, fuzz
from hypothesis import strategies as st

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.datasets import open_sequence
from worldstereo_ros.io.images import read_depth, read_image
from worldstereo_ros.io.point_clouds import read_point_cloud, write_point_cloud
from worldstereo_ros.io.posed_sequences import write_sequence
from worldstereo_ros.memory.cloud import CloudMemory

pytestmark = pytest.mark.usefixtures("one_thread")


def views():
    random = np.random.default_rng(0)
    return [
        View(
            random.integers(0, 256, (12, 16, 3), dtype=np.uint8), Camera.from_fov(16, 12, 1.2), np.eye(4),
            random.uniform(1, 3, (12, 16)).astype(np.float32), stamp_ns=index,
        )
        for index in range(3)
    ]  # fmt: skip


def read_all(folder):
    sequence = open_sequence(folder)
    for index in range(min(3, len(sequence))):
        view = sequence[index]
        assert view.image.dtype == np.uint8
        assert np.isfinite(view.world_from_camera).all()


def test_damaged_sequences(tmp_path):
    folder = tmp_path / "walk"
    write_sequence(folder, views())
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    originals = [file.read_bytes() for file in files]

    def damage(index):
        if files[index].suffix == ".json":
            structured = damaged_json(json.loads(originals[index])).map(lambda content: json.dumps(content).encode())
            return st.one_of(damaged(originals[index]), structured)
        return damaged(originals[index])

    def check(change):
        index, data = change
        files[index].write_bytes(data)
        try:
            with bounded(data, files[index].suffix):
                read_all(folder)
            assert sorted(file for file in folder.rglob("*") if file.is_file()) == files
        finally:
            files[index].write_bytes(originals[index])

    strategies = [st.tuples(st.just(index), damage(index)) for index in range(len(files))]
    fuzz(check, st.one_of(strategies), examples=80)


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
def test_damaged_clouds(tmp_path, suffix):
    cloud = CloudMemory()
    for view in views():
        cloud.insert(view)
    path = tmp_path / f"cloud{suffix}"
    write_point_cloud(cloud, path)
    content = path.read_bytes()
    header = content.find(b"end_header" if suffix == ".ply" else b"DATA") + 20

    def check(data):
        path.write_bytes(data)
        with bounded(data, suffix):
            read = read_point_cloud(path)
            assert len(read.points) == len(read.colours)
            assert np.isfinite(read.offset).all()  # points may be NaN, as in organised clouds

    near_the_start = damaged(content[:header]).map(lambda start: start + content[header:])
    fuzz(check, st.one_of(damaged(content), near_the_start), examples=50)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_damaged_images(tmp_path, suffix):
    import cv2

    path = tmp_path / f"image{suffix}"
    image = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    content = cv2.imencode(suffix, image)[1].tobytes()

    def check(data):
        path.write_bytes(data)
        for read in (read_image, read_depth):
            with bounded(data, suffix):
                assert np.isfinite(read(path)).all()

    fuzz(check, damaged(content), examples=40)
