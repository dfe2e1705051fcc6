"""Loading of sequences, saved maps, results and clouds for the viewer, and errors that name the path."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers.viewer import LEVEL, POSES, imagined_views, write_sequence

from worldstereo_ros.geometry.cameras import Camera
from worldstereo_ros.geometry.provenance import Provenance
from worldstereo_ros.geometry.views import ImaginedView
from worldstereo_ros.visualization.viewer.loading import (
    MAX_IMAGE_WIDTH_PX,
    MAX_SHOWN_VIEWS,
    ViewableError,
    load_viewable,
    shrink,
)


def test_posed_sequence_is_fused_into_a_cloud(tmp_path, wall_views):
    shown = load_viewable(write_sequence(tmp_path / "run", wall_views))
    assert shown.kind == "posed sequence"
    assert shown.name == "run"
    assert len(shown.points) > 300
    assert np.abs(shown.points[:, 0] - 2.0).max() < 0.02  # depth is stored in millimetres, voxels are 1 cm
    left = shown.points[:, 1] > 0.05
    assert (shown.colours[left, 0] > 150).mean() > 0.95
    assert shown.observed.all()
    assert len(shown.observed_views) == 4 == len(shown.path)
    assert shown.imagined == ()
    assert shown.slider_views == shown.observed_views
    np.testing.assert_allclose(shown.path, POSES, atol=1e-6)
    np.testing.assert_array_equal(shown.up, [0, 0, 1])


def test_observed_masks_make_points_imagined(tmp_path, wall_views):
    left = np.zeros((30, 40), bool)
    left[:, :20] = True
    shown = load_viewable(write_sequence(tmp_path / "run", wall_views, observed=left, conditioning=True))
    assert shown.observed_views == ()
    assert len(shown.imagined) == 4
    assert [view.index for view in shown.imagined] == [0, 1, 2, 3]
    np.testing.assert_array_equal(shown.imagined[2].observed, left)
    assert (shown.imagined[2].conditioning == 128).all()
    assert shown.observed[shown.points[:, 1] > 0.1].all()
    assert not shown.observed[shown.points[:, 1] < -0.1].any()


def test_sequence_without_depth_has_cameras_only(tmp_path, wall_views):
    shown = load_viewable(write_sequence(tmp_path / "run", wall_views, depth=False))
    assert len(shown.points) == 0
    assert len(shown.observed_views) == 4
    assert "no depth" in " ".join(shown.notes)


def test_long_sequence_is_thinned_with_a_note(tmp_path, wall_views):
    many = [wall_views[0]] * (MAX_SHOWN_VIEWS + 20)
    shown = load_viewable(write_sequence(tmp_path / "run", many, depth=False))
    assert len(shown.observed_views) == MAX_SHOWN_VIEWS
    assert len(shown.path) == MAX_SHOWN_VIEWS + 20
    assert f"{MAX_SHOWN_VIEWS} of its {MAX_SHOWN_VIEWS + 20}" in shown.notes[0]


def test_saved_map_has_cloud_and_observed_views(tmp_path, wall_views):
    from worldstereo_ros.memory.archive import save_archive
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory

    cloud, bank = CloudMemory(0.01), ViewBank()
    half = np.arange(40)[None].repeat(30, 0) < 20
    for view in wall_views:
        cloud.insert(replace(view, observed=half))
    bank.add(wall_views[0])
    save_archive(tmp_path / "place.wsmap", cloud, bank, {})
    shown = load_viewable(tmp_path / "place.wsmap")
    assert shown.kind == "saved map"
    np.testing.assert_array_equal(shown.points, cloud.points)
    np.testing.assert_array_equal(shown.observed, cloud.observed)
    assert 0.2 < shown.observed.mean() < 0.8
    assert len(shown.observed_views) == 1
    assert not any("no observed/" in note for note in shown.notes)
    np.testing.assert_array_equal(shown.observed_views[0].image, wall_views[0].image)


def test_results_have_observed_and_imagined_views(tmp_path, wall_views):
    from worldstereo_ros.memory.archive import save_archive
    from worldstereo_ros.memory.bank import ViewBank
    from worldstereo_ros.memory.cloud import CloudMemory
    from worldstereo_ros.visualization.results import MAP_FILE, write_results

    cloud, imagined = CloudMemory(0.01), imagined_views(wall_views)
    cloud.insert(wall_views[0])
    write_results(tmp_path / "out", imagined, wall_views[:1], cloud, title="test")
    from_cloud_file = load_viewable(tmp_path / "out")
    save_archive(tmp_path / "out" / MAP_FILE, cloud, ViewBank(), {})
    shown = load_viewable(tmp_path / "out")
    assert shown.kind == from_cloud_file.kind == "results"
    assert shown.name == "out"
    np.testing.assert_array_equal(shown.points, cloud.points)
    assert len(from_cloud_file.points) == len(cloud)
    np.testing.assert_array_equal(np.sort(from_cloud_file.provenance), np.sort(cloud.provenance))
    assert len(shown.observed_views) == 1
    assert not any("no observed/" in note for note in shown.notes)
    assert len(shown.imagined) == 3
    np.testing.assert_array_equal(shown.imagined[1].image, wall_views[2].image)
    np.testing.assert_array_equal(shown.imagined[1].observed, imagined[1].observed)
    np.testing.assert_allclose(shown.path, POSES[1:], atol=1e-6)


def test_results_of_a_photo_without_depth_are_estimated(tmp_path, wall_views):
    from worldstereo_ros.memory.cloud import CloudMemory
    from worldstereo_ros.visualization.results import write_results

    whole = np.ones((30, 40), bool)
    sure = np.full((30, 40), 0.4, np.float32)
    photo = replace(wall_views[0], estimated=whole, depth_confidence=sure)
    imagined = [replace(view, observed=~whole, estimated=view.observed) for view in imagined_views(wall_views)]
    cloud = CloudMemory(0.01)
    cloud.insert(photo)
    write_results(tmp_path / "out", imagined, [photo], cloud, title="test")
    shown = load_viewable(tmp_path / "out")
    assert shown.classes == (Provenance.ESTIMATED,)
    np.testing.assert_allclose(shown.depth_confidence, 0.4, atol=1e-3)
    assert (shown.confidence == 1).all()
    (read,) = shown.observed_views
    assert read.is_observation
    assert read.estimated_mask.all()
    np.testing.assert_allclose(read.depth_confidence, 0.4, atol=1 / 255)
    np.testing.assert_array_equal(shown.imagined[0].provenance, imagined[0].provenance)
    assert shown.imagined[0].estimated_fraction == 0.5


def test_results_without_map_or_cloud_fuse_the_imagined_views(tmp_path, wall_views):
    write_sequence(tmp_path / "out" / "imagined", wall_views, observed=np.zeros((30, 40), bool))
    shown = load_viewable(tmp_path / "out")
    assert shown.kind == "results"
    assert len(shown.points) > 300
    assert not shown.observed.any()
    assert any("no observed/" in note for note in shown.notes)


@pytest.mark.parametrize("name", ["cloud.ply", "cloud.pcd"])
@pytest.mark.parametrize("with_observed", [True, False])
def test_cloud_files(tmp_path, name, with_observed):
    import open3d as o3d

    points = np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    colours = np.random.default_rng(1).integers(0, 256, (50, 3)).astype(np.uint8)
    cloud = o3d.t.geometry.PointCloud(points)
    cloud.point["colors"] = colours
    if with_observed:
        cloud.point["observed"] = (points[:, :1] > 0).astype(np.uint8)
    assert o3d.t.io.write_point_cloud(str(tmp_path / name), cloud)
    shown = load_viewable(tmp_path / name)
    np.testing.assert_allclose(shown.points, points, atol=1e-6)
    np.testing.assert_array_equal(shown.colours, colours)
    # A file that does not say what was observed claims nothing.
    expected = np.where(points[:, 0] > 0, Provenance.OBSERVED, Provenance.IMAGINED) if with_observed else np.zeros(50)
    np.testing.assert_array_equal(shown.provenance, expected)
    assert with_observed or "does not say" in shown.notes[-1]


def test_non_finite_points_are_left_out(tmp_path):
    # Open3D's own reader stops at `inf` and returns uninitialised memory.
    rows = ["0 0 1", "nan 0 1", "0 inf 1", "1 0 1"]
    header = "ply\nformat ascii 1.0\nelement vertex 4\n" + "".join(f"property float {a}\n" for a in "xyz")
    (tmp_path / "a.ply").write_text(header + "end_header\n" + "\n".join(rows) + "\n")
    shown = load_viewable(tmp_path / "a.ply")
    np.testing.assert_array_equal(shown.points, [[0, 0, 1], [1, 0, 1]])
    assert shown.colours.shape == (2, 3)
    assert "2 points" in shown.notes[0]


@pytest.mark.parametrize("endian", ["<", ">"])
def test_binary_ply_of_other_programs(tmp_path, endian):
    """Doubles, colours as numbers from 0 to 1, an unknown attribute, and faces after the vertices."""
    fields = [("x", "f8"), ("y", "f8"), ("z", "f8"), ("quality", "i2"), ("red", "f4"), ("green", "f4"), ("blue", "f4")]
    rows = np.zeros(3, np.dtype([(name, endian + kind) for name, kind in fields]))
    rows["x"], rows["green"], rows["quality"] = [1, 2, 3], [0, 0.5, 1], 7
    names = {"f8": "double", "f4": "float", "i2": "short"}
    header = f"ply\nformat binary_{'little' if endian == '<' else 'big'}_endian 1.0\ncomment a b\nelement vertex 3\n"
    header += "".join(f"property {names[kind]} {name}\n" for name, kind in fields)
    header += "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    (tmp_path / "mesh.ply").write_bytes(header.encode() + rows.tobytes() + b"\3" + bytes(12))
    shown = load_viewable(tmp_path / "mesh.ply")
    np.testing.assert_array_equal(shown.points, [[1, 0, 0], [2, 0, 0], [3, 0, 0]])
    np.testing.assert_array_equal(shown.colours, [[0, 0, 0], [0, 128, 0], [0, 255, 0]])


def bad_paths(folder):
    ply = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    (folder / "huge.ply").write_text(ply.format(90_000_000_000) + "0 0 0\n")
    (folder / "none.ply").write_text(ply.format(0))
    (folder / "word.ply").write_text(ply.format(2) + "0 0 0\n0 zero 0\n")
    (folder / "cut_ascii.ply").write_text(ply.format(3) + "0 0 0\n" + "0.000000000000000 0 0\n")
    (folder / "faces.ply").write_text(ply.format(1).replace("vertex", "face") + "0 0 0\n")
    (folder / "cut.ply").write_bytes(ply.format(9).replace("ascii", "binary_little_endian").encode() + b"\0" * 107)
    pcd = "VERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH {0}\nHEIGHT 1\nPOINTS {0}\nDATA {1}\n"
    (folder / "cut_ascii.pcd").write_text(pcd.format(3, "ascii") + "0 0 0\n" * 2)
    (folder / "cut.pcd").write_bytes(pcd.format(9, "binary").encode() + b"\0" * 107)
    (folder / "words.ply").write_text("these are no points")
    (folder / "words.pcd").write_text("these are no points")
    (folder / "notes.txt").write_text("hello")
    (folder / "map.wsmap").write_bytes(b"\0" * 100)
    (folder / "folder").mkdir()
    (folder / "clip" / "frames").mkdir(parents=True)
    cv2.imwrite(str(folder / "clip" / "frames" / "000000.png"), np.zeros((30, 40, 3), np.uint8))
    return {
        "missing": "does not exist",
        "huge.ply": "90,000,000,000 points",
        "none.ply": "no points",
        "cut.ply": "truncated or damaged",
        "cut_ascii.ply": "truncated or damaged",
        "cut_ascii.pcd": "truncated or damaged",
        "cut.pcd": "truncated or damaged",
        "faces.ply": "vertex COUNT",
        "word.ply": "damaged",
        "words.ply": "no PLY header",
        "words.pcd": "no PCD header",
        "notes.txt": "Expected a saved map",
        "map.wsmap": "map.wsmap",
        "folder": "not a known dataset",
        "clip": "without camera poses",
    }


def test_load_viewable_errors_name_the_path(tmp_path):
    for name, words in bad_paths(tmp_path).items():
        with pytest.raises(ViewableError) as caught:
            load_viewable(tmp_path / name)
        message = str(caught.value)
        assert words in message, name
        assert name in message
        assert message.endswith((".", ")."))


def test_damaged_frame_is_named_in_the_error(tmp_path, wall_views):
    folder = write_sequence(tmp_path / "run", wall_views)
    (folder / "depth" / "000002.png").write_bytes(b"not an image")
    with pytest.raises(ViewableError, match=r"000002\.png"):
        load_viewable(folder)


def test_real_sequence_is_loaded(shared_data):
    shown = load_viewable(shared_data / "rgbd_tum_fr3_cabinet")
    assert len(shown.points) > 100_000
    np.testing.assert_array_equal(shown.up, [0, 0, 1])  # SOURCE.md: world +Z is up
    assert len(shown.observed_views) == 58
    assert max(view.camera.width for view in shown.observed_views) == MAX_IMAGE_WIDTH_PX


def test_shrink_keeps_image_mask_and_conditioning_aligned(wall_views):
    camera = Camera.from_fov(1000, 600, 1.0)
    mask = np.zeros((600, 1000), bool)
    mask[:, :500] = True
    image = np.zeros((600, 1000, 3), np.uint8)
    image[:, :500] = 255
    small = shrink(ImaginedView(image, camera, LEVEL, None, mask, conditioning=image))
    assert small.camera.width == MAX_IMAGE_WIDTH_PX == small.image.shape[1] == small.conditioning.shape[1]
    assert small.observed.shape == small.image.shape[:2]
    assert (small.image[..., 0] > 127).mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(small.image, small.conditioning)
    assert shrink(wall_views[0]) is wall_views[0]


def test_notes_of_cloud_files_are_shown_and_missing_points_counted(tmp_path):
    import open3d as o3d

    points = np.array([[500_000.1, 5.4e6, 1], [500_000.2, 5.4e6, 1], [np.nan, 5.4e6, 1]])
    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
    assert o3d.t.io.write_point_cloud(str(tmp_path / "a.ply"), cloud)
    shown = load_viewable(tmp_path / "a.ply")
    np.testing.assert_allclose(shown.points[:, 0], [0.1, 0.2], atol=1e-6)
    notes = " ".join(shown.notes)
    assert "relative to (500000, 5400000, 0)" in notes
    assert "1 points with coordinates that are not finite are left out." in notes
