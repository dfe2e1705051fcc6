"""Splats and meshes in the viewer: found, read, drawn, toggled, filtered by provenance."""

import struct
import urllib.request

import numpy as np
import pytest
from helpers.splats import coloured_cube, random_splats
from helpers.viewer import CAMERA, POSES, wall_view, write_sequence

from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.io.meshes import write_mesh
from worldstereo_ros.io.splats import write_splats
from worldstereo_ros.memory.archive import save_archive
from worldstereo_ros.memory.bank import ViewBank
from worldstereo_ros.memory.cloud import CloudMemory
from worldstereo_ros.visualization.viewer import surfaces
from worldstereo_ros.visualization.viewer.app import open_page
from worldstereo_ros.visualization.viewer.loading import ViewableError, load_viewable
from worldstereo_ros.visualization.viewer.points import COLOURINGS


@pytest.fixture
def place(tmp_path):
    """A folder of results with a map, splats and a mesh."""
    cloud, bank = CloudMemory(voxel_size=0.05), ViewBank()
    for view in map(wall_view, POSES):
        cloud.insert(view)
        bank.add(view)
    save_archive(tmp_path / "world.wsmap", cloud, bank, {})
    write_splats(tmp_path / "splats.ply", random_splats(200, 1))
    write_mesh(tmp_path / "mesh.glb", coloured_cube(), up=np.array([0.0, 0.0, 1.0]))
    return tmp_path


def controls(page):
    return {handle.label: handle for handle in page.server.gui._gui_input_handle_from_uuid.values()}


def test_a_place_shows_splats_and_toggles_mesh_and_points(place):
    viewable = load_viewable(place)
    assert (viewable.kind, len(viewable.splats), len(viewable.mesh.triangles)) == ("place", 200, 12)
    assert len(viewable.observed_views) == 4
    page = open_page(viewable, port=0)
    try:
        with urllib.request.urlopen(page.url, timeout=10) as answer:
            assert answer.status == 200
        scene, named = page.scene, controls(page)
        assert {"Splats", "Mesh", "Points"} <= named.keys()
        assert all(handle.visible for handle, _ in scene.surfaces.splats)
        assert not scene.surfaces.mesh.visible
        assert not any(cloud.handle.visible for cloud in scene.clouds)
        named["Mesh"].value, named["Splats"].value, named["Points"].value = True, False, True
        assert scene.surfaces.mesh.visible
        assert not any(handle.visible for handle, _ in scene.surfaces.splats)
        assert any(cloud.handle.visible for cloud in scene.clouds)
    finally:
        page.stop()


def test_splats_follow_the_classes_and_the_colours(place):
    page = open_page(load_viewable(place), port=0)
    try:
        scene = page.scene
        classes = {kind for _, kind in scene.surfaces.splats}
        assert classes == {Provenance.IMAGINED, Provenance.ESTIMATED, Provenance.OBSERVED}
        scene.shown_classes = {Provenance.OBSERVED}
        scene.refresh()
        assert [handle.visible for handle, _ in scene.surfaces.splats] == [True, False, False]
        buffers = set()
        for colouring in COLOURINGS:
            scene.recolour(colouring)
            imagined = next(handle for handle, kind in scene.surfaces.splats if kind == Provenance.IMAGINED)
            assert not imagined.visible  # stays hidden
            buffers.add(imagined.buffer.tobytes())
        assert len(buffers) == 3
    finally:
        page.stop()


def test_small_splats_keep_their_shape_in_16_bits(place):
    viewable = load_viewable(place)
    small = viewable.splats.subset(np.arange(50))
    small = type(small)(small.means * 1e-4, small.quaternions, small.scales * 1e-4, small.opacities, small.harmonics,
                        small.provenance)  # fmt: skip
    page = open_page(type(viewable)(**{**vars(viewable), "splats": small, "mesh": None}), port=0)
    try:
        for handle, kind in page.scene.surfaces.splats:
            part = small.subset(small.provenance == kind)
            words = np.asarray(handle.buffer)
            centres = words[:, :3].copy().view(np.float32) * handle.scale
            upper = words[:, 4:7].copy().view(np.float16).astype(np.float64) * handle.scale**2
            np.testing.assert_allclose(centres, part.means, rtol=1e-4)
            np.testing.assert_allclose(upper[:, [0, 3, 5]], part.covariances[:, range(3), range(3)], rtol=0.02)
    finally:
        page.stop()


@pytest.mark.parametrize("name", ["a.ply", "a.spz", "a.glb", "a.gltf"])
def test_a_file_of_splats_is_shown_as_splats(tmp_path, name):
    if name.endswith("spz"):
        pytest.importorskip("gsply")
    write_splats(tmp_path / name, random_splats(60, 1))
    viewable = load_viewable(tmp_path / name)
    assert (viewable.kind, len(viewable.splats), viewable.mesh) == ("splats", 60, None)
    assert len(viewable.points) == 60
    assert any("unit is unknown" in note for note in viewable.notes) == (not name.endswith("spz"))


@pytest.mark.parametrize("name", ["a.ply", "a.glb"])
def test_a_mesh_is_shown_as_a_mesh(tmp_path, name):
    write_mesh(tmp_path / name, coloured_cube())
    viewable = load_viewable(tmp_path / name)
    assert viewable.splats is None
    np.testing.assert_array_equal(viewable.mesh.triangles, coloured_cube().triangles)
    np.testing.assert_array_equal(viewable.points, coloured_cube().vertices)


def test_the_page_gets_the_mesh_in_world_coordinates(place):
    """The node of the file turns it upright for other viewers; this page has its own up direction."""
    page = open_page(load_viewable(place), port=0)
    try:
        content = page.scene.surfaces.mesh.glb_data
        size = struct.unpack("<I", content[12:16])[0]
        assert b"rotation" not in content[20 : 20 + size]
    finally:
        page.stop()


def test_splats_beside_imagined_views_are_shown_with_them(tmp_path, wall_views):
    folder = tmp_path / "run"
    write_sequence(folder / "imagined", wall_views, observed=np.zeros((CAMERA.height, CAMERA.width), bool))
    write_splats(folder / "splats.ply", random_splats(20, 1))
    viewable = load_viewable(folder)
    assert viewable.kind == "results"
    assert len(viewable.splats) == 20
    assert len(viewable.imagined) == 4


def test_only_the_largest_splats_are_sent(place, monkeypatch):
    monkeypatch.setattr(surfaces, "MAX_SPLATS", 30)
    viewable = load_viewable(place)
    page = open_page(viewable, port=0)
    try:
        assert page.scene.surfaces.splat_count == 30
        assert sum(len(handle.buffer) for handle, _ in page.scene.surfaces.splats) == 30
    finally:
        page.stop()


def test_damaged_files_are_named(tmp_path):
    for name, words in (("a.glb", "binary glTF"), ("splats.spz", "spz")):
        (tmp_path / name).write_bytes(b"nothing of this kind" * 3)
        with pytest.raises(ViewableError, match=words):
            load_viewable(tmp_path / name)
