"""Writing of point clouds and reading them back: exact content, atomic writes, errors."""

import os
import resource
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import open3d as o3d
import pytest

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.point_clouds import CloudFileError, read_point_cloud, write_point_cloud


def _cloud(count: int = 500) -> SimpleNamespace:
    rng = np.random.default_rng(0)
    return SimpleNamespace(
        points=rng.normal(size=(count, 3)).astype(np.float32) * 100,
        colours=rng.integers(0, 256, (count, 3), dtype=np.uint8),
        provenance=rng.integers(1, 4, count, dtype=np.uint8),
        confidence=rng.random(count).astype(np.float32),
        depth_confidence=rng.random(count).astype(np.float32),
        weight=rng.random(count).astype(np.float32),
    )


@pytest.mark.parametrize("name", ["a.ply", "a.pcd", "new folder/B.PLY"])
def test_write_point_cloud_stores_all_arrays_exactly(tmp_path, name):
    cloud, path = _cloud(), tmp_path / name
    write_point_cloud(cloud, path)
    back = o3d.t.io.read_point_cloud(str(path)).point
    np.testing.assert_array_equal(back["positions"].numpy(), cloud.points)
    np.testing.assert_array_equal(back["colors"].numpy(), cloud.colours)
    np.testing.assert_array_equal(back["observed"].numpy()[:, 0], cloud.provenance == 3)
    for name in ("provenance", "confidence", "depth_confidence", "weight"):
        np.testing.assert_array_equal(back[name].numpy()[:, 0], getattr(cloud, name))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.ply", "a.pcd"])
def test_written_clouds_are_read_back(tmp_path, name):
    cloud = _cloud()
    write_point_cloud(cloud, tmp_path / name)
    back = read_point_cloud(tmp_path / name)
    for attribute in ("points", "colours", "provenance", "confidence", "depth_confidence"):
        read = getattr(back, attribute)
        np.testing.assert_array_equal(read, getattr(cloud, attribute))
        assert read.dtype == getattr(cloud, attribute).dtype


def _write_ply(path, **columns):
    """An ASCII file of two points with further properties, as another program writes it."""
    header = "".join(f"property float {axis}\n" for axis in "xyz")
    header += "".join(f"property {kind} {name}\n" for name, (kind, _) in columns.items())
    rows = [" ".join(["0", "0", str(i), *(str(values[i]) for _, values in columns.values())]) for i in range(2)]
    path.write_text(f"ply\nformat ascii 1.0\nelement vertex 2\n{header}end_header\n" + "\n".join(rows) + "\n")
    return read_point_cloud(path)


def test_clouds_with_observed_alone_have_the_provenance_observed_and_imagined(tmp_path):
    cloud = _write_ply(tmp_path / "a.ply", observed=("uchar", (1, 0)))
    assert cloud.provenance.tolist() == [Provenance.OBSERVED, Provenance.IMAGINED]
    assert cloud.confidence is None
    assert _write_ply(tmp_path / "b.ply").provenance is None


def test_attributes_with_another_meaning_are_ignored(tmp_path):
    assert _write_ply(tmp_path / "a.ply", provenance=("int", (17, 4))).provenance is None
    assert _write_ply(tmp_path / "b.ply", provenance=("float", ("nan", 2))).provenance is None
    assert _write_ply(tmp_path / "c.ply", confidence=("float", (0.5, 80))).confidence is None
    assert _write_ply(tmp_path / "d.ply", confidence=("uchar", (0, 1))).confidence is None
    assert _write_ply(tmp_path / "e.ply", depth_confidence=("float", (0.5, "nan"))).depth_confidence is None


@pytest.mark.parametrize("name", ["a.ply", "a.pcd"])
def test_legacy_readers_read_points_and_colours(tmp_path, name):
    cloud = _cloud()
    write_point_cloud(cloud, tmp_path / name)
    other = o3d.io.read_point_cloud(str(tmp_path / name))
    np.testing.assert_array_equal(np.asarray(other.points, dtype=np.float32), cloud.points)
    np.testing.assert_array_equal(np.rint(np.asarray(other.colors) * 255), cloud.colours)


