"""Meshes from views with depth and from clouds: where the surface is, its colours, provenance, and bad input."""

from dataclasses import replace

import numpy as np
import pytest

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.trajectories import trajectory
from worldstereo_ros.geometry.views import View
from worldstereo_ros.io.meshes import read_mesh, write_mesh
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.reconstruction import meshing
from worldstereo_ros.reconstruction.meshing import mesh_from_cloud, mesh_from_views
from worldstereo_ros.utils.errors import InputError

CENTRE, RADIUS = np.array([0.2, -0.1, 3.0]), 0.8
CAMERA = Camera.from_fov(120, 90, np.radians(50))


def ball_view(pose):
    """A view of a ball, red where x > its centre's, else blue; nothing behind it."""
    rays = CAMERA.rays().astype(np.float64) @ pose[:3, :3].T
    to_centre = CENTRE - pose[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ to_centre, to_centre @ to_centre - RADIUS**2
    inside = b**2 - a * c
    depth = np.where(inside > 0, (b - np.sqrt(np.maximum(inside, 0))) / a, 0).astype(np.float32)
    points = pose[:3, 3] + rays * depth[..., None]
    image = np.where(points[..., :1] > CENTRE[0], np.uint8([200, 20, 30]), np.uint8([10, 40, 220]))
    return View(image, CAMERA, pose, depth)


@pytest.fixture(scope="module")
def views():
    poses = trajectory("orbit", np.eye(4), 5, angle=1.2, radius=3.0)
    return [ball_view(pose) for pose in poses]


def distances(mesh):
    return np.linalg.norm(mesh.vertices - CENTRE, axis=1) - RADIUS


def test_surface_of_views_lies_on_the_ball(views):
    mesh = mesh_from_views(views)
    assert len(mesh.triangles) > 1000
    assert np.abs(distances(mesh)).mean() < 0.01
    assert np.percentile(np.abs(distances(mesh)), 99) < 0.04
    outward = ((mesh.vertices - CENTRE) * mesh.normals).sum(1) / RADIUS
    assert np.median(outward) > 0.95
    edges = mesh.vertices[mesh.triangles]
    facing = np.cross(edges[:, 1] - edges[:, 0], edges[:, 2] - edges[:, 0])
    assert (np.sign((facing * (edges.mean(1) - CENTRE)).sum(1)) > 0).mean() > 0.98
    right = mesh.vertices[:, 0] > CENTRE[0] + 0.1
    assert (mesh.colours[right][:, 0] > 120).mean() > 0.98
    assert (mesh.colours[mesh.vertices[:, 0] < CENTRE[0] - 0.1][:, 2] > 120).mean() > 0.98
    assert (mesh.provenance == Provenance.OBSERVED).all()


def test_provenance_of_a_vertex_is_that_of_the_pixels_that_show_it(views):
    left = np.zeros((90, 120), bool)
    left[:, :60] = True
    first = views[0]
    imagined = replace(first, observed=left)
    mesh = mesh_from_views([imagined] * 2 + [replace(view, estimated=view.depth > 0) for view in views[2:]])
    assert set(np.unique(mesh.provenance)) == {Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED}
    alone = mesh_from_views([imagined])
    x = (alone.vertices[:, 0] / alone.vertices[:, 2]) * CAMERA.fx + CAMERA.cx
    assert (alone.provenance[x < 58] == Provenance.OBSERVED).mean() > 0.99
    assert (alone.provenance[x > 62] == Provenance.IMAGINED).mean() > 0.99


def test_surface_far_from_the_origin_is_as_exact(views):
    offset = np.array([50_000.0, -20_000.0, 300.0])
    far = []
    for view in views:
        pose = view.world_from_camera.copy()
        pose[:3, 3] += offset
        far.append(replace(view, world_from_camera=pose))
    mesh = mesh_from_views(far)
    assert np.abs(np.linalg.norm(mesh.vertices - CENTRE - offset, axis=1) - RADIUS).mean() < 0.015


def test_poisson_surface_ends_where_the_points_end(views):
    cloud = CloudMemory(voxel_size=0.03)
    for view in views:
        cloud.insert(view)
    centres = np.stack([view.world_from_camera[:3, 3] for view in views])
    mesh = mesh_from_cloud(cloud, centres, depth=6, metric=False)
    assert len(mesh.triangles) > 300
    assert np.abs(distances(mesh)).mean() < 0.02
    assert mesh.metric is False
    sides = (mesh.vertices - CENTRE) @ (centres - CENTRE).T / np.linalg.norm(centres - CENTRE, axis=1) / RADIUS
    assert sides.max(axis=1).min() > 0  # nothing on its back, which no camera saw
    outward = ((mesh.vertices - CENTRE) * mesh.normals).sum(1) / RADIUS
    assert np.median(outward) > 0.9
    assert (mesh.provenance == Provenance.OBSERVED).all()


def test_a_mesh_survives_its_files(views, tmp_path):
    mesh = mesh_from_views(views[:2], voxel_size=0.06)
    for name in ("a.ply", "a.glb"):
        write_mesh(tmp_path / name, mesh)
        np.testing.assert_array_equal(read_mesh(tmp_path / name).colours, mesh.colours)


def test_voxels_grow_where_memory_asks_for_it(views, monkeypatch):
    fine = mesh_from_views(views)
    monkeypatch.setattr(meshing, "MAX_BLOCKS", 12)
    coarse = mesh_from_views(views)
    assert 20 < len(coarse.triangles) < 0.7 * len(fine.triangles)
    with pytest.raises(InputError, match=r"need \d+ blocks of 16\^3 for these views"):
        mesh_from_views(views, voxel_size=0.01)


def test_bad_input_is_refused(views):
    with pytest.raises(InputError, match="None of the 1 views has depth"):
        mesh_from_views([replace(views[0], depth=None)])
    with pytest.raises(InputError, match="one unit"):
        mesh_from_views([views[0], replace(views[1], metric=False)])
    with pytest.raises(InputError, match="voxel size is 0"):
        mesh_from_views(views, voxel_size=0.0)
    cloud = CloudMemory(voxel_size=0.05)
    with pytest.raises(InputError, match="0 points; a surface needs"):
        mesh_from_cloud(cloud, np.zeros((1, 3)))
    cloud.insert(views[0])
    with pytest.raises(InputError, match="needs to know the outside"):
        mesh_from_cloud(cloud)
    with pytest.raises(InputError, match="at least one camera"):
        mesh_from_cloud(cloud, np.zeros((0, 3)))
    with pytest.raises(InputError, match="octree is 15"):
        mesh_from_cloud(cloud, np.zeros((1, 3)), depth=15)
    with pytest.raises(InputError, match="normals have shape"):
        mesh_from_cloud(cloud, normals=np.zeros((2, 3)))
