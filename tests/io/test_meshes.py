"""Mesh files: equal after a round trip, by this reader and by others; damaged files."""

import json

import numpy as np
import pytest
from helpers.splats import coloured_cube

from worldstereo_ros.io.meshes import Mesh, MeshFileError, read_mesh, write_mesh
from worldstereo_ros.utils.errors import InputError


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".gltf"])
def test_meshes_come_back_equal(tmp_path, suffix):
    mesh = coloured_cube()
    write_mesh(tmp_path / f"a{suffix}", mesh, up=np.array([0.0, 0.0, 1.0]))
    again = read_mesh(tmp_path / f"a{suffix}")
    for name in ("vertices", "triangles", "colours", "normals", "provenance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(mesh, name), err_msg=name)
    assert again.metric is False


@pytest.mark.parametrize("suffix", [".glb", ".gltf"])
def test_every_8_bit_colour_survives_gltf(tmp_path, suffix):
    levels = np.arange(256, dtype=np.uint8)
    colours = np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=1)
    vertices = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    write_mesh(tmp_path / f"a{suffix}", Mesh(vertices, np.arange(255).reshape(-1, 3), colours))
    np.testing.assert_array_equal(read_mesh(tmp_path / f"a{suffix}").colours, colours)


def test_open3d_reads_the_same_from_ply(tmp_path):
    o3d = pytest.importorskip("open3d")
    mesh = coloured_cube()
    write_mesh(tmp_path / "a.ply", mesh)
    other = o3d.io.read_triangle_mesh(str(tmp_path / "a.ply"))
    np.testing.assert_array_equal(np.asarray(other.vertices, np.float32), mesh.vertices)
    np.testing.assert_array_equal(np.asarray(other.triangles), mesh.triangles)
    np.testing.assert_array_equal(np.rint(np.asarray(other.vertex_colors) * 255), mesh.colours)
    np.testing.assert_allclose(np.asarray(other.vertex_normals), mesh.normals, atol=1e-7)
    assert other.is_watertight()


def test_trimesh_reads_the_same_from_glb(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    mesh = coloured_cube()
    write_mesh(tmp_path / "a.glb", mesh)
    scene = trimesh.load(tmp_path / "a.glb", process=False)
    (other,) = scene.geometry.values()
    np.testing.assert_array_equal(other.vertices.astype(np.float32), mesh.vertices)
    np.testing.assert_array_equal(other.faces, mesh.triangles)
    assert other.is_watertight
    assert other.volume == pytest.approx(8)


def test_truncated_and_damaged_files_are_refused(tmp_path):
    for suffix in (".ply", ".glb", ".gltf"):
        path = tmp_path / f"a{suffix}"
        write_mesh(path, coloured_cube())
        content = path.read_bytes()
        for size in (0, 3, 100, len(content) // 2, len(content) - 6):
            path.write_bytes(content[:size])
            with pytest.raises(MeshFileError, match=str(path)):
                read_mesh(path)
    write_mesh(tmp_path / "a.ply", coloured_cube())
    content = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(content.replace(b"face 12", b"face 99"))
    with pytest.raises(MeshFileError, match="truncated"):
        read_mesh(tmp_path / "a.ply")
    (tmp_path / "a.ply").write_bytes(content.replace(b"element face 12\nproperty list uchar int vertex_indices\n", b""))
    with pytest.raises(MeshFileError, match="vertex and face were expected"):
        read_mesh(tmp_path / "a.ply")


def test_offsets_outside_of_a_gltf_are_refused(tmp_path):
    write_mesh(tmp_path / "a.gltf", coloured_cube())
    document = json.loads((tmp_path / "a.gltf").read_text())
    for key, value in (("count", 10**12), ("byteOffset", 10**9), ("byteOffset", -4), ("bufferView", 77)):
        changed = json.loads(json.dumps(document))
        changed["accessors"][0][key] = value
        (tmp_path / "b.gltf").write_text(json.dumps(changed))
        with pytest.raises(MeshFileError, match=r"b\.gltf"):
            read_mesh(tmp_path / "b.gltf")


def test_invalid_meshes_are_refused(tmp_path):
    cube = coloured_cube()
    with pytest.raises(InputError, match="has vertex 8; the mesh has 8 vertices"):
        Mesh(cube.vertices, np.array([[0, 1, 8]]), cube.colours)
    with pytest.raises(InputError, match="colours have shape"):
        Mesh(cube.vertices, cube.triangles, cube.colours[:3])
    with pytest.raises(InputError, match="not finite"):
        Mesh(cube.vertices * np.nan, cube.triangles, cube.colours)
    with pytest.raises(MeshFileError, match="no triangles"):
        write_mesh(tmp_path / "a.ply", Mesh(cube.vertices, cube.triangles[:0], cube.colours))
    with pytest.raises(MeshFileError, match=r"suffix '\.stl'"):
        write_mesh(tmp_path / "a.stl", cube)