def test_file_headers_name_the_fields(tmp_path):
    write_point_cloud(_cloud(), tmp_path / "a.ply")
    write_point_cloud(_cloud(), tmp_path / "a.pcd")
    header = (tmp_path / "a.ply").read_bytes().split(b"end_header")[0].decode()
    assert "element vertex 500" in header
    names = ("provenance", "observed", "confidence", "depth_confidence", "weight")
    types = dict(zip(names, ("uchar", "uchar", "float", "float", "float"), strict=True))
    for name, kind in types.items():
        assert f"property {kind} {name}" in header
        assert f" {name}".encode() in (tmp_path / "a.pcd").read_bytes().split(b"DATA")[0]


def test_write_point_cloud_accepts_a_cloud_memory(tmp_path):
    from worldstereo_ros.memory.cloud import CloudMemory

    cloud = _cloud()
    memory = CloudMemory(voxel_size=0.01)
    memory.insert_points(
        cloud.points, cloud.colours, cloud.provenance, cloud.weight, depth_confidence=cloud.depth_confidence
    )
    write_point_cloud(memory, tmp_path / "a.ply")
    back = o3d.t.io.read_point_cloud(str(tmp_path / "a.ply")).point
    np.testing.assert_array_equal(back["positions"].numpy(), memory.points)
    for name in ("provenance", "observed", "confidence", "depth_confidence", "weight"):
        np.testing.assert_array_equal(back[name].numpy()[:, 0], getattr(memory, name))


def test_write_point_cloud_rejects_invalid_clouds_without_a_file(tmp_path):
    with pytest.raises(CloudFileError, match=r"has the suffix '\.xyz'"):
        write_point_cloud(_cloud(), tmp_path / "a.xyz")
    with pytest.raises(CloudFileError, match="no points"):
        write_point_cloud(_cloud(0), tmp_path / "a.ply")
    short = _cloud()
    short.colours = short.colours[:-1]
    with pytest.raises(CloudFileError, match="shapes"):
        write_point_cloud(short, tmp_path / "a.ply")
    broken = _cloud()
    broken.points[3, 1] = np.nan
    with pytest.raises(CloudFileError, match="not finite"):
        write_point_cloud(broken, tmp_path / "a.ply")
    assert list(tmp_path.iterdir()) == []


FULL = """
import resource, signal, sys
from types import SimpleNamespace
import numpy as np
import open3d
from worldstereo_ros.io.point_clouds import CloudFileError, write_point_cloud
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
ones = np.ones((100_000, 3))
line = ones[:, 0]
cloud = SimpleNamespace(
    points=ones, colours=ones, provenance=line, confidence=line, depth_confidence=line, weight=line
)
try:
    write_point_cloud(cloud, sys.argv[1])
except CloudFileError as error:
    print("rejected:", error)
"""


@pytest.mark.parametrize("name", ["a.ply", "a.pcd"])
def test_full_disk_leaves_the_old_file_unchanged(tmp_path, name):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    write_point_cloud(_cloud(), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / name)], capture_output=True, text=True)
    assert "rejected:" in done.stdout, done.stderr[-2000:]
    assert (tmp_path / name).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / name]


# --- files of other programs -----------------------------------------------------------------------------------------


def _survey() -> np.ndarray:
    """A grid of 10 cm in UTM coordinates, metres."""
    east, north = np.meshgrid(500_000 + 0.1 * np.arange(20), 5_400_000 + 0.1 * np.arange(20))
    return np.stack([east.ravel(), north.ravel(), np.full(east.size, 312.4)], axis=1)


def _write_doubles(path, points):
    tensor = o3d.t.geometry.PointCloud()
    tensor.point["positions"] = o3d.core.Tensor.from_numpy(points)
    assert o3d.t.io.write_point_cloud(str(path), tensor)


