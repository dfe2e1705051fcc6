"""Damaged recordings: views, or an error for users; the file is as it was."""

import numpy as np
import pytest
from fuzz.mutations import damaged
from fuzz.running import bounded, fuzz
from helpers import recordings

from worldstereo_ros.io.bags.views import read_views

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_damaged_bags(tmp_path, storage):
    recordings.record(tmp_path / "bag", storage)
    folder = tmp_path / "bag"
    (path,) = [file for file in folder.iterdir() if file.suffix in (".mcap", ".db3")]
    content = path.read_bytes()

    def check(data):
        path.write_bytes(data)
        with bounded(data, path.suffix):
            for view in read_views(folder, max_views=3):
                assert view.image.dtype == np.uint8
                assert np.isfinite(view.world_from_camera).all()
                assert view.depth is None or np.isfinite(view.depth).all()
        assert path.read_bytes() == data

    fuzz(check, damaged(content), examples=40)


def test_damaged_metadata(tmp_path):
    recordings.record(tmp_path / "bag", "sqlite3")
    path = tmp_path / "bag" / "metadata.yaml"
    content = path.read_bytes()

    def check(data):
        path.write_bytes(data)
        with bounded(data, ".yaml"):
            list(read_views(tmp_path / "bag", max_views=1))

    fuzz(check, damaged(content), examples=40)
