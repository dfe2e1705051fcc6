"""PCD files whose header describes fields that there are not."""

import numpy as np
import pytest

from worldstereo_ros.io.point_cloud_formats import CloudFileError
from worldstereo_ros.io.point_clouds import read_point_cloud

HEADER = {"VERSION": "0.7", "FIELDS": "x y z", "SIZE": "4 4 4", "TYPE": "F F F", "COUNT": "1 1 1", "WIDTH": "2",
          "HEIGHT": "1", "VIEWPOINT": "0 0 0 1 0 0 0", "POINTS": "2", "DATA": "binary"}  # fmt: skip
POINTS = np.arange(6, dtype=np.float32)


def write(path, **changes):
    lines = [f"{key} {value}" for key, value in {**HEADER, **changes}.items() if value is not None]
    path.write_bytes("\n".join(lines).encode() + b"\n" + POINTS.tobytes())
    return path


def test_whole_file_is_read(tmp_path):
    np.testing.assert_array_equal(read_point_cloud(write(tmp_path / "a.pcd")).points, POINTS.reshape(2, 3))
    np.testing.assert_array_equal(read_point_cloud(write(tmp_path / "b.pcd", COUNT=None)).points, POINTS.reshape(2, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"SIZE": "4 4 \u00e9"},
        {"SIZE": "4 4 0"},
        {"SIZE": "4 4"},
        {"SIZE": "4 4 4294967295"},
        {"TYPE": "F F X"},
        {"TYPE": "F F F F"},
        {"COUNT": "1 1 4294967295"},
        {"COUNT": "1 1 0"},
        {"COUNT": "1 1 -1"},
        {"COUNT": "1 1 " + "9" * 5000},
        {"FIELDS": None},
        {"FIELDS": "x y \xe9"},
    ],
    ids=str,
)
def test_fields_that_there_are_not(tmp_path, changes):
    with pytest.raises(CloudFileError, match="describes no fields of a point cloud"):
        read_point_cloud(write(tmp_path / "cloud.pcd", **changes))


def test_counts_that_are_no_numbers_are_rejected(tmp_path):
    """In Latin-1, which headers are read as, a superscript is a digit to Python, but no number."""
    path = write(tmp_path / "a.pcd")
    path.write_bytes(path.read_bytes().replace(b"POINTS 2", b"POINTS \xb2"))
    with pytest.raises(CloudFileError, match="no PCD header"):
        read_point_cloud(path)
    header = b"ply\nformat ascii 1.0\nelement vertex \xb2\nproperty float x\nproperty float y\nproperty float z\n"
    (tmp_path / "a.ply").write_bytes(header + b"end_header\n")
    with pytest.raises(CloudFileError, match="'element vertex COUNT' was expected"):
        read_point_cloud(tmp_path / "a.ply")