@pytest.mark.parametrize("name", ["a.ply", "a.pcd"])
def test_coordinates_of_map_projections_keep_their_precision(tmp_path, name):
    points = _survey()
    _write_doubles(tmp_path / name, points)
    cloud = read_point_cloud(tmp_path / name)
    assert cloud.points.dtype == np.float32
    np.testing.assert_array_equal(cloud.offset, [500_000, 5_400_000, 0])
    np.testing.assert_allclose(cloud.points + cloud.offset, points, atol=2e-5)
    (note,) = cloud.notes
    assert "relative to (500000, 5400000, 0)" in note


def test_points_that_are_not_finite_do_not_disturb_the_offset(tmp_path):
    points = _survey()
    points[::7] = np.nan
    _write_doubles(tmp_path / "a.ply", points)
    cloud = read_point_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(np.isnan(cloud.points), np.isnan(points))
    np.testing.assert_allclose((cloud.points + cloud.offset)[1], points[1], atol=2e-5)


def test_ordinary_coordinates_are_not_shifted(tmp_path):
    _write_doubles(tmp_path / "a.ply", np.array([[100.0, -8000.0, 0.0], [0.0, 0.0, 5.0]]))
    cloud = read_point_cloud(tmp_path / "a.ply")
    assert not cloud.offset.any()
    assert cloud.notes == ()


@pytest.mark.parametrize("name", ["a.ply", "a.pcd"])
def test_clouds_with_an_offset_are_written_in_double_precision(tmp_path, name):
    cloud, offset = _cloud(), np.array([500_000.0, 5_400_000.0, 0.0])
    write_point_cloud(cloud, tmp_path / name, offset=offset)
    assert b"offset 500000 5400000 0" in (tmp_path / name).read_bytes()[:200]
    positions = o3d.t.io.read_point_cloud(str(tmp_path / name)).point["positions"].numpy()
    assert positions.dtype == np.float64
    np.testing.assert_allclose(positions, cloud.points + offset, rtol=0, atol=1e-9)
    back = read_point_cloud(tmp_path / name)
    np.testing.assert_allclose(back.points + back.offset, cloud.points + offset, atol=2e-5)
    np.testing.assert_array_equal(back.provenance, cloud.provenance)
    np.testing.assert_array_equal(back.colours, cloud.colours)
    with pytest.raises(CloudFileError, match="three finite numbers"):
        write_point_cloud(cloud, tmp_path / name, offset=np.array([np.nan, 0, 0]))


def test_gaussians_have_their_colour_and_faint_ones_are_left_out(tmp_path):
    colours = np.array([[0.8, 0.2, 0.2], [0.2, 0.4, 1.3], [0.0, 1.0, 0.0]])
    opacities = np.array([4.0, 0.0, -6.0])
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "rot_0"]
    rows = np.zeros((3, len(names)), "<f4")
    rows[:, 0] = [1, 2, 50]
    rows[:, 6:9] = (colours - 0.5) / 0.28209479177387814
    rows[:, 9] = opacities
    header = "".join(f"property float {name}\n" for name in names)
    path = tmp_path / "point_cloud.ply"
    path.write_bytes(
        f"ply\nformat binary_little_endian 1.0\nelement vertex 3\n{header}end_header\n".encode() + rows.tobytes()
    )
    cloud = read_point_cloud(path)
    assert cloud.points[:, 0].tolist() == [1, 2]
    assert cloud.colours.tolist() == [[204, 51, 51], [51, 102, 255]]
    assert "3D Gaussians" in cloud.notes[0]
    assert cloud.notes[1].startswith("1 Gaussians of an opacity below 10%")
    rows[:, 9] = -6
    path.write_bytes(
        f"ply\nformat binary_little_endian 1.0\nelement vertex 3\n{header}end_header\n".encode() + rows.tobytes()
    )
    with pytest.raises(CloudFileError, match="no points"):
        read_point_cloud(path)


@pytest.mark.parametrize("suffix", [".ply", ".pcd"])
def test_paths_that_are_not_utf8_are_written_and_read(tmp_path, suffix):
    path = tmp_path / os.fsdecode(b"b\xff\xfed") / os.fsdecode(b"c\xff" + suffix.encode())
    cloud = _cloud()
    write_point_cloud(cloud, path)
    np.testing.assert_array_equal(read_point_cloud(path).points, cloud.points)
