import resource
import subprocess
import sys

import numpy as np
import pytest

from worldstereo_ros.export.cloud import ExportError, PointCloud, export_cloud, import_cloud


def _cloud(count: int = 500) -> PointCloud:
    rng = np.random.default_rng(0)
    return PointCloud(
        rng.normal(size=(count, 3)).astype(np.float32) * 100,
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.random(count) < 0.3,
        rng.random(count).astype(np.float32),
    )


@pytest.mark.parametrize("name", ["a.ply", "a.pcd", "new folder/B.PLY"])
def test_a_cloud_comes_back_equal(tmp_path, name):
    cloud = _cloud()
    export_cloud(cloud, tmp_path / name)
    back = import_cloud(tmp_path / name)
    for field in ("points", "colours", "observed", "confidence"):
        np.testing.assert_array_equal(getattr(back, field), getattr(cloud, field), err_msg=field)
        assert getattr(back, field).dtype == getattr(cloud, field).dtype
    assert list((tmp_path / name).parent.iterdir()) == [tmp_path / name]


def test_other_readers_see_points_and_colours(tmp_path):
    import open3d as o3d

    cloud = _cloud()
    for name in ("a.ply", "a.pcd"):
        export_cloud(cloud, tmp_path / name)
        other = o3d.io.read_point_cloud(str(tmp_path / name))
        np.testing.assert_array_equal(np.asarray(other.points, dtype=np.float32), cloud.points)
        np.testing.assert_array_equal(np.rint(np.asarray(other.colors) * 255), cloud.colours)


def test_a_foreign_cloud_without_our_attributes_is_read(tmp_path):
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
        "1 2 3\n4 5 6\n"
    )
    cloud = import_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.points, [[1, 2, 3], [4, 5, 6]])
    assert (cloud.colours == 128).all()
    assert cloud.observed.all()
    assert (cloud.confidence == 1).all()


def test_clouds_that_cannot_be_written_are_refused_and_leave_nothing(tmp_path):
    cloud = _cloud()
    with pytest.raises(ExportError, match=r"ends in '\.xyz'"):
        export_cloud(cloud, tmp_path / "a.xyz")
    with pytest.raises(ExportError, match="no points"):
        export_cloud(_cloud(0), tmp_path / "a.ply")
    with pytest.raises(ExportError, match="shapes"):
        export_cloud(PointCloud(cloud.points, cloud.colours[:-1]), tmp_path / "a.ply")
    cloud.points[3, 1] = np.nan
    with pytest.raises(ExportError, match="not finite"):
        export_cloud(cloud, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_clouds_are_refused(tmp_path):
    with pytest.raises(ExportError, match="There is no file"):
        import_cloud(tmp_path / "a.ply")
    for name in ("a.ply", "a.pcd"):
        (tmp_path / name).write_bytes(b"this is no cloud\n" * 20)
        with pytest.raises(ExportError, match="no cloud that can be read"):
            import_cloud(tmp_path / name)


FULL = """
import sys, signal, resource
import numpy as np
import open3d
from worldstereo_ros.export.cloud import ExportError, PointCloud, export_cloud
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    export_cloud(PointCloud(np.ones((100_000, 3), np.float32), np.ones((100_000, 3), np.uint8)), sys.argv[1])
except ExportError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("name", ["a.ply", "a.pcd"])
def test_a_full_disk_leaves_the_old_file(tmp_path, name):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    export_cloud(_cloud(), tmp_path / name)
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / name)], capture_output=True, text=True)
    assert "refused:" in done.stdout, done.stderr[-2000:]
    assert len(import_cloud(tmp_path / name)) == 500
    assert list(tmp_path.iterdir()) == [tmp_path / name]
